"""The gold set in numbers, as series: read through DuckDB, and only where something has landed since."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from schemas.case import DEAD_REASONS, DROPPED_REASONS, UNRESOLVED_REASONS
from schemas.manifests import latest_manifest
from schemas.metrics import OTHER, Gauge, Labels, known
from schemas.settings import Settings
from streams.exporter import families as f
from streams.gold import open_gold

NEWEST_VERSIONS = 20  # of a task that have series of their own
MOST_ROUNDS = 20
ANYWAY_S = 600.0  # after which the gold set is read although nothing has landed: rows may have been erased

_MANIFEST = "manifests"

_CASES = """
SELECT coalesce(task, ''), split, stage, outcome, coalesce(reason, ''), coalesce(corrected, false),
       coalesce(strategy_guardrail, '') <> '', coalesce(review, ''), count(*), epoch(max(ended_at))
FROM outcomes GROUP BY ALL
"""
_ATTEMPTS = """
SELECT coalesce(task, ''), split, attempt.round, attempt.source, coalesce(attempt.adapter, ''), attempt.passed,
       list_transform(attempt.violations, lambda one: [one.rule, one.severity]) AS broken, count(*)
FROM (SELECT task, split, unnest(attempts) AS attempt FROM outcomes)
WHERE attempt.passed IS NOT NULL GROUP BY ALL
"""
# Rows without charges are of an earlier version, which kept the total alone.
_CHARGES = """
SELECT coalesce(task, ''), charge.role, charge.model, sum(charge.calls), sum(charge.prompt_tokens),
       sum(charge.completion_tokens), sum(charge.cost_usd)
FROM (SELECT task, unnest(charges) AS charge FROM outcomes) GROUP BY ALL
UNION ALL
SELECT coalesce(task, ''), 'unknown', 'unknown', sum(calls), sum(prompt_tokens), sum(completion_tokens), sum(cost_usd)
FROM outcomes WHERE coalesce(len(charges), 0) = 0 AND calls > 0 GROUP BY ALL
"""


class GoldReading:
    """Reads the gold set where its files have changed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen: dict[str, tuple[int, str]] | None = None
        self._again = 0.0
        self.reads = 0  # of the rows themselves

    def read(self) -> None:
        """Shows the gold set, if it is not as it was. Raises GoldError, and keeps what was shown then."""
        _show_disk(self._settings.gold)
        landed = _landed(self._settings.gold)
        f.LANDING_FILES.set({(): float(sum(count for folder, (count, _) in landed.items() if folder != _MANIFEST))})
        if landed == self._seen and time.monotonic() < self._again:
            return
        show_gold(self._settings)
        self._seen, self._again = landed, time.monotonic() + ANYWAY_S
        self.reads += 1


def show_gold(settings: Settings) -> None:
    """Reads and shows the gold set as it is."""
    with open_gold(settings.gold) as connection:
        connection.execute("SET threads = 1")  # beside the sink and the workers, in no hurry
        cases = connection.execute(_CASES).fetchall()
        attempts = connection.execute(_ATTEMPTS).fetchall()
        charges = connection.execute(_CHARGES).fetchall()
    _show_cases(settings, cases)
    _show_attempts(settings, attempts)
    _show_charges(settings, charges)


def _show_cases(settings: Settings, rows: Iterable[tuple[Any, ...]]) -> None:
    found: dict[Gauge, list[tuple[Labels, float]]] = {
        family: [] for family in (f.CASES, f.DEAD, f.UNRESOLVED, f.DROPPED, f.GOLD, f.GOLD_STRATEGY, f.REVIEWS)
    }
    newest: dict[Labels, float] = {}
    for task, split, stage, outcome, reason, corrected, has_strategy, review, number, ended_s in rows:
        task = known(task, settings.tasks)
        found[f.CASES].append(((task, split, stage, outcome), number))
        if review:
            found[f.REVIEWS].append(((task, review), number))
        if outcome == "dead":
            found[f.DEAD].append(((task, stage, known(reason, DEAD_REASONS)), number))
        elif outcome == "unresolved":
            found[f.UNRESOLVED].append(((task, known(reason, UNRESOLVED_REASONS)), number))
        elif outcome == "dropped":
            found[f.DROPPED].append(((task, known(reason, DROPPED_REASONS)), number))
        elif outcome == "gold":
            found[f.GOLD].append(((task, str(corrected).lower()), number))
            found[f.GOLD_STRATEGY].append(((task,), number * has_strategy))
            newest[task,] = max(newest.get((task,), 0.0), ended_s or 0.0)
    for family, values in found.items():
        family.set(values)
    f.GOLD_NEWEST.set(newest)


def _show_attempts(settings: Settings, rows: list[tuple[Any, ...]]) -> None:
    versions: dict[str, set[str]] = {}
    for task, _, _, _, adapter, *_ in rows:
        versions.setdefault(task, set()).add(adapter)
    newest = {task: set(sorted(named)[-NEWEST_VERSIONS:]) for task, named in versions.items()}
    rules = {name: {rule.id for rule in task.rubric.rules} for name, task in settings.tasks.items()}
    judged: list[tuple[Labels, float]] = []
    accepted: list[tuple[Labels, float]] = []
    violations: list[tuple[Labels, float]] = []
    for task, split, round, source, adapter, passed, broken, number in rows:
        shown = adapter if not adapter or adapter in newest[task] else "older"
        shown = shown or ("base" if source == "student" else "none")
        labels = (known(task, settings.tasks), split, str(round) if round <= MOST_ROUNDS else "more", source, shown)
        judged.append((labels, number))
        accepted.append((labels, number * passed))
        for rule, severity in broken or ():
            named = rule if rule in rules.get(task, ()) else OTHER
            violations.append(((labels[0], named, severity), number))
    f.JUDGED.set(judged)
    f.ACCEPTED.set(accepted)
    f.VIOLATIONS.set(violations)


def _show_charges(settings: Settings, rows: Iterable[tuple[Any, ...]]) -> None:
    calls: list[tuple[Labels, float]] = []
    tokens: list[tuple[Labels, float]] = []
    cost: list[tuple[Labels, float]] = []
    for task, role, model, number, prompt, completion, usd in rows:
        labels = (known(task, settings.tasks), role, model)
        calls.append((labels, float(number)))
        tokens += [((*labels, "prompt"), float(prompt or 0)), ((*labels, "completion"), float(completion or 0))]
        cost.append((labels, usd or 0.0))
    f.CASE_CALLS.set(calls)
    f.CASE_TOKENS.set(tokens)
    f.CASE_COST.set(cost)


def _show_disk(gold: Path) -> None:
    """Shows the disk of the gold set, or of the folder it will lie in."""
    usage = shutil.disk_usage(next(path for path in (gold, *gold.absolute().parents) if path.exists()))
    f.DISK_FREE.set({(): float(usage.free)})
    f.DISK_SIZE.set({(): float(usage.total)})


def _landed(gold: Path) -> dict[str, tuple[int, str]]:
    """Returns, per partition, how many files there are and the newest one's name; opens none of them."""
    manifest = latest_manifest(gold)
    found: dict[str, tuple[int, str]] = {_MANIFEST: (manifest.number, "")}
    for folder in sorted((gold / "landing").glob("p=*")):
        if folder.name != "p=schema":
            end = manifest.watermark.get(int(folder.name[2:]), 0)
            names = [name for name in os.listdir(folder) if name.endswith(".parquet") and int(name[6:26]) >= end]
            found[folder.name] = len(names), max(names, default="")
    return found
