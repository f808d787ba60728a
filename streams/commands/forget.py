"""forget: nobody and nothing logged under a user, trace, session or case is kept from now on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import click

from schemas.commandline import as_json, print_json, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings

# What the trainer keeps of cases: (settings, case ids, dry run) -> what was taken out. The front door sets it.
erase_elsewhere: list[Callable[[Settings, Collection[str], bool], Any]] = []


@click.command()
@click.option("--user", help="A user's id, as the product logs it.")
@click.option("--trace", help="A trace id.")
@click.option("--session", help="A session's id; without one in the log, the conversation's first user turn.")
@click.option("--case", "case_id", metavar="ID", help="One case.")
@click.option("--withdraw", is_flag=True, help="Let what is logged from now on in again; the past stays forgotten.")
@click.option("--sync", "only_sync", is_flag=True, help="Only make the gold set's file say what the topic says.")
@click.option("--no-scan", is_flag=True, help="Do not read our topics for copies; a large backlog takes minutes.")
@click.option("--dry-run", is_flag=True, help="Say what would be forgotten and write nothing.")
@as_json
@with_settings
def forget(
    settings: Settings,
    user: str | None,
    trace: str | None,
    session: str | None,
    case_id: str | None,
    withdraw: bool,
    only_sync: bool,
    no_scan: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Forget a user, trace, session or case: gone from queries now, from files at the next compaction, never back.

    Later records of theirs are dropped too, until it is withdrawn. Only a keyed hash of the id is written.
    """
    from schemas.errors import SettingsError
    from schemas.tables import printable
    from streams.forgetting import forget as forgetting
    from streams.forgetting.report import make_report, tell_report

    names = {"user": user, "trace": trace, "session": session, "case": case_id}
    given: list[Any] = [(kind, text) for kind, text in names.items() if text is not None]
    if only_sync and not given:
        known = forgetting.sync(settings, dry_run)
        click.echo(f"{len(known.records)} users, traces, sessions and cases are known to be forgotten")
        return
    if len(given) != 1 or only_sync:
        raise SettingsError("name one: --user, --trace, --session or --case. --sync goes alone.")
    (kind, text) = given[0]
    act = forgetting.withdraw if withdraw else forgetting.forget
    done = act(settings, kind, text, dry_run)
    rewritten = None
    for erase in [] if withdraw else erase_elsewhere:
        rewritten = erase(settings, {row.case_id for row in done.rows}, dry_run)
    report = make_report(settings, done, dry_run=dry_run, scan=not no_scan, rewritten=rewritten)
    if as_json:
        print_json(report)
        return
    if settings.intake.split_key == "goldstream":
        click.echo("warning: intake.split_key is the default, which everybody knows: hashes can be guessed", err=True)
    for line in tell_report(report):
        click.echo(printable(line))


COMMANDS = (forget,)
