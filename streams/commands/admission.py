"""Admission: what switching on would read and cost, and whether training texts are in the holdout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from schemas.commandline import as_json, one_task, print_json, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings
    from streams.admission.estimate import Estimate


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


@click.command()
@click.option("--task", help="One task; default all.")
@click.option("--start", help="latest, earliest, a time such as 2026-11-01T00:00, or 7d, 12h. Default: intake.start_at")
@click.option("--sample", default=500, show_default=True, type=click.IntRange(1, 100_000), help="Records to look at.")
@as_json
@with_settings
def estimate(settings: Settings, task: str | None, start: str | None, sample: int, as_json: bool) -> None:
    """Tell what switching on would read, admit and cost. Reads a sample of the topics and commits nothing."""
    from streams.admission.estimate import estimate as look

    found = look(settings, task, start, sample)
    if as_json:
        print_json(found)
    else:
        _print_estimate(found)


def _print_estimate(found: Estimate) -> None:
    from schemas.tables import print_table
    from streams.admission.estimate import TopicRecords

    columns = [name.replace("_", " ") for name in TopicRecords.__struct_fields__]
    rows = [[getattr(topic, name) for name in TopicRecords.__struct_fields__] for topic in found.topics]
    print_table(columns, rows, as_json=False, title=f"Reading from {found.start}; offsets")
    for task in found.tasks:
        low, high = task.interval
        click.echo(
            f"\n{task.task}: {task.admitted} of {task.sampled} sampled prompts would be admitted "
            f"({low:.0%} to {high:.0%}), {task.holdout} of them to the holdout, {task.redacted} with values taken out."
        )
        if task.reasons:
            reasons = sorted(task.reasons.items(), key=lambda one: -one[1])
            print_table(["left out as", "of the sample"], reasons, as_json=False)
        if task.near_duplicates:
            click.echo(f"{task.near_duplicates} of the sample almost repeat another: see near_duplicates.threshold")
        if task.roles:
            rows = [[role.role, role.model, _span(*role.calls), role.prompt_tokens, role.completion_tokens,
                     "unknown" if role.usd is None else _span(*role.usd)] for role in task.roles]  # fmt: skip
            columns = ["role", "model", "calls a case", "prompt tokens a call", "answer tokens", "USD a case"]
            print_table(
                columns, [[round(c, 0) if isinstance(c, float) else c for c in row] for row in rows], as_json=False
            )
        more = " and the unknown" if task.unpriced else ""
        rows = [
            [what, amount.cases, _span(*amount.calls), _span(*amount.usd) + more, round(amount.hours, 2), amount.bound]
            for what, amount in (("to read now", task.backlog), ("a day like the last", task.per_day))
        ]
        print_table(["in all", "cases", "calls", "USD", "hours", "bound by"], rows, as_json=False)
        for model in task.unpriced:
            click.echo(f"no price is known of {model}: set its input_cost_per_token and output_cost_per_token")
        if task.measured is None and task.roles:
            click.echo("From no repair to every case in need of all: the range narrows once 20 cases have ended.")
    click.echo("Tokens are estimated from a sample's texts; nothing was committed.")


def _span(least: float, most: float) -> str:
    """Returns a range for people, one number where both ends are the same."""
    low, high = (f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}" for value in (least, most))
    return low if low == high else f"{low} to {high}"


COMMANDS = (estimate, contamination)
