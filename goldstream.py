"""The front door: the `goldstream` command.

Composes streams, agents and trainer into one command line. Every import of ours happens inside a
command, so that `goldstream --help` answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from schemas.settings import Settings

PROCESSES = ("intake", "worker", "retries", "sink", "trainer", "rollout")


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options every command takes and hands the command its Settings."""

    @click.option("--config", type=click.Path(path_type=Path), help="Settings file. Default: ./goldstream.toml")
    @click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting, e.g. kafka.partitions=8")
    @click.option("--bootstrap-servers", metavar="HOST:PORT,...", help="Your Kafka, in place of the local one")
    @functools.wraps(command)
    def run(
        *arguments: Any, config: Path | None, overrides: Sequence[str], bootstrap_servers: str | None, **options: Any
    ) -> Any:
        from schemas.settings import load_settings

        chosen = list(overrides)
        if bootstrap_servers:
            chosen.append(f"kafka.bootstrap_servers={bootstrap_servers}")
        return command(load_settings(config, chosen), *arguments, **options)

    return run


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of a table.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option("0.1.0", prog_name="goldstream")
def cli() -> None:
    """Turn the failures of a production language model into gold training data, and retrain on it, unattended.

    Begin with `goldstream doctor`, `goldstream init` and `goldstream up`.
    """


# Setting up


@cli.command()
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


@cli.command()
@as_json
@with_settings
def doctor(settings: Settings, as_json: bool) -> None:
    """Check what this machine has and what is missing."""
    from streams.doctor import examine
    from streams.tables import print_table

    findings = examine(settings)
    print_table(["check", "result", "found", "what to do"], findings, as_json=as_json)
    if any(finding.result == "missing" for finding in findings):
        sys.exit(1)


@cli.group()
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
    from streams.broker import broker_status
    from streams.tables import print_table

    status = broker_status(settings)
    row = [status.running, status.pid, status.bootstrap_servers, str(status.folder)]
    print_table(["running", "process", "bootstrap_servers", "folder"], [row], as_json=as_json)
    if not status.running:
        sys.exit(1)


@cli.group()
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
@as_json
@with_settings
def topics_create(settings: Settings, as_json: bool) -> None:
    """Create the topics that are missing."""
    from streams.topics import create_topics

    _print_topics(create_topics(settings), as_json)


def _print_topics(states: Sequence[Any], as_json: bool) -> None:
    from streams.tables import print_table

    rows = []
    for state in states:
        plan = state.plan
        keeps = plan.config.get("cleanup.policy") or f"{int(plan.config['retention.ms']) // 3_600_000} h"
        exists = state.differs or ("yes" if state.exists else "no")
        rows.append([plan.name, plan.partitions, plan.replication, keeps, exists, plan.carries])
    print_table(["topic", "partitions", "replication", "keeps", "exists", "carries"], rows, as_json=as_json)


# Processes


@cli.command()
@with_settings
def intake(settings: Settings) -> None:
    """Read the product's log topics and admit their records as cases."""
    from streams.intake import run_intake
    from streams.supervisor import announce_ready

    with _serving("intake") as stop:
        run_intake(settings, stop, lambda: announce_ready(settings))


@cli.command()
@click.option("--stages", help="Comma-separated roles; default all of worker.stages.")
@with_settings
def worker(settings: Settings, stages: str | None) -> None:
    """Run the stream agents: student, judge, refiner, strategist."""
    import asyncio
    import signal

    from schemas.errors import SettingsError
    from schemas.settings import ROLES
    from streams.supervisor import announce_ready
    from streams.worker import run_worker

    asked = tuple(stages.split(",")) if stages else settings.worker.stages
    roles = tuple(role for role in ROLES if role in asked)
    if len(roles) != len(asked):
        raise SettingsError(f"--stages {stages}: expected some of {', '.join(ROLES)}, separated by commas")
    _log_to_stderr()
    _end_with_parent()

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await run_worker(settings, roles, stop, lambda: announce_ready(settings))

    asyncio.run(run())


@cli.command()
@with_settings
def retries(settings: Settings) -> None:
    """Hold cases that wait for a model, and return them to their stage in time."""
    from streams.retries import run_retries
    from streams.supervisor import announce_ready

    with _serving("retries") as stop:
        run_retries(settings, stop, lambda: announce_ready(settings))


