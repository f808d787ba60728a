"""One row of the gold set: what is in it (`goldstream gold show`), and how it came to be (`goldstream gold why`).

Both ask the gold set alone and need no Kafka; a case that has not ended yet is `goldstream case`.
"""

from __future__ import annotations

from typing import Any

from schemas.errors import GoldError
from schemas.gold import Watermark
from schemas.settings import Settings
from schemas.tables import printable
from streams.gold import open_gold
from streams.telling import tell

_TEXT_LINES = 40  # of one value, in `show`; --json holds all
_LEFT_TO_WHY = ("messages", "attempts", "charges", "case_json")  # told by `why`; --json shows them all


def find_row(settings: Settings, case_id: str, as_of: Watermark | None = None) -> dict[str, Any]:
    """Returns {"row": by column, "superseded": rows of lower epochs}; raises GoldError for an id without a row."""
    with open_gold(settings.gold, as_of) as connection:

        def rows(sql: str) -> list[dict[str, Any]]:
            result = connection.execute(sql, [case_id])
            names = [column[0] for column in result.description or []]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

        found = rows("SELECT * EXCLUDE (case_json) FROM outcomes WHERE case_id = ?")
        if not found:
            then = " at that watermark" if as_of is not None else ""
            raise GoldError(
                f"no row of case {case_id[:128]!r} in the gold set{then}. `goldstream case ID` also finds a case on "
                'its way; `goldstream gold sql "SELECT case_id FROM gold LIMIT 10"` lists ids.'
            )
        older = rows(
            "SELECT epoch, outcome, reason, review, reviewer, ended_at, kafka_partition, kafka_offset FROM landed "
            f"WHERE case_id = ? AND epoch < {int(found[0]['epoch'])} ORDER BY epoch"
        )
        return {"row": found[0], "superseded": older}


def tell_row(row: dict[str, Any]) -> list[str]:
    """Returns a row column by column as lines, in the order of the schema, without what is empty."""
    shown = {name: value for name, value in row.items() if value not in (None, "", []) and name not in _LEFT_TO_WHY}
    width = max(len(name) for name in shown)
    lines = []
    for name, value in shown.items():
        texts = _lines(value)
        if len(texts) > 1:
            lines += [f"{name}:", *(f"  {line}" for line in texts[:_TEXT_LINES])]
            lines += [f"  ... {len(texts)} lines in all; --json shows them"] if len(texts) > _TEXT_LINES else []
        else:
            lines.append(f"{name:<{width}}  {texts[0] if texts else ''}")
    roles = " > ".join(message["role"] for message in row["messages"] or ())
    lines.append(f"{'messages':<{width}}  {roles or 'none'}")
    lines.append(f"{'attempts':<{width}}  {len(row['attempts'] or ())}; `goldstream gold why` tells them")
    return [printable(line) for line in lines]


def tell_why(found: dict[str, Any]) -> list[str]:
    """Returns how a row came to be as lines, with what it supersedes."""
    lines = tell({"where": "gold set", "case": found["row"]})
    for old in found["superseded"]:
        reason = f" ({old['reason']})" if old["reason"] else ""
        decided = f", {old['review']} by {old['reviewer']}" if old["review"] else ""
        lines.append(
            f"supersedes: epoch {old['epoch']}, {old['outcome']}{reason}{decided}, {old['ended_at']:%Y-%m-%d %H:%M UTC}"
        )
    return [printable(line) for line in lines]


def _lines(value: Any) -> list[str]:
    if isinstance(value, float):
        return [f"{value:.6g}"]
    if isinstance(value, list):
        return [", ".join(map(str, value))]
    return str(value).splitlines()
