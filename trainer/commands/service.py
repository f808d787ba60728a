"""Trainer and rollout as processes, one run by hand, and what a vLLM server is started with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from schemas.commandline import as_json, one_task, print_json, serving, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.group(invoke_without_command=True)
@click.pass_context
@with_settings
def trainer(settings: Settings, context: click.Context) -> None:
    """Watch the gold set and train, gate and register adapters."""
    context.obj = settings
    if context.invoked_subcommand is None:
        from schemas.metrics_server import serving_metrics
        from schemas.process import announce_ready
        from schemas.tracing import tracing
        from trainer.service import run_trainer

        with serving("trainer") as stop, serving_metrics(settings, "trainer"), tracing(settings, "trainer"):
            announce_ready(settings)
            run_trainer(settings, stop=stop)


@trainer.command("once")
@click.option("--task", help="Task to train now, whatever its trigger says. Not needed where there is one only.")
@as_json
@with_settings
def trainer_once(settings: Settings, task: str | None, as_json: bool) -> None:
    """Train one adapter now, gate it and register it; go on with a run that was interrupted."""

    from schemas.tracing import tracing
    from trainer.catalog import describe, tell_once
    from trainer.service import run_trainer

    task = one_task(settings, task)
    with serving("trainer") as stop, tracing(settings, "trainer"):
        report = run_trainer(settings, once=task, stop=stop)
    if report is None:
        click.echo("stopped; nothing was published. The next start goes on with this run.", err=True)
        sys.exit(130)
    if as_json:
        found = describe(settings, task, report.version)
        print_json(found)
    else:
        click.echo("\n".join(tell_once(settings, report)))


@trainer.command("status")
@as_json
@with_settings
def trainer_status(settings: Settings, as_json: bool) -> None:
    """Show what each task's trainer does, and what would start its next run."""
    from schemas.tables import print_table
    from trainer.catalog import STATUS_COLUMNS, status_rows

    print_table(STATUS_COLUMNS, status_rows(settings), as_json=as_json)


@click.command()
@with_settings
def rollout(settings: Settings) -> None:
    """Announce the adapter that should serve, after verifying and testing it."""
    from schemas.metrics_server import serving_metrics
    from schemas.process import announce_ready
    from trainer.rollout import run_rollout

    with serving("rollout") as stop, serving_metrics(settings, "rollout"):
        announce_ready(settings)
        run_rollout(settings, stop=stop)


@click.command("vllm-args")
@click.option("--task", required=True, help="The task whose student the server serves.")
@with_settings
def vllm_args(settings: Settings, task: str) -> None:
    """Print the flags a vLLM server needs for a task: model, LoRA rank, adapters. For deploy/vllm/serve.sh."""
    import shlex

    from trainer.servers import vllm_arguments

    click.echo(shlex.join(vllm_arguments(settings, task)))


COMMANDS = (trainer, rollout, vllm_args)
