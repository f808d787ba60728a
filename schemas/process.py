"""A process of ours and the one that started it: it ends with its parent, and says when it is working."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
from pathlib import Path

from schemas.settings import Settings

_YOUNG_OBJECTS = 20_000  # more than before, until the collector looks at them: some MB
NAME = "GOLDSTREAM_PROCESS"  # in the environment of a supervised process


def end_with_parent() -> None:
    """Makes a supervised process end when its supervisor is killed: nobody would restart or stop it any more."""
    if NAME in os.environ:
        signal_at_parents_death(signal.SIGTERM)


def signal_at_parents_death(number: int) -> None:
    """Has the kernel send this process a signal when the thread that started it ends. Nothing outside Linux."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)


def work_in_background(niceness: int) -> None:
    """Lets other processes go first, by a nice value from 0 to 19.

    Linux may share a core among sessions first (autogroup), where a nice value counts within one alone. Each of our
    processes has its own: so this leaves for another, and makes that nice too.
    """
    os.nice(niceness)
    with contextlib.suppress(PermissionError):  # it leads one already
        os.setsid()
    with contextlib.suppress(OSError):  # no such groups here
        Path("/proc/self/autogroup").write_text(str(niceness))


def announce_ready(settings: Settings) -> None:
    """Tells the supervisor, if there is one, that this process is working."""
    name = os.environ.get(NAME)
    if name:
        path = ready_file(settings.state, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temp = path.with_suffix(f".{os.getpid()}")
        temp.write_text(str(os.getpid()))
        temp.replace(path)


def ready_file(state: Path, name: str) -> Path:
    """Returns where a supervised process writes its id once it is working."""
    return state / "run" / f"{name}.ready"


def use_uvloop() -> None:
    """Makes the event loops of this process uvloop's, those of its threads too: Faust's consumers have one each."""
    import asyncio

    import uvloop

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


def look_less_for_garbage() -> None:
    """Has the collector look at what is loaded no more, and seldom at what comes and goes: for a worker with many cases
    in flight it took a tenth of the CPU.

    Cases and calls are freed as they end, without it; it is there for cycles, of which few are made. For a process of
    our own that has started, never for a library's user: nothing loaded so far is collected any more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)
