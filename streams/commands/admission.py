"""Admission: what switching on would read and cost, and whether training texts are in the holdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from schemas.commandline import as_json, one_task, print_json, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.command()
@click.option("--task", help="Task; not needed where there is only one.")
@click.option("--show", default=20, show_default=True, help="Rows shown, those with the largest overlap.")
@as_json
@with_settings
def contamination(settings: Settings, task: str | None, show: int, as_json: bool) -> None:
    """List gold rows that share runs of 8 words with the holdout, and which of them training leaves out."""
    from schemas.tables import print_table
    from streams.admission.contamination import Contaminated
    from streams.admission.contamination import contamination as check

    found = check(settings, one_task(settings, task), show)
    if as_json:
        print_json(found._asdict() | {"worst": [row._asdict() for row in found.worst]})
        return
    if found.worst:
        print_table(Contaminated._fields, found.worst, as_json=False, title=f"{found.task}: shared with the holdout")
    if not found.holdout:
        click.echo(f"{found.task} has no holdout cases yet, so there is nothing to compare with.")
        return
    click.echo(
        f"{found.sharing} of {found.gold} gold rows share a run of 8 words with one of {found.holdout} holdout cases; "
        f"training leaves out {found.left_out}, over trainer.max_overlap = {found.max_overlap:g}."
    )


COMMANDS = (contamination,)
