"""Adapters: list, show, promote, rollback, gc."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from schemas.commandline import as_json, one_task, print_json, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.group()
def adapters() -> None:
    """See the adapters of a task and say which should serve.

    A VERSION is its whole name or its number, such as 7; "base" is the base without an adapter.
    """


@adapters.command("list")
@click.option("--task", help="One task; default all.")
@click.option("--removed", is_flag=True, help="Also versions whose weights were removed.")
@as_json
@with_settings
def adapters_list(settings: Settings, task: str | None, removed: bool, as_json: bool) -> None:
    """List versions, oldest first, with what the gate said and which serves."""
    from schemas.tables import print_table, printable
    from trainer.catalog import COLUMNS, MORE_COLUMNS, adapter_rows, tell_rollout

    names = [one_task(settings, task)] if task else sorted(settings.tasks)
    columns = MORE_COLUMNS if as_json else COLUMNS
    rows = [row[: len(columns)] for name in names for row in adapter_rows(settings, name, removed)]
    print_table(columns, rows, as_json=as_json)
    for line in [] if as_json else (line for name in names for line in tell_rollout(settings, name)):
        click.echo(printable(line))


_of_task = click.option("--task", help="Its task. Not needed where there is one only.")


@adapters.command("show")
@click.argument("version")
@_of_task
@as_json
@with_settings
def adapters_show(settings: Settings, version: str, task: str | None, as_json: bool) -> None:
    """Show one VERSION: what it was trained on, what the gate said, where its report is, whether it is sound."""

    from schemas.errors import AdapterError
    from schemas.tables import printable
    from trainer.catalog import describe, find_version, tell

    task = one_task(settings, task)
    chosen = find_version(settings, task, version)
    if not chosen:
        raise AdapterError("the base is no version; name one that `goldstream adapters list` shows.")
    found = describe(settings, task, chosen)
    if as_json:
        print_json(found)
    else:
        click.echo("\n".join(printable(line) for line in tell(found)))


@adapters.command("rows")
@click.argument("version")
@_of_task
@as_json
@with_settings
def adapters_rows(settings: Settings, version: str, task: str | None, as_json: bool) -> None:
    """Show the rows that VERSION was trained on, with their pairs; `goldstream gold lineage ID` is the other way."""
    from schemas.tables import print_table
    from trainer.catalog import find_version
    from trainer.lineage import ROW_COLUMNS, trained_rows

    task = one_task(settings, task)
    rows = trained_rows(settings, task, find_version(settings, task, version))
    print_table(ROW_COLUMNS, rows, as_json=as_json)


@adapters.command("promote")
@click.argument("version")
@_of_task
@click.option("--reason", default="", help="Kept in the promotion log.")
@click.option("--force", is_flag=True, help="Also where the gate did not pass it.")
@as_json
@with_settings
def adapters_promote(
    settings: Settings, version: str, task: str | None, reason: str, force: bool, as_json: bool
) -> None:
    """Let VERSION serve from now on. Rollout switches once every server has loaded and answered with it."""
    from schemas.logs import log_to_stderr
    from trainer.catalog import find_version, promote_by_hand

    task = one_task(settings, task)
    log_to_stderr("WARNING")
    entry, before = promote_by_hand(settings, task, find_version(settings, task, version), reason=reason, force=force)
    _print_promotion(entry, before, as_json)


@adapters.command("rollback")
@_of_task
@click.option("--reason", required=True, help="Kept in the promotion log.")
@as_json
@with_settings
def adapters_rollback(settings: Settings, task: str | None, reason: str, as_json: bool) -> None:
    """Go back to what served before; a second rollback goes one further back."""
    from schemas.logs import log_to_stderr
    from trainer.catalog import roll_back_by_hand

    log_to_stderr("WARNING")
    entry, before, passed_over = roll_back_by_hand(settings, one_task(settings, task), reason=reason)
    for why in passed_over:
        click.echo(f"passed over {why}", err=True)
    _print_promotion(entry, before, as_json)


def _print_promotion(entry: Any, before: str, as_json: bool) -> None:
    import msgspec

    if as_json:
        click.echo(msgspec.json.encode(msgspec.to_builtins(entry) | {"previous": before}).decode())
    else:
        click.echo(
            f"{entry.task}: {entry.version or 'the base'} should serve now, after {before or 'the base'}. "
            "Rollout does the rest; `goldstream adapters list` shows it."
        )


@adapters.command("gc")
@click.option("--task", help="One task; default all.")
@click.option("--keep", default=5, show_default=True, type=click.IntRange(min=1), help="Last promoted versions kept.")
@click.option(
    "--grace-hours", default=24.0, show_default=True, help="Whatever was trained, promoted or replaced since."
)
@click.option("--yes", is_flag=True, help="Remove. Without it, only say what would be.")
@click.option("--without-broker", is_flag=True, help="Trust the promotion log alone about what serves.")
@as_json
@with_settings
def adapters_gc(
    settings: Settings,
    task: str | None,
    keep: int,
    grace_hours: float,
    yes: bool,
    without_broker: bool,
    as_json: bool,
) -> None:
    """Remove the weights of old versions; their manifests and gate figures stay. Shows a plan unless --yes is given.

    Kept are the incumbent and whatever the serving record on Kafka names, the last promoted ones, those that wait for
    a gate or a promotion, the newest of each base, and everything of the grace period.
    """
    import time

    from schemas.errors import BrokerError
    from schemas.tables import print_table
    from trainer.records import KafkaRecords, latest_records
    from trainer.removal import finish_removals, removal_plan, remove

    try:
        records = {} if without_broker else latest_records(KafkaRecords(settings).read())
    except BrokerError as error:
        raise BrokerError(
            f"{error} So it is not known what the servers serve now. --without-broker trusts the promotion log alone."
        ) from error
    rows, freed = [], 0
    for name in [one_task(settings, task)] if task else sorted(settings.tasks):
        record = records.get(name)
        served = {record.version, record.previous, record.fallback} if record else set()
        plan = removal_plan(
            settings.adapters,
            name,
            keep=keep,
            grace_s=grace_hours * 3600,
            served=served,
            now_ms=int(time.time() * 1000),
        )
        freed += finish_removals(settings.adapters, name) if yes else 0
        for version, kept, size in ((c.manifest.version, c.kept, c.size) for c in plan):
            if not kept and yes:
                freed += remove(settings.adapters, name, version)
            done = "kept" if kept else "removed" if yes else "would be removed"
            rows.append([name, version, done, kept, round(size / 1e6, 1)])
    print_table(["task", "version", "result", "why", "MB"], rows, as_json=as_json)
    if not as_json and not yes and any(row[2] != "kept" for row in rows):
        click.echo("nothing was removed; goldstream adapters gc --yes does it")
    elif not as_json and yes:
        click.echo(f"{freed / 1e6:.1f} MB freed")


COMMANDS = (adapters,)
