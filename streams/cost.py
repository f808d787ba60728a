"""What model calls cost, from two sources that must reconcile: the ledger and the rows of ended cases.

The ledger has every call made for a case, also those repeated after a crash and those of cases still under way or
lost to an unreachable sink. The rows have what each ended case took, by role, model and round. `goldstream cost` and
the dashboard show both and say what the difference is.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from schemas.errors import BrokerError
from schemas.ledger import Book, base_role
from schemas.settings import ROLES, Settings
from streams.gold import open_gold
from streams.ledger import read_ledger

By = Literal["task", "role", "round", "model", "day"]
FRESH_MS = 60_000  # a worker that is held says so again within this time


class Charged(NamedTuple):
    """What calls cost, and by what they are counted."""

    task: str
    role: str
    round: str
    model: str
    day: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    unknown_usd: float = 0.0  # of calls cut short, at what they may have cost


class CostRow(msgspec.Struct, frozen=True):
    """One line of the report. `rows_usd` is what of it is in the rows of ended cases."""

    name: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    unknown_usd: float
    rows_calls: int
    rows_usd: float


class CapRow(msgspec.Struct, frozen=True):
    """A cap, and for one in money how it stands today."""

    task: str
    role: str
    cap: str
    limit: float
    spent: float | None = None
    reserved: float | None = None  # claimed for calls under way and the next, or lost with a killed worker
    left: float | None = None


class HeldRow(msgspec.Struct, frozen=True):
    """A role of a task that takes no cases now, as one worker says."""

    task: str
    role: str
    why: str
    since: str


class GoldRow(msgspec.Struct, frozen=True):
    """What a task's gold took: of its own, and with all that became no gold."""

    task: str
    gold_rows: int
    usd_in_row: float | None  # mean of the rows' own spend
    usd_a_row: float | None  # everything spent, by the ledger, else by all rows


class Report(msgspec.Struct, frozen=True):
    """All that `goldstream cost` tells."""

    by: str
    rows: list[CostRow]
    caps: list[CapRow]
    held: list[HeldRow]
    gold: list[GoldRow]
    ledger_usd: float | None  # None where no Kafka answers
    rows_usd: float
    unknown_usd: float
    difference_usd: float | None
    notes: list[str]


def cost_report(settings: Settings, by: By = "task", since: str = "") -> Report:
    """Returns what was spent since a day, all that is known by default."""
    notes: list[str] = []
    try:
        book: Book | None = read_ledger(settings)
    except BrokerError as error:
        book = None
        notes.append(f"The ledger cannot be read, so this is from the rows of ended cases alone: {error}")
    called = [one for one in _of_ledger(book) if one.day >= since] if book is not None else []
    ended = [one for one in _of_rows(settings.gold) if one.day >= since]
    rows = _grouped(by, called, ended)
    ledger_usd = sum(one.usd + one.unknown_usd for one in called) if book is not None else None
    rows_usd = sum(one.usd for one in ended)
    unknown_usd = sum(one.unknown_usd for one in called)
    if ledger_usd is not None:
        notes.append(_difference(called, ended, ledger_usd, rows_usd, unknown_usd))
    return Report(
        by=by,
        rows=rows,
        caps=caps(settings, book) if book is not None else [],
        held=held(book, int(time.time() * 1000)) if book is not None else [],
        gold=_gold(settings.gold, since, called),
        ledger_usd=ledger_usd,
        rows_usd=rows_usd,
        unknown_usd=unknown_usd,
        difference_usd=None if ledger_usd is None else ledger_usd - rows_usd,
        notes=notes,
    )


def dearest_rows(gold: Path, limit: int, since: str = "") -> list[dict[str, Any]]:
    """Returns the gold rows that cost the most, with what they cost by role."""
    sql = """
        SELECT case_id, task, dt AS day, rounds, calls, prompt_tokens + completion_tokens AS tokens, cost_usd AS usd,
               list_transform(charges, lambda one: {'role': one.role, 'model': one.model, 'round': one.round,
                                                    'calls': one.calls, 'usd': one.cost_usd}) AS charges
        FROM gold WHERE dt >= ? ORDER BY cost_usd DESC, case_id LIMIT ?
    """
    with open_gold(gold) as connection:
        result = connection.execute(sql, [since, limit])
        names = [column[0] for column in result.description or []]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _of_ledger(book: Book) -> Iterable[Charged]:
    for entry in book.entries.values():
        for line in entry.lines:
            yield Charged(
                entry.task,
                entry.role,
                str(line.round),
                line.model,
                entry.day,
                line.calls + line.unknown_calls,
                line.prompt_tokens,
                line.completion_tokens,
                line.cost_usd,
                line.unknown_usd,
            )


_BY_CHARGE = """
SELECT task, charge.role, charge.round, charge.model, dt, sum(charge.calls), sum(charge.prompt_tokens),
       sum(charge.completion_tokens), sum(charge.cost_usd)
FROM (SELECT task, dt, unnest(charges) AS charge FROM outcomes)
GROUP BY ALL
"""
# Rows of an earlier version, and what came before charges were kept in a case: the total alone is known.
_WITHOUT = """
SELECT task, dt, sum(calls - coalesce(list_sum(list_transform(charges, lambda one: one.calls)), 0)) AS calls,
       sum(prompt_tokens - coalesce(list_sum(list_transform(charges, lambda one: one.prompt_tokens)), 0)),
       sum(completion_tokens - coalesce(list_sum(list_transform(charges, lambda one: one.completion_tokens)), 0)),
       sum(cost_usd - coalesce(list_sum(list_transform(charges, lambda one: one.cost_usd)), 0.0))
FROM outcomes GROUP BY ALL HAVING calls > 0
"""


