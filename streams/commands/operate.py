"""Operating: pause, resume, drain, case, audit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from schemas.commandline import as_json, print_json, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.command()
@click.argument("stage")
@with_settings
def pause(settings: Settings, stage: str) -> None:
    """Stop a STAGE from taking new work: intake, student, judge, refiner or strategist."""
    from streams.lag import set_paused

    set_paused(settings, stage, True)
    click.echo(f"{stage} takes no new work; what is in flight is finished. goldstream resume {stage}")


@click.command()
@click.argument("stage")
@with_settings
def resume(settings: Settings, stage: str) -> None:
    """Let a paused STAGE take work again."""
    from streams.lag import set_paused

    set_paused(settings, stage, False)
    click.echo(f"{stage} takes work again")


@click.command()
@click.argument("stage", required=False)
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds to wait.")
@with_settings
def drain(settings: Settings, stage: str | None, timeout_s: float) -> None:
    """Wait until everything admitted has its outcome, with intake paused; or until STAGE has worked off its topic."""
    from streams.lag import drain as wait_until_drained

    last: dict[str, int] = {}

    def show(lag: dict[str, int]) -> None:
        if lag != last:
            last.clear()
            last.update(lag)
            click.echo("  ".join(f"{group} {behind}" for group, behind in lag.items()), err=True)

    if not wait_until_drained(settings, stage, timeout_s, show):
        raise click.ClickException(f"not drained after {timeout_s:.0f} s; the last line above says where work is left.")
    paused = stage or "intake"
    click.echo(f"drained; {paused} is paused. goldstream resume {paused}")


@click.command("case")
@click.argument("case_id")
@as_json
@with_settings
def case_command(settings: Settings, case_id: str, as_json: bool) -> None:
    """Tell the story of one case: source, attempts, verdicts, strategy, spend, and where it is now."""

    from streams.story import find_case, tell

    found = find_case(settings, case_id)
    if found is None:
        raise click.ClickException(
            f"no case {case_id} in the gold set or on our topics. `goldstream gold sql` lists ids."
        )
    if as_json:
        print_json(found)
    else:
        click.echo("\n".join(tell(found)))


@click.command("audit")
@click.option("--task", help="One task's source topics; default all.")
@as_json
@with_settings
def audit_command(settings: Settings, task: str | None, as_json: bool) -> None:
    """Compare source topics, cases on their way and the gold set. Exit code 1 where a record is missing or double."""

    from streams.audit import audit, print_audit

    found = audit(settings, task)
    if as_json:
        print_json(found)
    else:
        print_audit(found)
    if not found.balanced:
        sys.exit(1)


COMMANDS = (pause, resume, drain, case_command, audit_command)
