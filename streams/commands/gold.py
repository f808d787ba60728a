"""The gold set: gold sql, shell, stats, show, why, diff, watermark, compact; export stands in commands/export.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from schemas.commandline import as_json, print_json, with_settings
from streams.commands.export import export

if TYPE_CHECKING:
    from pathlib import Path

    from schemas.gold import Watermark
    from schemas.settings import Settings


@click.group()
def gold() -> None:
    """Query the gold set, look at its rows, export it."""


gold.add_command(export)


def with_as_of(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --as-of, which `_then` resolves."""
    return click.option(
        "--as-of",
        metavar="WATERMARK",
        help="The gold set as it was: an adapter version such as 7 or support/7, or a JSON file.",
    )(command)


def _then(settings: Settings, as_of: str | None) -> Watermark | None:
    if as_of is None:
        return None  # without pyarrow, which takes longer to import than most questions to answer
    from streams.watermarks import find_watermark

    return find_watermark(settings, as_of)


@gold.command("sql")
@click.argument("sql")
@with_as_of
@click.option("--from", "source", metavar="s3://...", help="Ask a published snapshot instead; it is fetched first.")
@as_json
@with_settings
def gold_sql(settings: Settings, sql: str, as_of: str | None, source: str | None, as_json: bool) -> None:
    """Run SQL over the views outcomes, gold, rgt_pairs, unresolved, dead, holdout, reviews, acceptance, cost, ..."""
    from schemas.tables import print_table
    from streams.gold import query

    gold = _fetched(settings, source, as_of) if source else settings.gold
    columns, rows = query(gold, sql, _then(settings, as_of))
    print_table(columns, rows, as_json=as_json)


@gold.command("shell")
@with_as_of
@as_json
@with_settings
def gold_shell(settings: Settings, as_of: str | None, as_json: bool) -> None:
    """Ask one question after the other: DuckDB with the views loaded. SQL on standard input runs too.

    Statements end in ; and may span lines. An error does not end it; with SQL on standard input the exit code is
    then 1.
    """
    from streams.shell import run_shell

    if run_shell(settings.gold, settings.state / "shell_history", _then(settings, as_of), as_json=as_json):
        sys.exit(1)


@gold.command("stats")
@with_as_of
@as_json
@with_settings
def gold_stats(settings: Settings, as_of: str | None, as_json: bool) -> None:
    """Show how many cases ended how, and why."""

    from streams.stats import stats

    found = stats(settings.gold, _then(settings, as_of))
    if as_json:
        print_json(found)
    else:
        _print_stats(found)


@gold.command("show")
@click.argument("case_id")
@with_as_of
@as_json
@with_settings
def gold_show(settings: Settings, case_id: str, as_of: str | None, as_json: bool) -> None:
    """Show one row, column by column; --json holds the messages and attempts too."""
    from streams.why import find_row, tell_row

    row = find_row(settings, case_id, _then(settings, as_of))["row"]
    if as_json:
        print_json(row)
    else:
        click.echo("\n".join(tell_row(row)))


@gold.command("lineage")
@click.argument("case_id")
@as_json
@with_settings
def gold_lineage(settings: Settings, case_id: str, as_json: bool) -> None:
    """Show which adapters were trained on a case, with which pairs and how often; also on one that is forgotten."""
    from schemas.tables import printable
    from streams.lineage import lineage_of, tell_lineage

    found = lineage_of(settings, case_id)
    if as_json:
        print_json(found)
    else:
        click.echo("\n".join(printable(line) for line in tell_lineage(case_id, found)))


@gold.command("why")
@click.argument("case_id")
@with_as_of
@as_json
@with_settings
def gold_why(settings: Settings, case_id: str, as_of: str | None, as_json: bool) -> None:
    """Tell how a row came to be: source record, attempts, verdicts, strategy, reviews, spend; and its adapters."""
    from schemas.tables import printable
    from streams.lineage import lineage_of, tell_lineage
    from streams.why import find_row, tell_why

    found = find_row(settings, case_id, _then(settings, as_of))
    adapters = lineage_of(settings, case_id)
    if as_json:
        print_json(found | {"adapters": adapters})
    else:
        lines = map(printable, tell_lineage(case_id, adapters) if adapters else ())
        click.echo("\n".join([*tell_why(found), *lines]))


