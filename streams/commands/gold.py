"""The gold set: gold sql, gold stats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from schemas.commandline import as_json, print_json, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.group()
def gold() -> None:
    """Query the gold set."""


@gold.command("sql")
@click.argument("sql")
@as_json
@with_settings
def gold_sql(settings: Settings, sql: str, as_json: bool) -> None:
    """Run SQL over the views outcomes, gold, rgt_pairs, unresolved, dead, holdout, reviews, acceptance, cost, ..."""
    from schemas.tables import print_table
    from streams.gold import query

    columns, rows = query(settings.gold, sql)
    print_table(columns, rows, as_json=as_json)


@gold.command("stats")
@as_json
@with_settings
def gold_stats(settings: Settings, as_json: bool) -> None:
    """Show how many cases ended how, and why."""

    from streams.gold import stats

    found = stats(settings.gold)
    if as_json:
        print_json(found)
    else:
        _print_stats(found)


def _print_stats(found: dict[str, Any]) -> None:
    """Prints one small table per question, none for a question without an answer."""
    from schemas.tables import print_table

    gold = found["gold"]
    print_table(
        ["cases", "gold", "corrected", "with strategy", "duplicates"],
        [[found["cases"], gold["rows"], gold["corrected"], gold["with_strategy"], found["duplicates"]]],
        as_json=False,
    )
    tables = {
        "How cases ended": ("outcome", found["outcomes"]),
        "Rounds that gold needed": ("rounds", found["rounds"]),
        "Violations by rule, all rounds": ("rule", found["violations"]),
        "Unresolved, by reason": ("reason", found["unresolved"]),
        "Dead, by reason": ("reason", found["dead"]),
        "Dropped, by reason": ("reason", found["dropped"]),
        "Personal values taken out, by kind": ("kind", found["redacted"]),
        "Decided by experts": ("decision", found["reviews"]),
    }
    for title, (name, counts) in tables.items():
        if counts:
            print_table([name, "cases"], list(counts.items()), as_json=False, title=title)
    if found["first_attempt"]:
        rows = found["first_attempt"]
        print_table(list(rows[0]), [list(row.values()) for row in rows], as_json=False, title="First attempts")
    spend = {name: value for name, value in found["spend"].items() if value is not None}
    print_table(list(spend), [list(spend.values())], as_json=False, title="Spend")


COMMANDS = (gold,)
