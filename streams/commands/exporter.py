"""exporter: lag, ages, the gold set, training and adapters, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from schemas.commandline import serving, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Default: as metrics.port says.")
@click.option("--once", is_flag=True, help="Read once, print the scrape and end.")
@with_settings
def exporter(settings: Settings, port: int | None, once: bool) -> None:
    """Show at /metrics what no single process knows: lag, ages, outcomes, acceptance, cost, training, adapters.

    Reads in the background, lag every 5 s and the gold set at most every 15 s; a scrape costs nothing. It belongs to no
    consumer group and writes nowhere. deploy/metrics.md shows each metric.
    """
    from schemas.errors import GoldstreamError, SettingsError
    from schemas.metrics_server import scrape, serving_metrics
    from schemas.process import announce_ready
    from streams.exporter.families import FAMILIES, UP
    from streams.exporter.service import run_exporter

    if once:
        with serving(None) as stop:
            run_exporter(settings, stop, stop.set)
        click.echo(scrape(FAMILIES), nl=False)
        if failed := [sample.labels["reading"] for sample in UP.samples() if not sample.value]:
            raise GoldstreamError(f"not read: {', '.join(failed)}; the log above says why.")
        return
    if settings.metrics.port == "off" and port is None:
        raise SettingsError('metrics.port is "off", so the exporter would show nothing. Give it --port.')
    with serving("exporter") as stop, serving_metrics(settings, "exporter", FAMILIES, port):
        run_exporter(settings, stop, lambda: announce_ready(settings))


COMMANDS = (exporter,)