@cli.command()
@with_settings
def sink(settings: Settings) -> None:
    """Write outcomes to Parquet, each exactly once."""
    from streams.sink import run_sink
    from streams.supervisor import announce_ready

    with _serving("sink") as stop:
        run_sink(settings, stop=stop, ready=lambda: announce_ready(settings))


@cli.group(invoke_without_command=True)
@click.pass_context
@with_settings
def trainer(settings: Settings, context: click.Context) -> None:
    """Watch the gold set and train, gate and register adapters."""
    context.obj = settings
    if context.invoked_subcommand is None:
        from streams.supervisor import announce_ready
        from trainer.service import run_trainer

        with _serving("trainer") as stop:
            announce_ready(settings)
            run_trainer(settings, stop=stop)


@trainer.command("once")
@click.option("--task", help="Task to train now, whatever its trigger says. Not needed where there is one only.")
@as_json
@with_settings
def trainer_once(settings: Settings, task: str | None, as_json: bool) -> None:
    """Train one adapter now, gate it and register it; go on with a run that was interrupted."""
    import msgspec

    from trainer.catalog import describe, tell_once
    from trainer.service import run_trainer

    task = _one_task(settings, task)
    with _serving("trainer") as stop:
        report = run_trainer(settings, once=task, stop=stop)
    if report is None:
        click.echo("stopped; nothing was published. The next start goes on with this run.", err=True)
        sys.exit(130)
    if as_json:
        found = describe(settings, task, report.version)
        click.echo(msgspec.json.format(msgspec.json.encode(found, enc_hook=str)).decode())
    else:
        click.echo("\n".join(tell_once(settings, report)))


@trainer.command("status")
@as_json
@with_settings
def trainer_status(settings: Settings, as_json: bool) -> None:
    """Show what each task's trainer does, and what would start its next run."""
    from streams.tables import print_table
    from trainer.catalog import STATUS_COLUMNS, status_rows

    print_table(STATUS_COLUMNS, status_rows(settings), as_json=as_json)


@cli.command()
@with_settings
def rollout(settings: Settings) -> None:
    """Announce the adapter that should serve, after verifying and testing it."""
    from streams.supervisor import announce_ready
    from trainer.rollout import run_rollout

    with _serving("rollout") as stop:
        announce_ready(settings)
        run_rollout(settings, stop=stop)


@cli.command("vllm-args")
@click.option("--task", required=True, help="The task whose student the server serves.")
@with_settings
def vllm_args(settings: Settings, task: str) -> None:
    """Print the flags a vLLM server needs for a task: model, LoRA rank, adapters. For deploy/vllm/serve.sh."""
    import shlex

    from trainer.servers import vllm_arguments

    click.echo(shlex.join(vllm_arguments(settings, task)))


@cli.command()
@click.option("--only", help=f"Comma-separated processes; default all: {','.join(PROCESSES)}")
@with_settings
@click.pass_context
def up(context: click.Context, settings: Settings, only: str | None) -> None:
    """Run everything until interrupted: local Kafka where none is set, topics, and all processes."""
    from streams.up import run_up

    chosen = tuple(only.split(",")) if only else PROCESSES
    unknown = set(chosen) - set(PROCESSES)
    if unknown:
        raise click.ClickException(
            f"--only names {', '.join(sorted(unknown))}; expected some of {', '.join(PROCESSES)}"
        )
    with _serving(None) as stop:
        run_up(settings, chosen, _repeated_options(context), stop)


# Operating


@cli.command()
@click.argument("stage")
@with_settings
def pause(settings: Settings, stage: str) -> None:
    """Stop a STAGE from taking new work: intake, student, judge, refiner or strategist."""
    from streams.lag import set_paused

    set_paused(settings, stage, True)
    click.echo(f"{stage} takes no new work; what is in flight is finished. goldstream resume {stage}")


@cli.command()
@click.argument("stage")
@with_settings
def resume(settings: Settings, stage: str) -> None:
    """Let a paused STAGE take work again."""
    from streams.lag import set_paused

    set_paused(settings, stage, False)
    click.echo(f"{stage} takes work again")


