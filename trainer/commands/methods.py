"""Which method pays: methods on our own task, ablate on the user's gold."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas.commandline import as_json, print_json, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.command()
@click.option("--task", default="scribe", show_default=True, help="Only scribe can draw the prompts this needs.")
@click.option("--only", default="", help="Comma-separated methods or families (sft, iw, rl, control); default all.")
@click.option("--sizes", default="", help="Comma-separated numbers of unique prompts.")
@click.option("--seeds", default=0, type=click.IntRange(min=0), help="Seeds of the SFT family; at most 3 on policy.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write every run's figures to this file.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="The PNG. Default: methods.png in --folder")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(".goldstream/methods"), show_default=True)
@click.option("--from", "earlier", type=click.Path(path_type=Path), help="Take the runs in an earlier --json FILE.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Processes, one thread each.")
@click.option("--quick", is_flag=True, help="Two tiny sizes, one seed: does everything run? Proves nothing.")
@click.option("--tune", is_flag=True, help="Try learning rates and epochs on validation prompts instead.")
@click.option("--report", "report_only", is_flag=True, help="Run nothing: report what is in --folder.")
def methods(
    task: str,
    only: str,
    sizes: str,
    seeds: int,
    json_path: Path | None,
    plot_path: Path | None,
    folder: Path,
    earlier: Path | None,
    jobs: int,
    quick: bool,
    tune: bool,
    report_only: bool,
) -> None:
    """Compare SFT, iSFT, RGT, iw-SFT, RL and distillation on one small base. Resumes what is in --folder."""
    import msgspec

    from trainer.methods.benchmark import QUICK, Plan, restore_runs, run_benchmark
    from trainer.methods.benchmark import tune as try_all
    from trainer.methods.plot import plot
    from trainer.methods.report import markdown
    from trainer.methods.table import chosen

    if earlier is not None:
        click.echo(f"{restore_runs(folder, earlier)} finished runs taken from {earlier}")
    rows = chosen([name for name in only.split(",") if name])
    if tune:
        for name, tuned in try_all(folder, jobs=jobs, say=click.echo, task=task).items():
            click.echo(f"best for {name}: learning rate {tuned.learning_rate:g}, {tuned.epochs} epochs")
        return
    plan = Plan(rows, task=task)._replace(**(QUICK if quick else {}))
    if sizes:
        plan = plan._replace(sizes=_numbers("--sizes", sizes))
    if seeds:
        plan = plan._replace(seeds=seeds)
    report = run_benchmark(folder, plan, jobs=jobs, say=click.echo, report_only=report_only)
    click.echo("\n" + markdown(report))
    if json_path is not None:
        json_path.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    plot(report, plot_path or folder / "methods.png")
    if report.failures:
        sys.exit(1)


@click.command()
@click.option("--task", required=True, help="Whose gold.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="Adapters a method.")
@as_json
@with_settings
def ablate(settings: Settings, task: str, seeds: int, as_json: bool) -> None:
    """Say whether RGT or iSFT pays on your own gold: equal steps, several seeds, your judge. Promotes nothing."""
    import msgspec

    from schemas.tables import print_table
    from trainer.methods.ablate import ablate as compare

    found = compare(settings, task, seeds=seeds, say=lambda line: click.echo(line, err=True))
    if as_json:
        print_json(found)
        return
    rows = [list(msgspec.structs.asdict(arm).values()) for arm in found.arms]
    columns = ["method", "seed", "pass", "score", "steps", "trained tokens", "seconds"]
    title = f"{found.cases} gold cases, {found.strategies} with a strategy; {found.holdout} holdout cases"
    print_table(columns, rows, as_json=False, title=title)
    for what, (gain, low, high) in (("pass rate", found.passed), ("score", found.score)):
        click.echo(f"{what}, RGT less iSFT: {gain:+.1%} ({low:+.1%} to {high:+.1%})")
    click.echo(found.verdict)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = sorted({int(number) for number in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1:
        raise click.ClickException(f"{option} {text}: expected numbers above 0, separated by commas")
    return tuple(numbers)


COMMANDS = (methods, ablate)
