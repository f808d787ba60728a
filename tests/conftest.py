"""What tests share: a real broker for the session, settings with topics of their own, a stub model server.

Everything a fixture starts, it stops by its own id, also when the test fails.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stub_models import StubModels

from schemas.settings import Settings, load_settings


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real one-node Kafka; gives its bootstrap servers."""
    from streams.broker import start_broker, stop_broker

    settings = load_settings(None, [f"state_dir={tmp_path_factory.mktemp('broker')}"], environ={})
    status = start_broker(settings)
    try:
        yield status.bootstrap_servers
    finally:
        stop_broker(settings)


@pytest.fixture
def models() -> Iterator[StubModels]:
    """An OpenAI-compatible server whose answers a test decides."""
    with StubModels() as server:
        yield server


@pytest.fixture
def make_settings(kafka: str, tmp_path: Path) -> Callable[..., Settings]:
    """Gives settings on the session's broker with topics and state of the test's own."""
    prefix = f"t{uuid.uuid4().hex[:8]}."

    def make(toml: str = "", *overrides: str) -> Settings:
        path = tmp_path / "goldstream.toml"
        path.write_text(toml)
        base = [f"kafka.bootstrap_servers={kafka}", f"kafka.topic_prefix={prefix}", f"state_dir={tmp_path / 'state'}"]
        return load_settings(path, [*base, *overrides], environ={})

    return make
