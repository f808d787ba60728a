"""What a case costs the pipeline, beside the same hops as stock Faust agents: CPU, with models that answer at once.

Ours are the real processes: a case fails once, is refined once, is given a strategy and landed. Each model call is
replaced inside the worker, so that only our own work is left. The other sides are in bench.hops_stock: Faust agents
with confirmed produce and ordered acknowledgement, which is what ours guarantee, Faust agents as its documentation
writes them, and bare aiokafka loops. All use the same broker, partitions, records and number of hops, in turns. The
broker's CPU is nobody's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from factory_settings import config_options, role_tables
from kafka import TopicPartition
from pipeline import openai_record, produce

from agents.models import Completion, Models
from bench.hops_stock import SIDES, TOPICS, topic_of
from bench.row import Result, cores, cpu_s, ratios
from bench.task import TASK, TEXT
from schemas.case import Message, Violation
from schemas.process import announce_ready, end_with_parent, look_less_for_garbage, use_uvloop
from schemas.settings import Settings, load_settings
from schemas.topics import OUTCOMES
from streams.broker import start_broker, stop_broker
from streams.clients import make_consumer
from streams.supervisor import Supervisor
from streams.topics import create_topics, ensure_source_topic

CONFIG = """
[sink]
seconds_per_file = 2.0
[worker]
cases_in_flight = 128
"""
CONFIG += TASK.format(verifier="bench.hops:verify")
CONFIG += role_tables("bench", ("student", "refiner", "strategist"), model="hosted_vllm/none")
PARTITIONS = 4
CASES, WARM, ROUNDS = 1200, 200, 3
AT_MOST_MS = 2.0  # CPU a case in all processes of ours
WAIT_S = 120


def verify(messages: Sequence[Message], answer: str) -> list[Violation]:
    """Fails the student's answer and passes the refiner's."""
    return [] if answer.endswith("please") else [Violation("please", "major", answer[:20], "not kind", "say please")]


class InstantModels(Models):
    """Models that answer at once: what is left is the pipeline's own work."""

    async def warm(self, task: str, roles: Collection[str] = ()) -> None:
        """Nothing to load."""

    async def complete(self, role: Any, task: str, messages: Any, **options: Any) -> Completion:
        """Returns what the role would say."""
        answers = {
            "student": "wait",
            "refiner": "wait please",
            "strategist": '{"mistake": "curt", "guardrail": "be kind"}',
        }
        return Completion(
            text=answers[role],
            thinking="",
            model="instant",
            adapter="",
            prompt_tokens=250,
            completion_tokens=20,
            logprob=-1.0,
            latency_s=0.0,
            cost_usd=0.0,
        )


def run_instant_worker(settings: Settings) -> None:
    """The worker process of the benchmark."""
    from streams.worker import run_worker

    end_with_parent()

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        make: Callable[..., Models] = lambda settings, serving: InstantModels(settings, serving=serving)  # noqa: E731
        await run_worker(settings, settings.worker.stages, stop, ready, make)

    def ready() -> None:
        look_less_for_garbage()
        announce_ready(settings)

    use_uvloop()
    asyncio.run(run())


class Side:
    """One way through all hops: its processes, the topic records go to, and the one its cases end on."""

    def __init__(self, settings: Settings, name: str, source: str, ends_on: str, group: str) -> None:
        self.name, self._settings, self._source = name, settings, source
        self.processes: dict[str, psutil.Process] = {}
        self._ended = _Ended(settings, ends_on, group)
        self._sent = 0

    def close(self) -> None:
        """Closes its clients."""
        self._ended.close()

    def round(self, cases: int) -> dict[str, float]:
        """Sends cases through; returns CPU milliseconds a case by process, up to the last row written."""
        records = [openai_record(f"{n} {TEXT}", f"case-{self._sent + n}") for n in range(cases)]
        self._sent += cases
        before = {name: cpu_s(process) for name, process in self.processes.items()}
        produce(self._settings, self._source, records)
        self._ended.wait(self._sent)
        return {name: 1000 * (cpu_s(one) - before[name]) / cases for name, one in self.processes.items()}


