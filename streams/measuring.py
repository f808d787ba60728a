"""What the stream processes show at /metrics, from what they know anyway: stages, budgets, admitted cases, files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.case import Case
from schemas.measures import (
    BUDGET_CAP,
    BUDGET_HELD,
    BUDGET_SPENT,
    INTAKE_RECORDS,
    RETRIES_WAITING,
    SINK_BYTES,
    SINK_FILES,
    SINK_ROWS,
    STAGE_HELD,
    STAGE_IN_FLIGHT,
    STAGE_PRODUCED,
    STAGE_TAKEN,
)
from schemas.metrics import Labels
from schemas.settings import ROLES, Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from agents.budget import Budget
    from streams.stage import Stage

_EVENTS = ("taken", "rejoined", "outage")  # counts of a stage that are no topics
WHY_HELD = ("pause", "models", "refused", "pending")


def show_stages(stages: Mapping[str, Stage]) -> None:
    """Shows what the stages of this worker have done and do; asked at each scrape, so it costs no case anything."""

    def produced() -> Mapping[Labels, float]:
        return {
            (name, topic): count
            for name, stage in stages.items()
            for topic, count in stage.counts.copy().items()
            if topic not in _EVENTS
        }

    def held() -> Mapping[Labels, float]:
        reasons = {name: stage.held_by for name, stage in stages.items()}
        return {(name, why): why in now for name, now in reasons.items() for why in WHY_HELD}

    STAGE_TAKEN.read_from(lambda: {(name,): stage.counts.copy().get("taken", 0) for name, stage in stages.items()})
    STAGE_PRODUCED.read_from(produced)
    STAGE_IN_FLIGHT.read_from(lambda: {(name,): stage.in_flight for name, stage in stages.items()})
    STAGE_HELD.read_from(held)


def show_budget(settings: Settings, budget: Budget) -> None:
    """Shows which roles a task's budget holds, and caps in money beside what was spent; none where there is no cap."""
    limited = [(task, role) for task in settings.tasks for role in ROLES if budget.limits(task, role)]
    caps = {
        (task, scope or "all"): cap
        for task in settings.tasks
        for role in ROLES
        for scope, cap in budget.caps(task, role).items()
    }

    def spent() -> Mapping[Labels, float]:
        return {(task, scope): budget.spent_usd(task, "" if scope == "all" else scope) for task, scope in caps}

    BUDGET_HELD.read_from(lambda: {(task, role): budget.why_held(task, role) is not None for task, role in limited})
    BUDGET_CAP.read_from(lambda: caps)
    BUDGET_SPENT.read_from(spent)


def show_waiting(waiting: Mapping[Any, Sized]) -> None:
    """Shows how many cases retries holds, by topic."""

    def by_topic() -> Mapping[Labels, float]:
        found: Counter[Labels] = Counter()
        for tp, queue in list(waiting.items()):
            found[tp.topic,] += len(queue)
        return found

    RETRIES_WAITING.read_from(by_topic)


def count_admitted(cases: Iterable[Case]) -> None:
    """Counts what intake made of the records of a batch, once the broker has it."""
    for case in cases:
        outcome = case.outcome
        if outcome is None:
            INTAKE_RECORDS.add(case.source.topic, case.shape, "admitted", "")
        else:
            INTAKE_RECORDS.add(case.source.topic, case.shape, outcome.kind, outcome.reason)


def count_written(table: pa.Table, path: Path) -> None:
    """Counts a landing file."""
    SINK_FILES.add()
    SINK_BYTES.add(by=path.stat().st_size)
    for outcome, rows in Counter(table["outcome"].to_pylist()).items():
        SINK_ROWS.add(outcome, by=rows)
