"""Claims about the gate: who is compared with whom, the tests, the frozen holdout, the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from toys import COLORS, NEW, OLD, TOY, ToyEngine, a_case, add_gold, toy_gold, toy_judge, with_task

from schemas.adapters import Comparison
from schemas.case import Message, Verdict
from schemas.errors import ModelUnavailable
from schemas.settings import Gate, Settings
from trainer.gate import AnswerCache, run_gate
from trainer.holdout import HoldoutCase, freeze_holdout, holdout_cases
from trainer.paired import decide, mcnemar


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [(0, 0, 1.0), (1, 1, 1.0), (5, 0, 0.0625), (0, 6, 0.03125), (10, 2, 158 / 4096), (2, 10, 158 / 4096)],
)
def test_mcnemar_is_exact(gained: int, lost: int, p_value: float) -> None:
    assert mcnemar(gained, lost) == p_value


@pytest.mark.parametrize(
    ("cases", "before", "after", "p_value", "decision"),
    [
        (49, 0, 49, 0.0, "undecided"),
        (50, 10, 20, 0.5, "promote"),
        (50, 10, 12, 0.5, "refuse"),  # a gain of .04 is not above min_gain
        (50, 10, 10, 1.0, "refuse"),
        (50, 20, 10, 0.2, "refuse"),
        (50, 20, 10, 0.01, "refuse"),
    ],
)
def test_gate_decides(cases: int, before: int, after: int, p_value: float, decision: str) -> None:
    counted = Comparison(cases=cases, before=before / cases, after=after / cases, gained=0, lost=0, p_value=p_value)
    found, reason = decide(Gate(min_gain=0.05), counted)
    assert found == decision
    assert reason.startswith("significantly worse") == (p_value == 0.01)


def test_gate_compares_both_on_the_same_cases_and_counts_rules(settings: Settings) -> None:
    engine = ToyEngine({NEW: TOY | {"red": "go"}, OLD: dict.fromkeys(TOY, "stop")})
    cache: AnswerCache = {}
    report, _ = run_gate(settings, "toy", engine, COLORS, candidate=NEW, incumbent=OLD, judge=toy_judge, cache=cache)
    assert (report.decision, report.cases, report.before, report.after) == ("promote", 4, 0.25, 0.75)
    assert (report.gained, report.lost, report.p_value) == (3, 1, 0.625)
    assert (report.violations_before, report.violations_after) == ({"exact": 3}, {"exact": 1})
    run_gate(settings, "toy", engine, COLORS, candidate=NEW, incumbent=OLD, judge=toy_judge, cache=cache)
    assert engine.asked == [OLD, NEW]  # the second gate took both from the cache


def test_gate_without_enough_holdout_asks_nobody(settings: Settings) -> None:
    engine = ToyEngine({})
    report, _ = run_gate(settings, "toy", engine, COLORS[:3], candidate=NEW, incumbent="", judge=toy_judge)
    assert (report.decision, report.cases, engine.asked) == ("undecided", 3, [])
    assert "3 holdout cases" in report.reason


def test_a_case_beyond_the_context_counts_for_neither_and_too_many_are_an_error(settings: Settings) -> None:
    settings = with_task(settings, gate=Gate(min_holdout=3))
    short = {color: answer for color, answer in TOY.items() if color != "blue"}
    engine = ToyEngine({NEW: short, "": dict.fromkeys(TOY, "?")})
    report, _ = run_gate(settings, "toy", engine, COLORS, candidate=NEW, incumbent="", judge=toy_judge)
    assert (report.cases, report.after) == (3, 1.0)
    assert "1 cases could not be judged" in report.reason

    async def judge_is_down(messages: Sequence[Message], answer: str) -> Verdict:
        raise ModelUnavailable("503")

    with pytest.raises(ModelUnavailable, match="only 0 of 4"):
        run_gate(settings, "toy", engine, COLORS, candidate=NEW, incumbent="", judge=judge_is_down)


def test_the_holdout_stays_frozen_grows_at_its_end_and_fills_the_place_of_erased_cases(tmp_path: Path) -> None:
    def some(*numbers: int) -> list[HoldoutCase]:
        return [HoldoutCase(str(n), []) for n in numbers]

    def ids(cases: list[HoldoutCase], limit: int = 5) -> list[str]:
        return [case.case_id for case in freeze_holdout(tmp_path, "toy", cases, limit)]

    first = ids(some(1, 2, 3))
    assert sorted(first) == ["1", "2", "3"]
    grown = ids(some(*range(1, 20)))
    assert (grown[:3], len(grown)) == (first, 5)
    assert ids(some(*range(1, 40))) == grown
    assert ids(some(*range(1, 40)), limit=2) == grown[:2]
    without = ids([case for case in some(*range(1, 40)) if case.case_id != grown[0]])
    assert without[:4] == grown[1:]
    assert len(without) == 5


def test_holdout_cases_are_those_that_ended_as_holdout(tmp_path: Path) -> None:
    toy_gold(tmp_path)
    add_gold(tmp_path, [a_case("dead", "red", kind="dead", split="holdout")])
    assert sorted(case.case_id for case in holdout_cases(tmp_path, "toy")) == sorted(f"holdout-{c}" for c in TOY)
