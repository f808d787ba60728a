"""From a row to the adapters that were trained on it: `goldstream gold lineage`, and the last lines of `gold why`."""

from __future__ import annotations

from schemas.errors import GoldError
from schemas.lineage import Row, Trained, adapters_of
from schemas.settings import Settings
from streams.forgetting.report import tell_adapters
from streams.gold import open_gold


def lineage_of(settings: Settings, case_id: str) -> list[Trained]:
    """Returns the adapters a case went into, oldest first, whether or not its row is forgotten.

    Raises GoldError for an id that the gold set has never held.
    """
    with open_gold(settings.gold) as connection:
        rows = connection.execute(_ROWS, [case_id]).fetchall()
    if not rows:
        raise GoldError(
            f'no row of case {case_id[:128]!r} in the gold set. `goldstream gold sql "SELECT case_id FROM gold LIMIT '
            '10"` lists ids.'
        )
    return adapters_of(settings.adapters, [Row(name, task, split, (p, o)) for name, task, split, p, o in rows])


def tell_lineage(case_id: str, found: list[Trained]) -> list[str]:
    """Returns the adapters of a case as lines."""
    if not found:
        return [f"no adapter was trained on case {case_id}"]
    return [f"case {case_id} went into", *(f"  {line}" for line in tell_adapters(found))]


_ROWS = "SELECT case_id, task, split, kafka_partition, kafka_offset FROM stored WHERE case_id = ?"