@cli.command()
@click.argument("stage", required=False)
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds to wait.")
@with_settings
def drain(settings: Settings, stage: str | None, timeout_s: float) -> None:
    """Wait until everything admitted has its outcome, with intake paused; or until STAGE has worked off its topic."""
    from streams.lag import drain as wait_until_drained

    last: dict[str, int] = {}

    def show(lag: dict[str, int]) -> None:
        if lag != last:
            last.clear()
            last.update(lag)
            click.echo("  ".join(f"{group} {behind}" for group, behind in lag.items()), err=True)

    if not wait_until_drained(settings, stage, timeout_s, show):
        raise click.ClickException(f"not drained after {timeout_s:.0f} s; the last line above says where work is left.")
    paused = stage or "intake"
    click.echo(f"drained; {paused} is paused. goldstream resume {paused}")


@cli.command("case")
@click.argument("case_id")
@as_json
@with_settings
def case_command(settings: Settings, case_id: str, as_json: bool) -> None:
    """Tell the story of one case: source, attempts, verdicts, strategy, spend, and where it is now."""
    import msgspec

    from streams.story import find_case, tell

    found = find_case(settings, case_id)
    if found is None:
        raise click.ClickException(
            f"no case {case_id} in the gold set or on our topics. `goldstream gold sql` lists ids."
        )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found, enc_hook=str)).decode())
    else:
        click.echo("\n".join(tell(found)))


@cli.group()
def gold() -> None:
    """Query the gold set."""


@gold.command("sql")
@click.argument("sql")
@as_json
@with_settings
def gold_sql(settings: Settings, sql: str, as_json: bool) -> None:
    """Run SQL over the views outcomes, gold, rgt_pairs, unresolved, dead, holdout, acceptance, violations, cost."""
    from streams.gold import query
    from streams.tables import print_table

    columns, rows = query(settings.gold, sql)
    print_table(columns, rows, as_json=as_json)


@gold.command("stats")
@as_json
@with_settings
def gold_stats(settings: Settings, as_json: bool) -> None:
    """Show how many cases ended how, and why."""
    import msgspec

    from streams.gold import stats
    from streams.tables import print_stats

    found = stats(settings.gold)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found, enc_hook=str)).decode())
    else:
        print_stats(found)


@cli.group()
def adapters() -> None:
    """See the adapters of a task and say which should serve.

    A VERSION is its whole name or its number, such as 7; "base" is the base without an adapter.
    """


@adapters.command("list")
@click.option("--task", help="One task; default all.")
@click.option("--removed", is_flag=True, help="Also versions whose weights were removed.")
@as_json
@with_settings
def adapters_list(settings: Settings, task: str | None, removed: bool, as_json: bool) -> None:
    """List versions, oldest first, with what the gate said and which serves."""
    from streams.tables import print_table, printable
    from trainer.catalog import COLUMNS, MORE_COLUMNS, adapter_rows, tell_rollout

    names = [_one_task(settings, task)] if task else sorted(settings.tasks)
    columns = MORE_COLUMNS if as_json else COLUMNS
    rows = [row[: len(columns)] for name in names for row in adapter_rows(settings, name, removed)]
    print_table(columns, rows, as_json=as_json)
    for line in [] if as_json else (line for name in names for line in tell_rollout(settings, name)):
        click.echo(printable(line))


_of_task = click.option("--task", help="Its task. Not needed where there is one only.")


@adapters.command("show")
@click.argument("version")
@_of_task
@as_json
@with_settings
def adapters_show(settings: Settings, version: str, task: str | None, as_json: bool) -> None:
    """Show one VERSION: what it was trained on, what the gate said, where its report is, whether it is sound."""
    import msgspec

    from schemas.errors import AdapterError
    from streams.tables import printable
    from trainer.catalog import describe, find_version, tell

    task = _one_task(settings, task)
    chosen = find_version(settings, task, version)
    if not chosen:
        raise AdapterError("the base is no version; name one that `goldstream adapters list` shows.")
    found = describe(settings, task, chosen)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found, enc_hook=str)).decode())
    else:
        click.echo("\n".join(printable(line) for line in tell(found)))


@adapters.command("promote")
@click.argument("version")
@_of_task
@click.option("--reason", default="", help="Kept in the promotion log.")
@click.option("--force", is_flag=True, help="Also where the gate did not pass it.")
@as_json
@with_settings
def adapters_promote(
    settings: Settings, version: str, task: str | None, reason: str, force: bool, as_json: bool
) -> None:
    """Let VERSION serve from now on. Rollout switches once every server has loaded and answered with it."""
    from trainer.catalog import find_version, promote_by_hand

    task = _one_task(settings, task)
    _log_to_stderr("WARNING")
    entry, before = promote_by_hand(settings, task, find_version(settings, task, version), reason=reason, force=force)
    _print_promotion(entry, before, as_json)


