"""replay: which rows another rubric would flip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.commandline import as_json, one_task, print_json, with_settings
from streams.commands.judge import FILE, at_once, max_calls, print_errors, progress_bar, told_cost, wait

if TYPE_CHECKING:
    from schemas.settings import Rubric, Settings
    from streams.replay import Replay


@click.command()
@click.option("--rubric", "file", type=FILE, help="A rubric in TOML. Default: the one set now, over older verdicts.")
@click.option("--last", default=1000, show_default=True, type=click.IntRange(min=1), help="Cases, the newest first.")
@click.option("--task", help="Needed where there are several.")
@click.option(
    "--attempts",
    "which",
    type=click.Choice(["last", "first", "all"]),
    default="last",
    show_default=True,
    help="Of each case: the attempt that decided it, the student's own, or every one.",
)
@click.option("--programs-only", is_flag=True, help="Call no model; what a model had found of the rules stands.")
@click.option("--show", default=20, show_default=True, type=click.IntRange(min=0), help="Flips to print.")
@at_once
@max_calls
@wait
@as_json
@with_settings
def replay(
    settings: Settings,
    file: Path | None,
    last: int,
    task: str | None,
    which: Any,
    programs_only: bool,
    show: int,
    at_once: int,
    max_calls: int,
    wait: bool,
    as_json: bool,
) -> None:
    """Judge stored attempts again under another rubric, and show which rows would flip. Writes nothing."""
    import asyncio

    from schemas.settings.rubric_file import read_rubric
    from streams import replay as replaying

    task = one_task(settings, task)
    rubric = settings.task(task).rubric if file is None else read_rubric(file)
    _check_judge(settings, task, rubric, programs_only)
    stored = replaying.stored_attempts(settings, task, last, which)
    with progress_bar(settings, task, len(stored), rubric, programs_only) as bar:
        found = asyncio.run(
            replaying.replay(
                settings,
                task,
                rubric,
                stored,
                at_once=at_once,
                max_calls=max_calls,
                programs_only=programs_only,
                progress=lambda done: bar.update(1),
                wait=wait,
            )
        )
    if as_json:
        print_json(found)
    else:
        _print_replay(found, show)


def _check_judge(settings: Settings, task: str, rubric: Rubric, programs_only: bool) -> None:
    from schemas.errors import SettingsError

    if rubric.needs_model and not settings.task(task).judge.model and not programs_only:
        raise SettingsError(
            f"rules {', '.join(rule.id for rule in rubric.model_rules)} need a model, but tasks.{task}.judge.model is "
            "not set. Set it (--set works too), give the rules a check, or use --programs-only."
        )


def _print_replay(found: Replay, show: int) -> None:
    from schemas.tables import print_table

    before = ", ".join(f"{version} ({count})" for version, count in found.rubric_before.items())
    click.echo(f"task {found.task}: {found.attempts} attempts judged by {before}, now by {found.rubric_after}")
    print_table(
        ["", "passes now", "fails now"],
        [
            ["passed before", found.still_passed, found.passed_to_failed],
            ["failed before", found.failed_to_passed, found.still_failed],
        ],
        as_json=False,
    )
    columns = ["rule", "broken before", "broken now", "", "newly failed", "newly passed"]
    rows = [[r.rule, r.before, r.after, r.change, r.newly_failed, r.newly_passed] for r in found.rules]
    print_table(columns, rows, as_json=False, title="By rule, attempts")
    if found.flips and show:
        rows = [
            [f.case_id, f.outcome, f.round, f.now, f"{f.score_before:.2f} -> {f.score_after:.2f}",
             ", ".join(f.rules_before), ", ".join(f.rules_after), f.violations[0].hinge if f.violations else ""]
            for f in found.flips[:show]
        ]  # fmt: skip
        columns = ["case", "outcome", "round", "now", "score", "broke", "breaks", "where"]
        print_table(columns, rows, as_json=False, title=f"Flips ({len(rows)} of {len(found.flips)})")
    print_errors(found.unjudged)
    flips = found.passed_to_failed + found.failed_to_passed
    score = "" if found.score_before is None else f"; mean score {found.score_before:.3f} -> {found.score_after:.3f}"
    share = f" ({flips / found.judged:.1%})" if found.judged else ""
    click.echo(f"{flips} of {found.judged} would flip{share}{score}; {told_cost(found.spend)}; {found.seconds:.1f} s")


COMMANDS = (replay,)
