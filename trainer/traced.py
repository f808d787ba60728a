"""A training run as a trace of its own, where tracing is on: the run, its training, its gate.

The run's span has ids made of task and version, so that the model call of any worker which uses the adapter can link
to it. Off, nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from schemas.adapters import AdapterManifest, GateReport
from schemas.tracing import tracer
from schemas.tracing.context import run_parent
from trainer.pinned import Pinned

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class TracedRun:
    """The spans of one run; without a tracer it makes none."""

    def __init__(self, span: Span | None = None) -> None:
        self._span = span

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Makes a block a span under the run's."""
        ours = tracer()
        if self._span is None or ours is None:
            yield
            return
        from opentelemetry.trace import SpanKind

        with _failing(ours.start(name, SpanKind.INTERNAL, self._span)):
            yield

    def trained(self, manifest: AdapterManifest) -> None:
        """Notes what was trained on."""
        if self._span is not None:
            self._span.set_attributes(
                {
                    "goldstream.rows": manifest.rows,
                    "goldstream.pairs": manifest.pairs,
                    "goldstream.base": manifest.base,
                    "goldstream.recipe": str(manifest.settings.get("recipe", "")),
                }
            )

    def gated(self, report: GateReport) -> None:
        """Notes the gate's result as an event."""
        if self._span is not None:
            found = {"before": report.before, "after": report.after, "p_value": report.p_value, "cases": report.cases}
            self._span.add_event(
                "goldstream.gate",
                {"goldstream.decision": report.decision, "goldstream.adapter": report.version}
                | {f"goldstream.{name}": value for name, value in found.items() if value is not None},
            )


@contextlib.contextmanager
def traced_run(pinned: Pinned, is_continued: bool) -> Iterator[TracedRun]:
    """Makes a block the span of a run; the rest of one that was interrupted hangs under the run's first span."""
    ours = tracer()
    if ours is None:
        yield TracedRun()
        return
    from opentelemetry.trace import SpanKind

    first = run_parent(pinned.task, pinned.version)
    if is_continued:
        span = ours.start(f"continue {pinned.task}", SpanKind.INTERNAL, first)
    else:
        name = f"run {pinned.task}"
        span = ours.start(name, SpanKind.INTERNAL, trace_id=first.trace_id, span_id=first.span_id)
    span.set_attributes(
        {
            "goldstream.task": pinned.task,
            "goldstream.adapter": pinned.version,
            "goldstream.parent_adapter": pinned.parent,
            "goldstream.revision": pinned.revision,
        }
    )
    with _failing(span):
        yield TracedRun(span)


@contextlib.contextmanager
def _failing(span: Span) -> Iterator[None]:
    """Ends a span with its block; an error is told by its type, since its text may quote gold."""
    from opentelemetry.trace import Status, StatusCode

    try:
        yield
    except BaseException as error:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR))
        raise
    finally:
        span.end()
