"""`goldstream up`: the local broker where none is configured, the topics, and every process, until interrupted."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence

import click

from schemas.errors import BrokerError
from schemas.kafka import LOCAL, bootstrap_servers
from schemas.settings import ROLES, Settings
from streams.broker import start_broker, stop_broker
from streams.lag import LagReader
from streams.supervisor import Supervisor
from streams.topics import create_topics, ensure_source_topic

STATUS_EVERY_S = 10.0


def run_up(settings: Settings, processes: Sequence[str], options: Sequence[str], stop: threading.Event) -> None:
    """Runs `processes` until `stop` is set, restarting those that die, and prints how far each stage is behind."""
    if any(task.budget.caps_money(role) for task in settings.tasks.values() for role in ROLES):
        from agents.prices import check_prices  # may import LiteLLM, for seconds

        check_prices(settings)  # else every worker would end with it, again and again
    local = settings.kafka.bootstrap_servers == LOCAL
    if local:
        click.echo("starting the local Kafka (its jars come through Maven the first time) ...")
        start_broker(settings)
    try:
        click.echo(f"Kafka at {','.join(bootstrap_servers(settings))}")
        create_topics(settings)
        if local:  # on your own cluster your product makes its topics; the local one starts empty
            for topic in settings.source_topics():
                ensure_source_topic(settings, topic)
        click.echo(f"reading {', '.join(settings.source_topics())}; gold set in {settings.gold}")
        commands = {name: [name, *options] for name in processes}
        with Supervisor(settings, commands) as supervisor:
            supervisor.wait_ready()
            click.echo(f"running: {', '.join(processes)}. Logs in {settings.state / 'logs'}. Ctrl-C stops everything.")
            if "dashboard" in processes:
                from streams.dashboard.terminal import running_dashboard

                for line in running_dashboard(settings, secret=sys.stdout.isatty()):
                    click.echo(line)
            _watch(settings, supervisor, stop)
            click.echo("stopping ...")
    finally:
        if local:
            stop_broker(settings)
    click.echo("stopped; nothing is lost: `goldstream up` continues where it was")


def _watch(settings: Settings, supervisor: Supervisor, stop: threading.Event) -> None:
    again = 0.0
    last = ""
    while not stop.wait(0.5):
        for happened in supervisor.check():
            click.echo(happened)
        if time.monotonic() < again:
            continue
        again = time.monotonic() + STATUS_EVERY_S
        try:
            with LagReader(settings) as reader:
                line = "behind: " + "  ".join(f"{group} {lag}" for group, lag in reader.by_group().items())
        except BrokerError as error:
            line = str(error)
            if settings.kafka.bootstrap_servers == LOCAL:
                start_broker(settings)
        if line != last:
            click.echo(time.strftime("%H:%M:%S ") + line)
            last = line
