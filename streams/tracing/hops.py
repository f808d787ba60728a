"""A hop of a case: the span of what a process does with it, and in it that of sending it on.

Names and attributes follow OpenTelemetry's conventions for messaging; what they have no word for is goldstream.*. No
text of a case, user or key enters an attribute, unless tracing.record_content lets a verdict's reasons in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec
from opentelemetry import context as current
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, get_current_span, set_span_in_context
from opentelemetry.util.types import AttributeValue

from schemas.case import Case, Verdict
from schemas.settings import Settings
from schemas.tracing.context import Parent, parent_in, read_traceparent
from schemas.tracing.context import case_trace as trace_of_case
from schemas.tracing.sdk import Tracer, headers_of, parent_of
from streams.tracing.relay import Relay

Attributes = dict[str, AttributeValue]


class Hops:
    """Makes the spans of one process. A stage uses `begin`, `decided`, `sending` and `end`; the others `relay`."""

    def __init__(self, tracer: Tracer, settings: Settings, process: str) -> None:
        self._tracer, self._process = tracer, process
        self._group = settings.topic(process)

    def begin(self, case: Case, message: Any) -> None:
        """Starts a stage's span for a case that a Faust message brought, and makes it this task's current one."""
        place = (message.tp.topic, message.tp.partition, message.offset)
        span = self._taken(case, place, parent_in(getattr(message, "headers", None)))
        current.attach(set_span_in_context(span))  # to the end of the task, which works on this case alone

    def decided(self, before: Case | None, topic: str, case: Case) -> Case:
        """Notes what the stage made of a case; returns it as it is sent: one that rests now keeps its context."""
        span = get_current_span()
        if span.is_recording():
            span.set_attributes(_made(topic, case))
            attempt = case.attempts[-1] if case.attempts else None
            if attempt is not None and attempt.verdict is not None and not _has_verdict(before, attempt.round):
                span.add_event("gen_ai.evaluation.result", self._verdict(attempt.verdict, attempt.round))
            _mark(span, case)
        is_at_rest = case.outcome is not None or case.retry_stage
        return _keeping(case, span) if is_at_rest else case

    @contextlib.contextmanager
    def sending(self, topic: str, key: bytes) -> Iterator[list[tuple[str, bytes]]]:
        """Gives the headers of a message; the block ends when the broker has it."""
        with sent_span(self._tracer, topic, key.decode(), get_current_span()) as span:
            yield headers_of(span)

    def end(self, is_done: bool) -> None:
        """Ends a stage's span; a case that is not done was taken away by a rebalance or a stop, and comes again."""
        span = get_current_span()
        if not is_done and span.is_recording():
            span.set_attribute("goldstream.abandoned", True)
        span.end()

    def admit(self, case: Case, topic: str) -> Relay | None:
        """Starts the spans of a record that intake made a case of; None for one that it leaves out."""
        if case.outcome is not None and case.outcome.kind == "dropped":
            return None
        source, parent = case.source, read_traceparent(case.traceparent)
        place = (source.topic, source.partition, source.offset)
        span = self._taken(case, place, parent, start_ns=case.created_ms * 1_000_000)
        _mark(span, case)
        return self._relay(case, topic, span)

    def give_back(self, case: Case, topic: str, tp: Any, waited: Any) -> Relay:
        """Starts the spans of a case that `waited` on a retry topic and returns to its stage."""
        place = (tp.topic, tp.partition, waited.offset)
        span = self._taken(case, place, parent_in(waited.headers), start_ns=waited.since_ns)
        _mark(span, case)
        return self._relay(case, topic, span)

    def bring_back(self, case: Case, topic: str) -> Relay:
        """Starts the spans of a case that a person brings back from the gold set.

        They hang under the span that the case was kept with, and link to it: it ended there, and what comes now is
        no part of that work. The trace is the case's own in any case.
        """
        ended, trace = read_traceparent(case.traceparent), trace_of_case(case.case_id, case.trace_id)
        links = [ended] if ended is not None else []
        span = self._tracer.start(self._process, SpanKind.INTERNAL, ended, trace_id=trace, links=links)
        if span.is_recording():
            span.set_attributes(self._about(case))
        _mark(span, case)
        return self._relay(case, topic, span)

    def _taken(
        self, case: Case, place: tuple[str, int, int], parent: Parent | None, start_ns: int | None = None
    ) -> Span:
        topic, partition, offset = place
        span = self._tracer.start(
            f"process {topic}",
            SpanKind.CONSUMER,
            parent or read_traceparent(case.traceparent),
            trace_id=trace_of_case(case.case_id, case.trace_id),
            start_ns=start_ns,
        )
        if span.is_recording():
            found: Attributes = {
                "messaging.system": "kafka",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": topic,
                "messaging.destination.partition.id": str(partition),
                "messaging.kafka.offset": offset,
                "messaging.consumer.group.name": self._group,
            }
            span.set_attributes(found | self._about(case))
        return span

    def _about(self, case: Case) -> Attributes:
        found: Attributes = {
            "goldstream.case_id": case.case_id,
            "goldstream.task": case.task,
            "goldstream.stage": self._process,
            "goldstream.split": case.split,
            "goldstream.round": case.rounds,
        }
        if case.epoch:
            found["goldstream.epoch"] = case.epoch
        if case.retries:
            found["goldstream.retries"] = case.retries
        return found

    def _relay(self, case: Case, topic: str, span: Span) -> Relay:
        if span.is_recording():
            span.set_attribute("goldstream.to", topic)
        sending = start_sending(self._tracer, topic, case.case_id, span)
        return Relay(_keeping(case, span), span, sending)

    def _verdict(self, verdict: Verdict, round: int) -> Attributes:
        found: Attributes = {
            "gen_ai.evaluation.name": f"rubric {verdict.rubric}".strip(),
            "gen_ai.evaluation.score.value": verdict.score,
            "gen_ai.evaluation.score.label": "pass" if verdict.passed else "fail",
            "goldstream.max_score": verdict.max_score,
            "goldstream.rules": [violation.rule for violation in verdict.violations],
            "goldstream.judge": verdict.judge,
            "goldstream.round": round,
        }
        if self._tracer.record_content and verdict.violations:
            found["gen_ai.evaluation.explanation"] = "\n".join(one.why for one in verdict.violations)
        return found