@adapters.command("rollback")
@_of_task
@click.option("--reason", required=True, help="Kept in the promotion log.")
@as_json
@with_settings
def adapters_rollback(settings: Settings, task: str | None, reason: str, as_json: bool) -> None:
    """Go back to what served before; a second rollback goes one further back."""
    from trainer.catalog import roll_back_by_hand

    _log_to_stderr("WARNING")
    entry, before, passed_over = roll_back_by_hand(settings, _one_task(settings, task), reason=reason)
    for why in passed_over:
        click.echo(f"passed over {why}", err=True)
    _print_promotion(entry, before, as_json)


def _print_promotion(entry: Any, before: str, as_json: bool) -> None:
    import msgspec

    if as_json:
        click.echo(msgspec.json.encode(msgspec.to_builtins(entry) | {"previous": before}).decode())
    else:
        click.echo(
            f"{entry.task}: {entry.version or 'the base'} should serve now, after {before or 'the base'}. "
            "Rollout does the rest; `goldstream adapters list` shows it."
        )


@adapters.command("gc")
@click.option("--task", help="One task; default all.")
@click.option("--keep", default=5, show_default=True, type=click.IntRange(min=1), help="Last promoted versions kept.")
@click.option(
    "--grace-hours", default=24.0, show_default=True, help="Whatever was trained, promoted or replaced since."
)
@click.option("--yes", is_flag=True, help="Remove. Without it, only say what would be.")
@click.option("--without-broker", is_flag=True, help="Trust the promotion log alone about what serves.")
@as_json
@with_settings
def adapters_gc(
    settings: Settings,
    task: str | None,
    keep: int,
    grace_hours: float,
    yes: bool,
    without_broker: bool,
    as_json: bool,
) -> None:
    """Remove the weights of old versions; their manifests and gate figures stay. Shows a plan unless --yes is given.

    Kept are the incumbent and whatever the serving record on Kafka names, the last promoted ones, those that wait for
    a gate or a promotion, the newest of each base, and everything of the grace period.
    """
    import time

    from schemas.errors import BrokerError
    from streams.tables import print_table
    from trainer.records import KafkaRecords, latest_records
    from trainer.removal import finish_removals, removal_plan, remove

    try:
        records = {} if without_broker else latest_records(KafkaRecords(settings).read())
    except BrokerError as error:
        raise BrokerError(
            f"{error} So it is not known what the servers serve now. --without-broker trusts the promotion log alone."
        ) from error
    rows, freed = [], 0
    for name in [_one_task(settings, task)] if task else sorted(settings.tasks):
        record = records.get(name)
        served = {record.version, record.previous, record.fallback} if record else set()
        plan = removal_plan(
            settings.adapters,
            name,
            keep=keep,
            grace_s=grace_hours * 3600,
            served=served,
            now_ms=int(time.time() * 1000),
        )
        freed += finish_removals(settings.adapters, name) if yes else 0
        for version, kept, size in ((c.manifest.version, c.kept, c.size) for c in plan):
            if not kept and yes:
                freed += remove(settings.adapters, name, version)
            done = "kept" if kept else "removed" if yes else "would be removed"
            rows.append([name, version, done, kept, round(size / 1e6, 1)])
    print_table(["task", "version", "result", "why", "MB"], rows, as_json=as_json)
    if not as_json and not yes and any(row[2] != "kept" for row in rows):
        click.echo("nothing was removed; goldstream adapters gc --yes does it")
    elif not as_json and yes:
        click.echo(f"{freed / 1e6:.1f} MB freed")


def _one_task(settings: Settings, task: str | None) -> str:
    """Returns the task a command means: the one named, or the only one there is."""
    from schemas.errors import SettingsError

    if task is None:
        if len(settings.tasks) != 1:
            raise SettingsError(
                f"which task? --task one of: {', '.join(sorted(settings.tasks)) or 'none is configured'}"
            )
        return next(iter(settings.tasks))
    settings.task(task)
    return task


# Accounting


