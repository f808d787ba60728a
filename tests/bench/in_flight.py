"""Row `in_flight`: one worker of all stages with 512 cases in flight, against a stub of 1 s latency.

The ideal is 512 cases a second: a verifier judges, so a case is one model call, and every hop besides. The rate is what
the stub answered in the middle of a backlog, over WAVES times 512 answers by the moments at which these counts were
reached, since answers come in waves. The worker has one core, stub and broker the other.
"""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from bench.backlog import backlog
from bench.row import Result, cpu_s

IN_FLIGHT, LATENCY_S = 512, 1.0
WAVES, SETTLE_S = 12, 4.0


def measure(room: Path) -> Result:
    """Returns the rate of cases as a share of N / latency."""
    ideal = IN_FLIGHT / LATENCY_S
    with backlog(room, int(ideal * (WAVES + SETTLE_S + 5)), IN_FLIGHT, LATENCY_S) as cases, cases.workers(1) as running:
        running.wait_ready()
        (worker,) = running.children
        assert worker.process is not None
        process = psutil.Process(worker.process.pid)
        cases.reached(IN_FLIGHT)
        time.sleep(SETTLE_S)
        first, began, queued = cases.reached(cases.stub.count().answered + 1), cpu_s(process), _queued_s(process.pid)
        last = cases.reached(first.answered + WAVES * IN_FLIGHT)
        worked_s, queued_s = cpu_s(process) - began, _queued_s(process.pid) - queued
        if worker.restarts:
            raise RuntimeError("the worker has died: " + worker.tail(20))
    done, took_s = last.answered - first.answered, last.at_s - first.at_s
    rate, cpu_ms = done / took_s, 1000 * worked_s / done
    return Result(
        figure=rate / ideal,
        ours=f"{rate:.0f} cases/s, {cpu_ms:.2f} ms of CPU a case, {100 * worked_s / took_s:.0f} % of a core; "
        f"others had it for {100 * queued_s / took_s:.0f} % of the time",
        theirs=f"{ideal:.0f} cases/s",
        detail={
            "cases_per_s": round(rate, 2),
            "worker_cpu_ms_a_case": round(cpu_ms, 3),
            "worker_share_of_its_core": round(worked_s / took_s, 3),
            "ready_but_others_ran": round(queued_s / took_s, 3),
            "calls_in_flight_at_most": last.peak,
            "seconds": round(took_s, 2),
        },
    )


def _queued_s(pid: int) -> float:
    """Returns the seconds that a process's main thread was ready to run while others did."""
    times = Path(f"/proc/{pid}/schedstat")
    return int(times.read_text().split()[1]) / 1e9 if times.exists() else 0.0
