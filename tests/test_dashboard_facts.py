"""Claims about the figures that the dashboard counts: file by file they come to what the views say of the whole."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ended_cases import AT_MS, ended, land
from judged_cases import FAILED, PASSED, toy

from agents.expert import Decision, decided_case
from schemas.case import Case, Charge
from schemas.gold import landing_folder
from schemas.settings import Gold, Settings, Task
from streams.agreement import agreement
from streams.compaction.compact import compact
from streams.dashboard.facts import Facts
from streams.dashboard.figures import BUCKETS, Figures, bucket_of, count
from streams.gold import query
from streams.review import draw, read_queue

SETTINGS = Settings(tasks={"toy": Task(topics=("logs",)), "scribe": Task(topics=("notes",))})


def figures(gold: Path, facts: Facts | None = None) -> Figures:
    one = facts or Facts(gold, lambda case_id: draw(SETTINGS, case_id))
    one.refresh()
    found = count(one, SETTINGS)
    if facts is None:
        one.close()
    return found


def mixed(number: int, dice: random.Random) -> Case:
    """Returns a case that ended in one of all the ways there are."""
    at_ms = AT_MS + dice.randrange(86_400_000)
    reasons = {"dead": "bad_answer", "dropped": "unsampled", "unresolved": "rounds_spent"}
    kind: Any = dice.choice(["gold", "gold", "gold", "unresolved", "dead", "holdout", "dropped"])
    if kind in reasons and kind != "unresolved":
        stage: Any = "intake" if kind == "dropped" else "judge"
        return msgspec.structs.replace(ended(number), task="toy", attempts=()).ended(kind, stage, at_ms, reasons[kind])
    verdicts = [FAILED] * dice.randrange(3) + [PASSED if kind != "unresolved" else FAILED]
    charges = (Charge(role="judge", model="m", calls=2, prompt_tokens=7, completion_tokens=3, cost_usd=0.25),)
    case = toy(number, *verdicts, charges=charges)
    return case.ended(kind, "strategist", at_ms, reasons.get(kind, ""))


def test_figures_taken_in_file_by_file_are_those_of_the_whole(tmp_path: Path) -> None:
    dice, settings = random.Random(7), SETTINGS
    facts = Facts(tmp_path, lambda case_id: draw(settings, case_id))
    cases = [mixed(number, dice) for number in range(240)]
    for start in range(0, 240, 40):
        land(tmp_path, cases[start : start + 40], partition=start % 3)
        figures(tmp_path, facts)
    reviewed = next(case for case in cases if case.outcome and case.outcome.kind == "gold")
    rejected = decided_case(reviewed, Decision(decision="reject", by="ann", reason="false"), AT_MS, sampled=True)
    land(tmp_path, [rejected], partition=0)
    step_by_step, at_once = figures(tmp_path, facts), figures(tmp_path)
    assert facts.whole_readings == 1
    assert step_by_step == at_once
    facts.close()


def test_figures_agree_with_the_views(tmp_path: Path) -> None:
    dice = random.Random(3)
    land(tmp_path, [mixed(number, dice) for number in range(200)])
    land(tmp_path, [mixed(number, dice) for number in range(200, 300)], partition=1)
    found = figures(tmp_path)
    toy_ends = next(one for one in found.outcomes if one.task == "toy")
    ends = dict(query(tmp_path, "select outcome, count(*) from outcomes group by 1")[1])
    assert {kind: getattr(toy_ends, kind) for kind in ends} == ends
    assert sum(ends.values()) == 300
    acceptance = query(tmp_path, "select round, sum(judged), sum(accepted) from acceptance group by 1 order by 1")[1]
    (funnel,) = (one for one in found.funnels if one.task == "toy")
    assert [(one.round, one.judged, one.passed) for one in funnel.rounds] == acceptance
    assert [one.refined for one in funnel.rounds] == [one.attempted for one in funnel.rounds[1:]] + [0]
    assert funnel.admitted == funnel.gold + funnel.unresolved + funnel.holdout + funnel.dead
    broken = query(tmp_path, "select sum(violations) from violations")[1][0][0]
    assert sum(sum(one.by_round.values()) for one in found.violations) == broken
    (role,) = found.roles
    assert (role.role, role.calls, role.usd) == ("judge", 2 * role.prompt_tokens // 7, role.calls * 0.125)
    (cost,) = (one for one in found.costs if one.task == "toy")
    assert sum(point.gold for point in cost.over_time) == cost.gold_rows == ends["gold"]
    lines = found.passing["toy"].lines
    assert sum(bucket.judged for line in lines for bucket in line.buckets) == sum(line.judged for line in lines)
    assert all(found.passing["toy"].from_s * 1000 <= b.at_ms for line in lines for b in line.buckets)


def test_what_waits_for_review_is_what_the_queue_holds(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, state_dir=str(tmp_path))
    dice = random.Random(5)
    land(settings.gold, [mixed(number, dice) for number in range(150)])
    found = figures(settings.gold)
    sizes = read_queue(settings).sizes
    assert (found.review.waiting_unresolved, found.review.waiting_accepted) == (sizes["unresolved"], sizes["accepted"])
    assert sizes["unresolved"]
    assert found.review.agreement == agreement(settings).agreement


def test_files_that_went_before_they_were_read_cause_a_whole_reading(tmp_path: Path) -> None:
    facts = Facts(tmp_path)
    land(tmp_path, [toy(1, PASSED)])
    assert facts.refresh()
    assert not facts.refresh()
    next(landing_folder(tmp_path, 0).glob("*.parquet")).unlink()  # as compaction does
    land(tmp_path, [toy(2, PASSED)], partition=1)
    assert facts.refresh()
    assert facts.whole_readings == 2
    assert count(facts, SETTINGS).gold_rows == 1
    facts.close()


def test_compaction_changes_no_figure_and_what_lands_after_it_counts_once(tmp_path: Path) -> None:
    dice = random.Random(9)
    facts = Facts(tmp_path, lambda case_id: draw(SETTINGS, case_id))
    land(tmp_path, [mixed(number, dice) for number in range(60)])
    before = figures(tmp_path, facts)
    compact(tmp_path, Gold(grace_s=0.0))
    compact(tmp_path, Gold(grace_s=0.0))  # now landing files that the first has taken are gone
    assert figures(tmp_path, facts) == before
    for start in (60, 80):
        land(tmp_path, [mixed(number, dice) for number in range(start, start + 20)])
        step_by_step = figures(tmp_path, facts)
        assert step_by_step == figures(tmp_path)
    assert sum(one.read for one in step_by_step.funnels) == 100
    facts.close()


def test_an_empty_gold_set_has_figures_too(tmp_path: Path) -> None:
    found = figures(tmp_path)
    assert (found.gold_rows, found.passing, found.dead) == (0, {}, ())
    assert [one.task for one in found.funnels] == ["toy", "scribe"]
    assert [one.usd_per_gold_row for one in found.costs] == [None, None]


@pytest.mark.parametrize("span_s", [1, 59, 61, 3600, 86_400, 30 * 86_400, 5 * 365 * 86_400])
def test_a_line_over_time_has_few_buckets(span_s: int) -> None:
    assert 1 <= span_s / bucket_of(span_s) <= BUCKETS + 1
