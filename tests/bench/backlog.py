"""Workers on a backlog: what the rows `workers` and `memory` share.

A broker of its own holds cases that intake has admitted; a stub plays the student and a verifier judges, so a case is
one model call and every hop besides. Stub and broker have one core, the workers the other.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
from factory_settings import config_options, role_tables
from pipeline import openai_record, produce

from bench.row import cores
from bench.stub import Count, Stub
from bench.task import TASK, TEXT
from schemas.case import Message, Violation
from schemas.settings import Settings, load_settings
from streams.broker import start_broker, stop_broker
from streams.lag import LagReader
from streams.supervisor import Supervisor
from streams.topics import create_topics, ensure_source_topic

CONFIG = """
[kafka]
partitions = 8
[worker]
cases_in_flight = {in_flight}
"""


def verify(messages: Sequence[Message], answer: str) -> list[Violation]:
    """Passes what the stub says."""
    return []


class Backlog(NamedTuple):
    """Admitted cases, and what is needed to work on them."""

    settings: Settings
    stub: Stub
    worker: list[str]  # the arguments of Python that make a worker, for a Supervisor

    def workers(self, count: int, first: int = 0) -> Supervisor:
        """Returns so many workers, numbered from `first`, to be used as a context manager."""
        return Supervisor(self.settings, {}, {f"worker-{first + n}": self.worker for n in range(count)})

    def reached(self, answered: int, timeout_s: float = 120.0) -> Count:
        """Waits until so many calls are answered; returns the count of that moment; raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while (count := self.stub.count()).answered < answered:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{count.answered} calls are answered after {timeout_s:.0f} s, not {answered}")
            time.sleep(0.02)
        return count


@contextmanager
def backlog(room: Path, cases: int, in_flight: int, latency_s: float, direct: bool = True) -> Iterator[Backlog]:
    """Starts stub and broker, and has so many cases admitted; stops all of it on leaving."""
    ours, others = cores()
    with Stub(latency_s, others) as stub:
        config = room / "backlog.toml"
        called = {"model": "hosted_vllm/{role}", "api_base": stub.api_base}
        toml = CONFIG.format(in_flight=in_flight) + TASK.format(verifier="bench.backlog:verify")
        toml += role_tables("bench", ("student",), **called, direct=direct)
        config.write_text(toml + role_tables("bench", ("refiner", "strategist"), **called))
        overrides = [f"state_dir={room}/state"]
        settings = load_settings(config, overrides, environ={})
        broker = start_broker(settings)
        try:
            for thread in psutil.Process(broker.pid).threads():
                os.sched_setaffinity(thread.id, others)
            create_topics(settings)
            ensure_source_topic(settings, "bench", 4)
            options = config_options(config, overrides)
            with Supervisor(settings, {"intake": ["intake", *options]}) as intake:
                intake.wait_ready()
                produce(settings, "bench", (openai_record(f"{n} {TEXT}", f"case-{n}") for n in range(cases)))
                _await_admitted(settings, 60 + cases / 500)
            yield Backlog(settings, stub, [__file__, str(max(ours)), "worker", *options])
        finally:
            stop_broker(settings)


def _await_admitted(settings: Settings, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with LagReader(settings) as lag:
        while any(row.lag or row.committed < 0 for row in lag.read() if row.group == "intake" and row.end):
            if time.monotonic() > deadline:
                raise TimeoutError(f"intake has not admitted the backlog within {timeout_s:.0f} s")
            time.sleep(0.3)


def main() -> None:
    """Runs `goldstream` with the arguments behind the first, on the core that the first names."""
    os.sched_setaffinity(0, {int(sys.argv[1])})
    sys.path.insert(0, str(Path(__file__).parents[1]))  # where the settings' verifier lies
    sys.argv = ["goldstream", *sys.argv[2:]]
    runpy.run_module("goldstream", run_name="__main__")


if __name__ == "__main__":
    main()
