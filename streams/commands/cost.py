"""What model calls cost: goldstream cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from schemas.commandline import as_json, print_json, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.command()
@click.option(
    "--by",
    type=click.Choice(["task", "role", "round", "model", "day", "row"]),
    default="task",
    show_default=True,
    help="What to add up; row lists the dearest gold rows.",
)
@click.option("--since", default="", metavar="DAY", help="First day to count, UTC, such as 2026-11-30.")
@click.option("--limit", default=20, show_default=True, help="Gold rows to list with --by row.")
@as_json
@with_settings
def cost(settings: Settings, by: str, since: str, limit: int, as_json: bool) -> None:
    """Show what model calls cost, how the budgets stand, and why a stage is held."""
    from datetime import date
    from typing import cast

    import msgspec

    from schemas.errors import SettingsError
    from schemas.tables import print_table
    from streams.cost import By, cost_report, dearest_rows

    if since:
        try:
            since = date.fromisoformat(since).isoformat()
        except ValueError as error:
            raise SettingsError(f"--since {since!r} is no day; expected one such as 2026-11-30.") from error
    if by == "row":
        rows = dearest_rows(settings.gold, limit, since)
        if as_json:
            print_json(rows)
            return
        names = [name for name in rows[0] if name != "charges"] if rows else ["case_id", "usd"]
        print_table(names, [[row[name] for name in names] for row in rows], as_json=False, title="Dearest gold rows")
        return
    report = cost_report(settings, cast(By, by), since)
    if as_json:
        print_json(msgspec.to_builtins(report))
        return
    columns = [
        by,
        "calls",
        "prompt tokens",
        "completion tokens",
        "USD",
        "of it cut short",
        "calls in rows",
        "USD in rows",
    ]
    print_table(columns, [msgspec.structs.astuple(row) for row in report.rows], as_json=False, title=f"Cost by {by}")
    if report.gold:
        gold = [msgspec.structs.astuple(row) for row in report.gold]
        columns = ["task", "gold rows", "USD in a row (mean)", "USD a row, all spend"]
        print_table(columns, gold, as_json=False, title="Cost of a gold row")
    if report.caps:
        caps = [msgspec.structs.astuple(row) for row in report.caps]
        columns = ["task", "role", "cap", "limit", "spent today", "reserved", "left"]
        print_table(columns, caps, as_json=False, title="Budgets")
    for held in report.held:
        click.echo(f"{held.role} of {held.task} is held since {held.since}: {held.why}.")
    for note in report.notes:
        click.echo(note)


COMMANDS = (cost,)
