"""What trainer and rollout do for a task right now: <state>/trainer/<task>.json and <state>/rollout/<task>.json.

Each is written by one process, the holder of a lease, and read by the command line and the exporter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from schemas.settings import Settings


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


class RolloutStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What rollout does for a task."""

    task: str
    wanted: str = ""  # the promotion log's last
    serving: str = ""  # the record's
    previous: str = ""
    canary_share: float = 0.0
    servers: dict[str, str] = {}  # address -> "serves", "asleep" or what is wrong
    watch: str = ""  # what the guard last found
    errors: dict[str, str] = {}  # by step: "servers", "switch", "guard"
    updated_ms: int = 0


def trainer_status_path(settings: Settings, task: str) -> Path:
    """Returns where the trainer says what it does for a task."""
    return settings.state / "trainer" / f"{task}.json"


def rollout_status_path(settings: Settings, task: str) -> Path:
    """Returns where rollout says what it does for a task."""
    return settings.state / "rollout" / f"{task}.json"


def read_trainer_status(settings: Settings, task: str) -> TrainerStatus | None:
    """Returns what the trainer last said about a task, None where it never ran."""
    try:
        return msgspec.json.decode(trainer_status_path(settings, task).read_bytes(), type=TrainerStatus)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def read_rollout_status(settings: Settings, task: str) -> RolloutStatus | None:
    """Returns what rollout last said about a task, None where it never ran."""
    try:
        return msgspec.json.decode(rollout_status_path(settings, task).read_bytes(), type=RolloutStatus)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
