"""Who may work: an exclusive lock on a file, and the fence that stops an owner who lost it without noticing.

The trainer holds one per task during a run, rollout one for the registry.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import TrainingError


@contextmanager
def lease(path: Path, stop: threading.Event, wait: bool = True) -> Iterator[int | None]:
    """Holds an exclusive lock on `path`; yields its file descriptor, or None where it was not obtained.

    Without `wait` a lease held elsewhere gives None at once, otherwise only `stop` does. The kernel releases the lock
    when the process ends, however it ends; the file itself stays, since removing it would give two owners.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait or stop.wait(0.1):
                    yield None
                    return
        yield descriptor
    finally:
        os.close(descriptor)


class LeaseLost(TrainingError):
    """Another owner took the lease although we hold its lock; this one must not publish or promote any more."""


class Fence:
    """An owner's number in the lease file, one higher than that of the owner before.

    A lock alone is not enough: somebody removes the file, or the file system forgets its locks when it reconnects,
    and two owners work at once. The later one's number shows the earlier one that it has been replaced.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        self.epoch = 1 + (int(text) if text.isdigit() else 0)
        os.pwrite(descriptor, f"{self.epoch:020d}\n".encode(), 0)  # fixed width: a shorter number leaves no old digits
        os.fsync(descriptor)
        self._file = os.fstat(descriptor).st_ino

    def check(self) -> None:
        """Raises LeaseLost where the lease file is another one by now, or names a later owner."""
        try:
            found, text = self.path.stat().st_ino, self.path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise LeaseLost(f"{self.path} is gone ({error}); what was trained is not published.") from error
        if found != self._file or text != f"{self.epoch:020d}":
            raise LeaseLost(
                f"{self.path} names owner {text.lstrip('0') or '0'}, and this is {self.epoch}: another trainer has "
                "taken over this task. Nothing more is published here. Was it removed by hand? Let one trainer run."
            )
