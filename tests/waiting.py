"""Waiting in tests for what others do meanwhile: threads, processes, topics."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0, every_s: float = 0.01) -> None:
    """Waits until `condition` holds; fails where it does not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"the condition does not hold after {timeout_s:g} s"
        time.sleep(every_s)