@contextlib.contextmanager
def sent_span(tracer: Tracer, topic: str, case_id: str, parent: Span) -> Iterator[Span]:
    """Gives the span of a message being sent; an error that ends the block is noted by its type."""
    span = start_sending(tracer, topic, case_id, parent)
    try:
        yield span
    except BaseException as error:
        fail(span, type(error).__name__)
        raise
    finally:
        span.end()


def start_sending(tracer: Tracer, topic: str, case_id: str, parent: Span) -> Span:
    """Starts the span of a message being sent; its context goes into the message's headers."""
    span = tracer.start(f"send {topic}", SpanKind.PRODUCER, parent)
    if span.is_recording():
        span.set_attributes(
            {
                "messaging.system": "kafka",
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
                "messaging.destination.name": topic,
                "messaging.kafka.message.key": case_id,
            }
        )
    return span


def fail(span: Span, kind: str) -> None:
    """Marks a span as failed, by the kind of error; its text may quote a case and is not told."""
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))


def _made(topic: str, case: Case) -> Attributes:
    found: Attributes = {"goldstream.to": topic, "goldstream.round": case.rounds}
    if case.attempts and case.attempts[-1].adapter:
        found["goldstream.adapter"] = case.attempts[-1].adapter
    return found


def _mark(span: Span, case: Case) -> None:
    """Notes how a case ended, if it has; only a dead one is a failure."""
    end = case.outcome
    if end is None or not span.is_recording():
        return
    span.set_attribute("goldstream.outcome", end.kind)
    if end.reason:
        span.set_attribute("goldstream.reason", end.reason)
    if end.kind == "dead":
        fail(span, end.reason)


def _keeping(case: Case, span: Span) -> Case:
    """Returns a case that keeps a span's context, for who reads it without headers; what is forgotten keeps nothing."""
    if case.outcome is not None and case.outcome.kind == "dropped":
        return case
    return msgspec.structs.replace(case, traceparent=parent_of(span).header)


def _has_verdict(before: Case | None, round: int) -> bool:
    return before is not None and any(one.round == round and one.verdict is not None for one in before.attempts)
