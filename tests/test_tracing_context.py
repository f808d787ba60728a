"""Which trace a case belongs to: W3C headers, what log shapes say, and what hostile ones are worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pipeline import openai_record

from schemas.settings import Settings
from schemas.tracing.context import Parent, carried, case_trace, logged_parent, parent_in, read_traceparent, trace_of
from streams.reader import Reader

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"
SAMPLES = Path(__file__).parents[1] / "deploy" / "samples"


def read(body: Any, *headers: tuple[str, bytes]) -> Any:
    value = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reader(Settings()).read(value, headers, "logs")[0].record


def test_a_traceparent_says_trace_span_and_whether_it_is_sampled() -> None:
    assert read_traceparent(GOOD) == Parent(TRACE, SPAN, True)
    assert read_traceparent(f"00-{TRACE}-{SPAN}-00") == Parent(TRACE, SPAN, False)
    assert read_traceparent(f"00-{TRACE}-{SPAN}-03") == Parent(TRACE, SPAN, True)
    assert read_traceparent(GOOD, "rojo=1").header == GOOD  # type: ignore[union-attr]


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert read_traceparent(f"cc-{TRACE}-{SPAN}-01-what-else") == Parent(TRACE, SPAN, True)


@pytest.mark.parametrize(
    "text",
    [
        "", "garbage", GOOD + "-more", GOOD.upper(), GOOD + "\n", " " + GOOD, GOOD[:-1],
        f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE[:-1]}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01-{'x' * 500}", f"00-{TRACE}-{SPAN}-0g", "00-" + "٣" * 32 + f"-{SPAN}-01",
    ],
)  # fmt: skip
def test_a_traceparent_of_another_form_is_none(text: str) -> None:
    assert read_traceparent(text) is None
    assert parent_in([("traceparent", text.encode())]) is None


def test_headers_that_contradict_each_other_or_hold_no_text_are_none() -> None:
    assert parent_in([("traceparent", GOOD.encode()), ("traceparent", GOOD.encode())]) is None
    assert parent_in([("traceparent", b"\xff\xfe" * 40)]) is None
    assert parent_in([("traceparent", None)]) is None
    assert parent_in(None) is None


def test_a_tracestate_that_is_too_long_is_left_out_and_its_parent_kept() -> None:
    assert parent_in([("traceparent", GOOD.encode()), ("tracestate", b"a=1")]) == Parent(TRACE, SPAN, True, "a=1")
    assert parent_in([("traceparent", GOOD.encode()), ("tracestate", b"a=" + b"1" * 600)]) == Parent(TRACE, SPAN, True)


def test_what_is_carried_on_is_the_context_and_nothing_else() -> None:
    headers = [("traceparent", GOOD.encode()), ("authorization", b"secret"), ("tracestate", b"a=1")]
    assert carried(headers) == [("traceparent", GOOD.encode()), ("tracestate", b"a=1")]


def test_a_case_without_a_context_has_the_same_trace_whenever_it_is_asked_for() -> None:
    assert case_trace("req-1") == case_trace("req-1") != case_trace("req-2")
    assert len(case_trace("req-1")) == 32
    assert case_trace("req-1", "trace-f01") == case_trace("req-1"), "an id of another form says nothing"


def test_a_logged_trace_id_is_the_trace_where_it_has_the_form_of_one() -> None:
    assert case_trace("req-1", TRACE) == TRACE
    assert trace_of("7F0D6A2E-1111-4000-8000-000000000001") == "7f0d6a2e111140008000000000000001"
    assert trace_of("0" * 32) == trace_of("") == trace_of("x" * 32) == trace_of(TRACE + "0" * 9999) == ""


class TestLogShapes:
    def test_a_kafka_header_is_the_context_of_any_record(self) -> None:
        record = read(openai_record("hello"), ("traceparent", GOOD.encode()))
        assert (record.traceparent, record.trace_id) == (GOOD, TRACE)

    def test_a_hostile_header_leaves_the_record_as_it_is(self) -> None:
        record = read(openai_record("hello"), ("traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"))
        assert (record.traceparent, record.trace_id) == ("", "")

    def test_a_span_of_an_export_is_the_parent_of_its_own_call(self) -> None:
        shipped = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"  # by whoever brings exports to Kafka
        record = read((SAMPLES / "otlp-genai.json").read_bytes(), ("traceparent", shipped.encode()))
        assert record.traceparent == "00-5b8efff798038103d269b633813fc60c-eee19b7ec3c1b102-01"

    def test_a_span_that_was_not_sampled_is_no_reason_to_sample(self) -> None:
        flags = [logged_parent({"trace_id": TRACE, "span_id": SPAN, "trace_flags": f}) for f in ("01", "00", 1, 0, "?")]
        assert [flag[-2:] for flag in flags] == ["01", "00", "01", "00", "01"]

    def test_cloudevents_carry_it_as_an_extension(self) -> None:
        body = json.loads((SAMPLES / "cloudevents-structured.json").read_text())
        assert read(body).traceparent == GOOD
        assert read(body | {"traceparent": "00-x-y-01"}).traceparent == ""

    def test_litellm_carries_it_in_the_metadata_of_whoever_asked(self) -> None:
        body = json.loads((SAMPLES / "litellm.json").read_text())
        assert read(body).traceparent == ""
        body["metadata"] = (body.get("metadata") or {}) | {"requester_metadata": {"traceparent": GOOD}}
        assert read(body).traceparent == GOOD

    def test_ids_beside_a_chat_completion_are_its_context(self) -> None:
        body = json.loads(openai_record("hello")) | {"trace_id": TRACE, "span_id": SPAN}
        assert read(body).traceparent == GOOD
        assert read(body | {"span_id": 7}).traceparent == ""
        assert read(body | {"span_id": None}).traceparent == ""

    def test_newer_langfuse_ids_are_those_of_opentelemetry(self) -> None:
        body = json.loads((SAMPLES / "langfuse.json").read_text())
        assert read(body).traceparent == ""
        assert read(body | {"trace_id": TRACE, "id": SPAN}).traceparent == GOOD
