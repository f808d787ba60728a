"""Intake: what each source record becomes, and where reading begins."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pipeline import STUB_TASK, openai_record, produce

from schemas.case import Case, Source, coordinates_id, decode_case, encode_case
from schemas.settings import Settings, load_settings
from streams.admission.admit import Admission, share_of, split_of
from streams.clients import make_consumer
from streams.intake import run_intake
from streams.topics import create_topics, ensure_source_topic

HERE = Source(cluster="c", topic="logs", partition=1, offset=7)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "goldstream.toml"
    path.write_text(STUB_TASK.format(topic="logs", api_base="http://127.0.0.1:9"))
    return load_settings(path, environ={})


def record(**changes: Any) -> bytes:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "id": "req-1"}
    return json.dumps(body | changes).encode()


def admit(value: bytes | None, source: Source, settings: Settings) -> Case:
    """Admits a record that becomes one case."""
    (case,) = Admission(settings).admit(value, (), source)
    return case


def test_an_openai_record_becomes_a_case_with_the_producers_id(settings: Settings) -> None:
    answer = {"message": {"role": "assistant", "content": "hi"}}
    case = admit(record(choices=[answer], model="big"), HERE, settings)
    assert (case.case_id, case.task, case.production_answer, case.production_model) == ("req-1", "toy", "hi", "big")
    assert case.outcome is None
    assert case.prompt() == "hello"


def test_request_and_response_beside_each_other_are_read_too(settings: Settings) -> None:
    for left, right in (("request", "response"), ("request_body", "response_body")):
        halves = {left: {"messages": [{"role": "user", "content": "q"}]}, right: {"id": "r-9", "choices": []}}
        case = admit(json.dumps(halves).encode(), HERE, settings)
        assert (case.case_id, case.prompt(), case.production_answer) == ("r-9", "q", None)


def test_a_record_without_an_id_is_named_by_where_it_lies(settings: Settings) -> None:
    once, again = (admit(openai_record("q"), HERE, settings) for _ in range(2))
    assert once.case_id == again.case_id == coordinates_id(HERE)


def test_an_unusual_id_never_looks_like_a_path(settings: Settings) -> None:
    for raw in ("../../etc/passwd", "a/b", "", " ", "x" * 5000, "é\u202e", "..", "a\x00b"):
        case = admit(record(id=raw), HERE, settings)
        assert "/" not in case.case_id
        assert ".." not in case.case_id
        assert len(case.case_id) <= 128


def test_a_refused_record_carries_reason_coordinates_and_hash_but_no_text(settings: Settings) -> None:
    case = admit(b'{"messages": "top secret text"}', HERE, settings)
    assert case.outcome is not None
    assert (case.outcome.kind, case.outcome.reason) == ("dead", "wrong_type")
    assert (case.source, len(case.body_sha256)) == (HERE, 64)
    assert b"secret" not in encode_case(case)


def test_tool_calls_and_parts_keep_their_structure(settings: Settings) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "what is this?"}]},
        {"role": "assistant", "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f"}}]},
        {"role": "tool", "tool_call_id": "t", "content": "42"},
    ]
    case = admit(record(messages=messages), HERE, settings)
    assert decode_case(encode_case(case)).messages[1].tool_calls == messages[1]["tool_calls"]
    assert case.prompt() == "what is this?"


def test_a_failed_production_call_is_dropped_with_its_reason(settings: Settings) -> None:
    halves = {"request": {"messages": [{"role": "user", "content": "q"}]}, "response": {"error": {"code": 500}}}
    outcome = admit(json.dumps(halves).encode(), HERE, settings).outcome
    assert outcome is not None
    assert (outcome.kind, outcome.reason) == ("dropped", "failed_call")


def test_a_record_of_several_calls_becomes_several_cases_each_with_its_own_identity(settings: Settings) -> None:
    calls = [json.loads(record(id="a")), json.loads(record(id=None)), {"messages": "no"}, json.loads(record(id="d"))]
    cases = Admission(settings).admit(json.dumps(calls).encode(), (), HERE)
    assert [(case.source.index, case.source.count) for case in cases] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert [case.outcome.reason if case.outcome else "" for case in cases] == ["", "", "wrong_type", ""]
    assert [cases[0].case_id, cases[3].case_id] == ["a", "d"]
    assert len({case.case_id for case in cases}) == 4
    again = Admission(settings).admit(json.dumps(calls).encode(), (), HERE)
    assert [case.case_id for case in again] == [case.case_id for case in cases]


def test_sampling_is_decided_by_the_case_and_not_by_chance(tmp_path: Path) -> None:
    path = tmp_path / "half.toml"
    path.write_text(STUB_TASK.format(topic="logs", api_base="x").replace("max_rounds", "sample = 0.5\nmax_rounds"))
    half = load_settings(path, environ={})
    dropped = [admit(record(id=f"r-{n}"), HERE, half).outcome is not None for n in range(400)]
    assert 140 < sum(dropped) < 260
    assert dropped == [admit(record(id=f"r-{n}"), HERE, half).outcome is not None for n in range(400)]


def test_later_turns_of_a_conversation_fall_into_the_same_split(settings: Settings) -> None:
    first = [{"role": "user", "content": "my knee hurts"}]
    later = [*first, {"role": "assistant", "content": "since when?"}, {"role": "user", "content": "monday"}]
    one, two = (admit(record(messages=m, id=f"{n}"), HERE, settings) for n, m in enumerate((first, later)))
    assert (one.split, one.session) == (two.split, two.session)


def test_the_holdout_share_is_kept_and_depends_on_the_key(tmp_path: Path) -> None:
    settings = load_settings(None, ["intake.holdout_share=0.2", "intake.split_key=k"], environ={})
    held = [split_of(settings, f"conversation {n}") == "holdout" for n in range(2000)]
    assert 0.16 < sum(held) / 2000 < 0.24
    assert share_of("k", "split", "x") != share_of("other", "split", "x")


@contextmanager
def intake(settings: Settings) -> Iterator[None]:
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=run_intake, args=(settings, stop, ready.set))
    thread.start()
    try:
        assert ready.wait(30)
        yield
    finally:
        stop.set()
        thread.join(30)


def admitted(settings: Settings, count: int) -> list[Case]:
    """Reads `count` cases from gs.prompts."""
    consumer = make_consumer(settings, auto_offset_reset="earliest")
    try:
        consumer.subscribe([settings.topic("prompts")])
        cases: list[Case] = []
        for _ in range(100):
            for records in consumer.poll(timeout_ms=200).values():
                cases += [decode_case(record.value) for record in records]
            if len(cases) >= count:
                break
        return cases
    finally:
        consumer.close()


def test_reading_begins_at_the_latest_and_goes_on_where_it_was(make_settings: Callable[..., Settings]) -> None:
    topic = "logs-begins"
    toml = STUB_TASK.format(topic=topic, api_base="x").replace('start_at = "earliest"', 'start_at = "latest"')
    settings = make_settings(toml)
    create_topics(settings)
    ensure_source_topic(settings, topic, partitions=2)
    produce(settings, topic, [openai_record("before", f"old-{n}") for n in range(5)])
    with intake(settings):
        produce(settings, topic, [openai_record("first", "new-1")])
        assert [case.case_id for case in admitted(settings, 1)] == ["new-1"]
    produce(settings, topic, [openai_record("while nobody reads", "new-2")])
    with intake(settings):
        assert sorted(case.case_id for case in admitted(settings, 2)) == ["new-1", "new-2"]