@cli.command("audit")
@click.option("--task", help="One task's source topics; default all.")
@as_json
@with_settings
def audit_command(settings: Settings, task: str | None, as_json: bool) -> None:
    """Compare source topics, cases on their way and the gold set. Exit code 1 where a record is missing or double."""
    import msgspec

    from streams.audit import audit, print_audit

    found = audit(settings, task)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found, enc_hook=str)).decode())
    else:
        print_audit(found)
    if not found.balanced:
        sys.exit(1)


@cli.group()
def dlq() -> None:
    """Look at dead letters and send them back."""


def _which_letters(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, text in (
        ("--task", "One task's only."),
        ("--stage", "Died here: intake, student, judge, ..."),
        ("--reason", "Died of this, e.g. model_unavailable."),
    ):
        command = click.option(name, help=text)(command)
    return command


@dlq.command("list")
@_which_letters
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1), help="Letters shown, latest first.")
@as_json
@with_settings
def dlq_list(
    settings: Settings, reason: str | None, stage: str | None, task: str | None, limit: int, as_json: bool
) -> None:
    """List dead letters, with how many there are of each kind."""
    from streams.dlq import LETTER, count_letters, list_letters
    from streams.tables import print_table

    letters = list_letters(settings, reason, stage, task, limit)
    if not as_json:
        counts = count_letters(settings, reason, stage, task)
        print_table(["task", "stage", "reason", "letters"], counts, as_json=False, title="Dead letters")
    print_table(LETTER, letters, as_json=as_json)


@dlq.command("show")
@click.argument("case_id")
@as_json
@with_settings
def dlq_show(settings: Settings, case_id: str, as_json: bool) -> None:
    """Show one dead letter with its case, or with the source record where intake refused it."""
    import msgspec

    from streams.dlq import show_letter, tell_letter

    shown = show_letter(settings, case_id)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(shown, enc_hook=str)).decode())
    else:
        click.echo("\n".join(tell_letter(shown)))


