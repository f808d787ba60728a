"""Dead letters: dlq list, show, redrive."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from schemas.commandline import as_json, print_json, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.group()
def dlq() -> None:
    """Look at dead letters and send them back."""


def _which_letters(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, text in (
        ("--task", "One task's only."),
        ("--stage", "Died here: intake, student, judge, ..."),
        ("--reason", "Died of this, e.g. model_unavailable."),
    ):
        command = click.option(name, help=text)(command)
    return command


@dlq.command("list")
@_which_letters
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1), help="Letters shown, latest first.")
@as_json
@with_settings
def dlq_list(
    settings: Settings, reason: str | None, stage: str | None, task: str | None, limit: int, as_json: bool
) -> None:
    """List dead letters, with how many there are of each kind."""
    from schemas.tables import print_table
    from streams.dlq import LETTER, count_letters, list_letters

    letters = list_letters(settings, reason, stage, task, limit)
    if not as_json:
        counts = count_letters(settings, reason, stage, task)
        print_table(["task", "stage", "reason", "letters"], counts, as_json=False, title="Dead letters")
    print_table(LETTER, letters, as_json=as_json)


@dlq.command("show")
@click.argument("case_id")
@as_json
@with_settings
def dlq_show(settings: Settings, case_id: str, as_json: bool) -> None:
    """Show one dead letter with its case, or with the source record where intake refused it."""

    from streams.dlq import show_letter, tell_letter

    shown = show_letter(settings, case_id)
    if as_json:
        print_json(shown)
    else:
        click.echo("\n".join(tell_letter(shown)))


@dlq.command("redrive")
@_which_letters
@click.option("--id", "case_id", help="One letter, in place of --reason and --stage.")
@click.option("--dry-run", is_flag=True, help="Say what would happen and send nothing.")
@as_json
@with_settings
def dlq_redrive(
    settings: Settings,
    reason: str | None,
    stage: str | None,
    task: str | None,
    case_id: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send dead letters back to the stage they died at. Name --reason and --stage, or --id."""
    from collections import Counter

    from schemas.tables import print_table
    from schemas.tracing import tracing
    from streams.dlq import Redriven, redrive

    with tracing(settings, "redrive"):
        done = list(redrive(settings, reason, stage, task, case_id, dry_run))
    if as_json:
        print_table(Redriven._fields, done, as_json=True)
    else:
        counts = Counter((one.stage, one.reason, one.result) for one in done)
        rows = [(*kind, number) for kind, number in sorted(counts.items())]
        print_table(["stage", "reason", "result", "letters"], rows, as_json=False)
        stayed = [one for one in done if one.result not in ("redriven", "would be redriven")]
        if stayed:
            print_table(Redriven._fields, stayed[:50], as_json=False, title="Not redriven (the first 50)")
    if any(one.result == "not confirmed" for one in done):
        sys.exit(1)


COMMANDS = (dlq,)
