"""Tracing with OpenTelemetry: one trace a case across all topics, spans for model calls and training runs.

A process opens it with `tracing`; whoever makes spans asks `tracer` for it. Off, which is the default, nothing of
OpenTelemetry is imported and asking costs a name's look-up. The rest: context (W3C headers and ids), sdk (the tracer),
outbox (sending). Spans of hops stand in streams.tracing, those of model calls in agents.call_spans.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from schemas.errors import SetupError
from schemas.settings import Settings

if TYPE_CHECKING:
    from schemas.tracing.sdk import Tracer

_tracer: Tracer | None = None


def tracer() -> Tracer | None:
    """Returns this process's tracer, None where tracing is off."""
    return _tracer


@contextlib.contextmanager
def tracing(settings: Settings, process: str) -> Iterator[None]:
    """Sends the spans of this process while the block runs, if tracing is on.

    Raises SettingsError where the variable with the headers is not set, SetupError without the extra `tracing`.
    """
    global _tracer
    if not settings.tracing.endpoint:
        yield
        return
    try:
        from schemas.tracing.sdk import Tracer
    except ImportError as error:
        raise SetupError(
            f"tracing.endpoint is set, but {error.name} is not installed. Install the extra: pip install "
            "'.[tracing]', or remove the setting."
        ) from None
    before, _tracer = _tracer, Tracer(settings.tracing, process)
    try:
        yield
    finally:
        closing, _tracer = _tracer, before
        closing.close()
