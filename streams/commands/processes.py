"""The long-running processes of the stream side: intake, worker, retries, sink, and up, which runs everything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from schemas.commandline import serving, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


PROCESSES = ("intake", "worker", "retries", "sink", "trainer", "rollout", "dashboard", "exporter")


@click.command()
@with_settings
def intake(settings: Settings) -> None:
    """Read the product's log topics and admit their records as cases."""
    from schemas.metrics_server import serving_metrics
    from schemas.process import announce_ready
    from schemas.tracing import tracing
    from streams.intake import run_intake

    with serving("intake") as stop, serving_metrics(settings, "intake"), tracing(settings, "intake"):
        run_intake(settings, stop, lambda: announce_ready(settings))


@click.command()
@click.option("--stages", help="Comma-separated roles; default all of worker.stages.")
@with_settings
def worker(settings: Settings, stages: str | None) -> None:
    """Run the stream agents: student, judge, refiner, strategist."""
    import asyncio
    import signal

    from agents.judge import load_rubric
    from schemas.errors import SettingsError
    from schemas.logs import log_to_stderr
    from schemas.metrics_server import serving_metrics
    from schemas.process import announce_ready, end_with_parent, look_less_for_garbage, use_uvloop
    from schemas.settings import ROLES
    from schemas.tracing import tracing
    from streams.rubrics import keep_rubrics
    from streams.worker import run_worker

    asked = tuple(stages.split(",")) if stages else settings.worker.stages
    roles = tuple(role for role in ROLES if role in asked)
    if len(roles) != len(asked):
        raise SettingsError(f"--stages {stages}: expected some of {', '.join(ROLES)}, separated by commas")
    log_to_stderr()
    end_with_parent()
    for task in settings.tasks.values():
        load_rubric(task.rubric)
    keep_rubrics(settings)

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await run_worker(settings, roles, stop, ready)

    def ready() -> None:
        look_less_for_garbage()
        announce_ready(settings)

    use_uvloop()
    with serving_metrics(settings, "worker"), tracing(settings, "worker"):
        asyncio.run(run())


@click.command()
@with_settings
def retries(settings: Settings) -> None:
    """Hold cases that wait for a model, and return them to their stage in time."""
    from schemas.metrics_server import serving_metrics
    from schemas.process import announce_ready
    from schemas.tracing import tracing
    from streams.retries import run_retries

    with serving("retries") as stop, serving_metrics(settings, "retries"), tracing(settings, "retries"):
        run_retries(settings, stop, lambda: announce_ready(settings))


@click.command()
@with_settings
def sink(settings: Settings) -> None:
    """Write outcomes to Parquet, each exactly once."""
    from schemas.metrics_server import serving_metrics
    from schemas.process import announce_ready
    from schemas.tracing import tracing
    from streams.rubrics import keep_rubrics
    from streams.sink import run_sink

    keep_rubrics(settings)
    with serving("sink") as stop, serving_metrics(settings, "sink"), tracing(settings, "sink"):
        run_sink(settings, stop=stop, ready=lambda: announce_ready(settings))


@click.command()
@click.option("--only", help=f"Comma-separated processes; default all: {','.join(PROCESSES)}")
@with_settings
@click.pass_context
def up(context: click.Context, settings: Settings, only: str | None) -> None:
    """Run everything until interrupted: local Kafka where none is set, topics, and all processes."""
    from streams.up import run_up

    default = PROCESSES[:-1] if settings.metrics.port == "off" else PROCESSES
    chosen = tuple(only.split(",")) if only else default
    unknown = set(chosen) - set(PROCESSES)
    if unknown:
        raise click.ClickException(
            f"--only names {', '.join(sorted(unknown))}; expected some of {', '.join(PROCESSES)}"
        )
    with serving(None) as stop:
        run_up(settings, chosen, _repeated_options(context), stop)


def _repeated_options(context: click.Context) -> list[str]:
    """Returns the settings options of this command line, for the child processes to repeat."""
    repeated: list[str] = []
    parameters = context.params
    if parameters.get("config"):
        repeated += ["--config", str(parameters["config"])]
    for override in parameters.get("overrides") or ():
        repeated += ["--set", override]
    if parameters.get("bootstrap_servers"):
        repeated += ["--bootstrap-servers", parameters["bootstrap_servers"]]
    return repeated


COMMANDS = (intake, worker, retries, sink, up)
