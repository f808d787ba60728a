"""The file of a gold set that says what is forgotten, written by one process at a time and replaced whole.

`goldstream forget` and the sink write it; readers and the views only ever see a whole one. The shape of the file and
how it is read are in schemas.forgotten.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from schemas.faults import crash_point
from schemas.forgotten import Forgotten, forgotten_bytes, forgotten_file


def keep_forgotten(gold: Path) -> None:
    """Makes sure that there is a file, empty where nothing is forgotten: the views ask it.

    Takes no lock, for whoever holds it opens views as well; linking never overwrites what another has written.
    """
    target = forgotten_file(gold)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"empty-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        _write(temporary, Forgotten())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(gold: Path) -> Iterator[None]:
    """Holds the right to change the file, so that what two processes add is added to what the other has written."""
    folder = forgotten_file(gold).parent
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the kernel gives it back however the process ends
        yield
    finally:
        os.close(descriptor)


def write_forgotten(gold: Path, forgotten: Forgotten) -> None:
    """Replaces the file; the caller holds `writing`. A kill before the last step leaves the file as it was."""
    target = forgotten_file(gold)
    temporary = target.parent / "keys.tmp"  # no reader's glob; one writer at a time, so a killed one's is overwritten
    _write(temporary, forgotten)
    crash_point("forget.before_replace")
    temporary.replace(target)
    _sync(target.parent)


def _write(path: Path, forgotten: Forgotten) -> None:
    with path.open("wb") as file:
        file.write(forgotten_bytes(forgotten))
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
