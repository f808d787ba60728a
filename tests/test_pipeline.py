"""The flow on a real broker with real processes and stub models: every record ends as exactly one outcome."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import STUB_TASK, openai_record, outcomes, processes, produce, toy_answer, wait_for
from stub_models import Reply, StubModels

from schemas.settings import Settings
from streams.topics import create_topics, ensure_source_topic

BAD_RECORDS: dict[bytes, str] = {
    b"": "empty",
    b"   ": "empty",
    b"\xff\xfe{}": "not_utf8",
    b'{"messages": [': "not_json",
    b"[1, 2]": "wrong_shape",
    b'{"prompt": "hello"}': "no_messages",
    b'{"messages": []}': "no_messages",
    b'{"messages": [{"role": "system", "content": "only a system prompt"}]}': "no_messages",
    b'{"messages": "hello"}': "wrong_type",
    b'{"messages": [{"role": 7, "content": "hello"}]}': "wrong_type",
    b'{"request": [], "response": {}}': "wrong_type",
    json.dumps({"messages": [{"role": "user", "content": "x" * 5_000_000}]}).encode(): "too_large",
}


def start(make_settings: Callable[..., Settings], models: StubModels, topic: str, deadline_s: int = 30) -> Settings:
    toml = STUB_TASK.format(topic=topic, api_base=models.api_base)
    settings = make_settings(toml.replace("event_deadline_s = 30", f"event_deadline_s = {deadline_s}"))
    create_topics(settings)
    ensure_source_topic(settings, topic, partitions=1)
    return settings


def test_every_record_ends_as_exactly_one_outcome(
    make_settings: Callable[..., Settings], models: StubModels, tmp_path: Path
) -> None:
    models.answer = toy_answer
    settings = start(make_settings, models, "logs-all")
    good = [openai_record(f"question {n}", f"req-{n}") for n in range(20)]
    good += [openai_record("already good", "req-good"), openai_record("hopeless", "req-hopeless")]
    good += [openai_record("no id of its own")]
    again = [openai_record("question 3", "req-3"), openai_record("another body", "req-4")]
    records: list[bytes | None] = [*good, *BAD_RECORDS, *again, None]
    produce(settings, "logs-all", records)
    with processes(settings, tmp_path / "goldstream.toml", "intake", "worker", "retries", "sink") as supervisor:
        wait_for(lambda: len(outcomes(settings)) >= len(records), "all outcomes", supervisor)
    rows = outcomes(settings)
    assert [row["source_offset"] for row in rows] == list(range(len(records)))
    assert len({row["case_id"] for row in rows}) == len(records)
    assert Counter(row["outcome"] for row in rows) == {
        "gold": 22,
        "unresolved": 1,
        "dead": len(BAD_RECORDS),
        "dropped": 3,
    }
    assert [row["reason"] for row in rows if row["outcome"] == "dead"] == list(BAD_RECORDS.values())
    assert sorted(row["reason"] for row in rows if row["outcome"] == "dropped") == [
        "deleted",
        "duplicate",
        "id_conflict",
    ]
    by_id: dict[str, Any] = {row["case_id"]: row for row in rows}
    assert (by_id["req-good"]["rounds"], by_id["req-good"]["strategy_guardrail"]) == (0, None)
    assert (by_id["req-1"]["rounds"], by_id["req-1"]["answer"]) == (1, "please wait")
    assert by_id["req-1"]["strategy_guardrail"] == "Always ask kindly."
    assert (by_id["req-hopeless"]["outcome"], by_id["req-hopeless"]["rounds"]) == ("unresolved", 2)


def test_failing_models_end_as_dead_letters_with_their_reason_and_lose_nothing(
    make_settings: Callable[..., Settings], models: StubModels, tmp_path: Path
) -> None:
    replies = {
        "429": (Reply(status=429), "model_rate_limited"),
        "500": (Reply(status=500), "model_unavailable"),
        "400": (Reply(status=400), "model_refused"),
        "hang": (Reply(hang_s=30), "model_timeout"),
        "reset": (Reply(reset=True), "model_unavailable"),
        "garbage": (Reply(raw=b"<html>busy</html>"), None),
    }

    def answer(request: dict[str, Any]) -> Reply:
        if request["model"] == "student":
            for name, (reply, _) in replies.items():
                if name in request["messages"][-1]["content"]:
                    return reply
        return toy_answer(request)

    models.answer = answer
    settings = start(make_settings, models, "logs-faults", deadline_s=3)
    records = [openai_record(name, f"fault-{name}") for name in replies]
    records += [openai_record(f"fine {n}", f"fine-{n}") for n in range(8)]
    produce(settings, "logs-faults", records)
    with processes(settings, tmp_path / "goldstream.toml", "intake", "worker", "retries", "sink") as supervisor:
        wait_for(lambda: len(outcomes(settings)) >= len(records), "all outcomes", supervisor)
    by_id = {row["case_id"]: row for row in outcomes(settings)}
    assert len(by_id) == len(records)
    for name, (_, reason) in replies.items():
        row = by_id[f"fault-{name}"]
        assert row["outcome"] == "dead", name
        if reason is not None:
            assert row["reason"] == reason, name
    assert all(by_id[f"fine-{n}"]["outcome"] == "gold" for n in range(8))


def test_a_killed_worker_loses_nothing_and_doubles_nothing(
    make_settings: Callable[..., Settings], models: StubModels, tmp_path: Path
) -> None:
    models.answer = toy_answer
    settings = start(make_settings, models, "logs-kill")
    records = [openai_record(f"question {n}", f"req-{n}") for n in range(120)]
    produce(settings, "logs-kill", records)
    with processes(settings, tmp_path / "goldstream.toml", "intake", "worker", "retries", "sink") as supervisor:
        for part in (1, 2):
            wait_for(lambda part=part: len(models.requests) > 100 * part, "calls under way", supervisor)
            for child in supervisor.children:
                if child.process is not None:
                    child.process.kill()
        wait_for(lambda: len(outcomes(settings)) >= len(records), "all outcomes", supervisor, 150)
    rows = outcomes(settings)
    assert Counter(row["outcome"] for row in rows) == {"gold": 120}
    assert len({row["case_id"] for row in rows}) == 120
