"""Files that appear whole or not at all: temp files under a lock, names and folders that survive a power cut."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import Any


def open_temp(folder: Path, stem: str) -> tuple[Any, Path]:
    """Opens a new temp file under an exclusive lock, which the kernel drops when the process dies."""
    while True:
        temp = folder / f"{stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        file = temp.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file, temp
        file.close()  # taken for stale between open and lock; the next name is ours alone


def remove_stale_temp_files(folder: Path, prefix: str) -> None:
    """Removes temp files whose writer is gone: process ids repeat and differ between containers, locks do not."""
    for temp in folder.glob(f"{prefix}*.tmp"):
        try:
            with temp.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                temp.unlink(missing_ok=True)
        except (BlockingIOError, FileNotFoundError):
            continue  # a live writer's, or gone meanwhile


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it, and syncs each new name."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
