"""Crash points: places where a test may kill the process to prove that nothing is lost.

GOLDSTREAM_CRASH_AT=name kills at the first time `name` is reached, name:N at the N-th. Unset, a
crash point is one comparison.
"""

from __future__ import annotations

import os
import signal

_NAME, _, _TIMES = os.environ.get("GOLDSTREAM_CRASH_AT", "").partition(":")
_left = int(_TIMES or 1)


def crash_point(name: str) -> None:
    """Kills this process without any cleanup, as kill -9 does, where the environment asks for it here."""
    if name != _NAME:
        return
    global _left
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
