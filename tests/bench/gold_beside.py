"""What compaction beside the sink costs it: seconds a landing file takes, with compaction running and without.

`make bench-gold` prints it. Compaction runs as the sink starts it, in a process of its own, and is stopped and let go
on by turns while this process writes a file every 50 ms, so that both sides see the same disk and the same machine.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.settings.gold import Gold
from streams.compaction.keeper import start
from streams.landing import LandingChain

_TURN_S = 1.0
_PACE_S = 0.05
_AT_MOST_S = 40.0  # where others keep the machine busy, compaction is not done by then: it is in no hurry


def beside(gold: Path, table: pa.Table) -> dict[str, Any]:
    """Compacts a filled gold set while files of these rows are written, and returns the figures of both sides.

    A write is of the side on which it began. What compaction had handed to the kernel is still being written when it
    is stopped, so that the quiet side is a little slower than without any compaction.
    """
    chain = LandingChain(gold, 9)  # a partition of its own
    took: dict[bool, list[float]] = {True: [], False: []}
    process, at_work = start(gold, Gold()), True
    try:
        turned = ends = time.perf_counter()
        ends += _AT_MOST_S
        while process.poll() is None and turned < ends:
            began = time.perf_counter()
            first = chain.tip or 0
            chain.write(first, first + len(table), table)
            took[at_work].append(time.perf_counter() - began)
            time.sleep(max(0.0, began + _PACE_S - time.perf_counter()))
            if time.perf_counter() - turned > _TURN_S:
                at_work, turned = not at_work, time.perf_counter()
                os.kill(process.pid, signal.SIGCONT if at_work else signal.SIGSTOP)
    finally:
        done = process.poll() is not None
        process.kill()
        process.wait()
    if done and process.returncode != 0:
        raise RuntimeError(f"compaction ended with {process.returncode}")
    return {
        "rows_per_file": len(table),
        "compaction_done": done,
        "with": _figures(took[True], len(table)),
        "without": _figures(took[False], len(table)),
    }


def _figures(seconds: list[float], rows: int) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "files": len(ordered),
        "p50_ms": round(1000 * statistics.median(ordered), 1),
        "p99_ms": round(1000 * ordered[int(len(ordered) * 0.99)], 1),
        "max_ms": round(1000 * ordered[-1], 1),
        "rows_per_s": round(rows * len(ordered) / sum(ordered)),
    }
