"""The demo and the traffic it stands on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.commandline import with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.command()
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to this file too.")
@click.option("--waves", default="60,140,300,500", show_default=True, help="Cases per wave.")
@click.option("--holdout", default=200, show_default=True, help="Holdout prompts sent first.")
@click.option("--keep", is_flag=True, help="Continue in the state folder of the last demo instead of a fresh one.")
def demo(json_path: Path | None, waves: str, holdout: int, keep: bool) -> None:
    """Run the whole loop on a synthetic clinical scribe: traffic in, promoted adapters out. Takes minutes."""
    import signal

    from schemas.logs import log_to_stderr
    from streams.demo import run_demo

    try:
        sizes = [int(size) for size in waves.split(",")]
    except ValueError as error:
        raise click.ClickException(f"--waves {waves}: expected numbers separated by commas") from error
    log_to_stderr("ERROR")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves through the supervisor, which stops its children
    run_demo(sizes, holdout, json_path, keep)


@click.command("demo-traffic", hidden=True)
@click.option("--count", required=True, type=int)
@click.option("--split", required=True, type=click.Choice(["train", "holdout"]))
@click.option("--seed", required=True, type=int)
@with_settings
def demo_traffic(settings: Settings, count: int, split: Any, seed: int) -> None:
    """Stand in for the product: log requests and responses of a clinical scribe to prod.scribe.chat."""
    from streams.traffic import send_traffic

    click.echo(send_traffic(settings, count, split, seed))


COMMANDS = (demo, demo_traffic)
