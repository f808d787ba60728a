"""The library of strategies: strategies list, merge, reword."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from schemas.commandline import as_json, one_task, reviewer, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.group()
def strategies() -> None:
    """See what failed rounds have taught, and what each rule is called."""


@strategies.command("list")
@click.option("--task", help="One task's; default all.")
@as_json
@with_settings
def strategies_list(settings: Settings, task: str | None, as_json: bool) -> None:
    """List strategies with their name, wording, cases and broken rules, the most used first."""
    from schemas.tables import print_table
    from streams.strategies import Used, list_strategies

    if task is not None:
        settings.task(task)
    found = list_strategies(settings, task)
    if as_json:
        print_table(Used._fields, found, as_json=True)
        return
    columns = ["task", "id", "cases", "rules", "mistake", "guardrail", "first", "last", "also"]
    rows = [
        [u.task, u.id, u.cases, _few(u.rules), u.mistake, u.guardrail, _day(u.first_seen), _day(u.last_seen),
         _few(u.other_names)]
        for u in found
    ]  # fmt: skip
    print_table(columns, rows, as_json=False)
    older = sum(used.wordings > 1 for used in found)
    if older:
        also = "`goldstream strategies apply` writes them anew"
        click.echo(f"{older} of them stand in older rows in other words, which are trained on; {also}")


@strategies.command("merge")
@click.argument("name")
@click.argument("into")
@click.option("--task", help="Their task; needed where there are several.")
@click.option("--by", help="Who merges. Default: GOLDSTREAM_REVIEWER, else the user.")
@with_settings
def strategies_merge(settings: Settings, name: str, into: str, task: str | None, by: str | None) -> None:
    """Make NAME another name of the strategy INTO: new rows carry INTO's name and words."""
    from streams.strategies import merge_strategies

    merge_strategies(settings, one_task(settings, task), name, into, reviewer(by))
    click.echo(f"{name} is now another name of {into}; earlier rows follow with: goldstream strategies apply")


@strategies.command("reword")
@click.argument("name")
@click.option("--mistake", default="", help="The mistake in other words.")
@click.option("--guardrail", default="", help="The guardrail in other words.")
@click.option("--task", help="Its task; needed where there are several.")
@click.option("--by", help="Who rewords. Default: GOLDSTREAM_REVIEWER, else the user.")
@with_settings
def strategies_reword(
    settings: Settings, name: str, mistake: str, guardrail: str, task: str | None, by: str | None
) -> None:
    """Give the strategy NAME other words; its name stays, and new rows carry the words."""
    from schemas.errors import SettingsError
    from streams.strategies import reword_strategy

    if not mistake.strip() and not guardrail.strip():
        raise SettingsError("say the new words with --mistake, --guardrail or both.")
    reword_strategy(settings, one_task(settings, task), name, mistake, guardrail, reviewer(by))
    click.echo(f"{name} has new words; earlier rows follow with: goldstream strategies apply")


@strategies.command("apply")
@click.option("--task", help="One task's rows; default all.")
@click.option("--dry-run", is_flag=True, help="Say what would be written and write nothing.")
@as_json
@with_settings
def strategies_apply(settings: Settings, task: str | None, dry_run: bool, as_json: bool) -> None:
    """Write earlier rows anew in the names and words that strategies have today; they count as new to the trainer."""
    from schemas.tables import print_table
    from streams.rewording import Applied, apply_library

    if task is not None:
        settings.task(task)
    done = apply_library(settings, task, dry_run)
    print_table(Applied._fields, done, as_json=as_json)
    if not as_json:
        click.echo(f"{sum(one.cases for one in done)} rows {'would be written' if dry_run else 'written'} anew")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _day(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d}"


COMMANDS = (strategies,)