class _Ended:
    """How many cases have gone all the way: what the last group of a side has committed of its topic."""

    def __init__(self, settings: Settings, topic: str, group: str) -> None:
        self._consumer = make_consumer(settings, group)
        self._topic = topic

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + WAIT_S
        while (reached := self._count()) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{reached} of {count} cases came to the end of {self._topic} within {WAIT_S} s")
            time.sleep(0.2)

    def close(self) -> None:
        self._consumer.close(autocommit=False)

    def _count(self) -> int:
        committed = (self._consumer.committed(TopicPartition(self._topic, n)) for n in range(PARTITIONS))
        return sum(one or 0 for one in committed)


@contextlib.contextmanager
def sides(room: Path) -> Iterator[dict[str, Side]]:
    """Starts a broker and all sides, each on the measured core, and stops them all."""
    config = room / "bench.toml"
    config.write_text(CONFIG)
    overrides = [f"state_dir={room}/state", f"kafka.partitions={PARTITIONS}"]
    settings = load_settings(config, overrides, environ={})
    measured, others = cores()
    os.sched_setaffinity(0, others)
    start_broker(settings)
    found: dict[str, Side] = {}
    try:
        create_topics(settings)
        ensure_source_topic(settings, "bench", PARTITIONS)
        for side in SIDES:
            for name in TOPICS:
                ensure_source_topic(settings, topic_of(side, name), PARTITIONS)
        options = config_options(config, overrides)
        commands = {name: [name, *options] for name in ("intake", "retries", "sink")}
        programs = {"worker": ["-m", "bench.hops", str(config), *overrides]}
        programs |= {side: ["-m", "bench.hops_stock", side, str(config), *overrides] for side in SIDES}
        os.sched_setaffinity(0, measured)  # what is started from here on
        with Supervisor(settings, commands, programs) as supervisor:
            os.sched_setaffinity(0, others)
            supervisor.wait_ready()
            found["ours"] = Side(settings, "ours", "bench", settings.topic(OUTCOMES), "sink")
            for side in SIDES:
                found[side] = Side(settings, side, topic_of(side, TOPICS[0]), topic_of(side, TOPICS[-1]), side)
            for child in supervisor.children:
                assert child.process is not None
                process = psutil.Process(child.process.pid)
                found[child.name if child.name in SIDES else "ours"].processes[child.name] = process
            yield found
    finally:
        for one in found.values():
            one.close()
        stop_broker(settings)


def measure(room: Path) -> Result:
    """Sends cases through all sides in turns, once through those that are only told beside; a first round warms."""
    with sides(room) as found:
        for one in found.values():
            one.round(WARM)
        rounds = []
        for number in range(ROUNDS):
            order = ("faust", "ours") if number % 2 else ("ours", "faust")
            rounds.append({name: found[name].round(CASES) for name in order})
        plain, bare = (sum(found[name].round(CASES).values()) for name in ("faust-plain", "aiokafka"))
    ordered = ratios([(sum(one["ours"].values()), sum(one["faust"].values())) for one in rounds])
    by_process = {name: round(statistics.median(one["ours"][name] for one in rounds), 3) for name in rounds[0]["ours"]}
    return Result(
        figure=ordered.median,
        low=ordered.low,
        high=ordered.high,
        ours=f"{ordered.ours:.2f} ms a case ({', '.join(f'{name} {ms:.2f}' for name, ms in by_process.items())})",
        theirs=f"{ordered.theirs:.2f} ms with confirmed produce and ordered acknowledgement; plain Faust, which loses "
        f"cases, {plain:.2f} ms; bare aiokafka {bare:.2f} ms",
        also=((f"{ordered.ours:.2f} ms of CPU a case, at most {AT_MOST_MS:g}", ordered.ours <= AT_MOST_MS),),
        detail={"cases_a_round": CASES, "ms_by_process": by_process, "rounds": rounds},
    )


if __name__ == "__main__":
    run_instant_worker(load_settings(Path(sys.argv[1]), sys.argv[2:], environ={}))
