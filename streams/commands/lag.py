"""lag: how far each group is behind."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from schemas.commandline import as_json, serving, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.command()
@click.option("--watch", is_flag=True, help="Go on showing it until interrupted.")
@click.option("--every", "every_s", default=2.0, show_default=True, type=click.FloatRange(min=0.2), help="Seconds.")
@click.option("--group", "only", help="One group: intake, student, judge, refiner, strategist, retries or sink.")
@click.option("--total", is_flag=True, help="One line a group.")
@as_json
@with_settings
def lag(settings: Settings, watch: bool, every_s: float, only: str | None, total: bool, as_json: bool) -> None:
    """Show group, topic, partition, end, committed, lag, trend, age of the oldest record that waits, and readers.

    Intake's topics are your own. The trend is in records a second between two readings, so the first takes a moment.
    With --json and --watch, each reading is one line.
    """
    from schemas.errors import SettingsError
    from schemas.tables import print_table, to_json
    from streams.backlog import Backlog, BacklogReader, totals
    from streams.lag import group_topics

    if only is not None and only not in group_topics(settings):
        raise SettingsError(f"--group {only}: expected one of {', '.join(group_topics(settings))}")
    columns = ["group", "topics", "lag", "trend", "oldest_s", "members"] if total else list(Backlog._fields)

    def shown(rows: list[Backlog]) -> list[list[Any]]:
        chosen = [row for row in rows if only in (None, row.group)]
        return totals(chosen) if total else [list(row) for row in chosen]

    with serving(None) as stop, BacklogReader(settings) as reader:
        reader.read()
        stop.wait(min(every_s, 1.0))
        while not stop.is_set():
            began = time.monotonic()
            rows = shown(reader.read())
            if watch and as_json:
                click.echo(to_json(columns, rows, indent=-1))
            else:
                if watch and sys.stdout.isatty():
                    click.clear()
                print_table(columns, rows, as_json=as_json)
            if not watch:
                return
            stop.wait(max(every_s - (time.monotonic() - began), 0.1))


COMMANDS = (lag,)
