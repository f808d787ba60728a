"""What changed in the gold set between two watermarks: `goldstream gold diff`.

A case is added where it has no row at the first and one at the second, superseded where it has a row of a higher epoch
at the second; nothing else can happen between two watermarks.
"""

from __future__ import annotations

import msgspec

from schemas.errors import GoldError
from schemas.gold import Watermark
from schemas.settings import Settings
from streams.gold import below, open_gold


class Change(msgspec.Struct, frozen=True):
    """How many rows of one task and outcome there were, came and went."""

    task: str
    outcome: str
    before: int
    added: int
    superseded: int  # that were of this outcome, and have a newer row now
    instead: int  # that are of this outcome now, and superseded another
    after: int


class Superseded(msgspec.Struct, frozen=True):
    """How many rows of one outcome have become rows of which."""

    task: str
    was: str
    now: str
    cases: int


class Difference(msgspec.Struct, frozen=True):
    """What `gold diff` tells."""

    start: Watermark
    end: Watermark
    added: int
    superseded: int
    changes: list[Change]
    became: list[Superseded]


def difference(settings: Settings, start: Watermark, end: Watermark) -> Difference:
    """Compares the gold set at two watermarks; raises GoldError where the first is later than the second."""
    later = [p for p, offset in start.items() if offset > end.get(p, 0)]
    if later:
        raise GoldError(
            f"the first watermark is later than the second in partition {min(later)} ({start[min(later)]} against "
            f"{end.get(min(later), 0)}). Name the earlier one first."
        )
    with open_gold(settings.gold, end) as connection:
        connection.execute(_CHANGED.format(before=below(start)))
        changes = [Change(*row) for row in connection.execute(_CHANGES).fetchall()]
        became = [Superseded(*row) for row in connection.execute(_BECAME).fetchall()]
    added, superseded = sum(c.added for c in changes), sum(c.superseded for c in changes)
    return Difference(start, end, added, superseded, changes, became)


_CHANGED = """
CREATE TEMP TABLE changed AS
WITH seen AS (SELECT case_id, task, epoch, outcome, {before} AS early FROM landed)
SELECT case_id,
       any_value(task) AS task,
       arg_max(outcome, epoch) FILTER (early) AS was,
       arg_max(outcome, epoch) AS now,
       max(epoch) FILTER (early) AS epoch_before,
       max(epoch) AS epoch
FROM seen GROUP BY case_id
"""

_CHANGES = """
WITH sides AS (
    SELECT task, was AS outcome, 1 AS before, 0 AS added, (epoch > epoch_before)::INT AS superseded, 0 AS instead
    FROM changed WHERE was IS NOT NULL
    UNION ALL
    SELECT task, now, 0, (was IS NULL)::INT, 0, coalesce(epoch > epoch_before, false)::INT FROM changed
)
SELECT task, outcome, sum(before)::BIGINT, sum(added)::BIGINT, sum(superseded)::BIGINT, sum(instead)::BIGINT,
       sum(before + added + instead - superseded)::BIGINT
FROM sides GROUP BY ALL ORDER BY ALL
"""

_BECAME = "SELECT task, was, now, count(*) FROM changed WHERE epoch > epoch_before GROUP BY ALL ORDER BY ALL"
