"""The trainer says what it does for a task right now; schemas.status has the shape and reads it."""

from __future__ import annotations

import logging
import time

import msgspec

from schemas.settings import Settings
from schemas.status import TrainerStatus, trainer_status_path
from schemas.status import read_trainer_status as read_status

log = logging.getLogger("goldstream.trainer")


class StatusFile:
    """The file's one writer: the holder of the task's lease."""

    def __init__(self, settings: Settings, task: str) -> None:
        self.path = trainer_status_path(settings, task)
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