@gold.command("compact")
@click.option("--dry-run", is_flag=True, help="Only tell what would be rewritten.")
@as_json
@with_settings
def gold_compact(settings: Settings, dry_run: bool, as_json: bool) -> None:
    """Move landing files into few large ones and take out what is forgotten; the sink does it by itself when due.

    Readers and the sink go on meanwhile. What was superseded is put aside after gold.grace_s, and removed
    after as long again.
    """
    from streams.compaction.compact import compact

    report = compact(settings.gold, settings.gold_set, dry_run=dry_run)
    if as_json:
        print_json(report)
        return
    if dry_run:
        click.echo(f"would read {report.landing_files} landing files and merge {report.merged_files} compacted ones")
        return
    if report.written_files or report.landing_files:
        click.echo(
            f"{report.landing_files} landing files and {report.merged_files} compacted ones became "
            f"{report.written_files} ({report.rows} rows, {report.bytes / 1e6:.1f} MB) in {report.seconds:.1f} s"
        )
    else:
        click.echo("nothing to compact")
    if report.erased_rows:
        click.echo(f"{report.erased_rows} forgotten rows erased from the files that hold now")
    gone, grace_s = report.removed, settings.gold_set.grace_s
    click.echo(
        f"manifest {report.manifest}: {report.files} files, {report.total_rows} rows; removed after {grace_s:g} s of "
        f"grace: {gone.landing} landing files, {gone.files} compacted files, {gone.manifests} manifests"
    )


@gold.command("publish")
@as_json
@with_settings
def gold_publish(settings: Settings, as_json: bool) -> None:
    """Copy the compacted gold set to gold.publish.s3, never over what is there; again after each compaction.

    Credentials come from the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role.
    """
    from streams.compaction.s3 import publish_snapshot

    found = publish_snapshot(settings.gold, settings.gold_set.publish)
    if as_json:
        print_json(found)
    else:
        click.echo(
            f"manifest {found.manifest} is at {found.to}: {found.files} files copied ({found.bytes / 1e6:.1f} MB), "
            f"{found.there} were there"
        )


@gold.command("watermark")
@click.argument("name", default="now")
@with_settings
def gold_watermark(settings: Settings, name: str) -> None:
    """Print a watermark as JSON, for --as-of and gold diff: that of now, or the one an adapter was trained at."""
    from streams.watermarks import find_watermark, to_json

    click.echo(to_json(find_watermark(settings, name)))


@gold.command("diff")
@click.argument("start", metavar="FROM")
@click.argument("end", metavar="TO", default="now")
@as_json
@with_settings
def gold_diff(settings: Settings, start: str, end: str, as_json: bool) -> None:
    """Show which rows came between two watermarks, and which were superseded.

    FROM and TO are "start", "now", adapter versions such as 7 or support/7, or JSON files.
    """
    from msgspec.structs import astuple

    from schemas.tables import print_table
    from streams.difference import difference
    from streams.watermarks import find_watermark

    found = difference(settings, find_watermark(settings, start), find_watermark(settings, end))
    if as_json:
        print_json(found)
        return
    columns = ["task", "outcome", f"at {start}", "added", "superseded", "in place of another", f"at {end}"]
    print_table(columns, [astuple(change) for change in found.changes], as_json=False)
    if found.became:
        rows = [astuple(one) for one in found.became]
        print_table(["task", "was", "is now", "cases"], rows, as_json=False, title="Superseded")
    click.echo(f"{found.added} cases added, {found.superseded} rows superseded")


def _fetched(settings: Settings, source: str, as_of: str | None) -> Path:
    """Returns the folder that a published snapshot was fetched to."""
    import hashlib

    from streams.compaction.s3 import fetch_snapshot

    if as_of is not None:
        raise click.UsageError("--as-of names a point of this gold set; it cannot go with --from")
    folder = settings.state / "snapshots" / hashlib.sha256(source.encode()).hexdigest()[:12]
    fetch_snapshot(source, settings.gold_set.publish, folder)
    return folder


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
