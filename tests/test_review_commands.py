"""`goldstream review` as people and programs use it: keys at a terminal, commands, and the agreement they come to."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from ended_cases import ended, land
from judged_cases import FAILED, PASSED, rows, toy
from rich.console import Console
from steps import Make, command_line, put, sink_all, start

from agents.calibration import kappa
from agents.expert import Decision, decided_case
from schemas.errors import ReviewError, SettingsError
from schemas.settings import Settings, Task
from streams import review
from streams.agreement import agreement, tell_agreement
from streams.review import list_queue
from streams.reviewing import Session


def session(settings: Settings, keys: str, *, edit: str | None = None, says: tuple[str, ...] = ()) -> tuple[Any, str]:
    """Runs a sitting in which these keys are pressed; returns what was done and what was shown."""
    pressed, said = iter(keys), iter(says)
    out = io.StringIO()
    console = Console(file=out, width=100)
    sitting = Session(settings, "ann", console, lambda: next(pressed), lambda text: edit, lambda question: next(said))
    return sitting.run(list_queue(settings)), out.getvalue()


def test_a_sitting_at_the_terminal(make_settings: Make) -> None:
    settings = start(make_settings, "logs-sitting", "tasks.toy.review.sample=1.0")
    hostile = toy(9, FAILED, messages=ended(9).messages[:1])
    put(settings, "outcomes", *(toy(n, PASSED) for n in range(5)), hostile)
    sink_all(settings)
    order = [item.case_id for item in list_queue(settings)]
    assert order[0] == "req-9"
    says = ("1", "", "x", "1", "It is curt.")
    # e: edit the unresolved one. r: no reason given, so another key: r, no such rule; r at last. ?: the keys. s, a, q.
    done, shown = session(settings, "e" + "rrr" + "?s" + "a" + "q", edit="please wait\n", says=says)
    assert done == {"edit": 1, "reject": 1, "skipped": 1, "accept": 1}
    assert "unresolved: rounds_spent" in shown
    assert "failed, 0 of 1, by judge" in shown
    assert "not rejected" in shown
    sink_all(settings)
    found = {row[0]: row[1:] for row in rows(settings, "case_id, outcome, answer, review, review_rules, review_reason")}
    assert found[order[0]] == ("gold", "please wait", "edit", [], "")
    assert found[order[1]] == ("unresolved", None, "reject", ["polite"], "It is curt.")
    assert found[order[2]][2] is None
    assert found[order[3]][:3] == ("gold", "answer 0", "accept")
    assert [item.case_id for item in list_queue(settings)] == [order[2], *order[4:]]
    # Nothing saved in the editor decides nothing, nor does an edit that changes nothing.
    done, shown = session(settings, "eq", edit=None)
    assert (done, "nothing was saved" in shown) == ({}, True)
    done, shown = session(settings, "eq", edit="answer 0")
    assert (done, "Accept it, if it is right" in shown) == ({}, True)
    # Another reviewer was faster with the first of the queue.
    waiting = list_queue(settings)
    review.decide(settings, waiting[0].case_id, Decision(decision="reject", by="bob", reason="no"))
    pressed = iter("aq")
    out = io.StringIO()
    Session(settings, "ann", Console(file=out), lambda: next(pressed), lambda t: t, lambda q: q).run(waiting)
    assert f"bob rejected case {waiting[0].case_id}" in out.getvalue()


def test_what_a_model_says_cannot_steer_the_reviewers_terminal(make_settings: Make) -> None:
    settings = start(make_settings, "logs-escape")
    case = toy(1, FAILED)
    evil = (
        ended(1)
        .attempts[0]
        .__class__(round=0, source="student", text="\x1b[2Jgone [bold]x[/bold]", model="m", verdict=FAILED)
    )
    put(settings, "outcomes", ended(1, "unresolved", task="toy", attempts=(evil,), strategy=None))
    sink_all(settings)
    assert case.case_id == "req-1"
    _, shown = session(settings, "q")
    assert "\x1b" not in shown
    assert "[2Jgone [bold]x[/bold]" in shown


def test_commands_decide_without_asking(make_settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = start(make_settings, "logs-commands")
    put(settings, "outcomes", *(toy(n, FAILED, FAILED) for n in range(4)))
    sink_all(settings)

    def run(*command: str) -> Any:
        return command_line(settings, tmp_path, "review", *command)

    listed = json.loads(run("list", "--json").stdout)
    assert {item["why"] for item in listed} == {"unresolved"}
    assert len(listed) == 4
    assert "waiting: 4 unresolved, 0 accepted" in run("list", "--limit", "1").output
    monkeypatch.setenv("GOLDSTREAM_REVIEWER", "carol")
    accepted = json.loads(run("accept", "req-0", "--round", "0", "--json").stdout)
    assert (accepted["stands"], accepted["outcome"], accepted["epoch"]) == (True, "gold", 1)
    (tmp_path / "answer.txt").write_text("please wait\n")
    edited = run("edit", "req-1", "--file", str(tmp_path / "answer.txt"), "--by", "dan").output
    assert "req-1 is gold now, epoch 1: edit by dan" in edited
    assert run("reject", "req-2", "--reason", "curt", "--rule", "polite").exit_code == 0
    assert run("reject", "req-3").exit_code == 2, "a reason is required"
    shown = run("show", "req-1")
    assert "decided, not yet in the gold set: edit by dan" in shown.output
    assert json.loads(run("show", "req-3", "--json").stdout)["in_queue"] is True
    for command, message in (
        (("accept", "req-77"), "no case req-77 in the gold set"),
        (("accept", "req-3", "--round", "9"), "no attempt of round 9"),
        (("edit", "req-3", "--file", str(tmp_path / "goldstream.toml"), "--rule", "nice"), "no rule nice"),
        (("accept", "req-2"), "carol rejected case req-2"),
    ):
        result = run(*command)
        assert isinstance(result.exception, ReviewError)
        assert message in str(result.exception)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert "not UTF-8 at byte 3" in str(run("edit", "req-3", "--file", str(tmp_path / "latin.txt")).exception)
    assert isinstance(run("list", "--task", "nope").exception, SettingsError)
    assert "this is none" in run().output
    sink_all(settings)
    assert rows(settings, "case_id, reviewer, answer") == [
        ("req-0", "carol", "answer 0"),
        ("req-1", "dan", "please wait"),
        ("req-2", "carol", None),
        ("req-3", None, None),
    ]
    found = json.loads(run("agreement", "--json").stdout)
    assert (found["decisions"], found["kinds"][1]["agreed"]) == (3, 2)
    assert "judge and experts agree on 66.7%" in run("agreement").output


def test_agreement_is_weighed_by_how_many_of_each_kind_there_are(tmp_path: Path) -> None:
    settings = Settings(state_dir=str(tmp_path), tasks={"toy": Task(topics=("t",))})
    cases = [toy(n, PASSED) for n in range(80)] + [toy(100 + n, FAILED) for n in range(20)]
    # Of ten accepted that were drawn the expert agrees with eight, of five unresolved with four.
    for n in range(10):
        cases.append(decided(cases[n], "reject" if n < 2 else "accept"))
    for n in range(80, 85):
        cases.append(decided(cases[n], "accept" if n == 80 else "edit", rules=("polite",) if n == 81 else ()))
    cases.append(decided(cases[20], "reject", sampled=False))
    land(settings.gold, cases)
    found = agreement(settings)
    assert [(kind.cases, kind.reviewed, kind.agreed) for kind in found.kinds] == [(80, 10, 8), (20, 5, 4)]
    assert found.agreement == pytest.approx(0.8 * 0.8 + 0.2 * 0.8)
    yes, no = 0.8 * 80, 0.8 * 20
    assert found.kappa == pytest.approx(kappa((yes, 80 - yes, 20 - no, no)))
    assert (found.decisions, found.not_drawn, found.reviewers) == (16, 1, {"ann": 16})
    (polite,) = found.rules
    assert (polite.both, polite.judge_only, polite.expert_only, polite.neither) == (1, 1, 0, 8)
    assert "1 decisions on accepted cases outside the sample are not in the estimate" in tell_agreement(found)


def test_nothing_is_estimated_from_a_kind_nobody_looked_at(tmp_path: Path) -> None:
    settings = Settings(state_dir=str(tmp_path), tasks={"toy": Task(topics=("t",))})
    assert agreement(settings).agreement is None
    first = toy(1, PASSED)
    land(settings.gold, [first, toy(2, FAILED), decided(first, "accept")])
    found = agreement(settings, "toy")
    assert (found.agreement, found.kinds[0].agreement, found.kinds[1].agreement) == (None, 1.0, None)
    assert "no case that the judge failed has been reviewed" in tell_agreement(found)[-1]


def decided(case: Any, decision: Any, sampled: bool = True, rules: tuple[str, ...] = ()) -> Any:
    made = Decision(decision=decision, by="ann", text="right", reason="so", rules=rules)
    return decided_case(case, made, 1_790_000_100_000, sampled)
