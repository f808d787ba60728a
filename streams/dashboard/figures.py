"""The gold set in figures, for the page: counted from streams.dashboard.facts, and only where something has landed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from schemas.case import DEAD_REASONS
from schemas.settings import Settings
from streams.agreement import COUNTED, agreement_of, tell_agreement
from streams.dashboard.facts import Facts
from streams.dashboard.state import (
    AdapterLine,
    Bucket,
    CostPoint,
    DeadGroup,
    Funnel,
    Outcomes,
    ReviewState,
    RoleCost,
    Round,
    TaskCost,
    Violation,
)

BUCKETS = 60  # of a line over time, at most
BUCKET_S = (1, 2, 5, 10, 30, 60, 300, 900, 3600, 3 * 3600, 6 * 3600, 86_400, 7 * 86_400, 30 * 86_400)
ADAPTERS = 12  # newest of a task that have a line of their own
OLDER = "older"
RULES = 30


class PassLines(NamedTuple):
    """First attempts by adapter and time; times in seconds."""

    bucket_s: int
    from_s: int
    to_s: int
    lines: tuple[AdapterLine, ...]


class Figures(NamedTuple):
    """Everything the page shows of the gold set."""

    funnels: tuple[Funnel, ...]
    passing: dict[str, PassLines]
    outcomes: tuple[Outcomes, ...]
    violations: tuple[Violation, ...]
    costs: tuple[TaskCost, ...]
    roles: tuple[RoleCost, ...]
    dead: tuple[DeadGroup, ...]
    review: ReviewState
    live: dict[tuple[str, str], tuple[int, int]]  # task, adapter -> first attempts judged and passed
    gold_rows: int


def count(facts: Facts, settings: Settings) -> Figures:
    """Returns the figures of what the tables hold now."""
    ends = _rows(facts, _ENDS)
    outcomes = _outcomes(settings, ends)
    lines = {task: _pass_lines(facts, task) for task in settings.tasks}
    return Figures(
        funnels=tuple(_funnel(task, ends, _rows(facts, _ROUNDS, task)) for task in settings.tasks),
        passing={task: found for task, found in lines.items() if found is not None},
        outcomes=outcomes,
        violations=_violations(_rows(facts, _VIOLATIONS)),
        costs=tuple(_cost(facts, task) for task in settings.tasks),
        roles=tuple(
            RoleCost(
                task=task, role=role, model=model, calls=calls, prompt_tokens=prompt, completion_tokens=done, usd=usd
            )
            for task, role, model, calls, prompt, done, usd in _rows(facts, _ROLES)
        ),
        dead=_dead(ends),
        review=_review(facts, settings),
        live={(task, adapter): (judged, passed) for task, adapter, judged, passed in _rows(facts, _LIVE)},
        gold_rows=sum(one.gold for one in outcomes),
    )


def bucket_of(span_s: int) -> int:
    """Returns the width of the buckets that show a span in at most BUCKETS of them."""
    return next((width for width in BUCKET_S if span_s <= width * BUCKETS), BUCKET_S[-1])


def _outcomes(settings: Settings, ends: Sequence[tuple[Any, ...]]) -> tuple[Outcomes, ...]:
    found = {}
    for task in sorted({*settings.tasks, *(row[0] for row in ends)}):
        own = [row for row in ends if row[0] == task]

        def cases(outcome: str, own: Sequence[tuple[Any, ...]] = own) -> int:
            return sum(row[4] for row in own if row[1] == outcome)

        newest = max((row[8] for row in own if row[8] is not None), default=None)
        found[task] = Outcomes(
            task=task,
            gold=cases("gold"),
            corrected=sum(row[5] for row in own if row[1] == "gold"),
            with_strategy=sum(row[6] for row in own if row[1] == "gold"),
            expert=sum(row[7] for row in own),
            unresolved=cases("unresolved"),
            dead=cases("dead"),
            holdout=cases("holdout"),
            dropped=cases("dropped"),
            newest_ms=None if newest is None else newest * 1000,
            unresolved_reasons=_by_reason(own, "unresolved"),
            dropped_reasons=_by_reason(own, "dropped"),
        )
    return tuple(found.values())


def _by_reason(rows: Iterable[tuple[Any, ...]], outcome: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        if row[1] == outcome:
            found[row[3]] = found.get(row[3], 0) + row[4]
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _dead(ends: Iterable[tuple[Any, ...]]) -> tuple[DeadGroup, ...]:
    groups = [
        DeadGroup(
            task=row[0],
            stage=row[2],
            reason=row[3],
            means=DEAD_REASONS.get(row[3], ""),
            letters=row[4],
            newest_ms=None if row[8] is None else row[8] * 1000,
        )
        for row in ends
        if row[1] == "dead"
    ]
    return tuple(sorted(groups, key=lambda one: (-one.letters, one.task, one.stage, one.reason)))


def _funnel(task: str, ends: Iterable[tuple[Any, ...]], rounds: Sequence[tuple[Any, ...]]) -> Funnel:
    own = [row for row in ends if row[0] == task]

    def cases(outcome: str, at_intake: bool) -> int:
        return sum(row[4] for row in own if row[1] == outcome and (row[2] == "intake") is at_intake)

    read = sum(row[4] for row in own)
    dropped, dead_at_intake = cases("dropped", True) + cases("dropped", False), cases("dead", True)
    attempted = {row[0]: row[1] for row in rounds}
    return Funnel(
        task=task,
        read=read,
        dropped=dropped,
        dead_at_intake=dead_at_intake,
        admitted=read - dropped - dead_at_intake,
        rounds=tuple(
            Round(
                round=number,
                attempted=tried,
                judged=judged,
                passed=passed,
                refined=attempted.get(number + 1, 0),
                ended=ended,
            )
            for number, tried, judged, passed, ended in rounds
        ),
        gold=cases("gold", False),
        unresolved=cases("unresolved", False),
        holdout=cases("holdout", False),
        dead=cases("dead", False),
    )


def _pass_lines(facts: Facts, task: str) -> PassLines | None:
    (span,) = _rows(facts, _SPAN, task)
    if span[0] is None:
        return None
    width = bucket_of(span[1] - span[0] + 1)
    found: dict[str, list[Bucket]] = {}
    rows = _rows(facts, _PASSING.format(width=width), task)
    versions = sorted({row[0] for row in rows})  # v0001-..., v0002-...; "base" and "production" come before
    own = {*versions[-ADAPTERS:], "base", "production"}
    for adapter, at_s, judged, passed in rows:
        line = found.setdefault(adapter if adapter in own else OLDER, [])
        if line and line[-1].at_ms == at_s * 1000:
            before = line.pop()
            judged, passed = judged + before.judged, passed + before.passed
        line.append(Bucket(at_ms=at_s * 1000, judged=judged, passed=passed))
    lines = tuple(
        AdapterLine(
            adapter=adapter,
            judged=sum(one.judged for one in line),
            passed=sum(one.passed for one in line),
            buckets=tuple(line),
        )
        for adapter, line in sorted(found.items(), key=lambda item: (item[0].startswith("v"), item[0]))
    )
    return PassLines(width, span[0] // width * width, span[1] // width * width + width, lines)


def _violations(rows: Iterable[tuple[Any, ...]]) -> tuple[Violation, ...]:
    found: dict[tuple[str, str, str], dict[int, int]] = {}
    for task, rule, severity, number, broken in rows:
        found.setdefault((task, rule, severity), {})[number] = broken
    ordered = sorted(found.items(), key=lambda item: (item[0][0], -sum(item[1].values()), item[0]))
    return tuple(
        Violation(task=task, rule=rule, severity=severity, by_round=by_round)
        for (task, rule, severity), by_round in ordered[:RULES]
    )


def _cost(facts: Facts, task: str) -> TaskCost:
    (total,) = _rows(facts, _COST, task)
    usd, gold, mean, first_s, last_s = total
    width = bucket_of((last_s or 0) - (first_s or 0) + 1)
    return TaskCost(
        task=task,
        usd=usd,
        gold_rows=gold,
        usd_per_gold_row=usd / gold if gold else None,
        usd_in_row=mean,
        bucket_ms=width * 1000,
        over_time=tuple(
            CostPoint(at_ms=at_s * 1000, usd=spent, gold=rows)
            for at_s, spent, rows in _rows(facts, _COST_OVER_TIME.format(width=width), task)
        ),
    )


def _review(facts: Facts, settings: Settings) -> ReviewState:
    samples = {name: task.review.sample for name, task in settings.tasks.items()}
    waiting = dict(_rows(facts, _UNRESOLVED))
    drawn = 0
    for task, sample in samples.items():
        ((number,),) = _rows(facts, _DRAWN, task, sample)
        drawn += number
    found = agreement_of([dict(zip(COUNTED, row, strict=True)) for row in _rows(facts, _JUDGED)])
    return ReviewState(
        waiting_unresolved=sum(number for task, number in waiting.items() if task in samples),
        waiting_accepted=drawn,
        decisions=found.decisions,
        agreement=found.agreement,
        low=found.low,
        high=found.high,
        kappa=found.kappa,
        note="; ".join(tell_agreement(found)),
    )


def _rows(facts: Facts, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = facts.connection.execute(sql, list(values)).fetchall()
    return rows


_ENDS = """
SELECT task, outcome, coalesce(stage, ''), reason, count(*), count(*) FILTER (corrected), count(*) FILTER (strategy),
       count(*) FILTER (review IS NOT NULL), max(ended_s)
