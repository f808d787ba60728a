"""dashboard: the page on lag, gold, training and reviews."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from schemas.commandline import with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Default: dashboard.port, which is 8642.")
@with_settings
def dashboard(settings: Settings, port: int | None) -> None:
    """Serve one page: lag on every arrow, funnel, pass rates, cost, cases, dead letters, reviews, adapters.

    Prints its address, at a terminal with the token that writing needs. Reads nothing while nobody looks.
    """
    import asyncio
    import signal

    import msgspec

    from schemas.logs import log_to_stderr
    from schemas.metrics_server import serving_metrics
    from schemas.process import NAME, announce_ready, end_with_parent
    from streams.dashboard.access import Access
    from streams.dashboard.server import REQUESTS, Place, serve
    from streams.dashboard.terminal import address_lines

    if port is not None:
        chosen = msgspec.structs.replace(settings.dashboard, port=port)
        settings = msgspec.structs.replace(settings, dashboard=chosen)

    def ready(place: Place, access: Access) -> None:
        announce_ready(settings)
        if NAME not in os.environ:  # else `goldstream up` tells it, and our output is a log
            for line in address_lines(place, access.token, access.token_at, secret=sys.stdout.isatty()):
                click.echo(line)

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(settings, stop, ready)

    log_to_stderr("INFO" if NAME in os.environ else "WARNING")
    end_with_parent()
    with serving_metrics(settings, "dashboard", (REQUESTS,)):
        asyncio.run(run())


COMMANDS = (dashboard,)
