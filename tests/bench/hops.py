"""What a case costs the pipeline: CPU of every process of ours, with models that answer at once.

`make bench` runs it: N cases through all hops on a real broker, each failing once, refined once, given a
strategy and landed. Each model call is replaced inside the worker, so that only our own work is left; the
broker's CPU is shown beside. Prints a table; --json FILE keeps the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from pipeline import openai_record, outcomes, produce

from agents.models import Completion, Models
from schemas.case import Message, Violation
from schemas.process import announce_ready
from schemas.settings import Settings, load_settings
from schemas.tables import print_table
from streams.broker import start_broker, stop_broker
from streams.supervisor import Supervisor
from streams.topics import create_topics, ensure_source_topic

CONFIG = """
[sink]
seconds_per_file = 1.0
[worker]
cases_in_flight = 128
[intake]
start_at = "earliest"
holdout_share = 0.0
[tasks.bench]
topics = ["bench"]
[tasks.bench.rubric]
verifier = "bench.hops:verify"
rules = [{ id = "please", text = "It says please." }]
[tasks.bench.student]
model = "hosted_vllm/none"
[tasks.bench.refiner]
model = "hosted_vllm/none"
[tasks.bench.strategist]
model = "hosted_vllm/none"
"""
WAIT_S = 240
TEXT = "The patient reports a cough and takes 500 mg of metformin daily. " * 16  # about 1 KB


def verify(messages: Sequence[Message], answer: str) -> list[Violation]:
    """Fails the student's answer and passes the refiner's."""
    return [] if answer.endswith("please") else [Violation("please", "major", answer[:20], "not kind", "say please")]


class InstantModels(Models):
    """Models that answer at once: what is left is the pipeline's own work."""

    async def warm(self, task: str, roles: Sequence[str] = ()) -> None:
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
    from schemas.process import end_with_parent
    from streams.worker import run_worker

    end_with_parent()

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        make: Callable[..., Models] = lambda settings, serving: InstantModels(settings, serving=serving)  # noqa: E731
        await run_worker(settings, settings.worker.stages, stop, lambda: announce_ready(settings), make)

    asyncio.run(run())


def measure(cases: int) -> dict[str, Any]:
    """Runs `cases` through every hop and returns CPU milliseconds a case, by process."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "bench.toml"
        config.write_text(CONFIG + "")
        overrides = [f"state_dir={folder}/state"]
        settings = load_settings(config, overrides, environ={})
        broker = start_broker(settings)
        try:
            create_topics(settings)
            ensure_source_topic(settings, "bench", 4)
            options = ["--config", str(config), "--set", overrides[0]]
            commands = {name: [name, *options] for name in ("intake", "retries", "sink")}
            with Supervisor(
                settings, commands, {"worker": ["-m", "bench.hops", "--worker", str(config), overrides[0]]}
            ) as supervisor:
                supervisor.wait_ready()
                pids = {child.name: child.process.pid for child in supervisor.children if child.process}
                pids["broker"] = broker.pid
                produce(settings, "bench", [openai_record(f"{n} {TEXT}", f"warm-{n}") for n in range(200)])
                _await(settings, 200)
                before = {name: _cpu_s(pid) for name, pid in pids.items()}
                began = time.monotonic()
                produce(settings, "bench", [openai_record(f"{n} {TEXT}", f"case-{n}") for n in range(cases)])
                _await(settings, 200 + cases)
                seconds = time.monotonic() - began
                spent = {name: _cpu_s(pid) - before[name] for name, pid in pids.items()}
        finally:
            stop_broker(settings)
    ms = {name: 1000 * s / cases for name, s in spent.items()}
    ours = sum(value for name, value in ms.items() if name != "broker")
    return {
        "cases": cases,
        "seconds": round(seconds, 2),
        "cpu_ms_per_case": {name: round(value, 3) for name, value in ms.items()},
        "ours_cpu_ms_per_case": round(ours, 3),
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
    }


def _await(settings: Settings, count: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while len(outcomes(settings)) < count:
        if time.monotonic() > deadline:
            logs = "".join(f"--- {p.name}\n{p.read_text()[-1500:]}\n" for p in (settings.state / "logs").glob("*.log"))
            raise TimeoutError(f"{len(outcomes(settings))} of {count} cases ended within {WAIT_S} s\n{logs}")
        time.sleep(0.5)


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        run_instant_worker(load_settings(Path(options.worker[0]), [options.worker[1]], environ={}))
        return
    result = measure(options.cases)
    rows = [*result["cpu_ms_per_case"].items(), ("all of ours, without the broker", result["ours_cpu_ms_per_case"])]
    title = f"CPU a case, {result['cases']} cases through every hop in {result['seconds']} s"
    print_table(["process", "CPU ms a case"], rows, as_json=False, title=title)
    sys.stdout.write(f"{result['machine']}\n")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
