"""Messages of several calls on their way through intake, audit and redrive, on the real broker."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from kafka import KafkaProducer
from pipeline import openai_record, produce
from steps import Make, cases_on, sink_all, start, take_in
from test_shapes import sample

from schemas.kafka import client_options
from schemas.settings import Mapping, Settings
from streams.audit import audit
from streams.dlq import redrive
from streams.gold import query


def with_mapping(settings: Settings, **fields: str) -> Settings:
    (topic,) = settings.source_topics()
    return msgspec.structs.replace(settings, map={topic: Mapping(**fields)})


def balanced(settings: Settings, records: int) -> bool:
    found = audit(settings, again_after_s=0.0)
    return found.balanced and sum(balance.records for balance in found.partitions) == records


def dead_ids(settings: Settings) -> list[Any]:
    return [row[0] for row in query(settings.gold, "select case_id from dead order by source_index")[1]]


def test_what_a_message_holds_travels_with_each_case(make_settings: Make) -> None:
    settings = start(make_settings, "logs-spans")
    produce(settings, "logs-spans", [sample("otlp-genai.json")[0], sample("openai-chat-tools.json")[0]])
    take_in(settings)
    first, second, third = sorted(
        cases_on(settings, "prompts"), key=lambda case: (case.source.offset, case.source.index)
    )
    assert [(case.source.index, case.source.count) for case in (first, second, third)] == [(1, 2), (3, 2), (0, 1)]
    assert (first.shape, first.event_ms, first.production_prompt_tokens) == ("otlp-genai", 1763640400000, 212)
    assert (first.tools[0]["function"]["name"], first.params) == ("look_up_drug", {"temperature": 0.2})
    assert third.production_tool_calls[0]["function"]["name"] == "look_up_drug"
    assert (third.production_answer, third.production_finish) == (None, "tool_calls")
    assert balanced(settings, 3)


def test_headers_reach_the_reader(make_settings: Make) -> None:
    settings = start(make_settings, "logs-headers")
    value, headers = sample("cloudevents-binary.kcat.jsonl")
    producer = KafkaProducer(**client_options(settings), acks="all")
    producer.send("logs-headers", value=value, headers=list(headers)).get(timeout=30)
    producer.close(timeout=5)
    take_in(settings)
    (case,) = cases_on(settings, "prompts")
    assert (case.shape, case.trace_id) == ("cloudevents/openai-chat", "4bf92f3577b34da6a3ce929d0e0e4736")


def test_a_letter_of_a_whole_message_can_become_several_cases(make_settings: Make) -> None:
    settings = start(make_settings, "logs-letter")
    calls = json.dumps({"calls": [{"q": "one"}, {"q": "two", "id": "c-2"}, {"q": 3}]}).encode()
    produce(settings, "logs-letter", [calls, openai_record("fine", "c-9")])
    take_in(settings)
    sink_all(settings)
    (letter,) = dead_ids(settings)
    (kept,) = redrive(settings, reason="wrong_shape", stage="intake")
    assert kept.result == "refused again"
    mapped = with_mapping(settings, items="calls", prompt="q", event_id="id")
    (done,) = redrive(mapped, reason="wrong_shape", stage="intake")
    assert (done.case_id, done.result) == (letter, "redriven")
    assert "2 more cases" in done.detail
    sink_all(settings)
    back = {case.case_id: case for case in cases_on(settings, "prompts") if case.case_id != "c-9"}
    assert {case_id: (case.prompt(), case.epoch) for case_id, case in back.items()} == {
        letter: ("one", 1),
        "c-2": ("two", 0),
    }
    assert balanced(settings, 4)
    assert len(dead_ids(settings)) == 2  # the letter's first death stands until it ends again, and the third call
    (again,) = redrive(mapped, case_id=letter)
    assert again.result == "on its way"


def test_a_letter_of_one_call_among_several_comes_back_alone(make_settings: Make) -> None:
    settings = start(make_settings, "logs-among")
    batch = [json.loads(openai_record("fine", "c-1")), {"q": "two"}, {"q": "three"}]
    produce(settings, "logs-among", [json.dumps(batch).encode()])
    take_in(settings)
    sink_all(settings)
    assert balanced(settings, 3)
    letter = dead_ids(settings)[1]
    (done,) = redrive(with_mapping(settings, prompt="q"), case_id=letter)
    assert (done.result, done.detail.count("more cases")) == ("redriven", 0)
    back = next(case for case in cases_on(settings, "prompts") if case.case_id == letter)
    assert (back.prompt(), back.source.index, back.source.count, back.epoch) == ("three", 2, 3, 1)
    assert balanced(settings, 3)
