"""Row `memory`: what a worker with 512 cases in flight takes (PSS), and whether that grows with the cases it has had.

The worker is the whole one, all stages on a real broker (bench.backlog). `make bench-memory` is the same over 100,000
cases; CASES= says how many, and ARGS=--through-litellm takes the calls' other way.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from bench.backlog import backlog
from bench.row import Result
from bench.stub import Stub
from schemas.tables import print_table
from streams.supervisor import Supervisor

CASES, IN_FLIGHT, LATENCY_S = 10_000, 512, 2.0  # long enough that nearly all of these wait at the stub
WARM = 0.2  # of the cases: caches fill, and malloc finds its size
GROWTH = 0.03


class Sample(NamedTuple):
    """The worker at one moment."""

    cases: int  # answered so far
    waiting: int  # calls at the stub
    peak: int  # the most that have waited at once so far
    pss_mb: float
    at_s: float


def measure(room: Path) -> Result:
    """Returns the most that the worker took over CASES cases."""
    samples = watch(room, CASES)
    _, first, last = fifths(samples)
    growth = last / first - 1
    peak = samples[-1].peak
    return Result(
        figure=max(one.pss_mb for one in samples),
        ours=f"{last:.0f} MB over the last fifth of {samples[-1].cases:,} cases",
        also=(
            (f"{100 * growth:+.1f} % against the first fifth after warm-up", growth <= GROWTH),
            (f"{peak} calls waited at once", peak >= 0.9 * IN_FLIGHT),
        ),
        detail={"samples": [one._asdict() for one in samples]},
    )


def fifths(samples: Sequence[Sample]) -> tuple[list[Sample], float, float]:
    """Returns the samples after warm-up, and the median PSS of the first and the last fifth of these, in MB."""
    warm = [one for one in samples if one.cases >= WARM * samples[-1].cases]
    part = max(len(warm) // 5, 1)
    first, last = (statistics.median(one.pss_mb for one in some) for some in (warm[:part], warm[-part:]))
    return warm, first, last


def watch(room: Path, cases: int, direct: bool = True, in_flight: int = IN_FLIGHT) -> list[Sample]:
    """Runs a worker on a backlog until so many cases are answered; returns a sample a second."""
    plenty = cases + 4 * in_flight  # so that it never runs dry
    with backlog(room, plenty, in_flight, LATENCY_S, direct) as work, work.workers(1) as running:
        running.wait_ready()
        return list(_sampled(running, work.stub, cases))


def _sampled(running: Supervisor, stub: Stub, cases: int) -> Iterator[Sample]:
    """Yields samples until the stub has answered all, or nothing comes any more."""
    (worker,) = running.children
    assert worker.process is not None
    pid, began, moved, answered = worker.process.pid, time.monotonic(), time.monotonic(), 0
    while answered < cases:
        time.sleep(1.0)
        count, now = stub.count(), time.monotonic()
        if count.answered > answered:
            answered, moved = count.answered, now
        if worker.restarts or now - moved > 60:
            raise RuntimeError(f"the worker has died, or stands still after {answered} cases: " + worker.tail(20))
        if count.waiting or answered:
            pss_mb = psutil.Process(pid).memory_full_info().pss / 2**20
            yield Sample(answered, count.waiting, count.peak, round(pss_mb, 1), round(now - began, 1))


def main() -> None:
    """Parses the command line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves through what stops broker and worker
    parser = argparse.ArgumentParser(description=__doc__, prog="make bench-memory")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--in-flight", type=int, default=IN_FLIGHT)
    parser.add_argument("--through-litellm", action="store_true", help="direct = false")
    parser.add_argument("--json", type=Path, help="keep the figures under the way's name in this file, beside others")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        samples = watch(Path(room), options.cases, not options.through_litellm, options.in_flight)
    warm, first, last = fifths(samples)
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "cases": samples[-1].cases,
        "in_flight": options.in_flight,
        "latency_s": LATENCY_S,
        "peak_mb": max(one.pss_mb for one in samples),
        "first_fifth_mb": first,
        "last_fifth_mb": last,
        "growth": round(last / first - 1, 4),
        "calls_waiting": statistics.median(one.waiting for one in warm),
        "calls_waiting_at_most": samples[-1].peak,
        "cases_per_s": round((warm[-1].cases - warm[0].cases) / (warm[-1].at_s - warm[0].at_s), 1),
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }
    step = max(len(samples) // 20, 1)
    way = "through LiteLLM" if options.through_litellm else "direct"
    title = f"A worker with {options.in_flight} cases in flight, calls {way}"
    print_table(list(Sample._fields), samples[::step], as_json=False, title=title)
    sys.stdout.write("".join(f"{name}: {value}\n" for name, value in found.items()))
    if options.json:
        kept = json.loads(options.json.read_text()) if options.json.exists() else {}
        kept[way] = found | {"samples": samples[:: max(len(samples) // 100, 1)]}
        options.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