@dlq.command("redrive")
@_which_letters
@click.option("--id", "case_id", help="One letter, in place of --reason and --stage.")
@click.option("--dry-run", is_flag=True, help="Say what would happen and send nothing.")
@as_json
@with_settings
def dlq_redrive(
    settings: Settings,
    reason: str | None,
    stage: str | None,
    task: str | None,
    case_id: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send dead letters back to the stage they died at. Name --reason and --stage, or --id."""
    from collections import Counter

    from streams.dlq import Redriven, redrive
    from streams.tables import print_table

    done = list(redrive(settings, reason, stage, task, case_id, dry_run))
    if as_json:
        print_table(Redriven._fields, done, as_json=True)
    else:
        counts = Counter((one.stage, one.reason, one.result) for one in done)
        rows = [(*kind, number) for kind, number in sorted(counts.items())]
        print_table(["stage", "reason", "result", "letters"], rows, as_json=False)
        stayed = [one for one in done if one.result not in ("redriven", "would be redriven")]
        if stayed:
            print_table(Redriven._fields, stayed[:50], as_json=False, title="Not redriven (the first 50)")
    if any(one.result == "not confirmed" for one in done):
        sys.exit(1)


# Which method pays


@cli.command()
@click.option("--task", default="scribe", show_default=True, help="Only scribe can draw the prompts this needs.")
@click.option("--only", default="", help="Comma-separated methods or families (sft, iw, rl, control); default all.")
@click.option("--sizes", default="", help="Comma-separated numbers of unique prompts.")
@click.option("--seeds", default=0, type=click.IntRange(min=0), help="Seeds of the SFT family; at most 3 on policy.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write every run's figures to this file.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="The PNG. Default: methods.png in --folder")
@click.option("--folder", type=click.Path(path_type=Path), default=Path(".goldstream/methods"), show_default=True)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Processes, one thread each.")
@click.option("--quick", is_flag=True, help="Two tiny sizes, one seed: does everything run? Proves nothing.")
@click.option("--tune", is_flag=True, help="Try learning rates and epochs on validation prompts instead.")
@click.option("--report", "report_only", is_flag=True, help="Run nothing: report what is in --folder.")
def methods(
    task: str,
    only: str,
    sizes: str,
    seeds: int,
    json_path: Path | None,
    plot_path: Path | None,
    folder: Path,
    jobs: int,
    quick: bool,
    tune: bool,
    report_only: bool,
) -> None:
    """Compare SFT, iSFT, RGT, iw-SFT, RL and distillation on one small base. Resumes what is in --folder."""
    import msgspec

    from trainer.methods.benchmark import QUICK, Plan, run_benchmark
    from trainer.methods.benchmark import tune as try_all
    from trainer.methods.plot import plot
    from trainer.methods.report import markdown
    from trainer.methods.table import chosen

    rows = chosen([name for name in only.split(",") if name])
    if tune:
        for name, tuned in try_all(folder, jobs=jobs, say=click.echo, task=task).items():
            click.echo(f"best for {name}: learning rate {tuned.learning_rate:g}, {tuned.epochs} epochs")
        return
    plan = Plan(rows, task=task)._replace(**(QUICK if quick else {}))
    if sizes:
        plan = plan._replace(sizes=_numbers("--sizes", sizes))
    if seeds:
        plan = plan._replace(seeds=seeds)
    report = run_benchmark(folder, plan, jobs=jobs, say=click.echo, report_only=report_only)
    click.echo("\n" + markdown(report))
    if json_path is not None:
        json_path.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    plot(report, plot_path or folder / "methods.png")
    if report.failures:
        sys.exit(1)


@cli.command()
@click.option("--task", required=True, help="Whose gold.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="Adapters a method.")
@as_json
@with_settings
def ablate(settings: Settings, task: str, seeds: int, as_json: bool) -> None:
    """Say whether RGT or iSFT pays on your own gold: equal steps, several seeds, your judge. Promotes nothing."""
    import msgspec

    from streams.tables import print_table
    from trainer.methods.ablate import ablate as compare

    found = compare(settings, task, seeds=seeds, say=lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    rows = [list(msgspec.structs.asdict(arm).values()) for arm in found.arms]
    columns = ["method", "seed", "pass", "score", "steps", "trained tokens", "seconds"]
    title = f"{found.cases} gold cases, {found.strategies} with a strategy; {found.holdout} holdout cases"
    print_table(columns, rows, as_json=False, title=title)
    for what, (gain, low, high) in (("pass rate", found.passed), ("score", found.score)):
        click.echo(f"{what}, RGT less iSFT: {gain:+.1%} ({low:+.1%} to {high:+.1%})")
    click.echo(found.verdict)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        numbers = sorted({int(number) for number in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1:
        raise click.ClickException(f"{option} {text}: expected numbers above 0, separated by commas")
    return tuple(numbers)


# The demo


@cli.command()
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to this file too.")
@click.option("--waves", default="60,140,300,500", show_default=True, help="Cases per wave.")
@click.option("--holdout", default=200, show_default=True, help="Holdout prompts sent first.")
@click.option("--keep", is_flag=True, help="Continue in the state folder of the last demo instead of a fresh one.")
def demo(json_path: Path | None, waves: str, holdout: int, keep: bool) -> None:
    """Run the whole loop on a synthetic clinical scribe: traffic in, promoted adapters out. Takes minutes."""
    import signal

    from streams.demo import run_demo

    try:
        sizes = [int(size) for size in waves.split(",")]
    except ValueError as error:
        raise click.ClickException(f"--waves {waves}: expected numbers separated by commas") from error
    _log_to_stderr("ERROR")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves through the supervisor, which stops its children
    run_demo(sizes, holdout, json_path, keep)


@cli.command("demo-traffic", hidden=True)
@click.option("--count", required=True, type=int)
@click.option("--split", required=True, type=click.Choice(["train", "holdout"]))
@click.option("--seed", required=True, type=int)
@with_settings
def demo_traffic(settings: Settings, count: int, split: Any, seed: int) -> None:
    """Stand in for the product: log requests and responses of a clinical scribe to prod.scribe.chat."""
    from streams.traffic import send_traffic

    click.echo(send_traffic(settings, count, split, seed))


def main() -> None:
    """Runs the command line; an error of ours is printed without a traceback, with what to do next."""
    from schemas.errors import GoldstreamError

    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except GoldstreamError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be written to: the system's words say which
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


@contextlib.contextmanager
def _serving(name: str | None) -> Iterator[threading.Event]:
    """Gives a long-running command a stop event that SIGTERM and Ctrl-C set."""
    import signal

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    _log_to_stderr("INFO" if name else "WARNING")
    _end_with_parent()
    yield stop


def _end_with_parent() -> None:
    from streams.supervisor import end_with_parent

    end_with_parent()


def _log_to_stderr(level: str = "INFO") -> None:
    from streams.logs import log_to_stderr

    log_to_stderr(level)


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


if __name__ == "__main__":
    main()
