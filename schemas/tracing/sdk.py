"""The tracer of a process: OpenTelemetry's SDK with our ids, our sampling and an outbox that never blocks.

Made by schemas.tracing.tracing alone, so that nothing here is imported while tracing is off. The SDK's global tracer
stays unset: what libraries would trace by themselves is not ours to send.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from urllib.parse import unquote

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    TraceFlags,
    TraceState,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.util.types import Attributes

from schemas.errors import SettingsError
from schemas.settings.tracing import Tracing
from schemas.tracing.context import TRACEPARENT, TRACESTATE, Parent
from schemas.tracing.outbox import Outbox

MOST_LINKS = 1000  # of a span; the cases of a landing file
_RANDOM_BITS = 56  # of a trace id, its lowest, are random also where it is a UUID; W3C counts on these too

_wanted: ContextVar[tuple[int, int]] = ContextVar("wanted", default=(0, 0))  # (trace id, span id) of the next span


class Tracer:
    """Makes spans. `record_content` tells whether they may hold what was asked and answered."""

    def __init__(self, settings: Tracing, process: str) -> None:
        self.record_content = settings.record_content
        exporter = OTLPSpanExporter(
            endpoint=_traces_address(settings.endpoint),
            headers=_headers(settings.headers_env),
            timeout=settings.timeout_s,
        )
        self.outbox = Outbox(exporter)
        told = dict(settings.resource) | {
            "service.name": f"{settings.service_name}-{process}",
            "service.namespace": settings.service_name,
            "service.instance.id": f"{os.uname().nodename}-{os.getpid()}",
        }
        self._provider = TracerProvider(
            sampler=_CaseSampler(settings.ratio),
            resource=Resource.create(told),
            shutdown_on_exit=False,
            id_generator=_Ids(),
            span_limits=SpanLimits(max_links=MOST_LINKS),
        )
        self._provider.add_span_processor(self.outbox)
        self._tracer = self._provider.get_tracer("goldstream")

    def start(
        self,
        name: str,
        kind: SpanKind,
        parent: Parent | Span | None = None,
        *,
        trace_id: str = "",
        span_id: str = "",
        attributes: Attributes = None,
        links: Sequence[Parent] = (),
        start_ns: int | None = None,
    ) -> Span:
        """Starts a span under `parent`, else as the first of the trace `trace_id`, else of a new one.

        Under a parent that is not sampled there is nothing to start: its context goes on as it came, which is cheap.
        """
        if isinstance(parent, Parent) and not parent.sampled:
            return NonRecordingSpan(remote(parent))
        if isinstance(parent, Span) and not parent.is_recording() and parent.get_span_context().is_valid:
            return parent
        if isinstance(parent, Parent):
            context = set_span_in_context(NonRecordingSpan(remote(parent)), Context())
        else:
            context = Context() if parent is None else set_span_in_context(parent, Context())
        linked = [Link(remote(one)) for one in links]
        token = _wanted.set((int(trace_id or "0", 16), int(span_id or "0", 16)))
        try:
            return self._tracer.start_span(name, context, kind, attributes, linked, start_ns)
        finally:
            _wanted.reset(token)

    def close(self) -> None:
        """Sends what waits, for a few seconds at most, and stops."""
        self._provider.shutdown()


def remote(parent: Parent) -> SpanContext:
    """Returns a context that came from elsewhere as OpenTelemetry holds it."""
    state = TraceState.from_header([parent.state]) if parent.state else None
    flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), True, flags, state)


def parent_of(span: Span) -> Parent:
    """Returns a span as the parent of what comes after it."""
    context = span.get_span_context()
    state = context.trace_state.to_header() if context.trace_state else ""
    return Parent(f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags.sampled, state)


def headers_of(span: Span) -> list[tuple[str, bytes]]:
    """Returns the Kafka headers that carry a span's context."""
    parent = parent_of(span)
    headers = [(TRACEPARENT, parent.header.encode())]
    return [*headers, (TRACESTATE, parent.state.encode())] if parent.state else headers


class _CaseSampler(Sampler):
    """Decides by the parent; else by the links, for a batch of cases; else by the trace id, alike in every process.

    What has neither and is no message's is a training run or a person's doing: rare, and always kept.
    """

    def __init__(self, ratio: float) -> None:
        self._least = round((1 - ratio) * 2**_RANDOM_BITS)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """Returns the decision, with the parent's tracestate."""
        parent = get_current_span(parent_context).get_span_context()
        if parent.is_valid:
            is_sampled = parent.trace_flags.sampled
        elif kind is SpanKind.INTERNAL:
            is_sampled = True
        elif links:
            is_sampled = any(link.context.trace_flags.sampled for link in links)
        else:
            is_sampled = trace_id & (2**_RANDOM_BITS - 1) >= self._least
        state = parent.trace_state if parent.is_valid else None
        if is_sampled:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, state)
        return SamplingResult(Decision.DROP, None, state)

    def get_description(self) -> str:
        """Returns how it decides, in short."""
        return "goldstream: parent, links, else the ratio"


class _Ids(RandomIdGenerator):
    """Random ids, but for those that `Tracer.start` was told."""

    def generate_trace_id(self) -> int:
        return _wanted.get()[0] or super().generate_trace_id()

    def generate_span_id(self) -> int:
        return _wanted.get()[1] or super().generate_span_id()

    def is_trace_id_random(self) -> bool:
        return False


def _traces_address(endpoint: str) -> str:
    bare = re.fullmatch(r"(https?://[^/]+)/?", endpoint)
    return f"{bare[1]}/v1/traces" if bare else endpoint


def _headers(variable: str) -> Mapping[str, str] | None:
    """Returns the headers that a variable holds, as OTEL_EXPORTER_OTLP_HEADERS would; never repeats them."""
    if not variable:
        return None
    if not (text := os.environ.get(variable, "")):
        raise SettingsError(
            f"tracing.headers_env names {variable}, which is not set. Export it: name=value,name=value."
        )
    found = {}
    for pair in text.split(","):
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9-]+", name.strip()):
            raise SettingsError(f"{variable} holds something else than name=value,name=value; expected header names.")
        found[name.strip()] = unquote(value.strip())
    return found
