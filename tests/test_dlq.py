"""Dead letters: listed, shown with what they were made from, and sent back so that nothing is done twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ended_cases import ended
from kafka import TopicPartition
from pipeline import openai_record, outcomes, produce
from steps import Make, cases_on, command_line, put, sink_all, start, take_in

from schemas.case import Attempt, Case, Source, Stage
from schemas.errors import GoldError, SettingsError
from streams.dlq import count_letters, list_letters, redrive, revived, show_letter
from streams.gold import query
from streams.topics import connect_admin

ATTEMPT = Attempt(round=0, source="student", text="a", model="m")


def died(number: int, stage: Stage, reason: str, **changes: Any) -> Case:
    """Returns a case of the toy task that died at a stage."""
    changes = {"task": "toy", "attempts": (ATTEMPT,), "strategy": None} | changes
    case = msgspec.structs.replace(ended(number), **changes)
    return case.ended("dead", stage, 1_790_000_000_000 + number, reason, "as it goes")


def results(redriven: Any) -> dict[str, str]:
    return {one.case_id: one.result for one in redriven}


def test_a_case_goes_back_to_the_stage_it_died_at_with_the_next_epoch() -> None:
    for stage, topic in (
        ("student", "prompts"),
        ("judge", "attempts"),
        ("refiner", "refine"),
        ("strategist", "accepted"),
    ):
        case = died(1, stage, "model_timeout", retries=3, retry_stage=stage, not_before_ms=9, epoch=2)  # type: ignore[arg-type]
        hop = revived(case)
        assert hop.topic == topic
        back = hop.case
        assert (back.case_id, back.epoch, back.outcome) == (case.case_id, 3, None)
        assert (back.retries, back.retry_stage, back.not_before_ms) == (0, "", 0)
        assert (back.attempts, back.spend) == (case.attempts, case.spend)


def test_letters_are_listed_and_shown(make_settings: Make, tmp_path: Path) -> None:
    settings = start(make_settings, "logs-list")
    put(settings, "outcomes", died(1, "judge", "bad_answer"), died(2, "student", "model_timeout"), ended(3))
    put(settings, "outcomes", died(4, "judge", "bad_answer", task="other"))
    sink_all(settings)
    assert [row[0] for row in list_letters(settings)] == ["req-4", "req-2", "req-1"]
    assert [row[0] for row in list_letters(settings, reason="bad_answer", stage="judge", task="toy")] == ["req-1"]
    assert len(list_letters(settings, limit=2)) == 2
    assert (count_letters(settings, stage="judge")) == [
        ("other", "judge", "bad_answer", 1),
        ("toy", "judge", "bad_answer", 1),
    ]
    with pytest.raises(SettingsError, match="expected one of empty"):
        list_letters(settings, reason="bad_anwser")
    shown = show_letter(settings, "req-2")
    assert (shown["means"], shown["case"]["attempts"][0]["text"]) == (
        "no answer within the deadline, beyond every retry",
        "a",
    )
    with pytest.raises(GoldError, match="no dead letter req-3"):
        show_letter(settings, "req-3")
    listed = json.loads(command_line(settings, tmp_path, "dlq", "list", "--stage", "judge", "--json").stdout)
    assert [letter["case_id"] for letter in listed] == ["req-4", "req-1"]
    text = command_line(settings, tmp_path, "dlq", "show", "req-1").output
    assert "dead at judge: bad_answer" in text
    assert "question 1" in text


def test_redriving_twice_sends_once_and_the_new_outcome_supersedes(make_settings: Make, tmp_path: Path) -> None:
    settings = start(make_settings, "logs-redrive")
    letters = [died(n, "judge", "model_unavailable", retries=1) for n in range(3)]
    put(settings, "outcomes", *letters, died(7, "judge", "bad_answer"), died(8, "student", "model_unavailable"))
    put(settings, "outcomes", died(9, "judge", "model_unavailable", task="gone"))
    sink_all(settings)
    with pytest.raises(SettingsError, match="--reason and --stage, or --id"):
        list(redrive(settings, reason="model_unavailable"))
    chosen = {"reason": "model_unavailable", "stage": "judge"}
    would = {**dict.fromkeys(["req-0", "req-1", "req-2"], "would be redriven"), "req-9": "impossible"}
    assert results(redrive(settings, **chosen, dry_run=True)) == would
    assert cases_on(settings, "attempts") == []
    result = command_line(
        settings, tmp_path, "dlq", "redrive", "--reason", "model_unavailable", "--stage", "judge", "--json"
    )
    assert Counter(one["result"] for one in json.loads(result.stdout)) == {"redriven": 3, "impossible": 1}
    sent = cases_on(settings, "attempts")
    assert [(case.case_id, case.epoch, case.retries, case.outcome) for case in sent] == [
        (f"req-{n}", 1, 0, None) for n in range(3)
    ]
    # Before it has landed: on its stage's topic, and as an outcome that no file holds yet.
    put(settings, "outcomes", sent[0].ended("unresolved", "judge", 5))
    again = list(redrive(settings, **chosen, task="toy"))
    assert {one.result for one in again} == {"on its way"}
    assert len(cases_on(settings, "attempts")) == 3
    # After: it is no dead letter any more, and a late copy of its first death changes nothing.
    put(settings, "outcomes", letters[0])
    sink_all(settings)
    _, rows = query(settings.gold, "select case_id, outcome, epoch from outcomes where case_id = 'req-0'")
    assert rows == [("req-0", "unresolved", 1)]
    assert results(redrive(settings, **chosen, task="toy")) == {"req-1": "on its way", "req-2": "on its way"}


def test_what_intake_refused_is_read_again_and_admitted_by_todays_settings(make_settings: Make, tmp_path: Path) -> None:
    settings = start(make_settings, "logs-refused", "intake.max_record_bytes=500")
    large = openai_record("x" * 600, "req-large")
    produce(settings, "logs-refused", [large, b"no JSON\x1b[2J", openai_record("fine", "req-fine"), b" "])
    take_in(settings)
    sink_all(settings)
    by_offset = {row["source_offset"]: row["case_id"] for row in outcomes(settings)}
    shown = show_letter(settings, by_offset[0])
    assert (shown["letter"]["reason"], shown["record"], shown["case"]) == ("too_large", large.decode(), None)
    text = command_line(settings, tmp_path, "dlq", "show", by_offset[1]).output
    assert "no JSON" in text
    assert "\x1b" not in text
    # Refused again by the same settings: nothing is written.
    before = len(cases_on(settings, "outcomes"))
    for reason in ("too_large", "not_json", "empty"):
        (one,) = redrive(settings, reason=reason, stage="intake")
        assert (one.result, one.detail.partition(":")[0]) == ("refused again", reason)
    assert (len(cases_on(settings, "outcomes")), len(cases_on(settings, "prompts"))) == (before, 1)
    # Admitted once the limit is raised, under the letter's id.
    wider = msgspec.structs.replace(settings, intake=msgspec.structs.replace(settings.intake, max_record_bytes=10_000))
    assert results(redrive(wider, case_id=by_offset[0])) == {by_offset[0]: "redriven"}
    back = cases_on(settings, "prompts")[0]
    assert (back.case_id, back.epoch, back.source.offset, back.prompt()) == (by_offset[0], 1, 0, "x" * 600)
    assert results(redrive(wider, case_id=by_offset[0])) == {by_offset[0]: "on its way"}
    # Gone with the topic's retention.
    admin = connect_admin(settings)
    admin.delete_records({TopicPartition("logs-refused", 0): 2})
    admin.close()
    assert "retention has removed it" in show_letter(settings, by_offset[1])["note"]
    (one,) = redrive(wider, case_id=by_offset[1])
    assert one.result == "gone"


def test_another_record_at_the_same_coordinates_is_not_taken_for_the_letters(make_settings: Make) -> None:
    settings = start(make_settings, "logs-anew")
    produce(settings, "logs-anew", [openai_record("innocent")])
    take_in(settings)
    (innocent,) = cases_on(settings, "prompts")
    refused = Case(case_id="at-0", task="toy", split="train", source=innocent.source, body_sha256="00" * 32)
    elsewhere = msgspec.structs.replace(
        refused, case_id="at-1", source=msgspec.structs.replace(refused.source, cluster="c2")
    )
    put(settings, "outcomes", *(case.ended("dead", "intake", 1, "too_large") for case in (refused, elsewhere)))
    sink_all(settings)
    done = {one.case_id: one for one in redrive(settings, reason="too_large", stage="intake")}
    assert {one.result for one in done.values()} == {"gone"}
    assert "holds another record now" in done["at-0"].detail
    assert "another cluster, c2" in done["at-1"].detail


def test_messages_that_were_no_cases_cannot_be_redriven(make_settings: Make, tmp_path: Path) -> None:
    settings = start(make_settings, "logs-none")
    own = Source(cluster="c", topic=settings.topic("attempts"), partition=0, offset=5)
    stray = Case(case_id="at-2", task="", split="train", source=own)
    put(
        settings, "outcomes", stray.ended("dead", "judge", 1, "undecodable_case", "bad"), ended(1, "gold", outcome=None)
    )
    sink_all(settings)
    (one,) = redrive(settings, reason="undecodable_case", stage="judge")
    assert one.result == "impossible"
    assert show_letter(settings, "at-2")["letter"]["offset"] == 5
    assert command_line(settings, tmp_path, "dlq", "redrive", "--id", "at-2").exit_code == 0
    assert len(cases_on(settings, "attempts")) == 0
