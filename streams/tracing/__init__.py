"""The spans of cases on their way through our topics: hops for processes that pass cases on, landing for the sink.

Each stream process asks here for what makes its spans. Where tracing is off it gets None, and nothing of OpenTelemetry
is imported. The context travels in the Kafka headers traceparent and tracestate; a case that ends keeps it too, since
headers do not reach the gold set, from which redrive and review bring it back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.settings import Settings
from schemas.tracing import tracer

if TYPE_CHECKING:
    from streams.tracing.hops import Hops
    from streams.tracing.landing import Landing


def trace_hops(settings: Settings, process: str) -> Hops | None:
    """Returns what makes the spans of a process that passes cases on; `process` is a role or intake, retries, ..."""
    if (ours := tracer()) is None:
        return None
    from streams.tracing.hops import Hops

    return Hops(ours, settings, process)


def trace_landing(topic: str, group: str) -> Landing | None:
    """Returns what makes the spans of the sink."""
    if (ours := tracer()) is None:
        return None
    from streams.tracing.landing import Landing

    return Landing(ours, topic, group)
