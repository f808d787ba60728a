"""Setting up: init, doctor, broker, topics."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.commandline import as_json, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.command()
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.argument("path", type=click.Path(path_type=Path), default=Path("goldstream.toml"))
def init(path: Path, force: bool) -> None:
    """Write a commented goldstream.toml to start from."""
    import secrets

    import schemas

    if path.exists() and not force:
        raise click.ClickException(f"{path} exists already; --force overwrites it.")
    template = Path(schemas.__file__).with_name("starting.toml").read_text()
    path.write_text(template.replace("SPLIT_KEY", secrets.token_hex(8)))
    click.echo(f"{path} written. Name your topic, models and rules in it, then: goldstream up")


@click.command()
@as_json
@with_settings
def doctor(settings: Settings, as_json: bool) -> None:
    """Check what this machine has and what is missing."""
    from schemas.tables import print_table
    from streams.doctor import examine

    findings = examine(settings)
    print_table(["check", "result", "found", "what to do"], findings, as_json=as_json)
    if any(finding.result == "missing" for finding in findings):
        sys.exit(1)


@click.group()
def broker() -> None:
    """Start, stop or look at the local Kafka."""


@broker.command("start")
@click.option("--port", default=0, help="Port on loopback. Default: that of last time, or a free one.")
@with_settings
def broker_start(settings: Settings, port: int) -> None:
    """Start a one-node Apache Kafka on loopback; its data stays in the state folder."""
    from streams.broker import start_broker

    status = start_broker(settings, port)
    click.echo(f"Kafka runs at {status.bootstrap_servers} (process {status.pid}), data in {status.folder}")


@broker.command("stop")
@with_settings
def broker_stop(settings: Settings) -> None:
    """Stop the local Kafka; its data stays."""
    from streams.broker import stop_broker

    click.echo("Kafka stopped" if stop_broker(settings) else "no local Kafka was running")


@broker.command("status")
@as_json
@with_settings
def broker_status_command(settings: Settings, as_json: bool) -> None:
    """Say whether the local Kafka runs and where. Exit code 1 where it does not."""
    from schemas.tables import print_table
    from streams.broker import broker_status

    status = broker_status(settings)
    row = [status.running, status.pid, status.bootstrap_servers, str(status.folder)]
    print_table(["running", "process", "bootstrap_servers", "folder"], [row], as_json=as_json)
    if not status.running:
        sys.exit(1)


@click.group()
def topics() -> None:
    """Show or create the topics Goldstream uses."""


@topics.command("plan")
@as_json
@with_settings
def topics_plan(settings: Settings, as_json: bool) -> None:
    """Show every topic with partitions, replication and retention, and whether it exists."""
    from schemas.errors import BrokerError
    from schemas.topics import topic_plan
    from streams.topics import TopicState, topic_states

    try:
        states = topic_states(settings)
    except BrokerError as error:  # the plan itself needs no broker
        click.echo(f"{error}", err=True)
        states = [TopicState(plan, False, 0, "unknown") for plan in topic_plan(settings)]
    _print_topics(states, as_json)


@topics.command("create")
@click.option("--sources", is_flag=True, help="Also the log topics that tasks read, where your product has not yet.")
@as_json
@with_settings
def topics_create(settings: Settings, sources: bool, as_json: bool) -> None:
    """Create the topics that are missing."""
    from streams.topics import create_topics, ensure_source_topic

    _print_topics(create_topics(settings), as_json)
    if sources:
        for topic in settings.source_topics():
            ensure_source_topic(settings, topic, settings.kafka.partitions)


@topics.command("acls")
@click.option("--process", help="Only this one's; default all.")
@click.option("--principal", default="goldstream-{process}", show_default=True, help="How its user is called.")
@click.option("--command-config", default="admin.properties", show_default=True, help="How kafka-acls gets in.")
@as_json
@with_settings
def topics_acls(settings: Settings, process: str | None, principal: str, command_config: str, as_json: bool) -> None:
    """Print the kafka-acls commands that let each process do what it must, and no more."""
    from schemas.tables import print_table
    from streams.acls import PRINCIPALS, accesses, kafka_acls

    chosen = [process] if process else list(PRINCIPALS)
    if as_json:
        rows = [[name, *access] for name in chosen for access in accesses(settings, name)]
        print_table(["process", "resource", "name", "operations"], rows, as_json=True)
    else:
        click.echo("\n".join(kafka_acls(settings, chosen, principal, command_config)))


def _print_topics(states: Sequence[Any], as_json: bool) -> None:
    from schemas.tables import print_table

    rows = []
    for state in states:
        plan = state.plan
        hours = int(plan.config.get("retention.ms", 0)) // 3_600_000
        keeps = plan.config.get("cleanup.policy") or ("for ever" if hours < 0 else f"{hours} h")
        exists = state.differs or ("yes" if state.exists else "no")
        rows.append([plan.name, plan.partitions, plan.replication, keeps, exists, plan.carries])
    print_table(["topic", "partitions", "replication", "keeps", "exists", "carries"], rows, as_json=as_json)


COMMANDS = (init, doctor, broker, topics)
