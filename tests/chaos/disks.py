"""Faults of the disk, and of who writes adapters: on lanes whose gold set and registry lie on small file systems.

Mounting needs root; where it is refused the faults are skipped, and say so.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker import Broker
from factory import Lane
from harm import refusals


class Skipped(Exception):
    """This machine does not permit the fault; printed with its reason and never counted as passed."""


@contextmanager
def mounted(path: Path, size: str = "24m") -> Iterator[Path]:
    """A small file system in memory at `path`; raises Skipped where mounting is refused."""
    path.mkdir(parents=True, exist_ok=True)
    if shutil.which("mount") is None:
        raise Skipped("there is no mount command here")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "goldstream-chaos", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        raise Skipped(f"mounting a small file system is not permitted ({done.stderr.strip()})")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


@contextmanager
def disk_lane(folder: Path, broker: Broker) -> Iterator[Lane]:
    """A lane of stub models whose gold set lies on a small file system of its own."""
    with mounted(folder / "disk" / "state" / "gold"), Lane(folder, "disk", broker) as lane:
        yield lane


def full(lane: Lane, cases: int) -> str:
    """The disk fills up under the sink; it says so and waits, and goes on once there is room."""
    filler = lane.settings.gold / "filler"
    lane.feed(cases)
    lane.sleep(2)
    fill(filler)
    try:
        said = _refused(lane, "No space left on device")
        lane.sleep(3)
    finally:
        filler.unlink()
    return "" if said else "the sink did not say that the disk is full"


def read_only(lane: Lane, cases: int) -> str:
    """The file system under the sink turns read-only; it says so and waits, and goes on once it is writable."""
    lane.feed(cases)
    lane.sleep(2)
    remount(lane.settings.gold, "ro")
    try:
        said = _refused(lane, "Read-only file system")
        lane.sleep(3)
    finally:
        remount(lane.settings.gold, "rw")
    return "" if said else "the sink did not say that the file system is read-only"


def _refused(lane: Lane, words: str) -> bool:
    return lane.wait_for(lambda: words in refusals(lane.log_text("sink")), 30)


def remount(path: Path, how: str, limit_s: float = 10.0) -> None:
    """Makes a file system "ro" or "rw"; waits for files that are open for writing, which forbid "ro"."""
    deadline = time.monotonic() + limit_s
    command = ["mount", "-o", f"remount,{how}", str(path)]
    while subprocess.run(command, check=time.monotonic() > deadline, capture_output=True).returncode:
        time.sleep(0.02)


def fill(path: Path) -> None:
    """Writes to `path` until its file system is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * (1 << 16)):
            pass
