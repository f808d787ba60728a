"""The base model a task's adapters belong to, and the engine that answers the holdout with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from schemas.errors import SettingsError
from schemas.settings import Settings
from trainer.gate import Engine


class Base(NamedTuple):
    """The model a task's student is, as the trainer loads it."""

    name: str  # as it is served
    path: Path


MakeEngine = Callable[[Settings, str], Engine]


def student_base(settings: Settings, task: str) -> Base:
    """Returns the base model of a task's student; raises SettingsError where the trainer cannot know it."""
    chosen = settings.task(task)
    provider, _, name = chosen.student.model.partition("/")
    folder = settings.local[name].path if provider == "local" and name in settings.local else chosen.trainer.base
    if not folder:
        raise SettingsError(
            f"tasks.{task}.trainer.base is missing: the student {chosen.student.model!r} is served elsewhere, so the "
            "trainer needs the folder of its base weights. Set it, or set trainer.enabled = false."
        )
    if not Path(folder).is_dir():
        raise SettingsError(f"the base model of task {task}, {folder}, is no folder. Download it, or correct the path.")
    return Base(name or chosen.student.model, Path(folder))


def local_engine(settings: Settings, task: str) -> Engine:
    """Builds the engine that answers the holdout."""
    from agents.local import LocalEngine  # loads torch; the service idles without it

    base = student_base(settings, task)
    student = settings.task(task).student.model
    max_batch = settings.local[base.name].max_batch if student.startswith("local/") else 64
    engine: Engine = LocalEngine(base.path, max_batch=max_batch, threads=settings.task(task).trainer.threads)
    return engine
