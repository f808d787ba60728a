"""The row `chain` on our whole factory: a real broker, intake, worker and sink, exactly once into Parquet.

The broker has the core of the stub; every process of ours has the other one. The factory stays up over the rounds.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import psutil
import pyarrow.parquet as pq
from factory_settings import config_options, role_tables
from pipeline import openai_record, outcomes, produce

from bench.chain_work import RULE
from bench.row import cpu_s
from schemas.settings import Settings, load_settings
from streams.broker import start_broker, stop_broker
from streams.supervisor import Supervisor
from streams.topics import create_topics, ensure_source_topic

WAIT_S = 120.0
CONFIG = """
[worker]
cases_in_flight = {in_flight}
[sink]
seconds_per_file = 1.0
[intake]
start_at = "earliest"
holdout_share = 0.0
[tasks.chain]
topics = ["chain"]
rubric.rules = [{{ id = "please", text = "{rule}" }}]
"""
CONFIG += role_tables("chain", model="hosted_vllm/{role}", api_base="{api_base}")
IN_FLIGHT = 256
PROCESSES = ("intake", "worker", "retries", "sink")


class Ran(NamedTuple):
    """One run: from before the first record is produced until the last row can be read in Parquet."""

    seconds: float
    cpu_s: dict[str, float]  # by process


@contextlib.contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """Has what is started meanwhile run on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Factory:
    """The factory, started on entering and ended on leaving, also where starting fails."""

    def __init__(self, room: Path, api_base: str, mine: set[int], others: set[int], worker: Sequence[str] = ()) -> None:
        """`worker` is the program, as words for Python, that stands in for `goldstream worker`."""
        self._worker = worker
        room.mkdir(parents=True, exist_ok=True)
        self._config = room / "chain.toml"
        self._config.write_text(CONFIG.format(in_flight=IN_FLIGHT, rule=RULE, api_base=api_base))
        self._state = f"state_dir={room}/state"
        self._mine, self._others = mine, others
        self._seen: set[Path] = set()
        self._rows, self._last = 0, 0.0
        self.settings: Settings = load_settings(self._config, [self._state], environ={})
        self.started_s = 0.0  # until every process of ours said that it works; the broker's start is not in it

    def __enter__(self) -> Factory:
        self._left = contextlib.ExitStack()
        with self._left:
            with on(self._others):
                self._left.callback(stop_broker, self.settings)
                self._broker = start_broker(self.settings).pid
            create_topics(self.settings)
            ensure_source_topic(self.settings, "chain", 4)
            options = config_options(self._config, [self._state])
            commands = {name: [name, *options] for name in PROCESSES}
            programs = {"worker": [*self._worker, *commands.pop("worker")[1:]]} if self._worker else {}
            began = time.monotonic()
            with on(self._mine):
                self._running = self._left.enter_context(Supervisor(self.settings, commands, programs))
            self._running.wait_ready()
            self.started_s = time.monotonic() - began
            self._left = self._left.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.close()

    def run(self, round: str, texts: Sequence[str]) -> Ran:
        """Has the product log these prompts, and waits for the row of each; raises TimeoutError."""
        records = [openai_record(text, f"{round}-{number}") for number, text in enumerate(texts)]
        wanted, cpu_s = self._landed()[0] + len(texts), self._cpu_s()
        began, wall = time.monotonic(), time.time()
        produce(self.settings, "chain", records)
        while (found := self._landed())[0] < wanted:
            if time.monotonic() - began > WAIT_S:
                tails = "\n".join(f"--- {child.name}\n{child.tail(15)}" for child in self._running.children)
                raise TimeoutError(
                    f"{wanted - found[0]} of {len(texts)} cases have no row after {WAIT_S:.0f} s\n{tails}"
                )
            time.sleep(0.1)
        took = Counter(self._cpu_s())
        took.subtract(cpu_s)
        return Ran(found[1] - wall, dict(took))

    def check(self, cases: int) -> None:
        """Raises where anything but one gold row a case was written, or a process had to be started again."""
        rows = outcomes(self.settings)
        kinds = Counter(row["outcome"] for row in rows)
        if kinds != {"gold": cases} or len({row["case_id"] for row in rows}) != cases:
            raise AssertionError(f"expected {cases} gold rows; found {dict(kinds)}")
        if any(child.restarts for child in self._running.children):
            raise AssertionError("a process died meanwhile")

    def signal(self, name: str, number: int) -> None:
        """Sends a signal to one of our processes."""
        (process,) = (child.process for child in self._running.children if child.name == name)
        assert process is not None
        process.send_signal(number)

    def _landed(self) -> tuple[int, float]:
        """Returns the rows of all files that the sink has linked, and when it linked the last one."""
        for path in (self.settings.gold / "landing").glob("p=*/*.parquet"):
            if path not in self._seen:
                self._seen.add(path)
                self._rows += pq.read_metadata(path).num_rows
                self._last = max(self._last, path.stat().st_ctime)
        return self._rows, self._last

    def _cpu_s(self) -> dict[str, float]:
        pids = {child.name: child.process.pid for child in self._running.children if child.process}
        return {name: cpu_s(psutil.Process(pid)) for name, pid in (pids | {"broker": self._broker}).items()}
