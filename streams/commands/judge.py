"""Judging outside the stream: judge calibrate, judge test, judge rubrics."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.commandline import as_json, one_task, print_json, with_settings

if TYPE_CHECKING:
    from agents.judging import Judged
    from schemas.case import Spend, Violation
    from schemas.settings import Rubric, Settings

FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
at_once = click.option(
    "--at-once", default=8, show_default=True, type=click.IntRange(min=1), help="Judged in parallel."
)
max_calls = click.option(
    "--max-calls", default=5000, show_default=True, type=click.IntRange(min=0), help="Model calls at most."
)

wait = click.option("--wait", is_flag=True, help="Where the day's budget is used up, go on when the next day begins.")


@click.group()
def judge() -> None:
    """Try the judge on an answer, measure it against experts, see rubric versions."""


@judge.command("test")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True, exists=True, dir_okay=False), default="-")
@click.option("--task", help="Whose judge; needed where there are several.")
@as_json
@with_settings
def judge_test(settings: Settings, file: Path, task: str | None, as_json: bool) -> None:
    """Judge one answer: FILE, or standard input, holds {"prompt": "...", "answer": "..."}, or messages for prompt."""
    import asyncio

    import msgspec

    from agents.judging import Item, judge_all
    from schemas.errors import LabelError
    from schemas.tables import print_table
    from streams.labelled import read_example

    task = one_task(settings, task)
    text = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    try:
        record = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LabelError(f"{file}: not one JSON object ({error})") from None
    one = read_example(record, str(file), labelled=False)
    (found,) = asyncio.run(judge_all(settings, task, [Item(one.messages, one.answer, one.record)], purpose="test"))
    if found.verdict is None:
        raise click.ClickException(f"no verdict: {found.error}")
    if as_json:
        print_json({"verdict": found.verdict, "spend": found.spend})
        return
    verdict, rubric = found.verdict, settings.task(task).rubric
    default = "" if rubric.pass_mark is not None else " (the default: every point)"
    click.echo(
        f"{'passed' if verdict.passed else 'FAILED'} with {verdict.score:g} of {verdict.max_score:g}, pass mark "
        f"{rubric.mark:g}{default}; by {verdict.judge}, {verdict.votes} vote(s), {verdict.agreement:.0%} agree, "
        f"{verdict.misquoted} made-up quote(s); rubric {verdict.rubric}; {told_cost(found.spend)}"
    )
    if verdict.violations:
        print_table(["rule", "severity", "where", "why", "fix"], _told(verdict.violations), as_json=False)


@judge.command("calibrate")
@click.argument("file", type=FILE)
@click.option("--task", help="Whose judge; needed where there are several.")
@click.option("--limit", type=click.IntRange(min=1), help="The first so many examples only.")
@click.option("--good", default=0.6, show_default=True, type=click.FloatRange(0, 1), help="The kappa that is enough.")
@click.option("--show", default=10, show_default=True, type=click.IntRange(min=0), help="Disagreements to print.")
@at_once
@max_calls
@wait
@as_json
@with_settings
def judge_calibrate(
    settings: Settings,
    file: Path,
    task: str | None,
    limit: int | None,
    good: float,
    show: int,
    at_once: int,
    max_calls: int,
    wait: bool,
    as_json: bool,
) -> None:
    """Measure a task's judge against answers that experts have labelled: FILE is JSONL or Parquet.

    One example a record: {"messages": [...], "answer": "...", "passed": true, "violated": ["rule-id"]}; the last may be
    left out. Ends with exit code 1 unless the judge is good enough.
    """
    import asyncio

    from agents.calibration import calibrate
    from agents.judging import Item, judge_all, total_spend
    from streams.labelled import read_examples

    task = one_task(settings, task)
    examples = read_examples(file, settings.task(task).rubric, limit)
    items = [Item(one.messages, one.answer, one.record) for one in examples]
    with progress_bar(settings, task, len(items)) as bar:
        judged = asyncio.run(
            judge_all(
                settings,
                task,
                items,
                at_once=at_once,
                max_calls=max_calls,
                progress=lambda done: bar.update(1),
                purpose="calibrate",
                wait=wait,
            )
        )
    found = calibrate(examples, [one.verdict for one in judged], good)
    differing = [
        (example, one.verdict)
        for example, one in zip(examples, judged, strict=True)
        if one.verdict is not None and one.verdict.passed != example.passed
    ]
    spend, errors = total_spend(judged), _errors(judged)
    if as_json:
        print_json(
            {
                "calibration": found,
                "rubric": settings.task(task).rubric.version(),
                "spend": spend,
                "errors": errors,
                "differing": [
                    {
                        "where": example.where,
                        "prompt": example.messages[-1].text(),
                        "answer": example.answer,
                        "expert_passes": example.passed,
                        "violated": None if example.violated is None else sorted(example.violated),
                        "verdict": verdict,
                    }
                    for example, verdict in differing
                ],
            }
        )
    else:
        _print_calibration(found, spend, errors)
        if differing and show:
            _print_differing(differing[:show], len(differing))
        click.echo(f"\n{found.reason}")
    if found.decision != "good":
        sys.exit(1)


@judge.command("rubrics")
@click.argument("version", required=False)
@as_json
@with_settings
def judge_rubrics(settings: Settings, version: str | None, as_json: bool) -> None:
    """List the rubric versions that answers were judged by, or print the text of VERSION as TOML."""
    from schemas.tables import print_table
    from streams.rubrics import keep_rubrics, known_rubrics, rubric_text

    keep_rubrics(settings)
    if version is not None:
        click.echo(rubric_text(settings, version), nl=False)
        return
    columns = ["task", "rubric", "in_use", "text_kept", "attempts", "passed", "first", "last"]
    rows = [[row.get(name) for name in columns] for row in known_rubrics(settings)]
    print_table(columns, rows, as_json=as_json)


def progress_bar(
    settings: Settings, task: str, count: int, rubric: Rubric | None = None, programs_only: bool = False
) -> Any:
    """Returns a progress bar on standard error that says who judges."""
    from agents.panel import seats

    chosen = settings.task(task)
    by = "programs"
    if (rubric or chosen.rubric).needs_model and not programs_only:
        by = ", ".join(dict.fromkeys(model.model for model in seats(chosen.judge, chosen.panel)))
    return click.progressbar(length=count, label=f"judging {count} answers of {task} by {by}", file=sys.stderr)


def _print_calibration(found: Any, spend: Spend, errors: dict[str, int]) -> None:
    from schemas.tables import print_table

    print_table(
        ["", "expert passes", "expert fails"],
        [
            ["judge passes", found.passed_both, found.passed_judge_only],
            ["judge fails", found.passed_expert_only, found.failed_both],
        ],
        as_json=False,
    )
    shares = {
        "agreement": found.agreement,
        "bad answers passed": found.false_passes,
        "good answers failed": found.false_failures,
    }
    rows = [[name, _share(one.value), f"{one.low:.3f} to {one.high:.3f}", one.of] for name, one in shares.items()]
    kappa = "" if found.kappa is None else f"{found.kappa:.3f}"
    judged = found.examples - found.unjudged
    rows.append(["Cohen's kappa", kappa, f"{found.kappa_low:.3f} to {found.kappa_high:.3f}" if judged else "", judged])
    print_table(["", "value", "95 % interval", "of"], rows, as_json=False)
    if found.rules:
        columns = ["rule", "both", "judge only", "expert only", "precision", "recall"]
        rules = [
            [one.rule, one.both, one.judge_only, one.expert_only, _share(one.precision), _share(one.recall)]
            for one in found.rules
        ]
        print_table(columns, rows=rules, as_json=False, title="Who found which rule broken")
    print_errors(errors)
    click.echo(told_cost(spend))


def _print_differing(differing: Any, count: int) -> None:
    from schemas.tables import print_table

    rows = [
        [
            example.where.rpartition(", ")[2],
            "passes" if example.passed else "fails",
            "passes" if verdict.passed else "fails",
            ", ".join(sorted({v.rule for v in verdict.violations})),
            example.answer,
            verdict.violations[0].why if verdict.violations else "",
        ]
        for example, verdict in differing
    ]
    columns = ["example", "expert", "judge", "rules", "answer", "why"]
    print_table(columns, rows, as_json=False, title=f"Where they differ ({len(rows)} of {count})")


def print_errors(errors: dict[str, int]) -> None:
    for reason, count in errors.items():
        click.echo(f"{count} could not be judged: {reason}")


def _errors(judged: list[Judged]) -> dict[str, int]:
    from collections import Counter

    return dict(Counter(one.error[:200] for one in judged if one.verdict is None).most_common())


def told_cost(spend: Spend) -> str:
    if not spend.calls:
        return "no model was called"
    price = f"{spend.cost_usd:.4f} USD" if spend.cost_usd else "no price is known for them"
    return f"{spend.calls} model calls, {spend.prompt_tokens + spend.completion_tokens} tokens, {price}"


def _told(violations: tuple[Violation, ...]) -> list[list[Any]]:
    return [[v.rule, v.severity, v.hinge, v.why, v.fix] for v in violations]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


COMMANDS = (judge,)
