"""What this machine has and what is missing: `goldstream doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from agents.judge import load_rubric
from agents.prices import check_prices
from schemas.errors import GoldstreamError
from schemas.kafka import LOCAL, bootstrap_servers
from schemas.settings import ROLES, Model, Rubric, Settings, Task
from streams.broker import DEPLOY, broker_status, find_java, java_version
from streams.topics import connect_admin

PACKAGES = ("kafka-python", "faust-streaming", "aiokafka", "litellm", "pyarrow", "duckdb")
TRAINING_PACKAGES = ("torch", "transformers", "peft")  # of the extra `trainer`; images of the stream side lack them
MIN_FREE_BYTES = 2 << 30


class Finding(NamedTuple):
    """One line of the report. `result` is "ok", "missing", or "note" where nothing is wrong yet."""

    check: str
    result: Literal["ok", "missing", "note"]
    found: str
    remedy: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Returns everything Goldstream needs, found or not."""
    return [*_python(settings), *_kafka(settings), *_disk(settings), *_tasks(settings)]


def _python(settings: Settings) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info[:2] == (3, 11)
    yield Finding("python", "ok" if ok else "missing", version, "" if ok else "install Python 3.11; make setup")
    for name in PACKAGES:
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "missing", "not installed", "run `make setup`")
    needed = any(model.model.startswith("local/") for task in settings.tasks.values() for _, model in _models(task))
    for name in TRAINING_PACKAGES:
        try:
            yield Finding(name, "ok", importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            what = "not installed; the trainer and models local/NAME need it"
            yield Finding(name, "missing" if needed else "note", what, "pip install '.[trainer]', or `make setup`")


def _kafka(settings: Settings) -> Iterator[Finding]:
    if settings.kafka.bootstrap_servers != LOCAL:
        yield _try("kafka", lambda: _connect(settings))
        return
    yield _try("java", lambda: f"Java {java_version(find_java())}")
    if (DEPLOY / "libs" / ".complete").exists():
        yield Finding("kafka jars", "ok", str(DEPLOY / "libs"))
    elif shutil.which("mvn"):
        yield Finding("kafka jars", "note", "not copied yet", "`goldstream broker start` copies them with Maven")
    else:
        yield Finding(
            "maven",
            "missing",
            "mvn is not on the path",
            "apt-get install maven, brew install maven, or use a running Kafka: --bootstrap-servers HOST:PORT",
        )
    if broker_status(settings).running:
        yield _try("kafka", lambda: _connect(settings))
    else:
        yield Finding("kafka", "note", "the local broker is not running", "goldstream broker start")


def _connect(settings: Settings) -> str:
    admin = connect_admin(settings, timeout_s=5)
    try:
        cluster = admin.describe_cluster()
        return f"{','.join(bootstrap_servers(settings))}, {len(cluster['brokers'])} broker(s)"
    finally:
        admin.close()


def _disk(settings: Settings) -> Iterator[Finding]:
    folder = next(p for p in (settings.state.resolve(), *settings.state.resolve().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / (1 << 30):.0f} GiB free for {settings.state}"
    if free < MIN_FREE_BYTES:
        yield Finding("disk", "missing", text, f"free at least {MIN_FREE_BYTES >> 30} GiB, or set state_dir elsewhere")
    else:
        yield Finding("disk", "ok", text)


def _tasks(settings: Settings) -> Iterator[Finding]:
    if not settings.tasks:
        yield Finding("tasks", "note", "none configured", "goldstream init, then name your topic, models and rules")
    for name, task in settings.tasks.items():
        yield Finding(f"task {name}", "ok", f"reads {', '.join(task.topics)}")
        if task.rubric.programs:
            yield _try(f"task {name}: verifier", partial(_programs, task.rubric))
        for what, model in _models(task):
            check = f"task {name}: {what}"
            if model.model.startswith("local/"):
                table = model.model.removeprefix("local/")
                if table in settings.local:
                    folder = Path(settings.local[table].path)
                    yield _model_folder(check, folder, f"{model.model} at {folder}")
                else:
                    yield Finding(check, "missing", f"{model.model} has no table", f"add [local.{table}] with its path")
            elif model.api_key_env:
                known = bool(os.environ.get(model.api_key_env))
                found = f"{model.model}, key in {model.api_key_env}"
                yield Finding(
                    check, "ok" if known else "missing", found, "" if known else f"export {model.api_key_env}"
                )
        if any(task.budget.caps_money(role) for role in ROLES):
            only = msgspec.structs.replace(settings, tasks={name: task})
            yield _try(f"task {name}: prices", partial(_prices, only))
        if task.trainer.base:
            yield _model_folder(f"task {name}: trainer", Path(task.trainer.base), f"base at {task.trainer.base}")


def _prices(settings: Settings) -> str:
    check_prices(settings)
    return "every model under a cap in money has a price"


def _models(task: Task) -> Iterator[tuple[str, Model]]:
    """Yields every model that the settings of a task name, with what it is there for."""
    named: list[tuple[str, Model]] = [(role, task.model(role)) for role in ROLES]
    named += [(f"panel judge {number}", judge) for number, judge in enumerate(task.panel.judges, 1)]
    named.append(("tie-break judge", task.panel.tie_break))
    for what, model in named:
        yield what, model
        for number, fallback in enumerate(model.fallbacks, 1):
            yield f"{what}, fallback {number}", fallback


def _model_folder(check: str, folder: Path, found: str) -> Finding:
    if (folder / "config.json").exists():
        return Finding(check, "ok", found)
    return Finding(check, "missing", found, "put the model's folder there, or correct the path in the settings")


def _programs(rubric: Rubric) -> str:
    load_rubric(rubric)
    return ", ".join(rubric.programs)


def _try(check: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(check, "ok", look())
    except GoldstreamError as error:
        what, _, remedy = str(error).partition(". ")
        return Finding(check, "missing", what, remedy)
