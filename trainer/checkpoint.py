"""A run's state on disk, so that a killed run goes on where it was, to the same loss curve.

One safetensors file, replaced atomically: adapter, optimizer, moving average and the losses so far. Its header names
the run it belongs to: another dataset, base or setting is another run. Random numbers need no state, since every step
seeds them from its own number. Called by trainer.loop.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from schemas.errors import SetupError
from schemas.settings import Trainer
from trainer.dataset import Example

CHECKPOINT = "checkpoint.safetensors"
_HEADER = "goldstream"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Settings that may change between a run and its resumption: when runs start, and how fast they go.
_FREE = (
    "enabled",
    "min_corrected_rows",
    "max_age_hours",
    "min_rows_at_age",
    "every_hours",
    "daily_at",
    "quiet_s",
    "threads",
    "share_gpu",
    "checkpoint_every_s",
    "processes",
    "resident_mb",
)


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run besides its tensors."""

    run: dict[str, str]  # as run_identity returns it
    step: int  # steps done
    seconds: float  # spent on them
    losses: list[float]  # of every step


def run_identity(
    base_sha256: str, examples: Sequence[Example], settings: Trainer, initial: Path | None
) -> dict[str, str]:
    """Returns what decides a run's loss curve, part by part, so that a difference can be named."""
    ordered = sorted(examples, key=lambda e: (e.case_id, e.copy, e.branch))
    kept = {key: value for key, value in msgspec.to_builtins(settings).items() if key not in _FREE}
    parts = {
        "examples": msgspec.json.encode(ordered),
        "base": base_sha256.encode(),
        "initial adapter": (initial / "adapter_model.safetensors").read_bytes() if initial else b"",
        "torch": torch.__version__.encode(),
    }
    hashes = {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}
    return hashes | {f"trainer.{key}": msgspec.json.encode(value).decode() for key, value in kept.items()}


def save_checkpoint(folder: Path, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    """Replaces the folder's checkpoint.

    1. write a temporary file that nobody reads and sync it;
    2. rename it over the one before, which is gone only now;
    3. sync the folder.

    Raises SetupError where the disk is full: the checkpoint before stays as it is, and usable.
    """
    temporary = folder / f".{CHECKPOINT}.tmp"
    with disk_room(folder, "a checkpoint of the run"):
        try:
            header = {_HEADER: msgspec.json.encode(checkpoint).decode()}
            save_file(dict(tensors), temporary, metadata=header)  # 1
            _sync(temporary)
            os.replace(temporary, folder / CHECKPOINT)  # 2
            _sync(folder)  # 3
        finally:
            temporary.unlink(missing_ok=True)


def load_checkpoint(folder: Path, run: Mapping[str, str]) -> tuple[Checkpoint, dict[str, Tensor]] | str:
    """Returns the folder's checkpoint and its tensors, or why a run with this identity cannot go on from it."""
    path = folder / CHECKPOINT
    if not path.exists():
        return "there is no checkpoint"
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {})[_HEADER]
            checkpoint = msgspec.json.decode(header, type=Checkpoint)
            if checkpoint.run != run:
                differing = sorted({k for k, _ in checkpoint.run.items() ^ run.items()})
                return f"the checkpoint at step {checkpoint.step} is of another run: {', '.join(differing)} differ"
            return checkpoint, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError, KeyError, msgspec.DecodeError) as error:
        return f"{path} cannot be read: {type(error).__name__}"


@contextlib.contextmanager
def disk_room(folder: Path, what: str) -> Iterator[None]:
    """Turns a full disk into a SetupError that says what could not be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        full = full or any(f"os error {code}" in str(error) for code in _FULL)
        if not full:
            raise
        free = os.statvfs(folder)
        raise SetupError(
            f"{folder}: the disk is full ({free.f_bavail * free.f_frsize >> 20} MiB free): {what} could not be "
            "written. The checkpoint before, where there is one, stays usable: make room, or move state_dir to a "
            "larger disk, and the run goes on from there."
        ) from error


def keep_lines(path: Path, lines: int) -> None:
    """Cuts a step log to its first lines: those after the checkpoint will be written again, one may be half."""
    kept = path.read_bytes().splitlines(keepends=True)[:lines] if path.exists() else []
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(kept))
    os.replace(temporary, path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
