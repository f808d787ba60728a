"""How workers scale: 1, 2 and 4 processes against a model of 1 s latency, and 512 cases in flight in one of them.

`make bench-scale` runs it; rows `workers` and `in_flight` of `make bench` are shorter. Each worker can do `in flight
/ 1 s` cases a second and no more (bench.backlog). A rate is what the stub answered within a window in the middle, when
every worker is full. Prints ratios; --json FILE keeps the figures.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.backlog import backlog
from bench.row import cpu_s
from bench.stub import Stub
from schemas.tables import print_table
from streams.supervisor import Supervisor, _memory_bytes

LATENCY_S = 1.0
IN_FLIGHT = 24  # per worker, of the scaling rows: four of them are well within a core
WORKERS = (1, 2, 4)
MANY = 512
SETTLE_S, WINDOW_S = 6.0, 12.0


def measure(workers: int, in_flight: int, seconds: float) -> dict[str, Any]:
    """Runs so many workers on a backlog that outlasts the window; returns the rate and its share of the ideal."""
    ideal = workers * in_flight / LATENCY_S
    with tempfile.TemporaryDirectory() as room:
        plenty = int(ideal * (SETTLE_S + seconds + 6))
        with backlog(Path(room), plenty, in_flight, LATENCY_S) as work, work.workers(workers) as running:
            running.wait_ready()
            found = _watched(running, work.stub, ideal, seconds) | {"workers": workers, "in_flight": in_flight}
    sys.stderr.write(json.dumps(found) + "\n")
    return found


def _watched(running: Supervisor, stub: Stub, ideal: float, seconds: float) -> dict[str, Any]:
    """Waits until every worker is full, then looks at the stub's count, CPU and memory over the window."""
    deadline = time.monotonic() + 60
    while stub.count().peak < 0.9 * ideal * LATENCY_S and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(SETTLE_S / 2)
    pids = [child.process.pid for child in running.children if child.process]
    workers = [psutil.Process(pid) for pid in pids]
    cpu, first = sum(map(cpu_s, workers)), stub.count()
    memory = []
    while (passed := time.monotonic() - first.at_s) < seconds:
        memory.append(max(_memory_bytes(pid) for pid in pids) / 2**20)
        time.sleep(min(1.0, seconds - passed))
    last, cpu = stub.count(), sum(map(cpu_s, workers)) - cpu
    passed, done = last.at_s - first.at_s, last.answered - first.answered
    if any(child.restarts for child in running.children):
        raise RuntimeError("a worker has died: " + running.children[0].tail(20))
    return {
        "cases_per_s": round(done / passed, 2),
        "of_ideal": round(done / passed / ideal, 4),
        "calls_in_flight_at_most": last.peak,
        "worker_cpu_ms_per_case": round(1000 * cpu / max(done, 1), 3),
        "workers_cpu_share_of_their_core": round(cpu / passed, 3),
        "worker_pss_mb": {
            "first": round(memory[0], 1),
            "median": round(statistics.median(memory), 1),
            "last": round(memory[-1], 1),
        },
        "cases_in_window": done,
    }


def _medians(rounds: Sequence[dict[str, Any]], of_linear: Any) -> list[Any]:
    """Returns what a row of the table shows of several rounds."""

    def median(name: str) -> float:
        return round(statistics.median(found[name] for found in rounds), 3)

    pss = statistics.median(found["worker_pss_mb"]["last"] for found in rounds)
    return [median("cases_per_s"), median("of_ideal"), of_linear, median("worker_cpu_ms_per_case"), pss]


def main() -> None:
    """Parses the command line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves through what stops broker and workers
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=2, help="of 1, 2 and 4 workers, interleaved")
    parser.add_argument("--long-s", type=float, default=60.0, help="how long the worker with 512 in flight is watched")
    parser.add_argument("--in-flight", type=int, default=IN_FLIGHT, help="calls of each worker, of 1, 2 and 4")
    options = parser.parse_args()
    each = options.in_flight
    rounds = [{n: measure(n, each, WINDOW_S) for n in WORKERS} for _ in range(options.rounds)]
    many = measure(1, MANY, options.long_s)
    scaling = {n: statistics.median(r[n]["cases_per_s"] / r[1]["cases_per_s"] for r in rounds) for n in WORKERS}
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "latency_s": LATENCY_S,
        "of_linear": {str(n): round(scaling[n] / n, 3) for n in WORKERS},
        "rounds": [{str(n): found for n, found in one.items()} for one in rounds],
        "many_in_flight": many,
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
    }
    rows = [[n, each, *_medians([r[n] for r in rounds], round(scaling[n] / n, 3))] for n in WORKERS]
    rows.append([1, MANY, *_medians([many], "")])
    columns = ["workers", "in flight each", "cases/s", "of the ideal", "of linear", "worker CPU ms a case", "PSS MB"]
    print_table(columns, rows, as_json=False, title=f"Against a model of {LATENCY_S:.0f} s latency")
    pss = many["worker_pss_mb"]
    sys.stdout.write(f"memory with {MANY} in flight: {pss['first']} MB at first, {pss['last']} MB at last\n")
    sys.stdout.write(f"{result['machine']}, load {result['load_average'][0]}\n")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
