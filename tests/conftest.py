"""What tests share: a real broker for the session, settings with topics of their own, a stub model server.

Everything a fixture starts, it stops by its own id, also when the test fails.
"""

from __future__ import annotations

import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stub_models import Reply, StubModels
from stub_vllm import StubVllm
from tiny import make_tiny_adapter, make_tiny_model

from schemas.settings import Gate, LocalModel, Model, Rubric, Rule, Settings, Task, Trainer, load_settings


def pytest_runtest_setup() -> None:
    """Lets SIGTERM, as `timeout` sends it, end a run as Ctrl-C does: fixtures stop what they started.

    Before each test anew: one that ran a process's own code has put that process's handler there.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


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


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Qwen3."""
    return make_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def tokenizer(base: Path) -> Any:
    """Its tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base, local_files_only=True)


@pytest.fixture
def settings(base: Path, tmp_path: Path) -> Settings:
    """One task, toy, whose student is the tiny model in process; it learns four lines in 30 steps."""
    task = Task(
        topics=("log",),
        rubric=Rubric(rules=(Rule(id="exact", text="be exact"),)),
        student=Model(model="local/tiny", max_tokens=8),
        trainer=Trainer(
            rank=16,
            alpha=32,
            learning_rate=1e-2,
            epochs=30,
            batch_size=4,
            threads=1,
            min_corrected_rows=4,
            max_overlap=1.0,  # the toys are asked what they were trained on
        ),
        gate=Gate(min_holdout=4, max_holdout=4),
    )
    return Settings(state_dir=str(tmp_path / "state"), local={"tiny": LocalModel(path=str(base))}, tasks={"toy": task})


@pytest.fixture(scope="session")
def run_folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves behind: a random adapter of the tiny model, not yet published."""
    folder = make_tiny_adapter(tmp_path_factory.mktemp("run") / "run", base)
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture
def vllm() -> Iterator[StubVllm]:
    server = StubVllm()
    yield server
    server.close()


@pytest.fixture
def other() -> Iterator[StubVllm]:
    server = StubVllm()
    yield server
    server.close()


@pytest.fixture
def hook(models: StubModels, monkeypatch: pytest.MonkeyPatch) -> StubModels:
    """What the variable HOOK points to; keeps the events it is told."""
    monkeypatch.setenv("HOOK", models.api_base)
    models.answer = lambda request: Reply(raw=b"{}")
    return models