def _of_rows(gold: Path) -> list[Charged]:
    with open_gold(gold) as connection:
        found = [
            Charged(task, role, str(round), model, day, int(calls), int(prompt or 0), int(completion or 0), usd or 0.0)
            for task, role, round, model, day, calls, prompt, completion, usd in connection.execute(
                _BY_CHARGE
            ).fetchall()
        ]
        for task, day, calls, prompt, completion, usd in connection.execute(_WITHOUT).fetchall():
            found.append(Charged(task, "?", "?", "?", day, int(calls), int(prompt), int(completion), usd))
        return found


def _grouped(by: By, called: Iterable[Charged], ended: Iterable[Charged]) -> list[CostRow]:
    """Returns a row per name, dearest first. A day's calls are of cases that may end on the next."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0, 0.0, 0, 0.0])
    for one in called:
        line = sums[getattr(one, by)]
        for place, value in enumerate((one.calls, one.prompt_tokens, one.completion_tokens, one.usd, one.unknown_usd)):
            line[place] += value
    for one in ended:
        line = sums[getattr(one, by)]
        line[5] += one.calls
        line[6] += one.usd
    rows = [
        CostRow(name, int(s[0]), int(s[1]), int(s[2]), s[3] + s[4], s[4], int(s[5]), s[6]) for name, s in sums.items()
    ]
    if by in ("day", "round"):
        return sorted(rows, key=lambda row: row.name)
    return sorted(rows, key=lambda row: (-max(row.usd, row.rows_usd), -row.calls, row.name))


def caps(settings: Settings, book: Book) -> list[CapRow]:
    """Returns every cap that is set; those in money with how they stand today."""
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    rows = []
    for name, task in settings.tasks.items():
        for role in ("", *ROLES):
            limits = getattr(task.budget, role) if role else task.budget
            for cap in ("requests_per_minute", "tokens_per_minute", "calls_in_flight"):
                if (limit := getattr(limits, cap)) is not None:
                    rows.append(CapRow(name, role or "all roles", cap, limit))
            if limits.usd_per_day is not None:
                claimed = book.claimed_usd(day, name, role)
                spent = sum(
                    entry.spent_usd
                    for entry in book.entries.values()
                    if (entry.day, entry.task) == (day, name) and role in ("", base_role(entry.role))
                )
                left = max(limits.usd_per_day - claimed, 0.0)
                rows.append(
                    CapRow(name, role or "all roles", "usd_per_day", limits.usd_per_day, spent, claimed - spent, left)
                )
    return rows


def held(book: Book, now_ms: int) -> list[HeldRow]:
    """Returns who is held and why; workers say the same, so that each is told once, since the first began."""
    found: dict[tuple[str, str], HeldRow] = {}
    for entry in book.entries.values():
        if entry.held and not entry.closed and now_ms - entry.at_ms < FRESH_MS:
            since = datetime.fromtimestamp(entry.held_since_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            known = found.get((entry.task, entry.role))
            if known is None or since < known.since:
                found[entry.task, entry.role] = HeldRow(entry.task, entry.role, entry.held, since)
    return sorted(found.values(), key=lambda row: (row.task, row.role))


def _gold(gold: Path, since: str, called: list[Charged]) -> list[GoldRow]:
    sql = """
        SELECT task, count(*) FILTER (outcome = 'gold'), avg(cost_usd) FILTER (outcome = 'gold'), sum(cost_usd)
        FROM outcomes WHERE dt >= ? AND task <> '' GROUP BY task ORDER BY task
    """
    spent: dict[str, float] = defaultdict(float)
    for one in called:
        spent[one.task] += one.usd + one.unknown_usd
    with open_gold(gold) as connection:
        return [
            GoldRow(task, rows, mean, max(spent[task], total or 0.0) / rows if rows else None)
            for task, rows, mean, total in connection.execute(sql, [since]).fetchall()
        ]


def _difference(
    called: list[Charged], ended: list[Charged], ledger_usd: float, rows_usd: float, unknown_usd: float
) -> str:
    outside = [one for one in called if "/" in one.role]  # of no case: they end in no row
    called = [one for one in called if "/" not in one.role]
    outside_usd = sum(one.usd + one.unknown_usd for one in outside)
    ledger_usd, unknown_usd = ledger_usd - outside_usd, unknown_usd - sum(one.unknown_usd for one in outside)
    told = _of_cases(called, ended, ledger_usd, rows_usd, unknown_usd)
    if outside:
        told += (
            f" Besides, {sum(one.calls for one in outside)} calls for {outside_usd:.6g} USD were made for gates, "
            "replays and calibrations, which end in no row."
        )
    return told


def _of_cases(
    called: list[Charged], ended: list[Charged], ledger_usd: float, rows_usd: float, unknown_usd: float
) -> str:
    calls, rows_calls = sum(one.calls for one in called), sum(one.calls for one in ended)
    if not calls and not rows_calls:
        return "No model has been called for a case yet."
    told = f"The ledger has {calls} calls for {ledger_usd:.6g} USD, the rows of ended cases {rows_calls} for "
    told += f"{rows_usd:.6g} USD. "
    if rows_calls > calls:
        return told + (
            "The rows have more: they are older than the ledger, or of workers killed within 5 s after their calls."
        )
    if calls == rows_calls and unknown_usd == 0:
        return told + "They agree."
    told += (
        f"The other {ledger_usd - rows_usd:.6g} USD are of cases still under way and of calls repeated after a crash"
    )
    return told + (f"; {unknown_usd:.6g} USD of calls cut short may have cost less." if unknown_usd else ".")
