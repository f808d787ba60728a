"""Row `workers`: 1, 2 and 4 workers against a stub of 1 s latency, which alone limits each to IN_FLIGHT cases a second.

All run on one core and one broker: a second joins the first, two more join these. A rate is what the stub answered over
ROUNDS times the calls in flight, by the moments at which these counts were reached, since answers come in waves.
`make bench-scale` is longer, with a broker for each.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from bench.backlog import Backlog, backlog
from bench.row import Result

LATENCY_S, IN_FLIGHT, ROUNDS = 1.0, 24, 6
WORKERS = (1, 2, 4)
SETTLE_S = 2.0


def measure(room: Path) -> Result:
    """Returns the lesser of two and four workers' rates over as many times one worker's."""
    rates: dict[int, float] = {}
    with backlog(room, IN_FLIGHT * 250, IN_FLIGHT, LATENCY_S) as cases, ExitStack() as running:
        there = 0
        for count in WORKERS:
            workers = running.enter_context(cases.workers(count - there, there))
            workers.wait_ready()
            there = count
            rates[count] = _rate(cases, count * IN_FLIGHT)
            if any(child.restarts for child in workers.children):
                raise RuntimeError("a worker has died: " + workers.children[0].tail(20))
    shares = {count: rates[count] / count / rates[1] for count in WORKERS[1:]}
    return Result(
        figure=min(shares.values()),
        ours="; ".join(f"{count}: {rates[count]:.1f} cases/s ({share:.3f})" for count, share in shares.items()),
        theirs=f"1: {rates[1]:.1f} cases/s",
        detail={"rates": {str(count): round(rate, 2) for count, rate in rates.items()}, "in_flight_each": IN_FLIGHT},
    )


def _rate(cases: Backlog, in_flight: int) -> float:
    """Returns the answers a second once all calls are in flight."""
    deadline = time.monotonic() + 60
    while cases.stub.count().waiting < 0.95 * in_flight:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{cases.stub.count().waiting} calls wait at once, not {in_flight}, after 60 s")
        time.sleep(0.05)
    time.sleep(SETTLE_S)
    first = cases.reached(cases.stub.count().answered + 1)
    last = cases.reached(first.answered + ROUNDS * in_flight)
    return (last.answered - first.answered) / (last.at_s - first.at_s)
