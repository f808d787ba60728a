"""What the trainer does for a task right now: <state>/trainer/<task>.json, for the command line and the demo."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Literal

import msgspec

from schemas.settings import Settings

log = logging.getLogger("goldstream.trainer")


class TrainerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One task's state; the times outlive a restart, so that a schedule does."""

    task: str
    state: Literal["idle", "training", "gating"]
    version: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    corrected: int = 0  # new corrected rows, of `needed` that start a run
    needed: int = 0
    error: str = ""  # why the last run ended early
    updated_ms: int = 0
    since_ms: int = 0  # when this task was first watched
    last_run_ms: int = 0  # when the last run began, 0 before the first


class StatusFile:
    """The file's one writer: the holder of the task's lease."""

    def __init__(self, settings: Settings, task: str) -> None:
        self.path = _status_path(settings, task)
        known = read_status(settings, task)
        self.now = TrainerStatus(
            task=task,
            state="idle",
            needed=settings.task(task).trainer.min_corrected_rows,
            since_ms=known.since_ms if known and known.since_ms else int(time.time() * 1000),
            last_run_ms=known.last_run_ms if known else 0,
        )

    def tell(self, **changes: object) -> None:
        """Writes the file anew, atomically. A disk without room costs the news and neither a run nor the service."""
        self.now = msgspec.structs.replace(self.now, **changes, updated_ms=int(time.time() * 1000))
        temporary = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(self.now))
            temporary.replace(self.path)
        except OSError as error:
            log.warning("%s: %s cannot be written: %s", self.now.task, self.path, error.strerror)


def read_status(settings: Settings, task: str) -> TrainerStatus | None:
    """Returns what the trainer last said about a task, None where it never ran."""
    try:
        return msgspec.json.decode(_status_path(settings, task).read_bytes(), type=TrainerStatus)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _status_path(settings: Settings, task: str) -> Path:
    return settings.state / "trainer" / f"{task}.json"
