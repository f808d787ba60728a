"""send: records from files onto a log topic."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas.commandline import as_json, print_json, serving, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--topic", required=True, help="The log topic to send to, one that a task reads.")
@click.option("--create", is_flag=True, help="Make the topic where it does not exist.")
@click.option("--restart", is_flag=True, help="Send from the beginning, also what was sent before.")
@click.option("--rate", default=0.0, type=click.FloatRange(min=0), help="Records a second at most; 0: no bound.")
@as_json
@with_settings
def send(settings: Settings, path: Path, topic: str, create: bool, restart: bool, rate: float, as_json: bool) -> None:
    """Send logged records from PATH, a file or folder of JSONL, JSON or Parquet, to a log topic.

    A folder is read in the order of its paths, as LiteLLM's S3 logger lays them out. What was interrupted goes on where
    it ended, also after a kill; a file that has grown since is sent from where it ended.
    """
    import time

    from streams.recorded import Place, passed_over
    from streams.send import check_topic, send_files
    from streams.topics import ensure_source_topic

    if create:
        ensure_source_topic(settings, topic)
    check_topic(settings, topic)
    began = told = time.monotonic()
    last = Place()

    def progress(records: int, place: Place) -> None:
        nonlocal told, last
        last = place
        if time.monotonic() - told >= 1 or sys.stderr.isatty():
            told = time.monotonic()
            end = "\r" if sys.stderr.isatty() else "\n"
            click.echo(f"{records} records, {place.file}, {told - began:.0f} s", err=True, nl=False)
            click.echo(end, err=True, nl=False)

    with serving(None) as stop:
        sent = send_files(settings, path, topic, restart=restart, rate=rate, stop=stop.is_set, progress=progress)
    if as_json:
        print_json(sent)
    else:
        seconds = time.monotonic() - began
        click.echo(f"{sent.records} records sent to {topic} in {seconds:.1f} s; {sent.earlier} were sent before.")
        if sent.not_json:
            click.echo(f"{sent.not_json} of them are no JSON objects: intake refuses those, each with its reason.")
        for record in sent.too_large[:20]:
            click.echo(f"left out, larger than intake.max_record_bytes: {record}", err=True)
        if not sent.records and path.is_dir() and (before := passed_over(path, last)):
            click.echo(f"{before} files come before the one that was reached and were not looked at.")
    if not sent.finished:
        click.echo("stopped; the same command goes on here.", err=True)
        sys.exit(130)
    if sent.too_large:
        sys.exit(1)


COMMANDS = (send,)