FROM facts GROUP BY ALL ORDER BY ALL
"""

_ROUNDS = """
SELECT round, count(*), count(passed), count(*) FILTER (passed),
       count(*) FILTER (is_last AND NOT coalesce(passed, false))
FROM tries WHERE task = ? GROUP BY round ORDER BY round
"""

_SPAN = "SELECT min(ended_s), max(ended_s) FROM tries WHERE task = ? AND round = 0 AND passed IS NOT NULL"

_NAMED = "CASE WHEN adapter <> '' THEN adapter WHEN source = 'production' THEN 'production' ELSE 'base' END"

_PASSING = f"""
SELECT {_NAMED} AS named, ended_s // {{width}} * {{width}} AS at_s, count(*), count(*) FILTER (passed)
FROM tries WHERE task = ? AND round = 0 AND passed IS NOT NULL GROUP BY ALL ORDER BY at_s, named
"""

_LIVE = f"""
SELECT task, {_NAMED} AS named, count(*), count(*) FILTER (passed)
FROM tries WHERE round = 0 AND passed IS NOT NULL GROUP BY ALL
"""

_VIOLATIONS = """
SELECT task, one.rule, one.severity, round, count(*)
FROM (SELECT task, round, unnest(broken) AS one FROM tries) GROUP BY ALL ORDER BY ALL
"""

_COST = """
SELECT coalesce(sum(usd), 0.0), count(*) FILTER (outcome = 'gold'), avg(usd) FILTER (outcome = 'gold'), min(ended_s),
       max(ended_s)
FROM facts WHERE task = ? AND outcome <> 'dropped'
"""

_COST_OVER_TIME = """
SELECT ended_s // {width} * {width} AS at_s, sum(usd), count(*) FILTER (outcome = 'gold')
FROM facts WHERE task = ? AND outcome <> 'dropped' GROUP BY at_s ORDER BY at_s
"""

_ROLES = """
SELECT task, role, model, sum(calls)::BIGINT, sum(prompt_tokens)::BIGINT, sum(completion_tokens)::BIGINT,
       sum(usd) AS usd
FROM charged GROUP BY ALL ORDER BY task, usd DESC, role, model
"""

_UNRESOLVED = "SELECT task, count(*) FROM facts WHERE outcome = 'unresolved' AND review IS NULL GROUP BY task"

_DRAWN = """
SELECT count(*) FROM facts JOIN draws USING (id)
WHERE task = ? AND drawn < ? AND outcome = 'gold' AND review IS NULL
"""

_JUDGED = """
SELECT CASE WHEN review IS NULL THEN outcome = 'gold' ELSE judge_passed END AS judged,
       review, review_sampled, judge_rules, review_rules, reviewer, count(*) AS cases
FROM facts WHERE outcome IN ('gold', 'unresolved') GROUP BY ALL
"""
