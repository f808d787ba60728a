"""How workers scale: 1, 2 and 4 processes against a model of 1 s latency, and 512 calls in flight in one of them.

`make bench-scale` runs it. The model is a stub that answers after a second, whatever comes, so each worker can do
`in flight / 1 s` cases a second and no more. Stub and broker have one core, the workers the other. A rate is what the
stub answered within a window in the middle, when every worker is full. A verifier judges, so a case is one model call,
and every hop besides. Prints ratios; --json FILE keeps the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import runpy
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from pipeline import openai_record, produce

from schemas.case import Message, Violation
from schemas.settings import Settings, load_settings
from schemas.tables import print_table
from streams.broker import start_broker, stop_broker
from streams.lag import LagReader
from streams.supervisor import Supervisor, _memory_bytes
from streams.topics import create_topics, ensure_source_topic

LATENCY_S = 1.0
IN_FLIGHT = 24  # per worker, of the scaling rows: four of them are well within a core
WORKERS = (1, 2, 4)
MANY = 512
SETTLE_S, WINDOW_S = 6.0, 12.0
WORKERS_CORE, OTHERS_CORE = 0, 1
TEXT = "The patient reports a cough and takes 500 mg of metformin daily. " * 16  # about 1 KB
CONFIG = """
[kafka]
partitions = 8
[worker]
cases_in_flight = {in_flight}
[sink]
seconds_per_file = 1.0
[intake]
start_at = "earliest"
holdout_share = 0.0
[tasks.scale]
topics = ["scale"]
[tasks.scale.rubric]
verifier = "bench.scale:verify"
rules = [{{ id = "please", text = "It says please." }}]
[tasks.scale.student]
model = "hosted_vllm/slow"
api_base = "http://127.0.0.1:{port}/v1"
[tasks.scale.refiner]
model = "hosted_vllm/never-asked"
api_base = "http://127.0.0.1:{port}/v1"
[tasks.scale.strategist]
model = "hosted_vllm/never-asked"
api_base = "http://127.0.0.1:{port}/v1"
"""


def verify(messages: Sequence[Message], answer: str) -> list[Violation]:
    """Passes what the stub says."""
    return []


def serve_slowly(port: Any, answered: Any, peak: Any) -> None:
    """The stub, a process of its own: answers each call after LATENCY_S, and counts."""
    from aiohttp import web

    os.sched_setaffinity(0, {OTHERS_CORE})
    waiting = 0
    choice = {"index": 0, "message": {"role": "assistant", "content": "wait please"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 250, "completion_tokens": 5, "total_tokens": 255}
    answer = {
        "id": "a",
        "object": "chat.completion",
        "created": 1,
        "model": "slow",
        "choices": [choice],
        "usage": usage,
    }
    body = json.dumps(answer).encode()

    async def complete(request: web.Request) -> web.Response:
        nonlocal waiting
        waiting += 1
        peak.value = max(peak.value, waiting)
        began = time.monotonic()
        await request.read()
        await asyncio.sleep(max(LATENCY_S - (time.monotonic() - began), 0))
        waiting -= 1
        answered.value += 1
        return web.Response(body=body, content_type="application/json")

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port.value = runner.addresses[0][1]
        await asyncio.Event().wait()

    asyncio.run(run())


class SlowStub:
    """The stub's process, and what it has counted."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.port, self.answered, self.peak = (context.Value("l", 0) for _ in range(3))
        arguments = (self.port, self.answered, self.peak)
        self._process = context.Process(target=serve_slowly, args=arguments, daemon=True)

    def __enter__(self) -> SlowStub:
        self._process.start()
        while not self.port.value:
            time.sleep(0.05)
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.join(10)


def measure(workers: int, in_flight: int, seconds: float, stages: str = "") -> dict[str, Any]:
    """Runs so many workers on a backlog that outlasts the window; returns the rate and its share of the ideal."""
    ideal = workers * in_flight / LATENCY_S
    with SlowStub() as stub, tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "scale.toml"
        config.write_text(CONFIG.format(in_flight=in_flight, port=stub.port.value))
        settings = load_settings(config, [f"state_dir={folder}/state"], environ={})
        broker = start_broker(settings)
        try:
            _pin(broker.pid, OTHERS_CORE)
            create_topics(settings)
            ensure_source_topic(settings, "scale", 4)
            options = ["--config", str(config), "--set", f"state_dir={folder}/state"]
            cases = int(ideal * (SETTLE_S + seconds + 6))
            with Supervisor(settings, {"intake": ["intake", *options]}) as intake:
                intake.wait_ready()
                produce(settings, "scale", [openai_record(f"{n} {TEXT}", f"case-{n}") for n in range(cases)])
                _await_admitted(settings)
            words = ["worker", *options, *(["--stages", stages] if stages else [])]
            programs = {f"worker-{n}": [__file__, "--pinned", str(WORKERS_CORE), *words] for n in range(workers)}
            with Supervisor(settings, {}, programs) as running:
                running.wait_ready()
                found = _watched(running, stub, ideal, seconds) | {"workers": workers, "in_flight": in_flight}
                sys.stderr.write(json.dumps(found) + "\n")
                return found
        finally:
            stop_broker(settings)


def _watched(running: Supervisor, stub: SlowStub, ideal: float, seconds: float) -> dict[str, Any]:
    """Waits until every worker is full, then looks at the stub's count, CPU and memory over the window."""
    deadline = time.monotonic() + 60
    while stub.peak.value < 0.9 * ideal * LATENCY_S and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(SETTLE_S / 2)
    pids = [child.process.pid for child in running.children if child.process]
    cpu, answered, began = sum(map(_cpu_s, pids)), stub.answered.value, time.monotonic()
    memory = []
    while (passed := time.monotonic() - began) < seconds:
        memory.append(max(_memory_bytes(pid) for pid in pids) / 2**20)
        time.sleep(min(1.0, seconds - passed))
    passed, done = time.monotonic() - began, stub.answered.value - answered
    if any(child.restarts for child in running.children):
        raise RuntimeError("a worker has died: " + running.children[0].tail(20))
    return {
        "cases_per_s": round(done / passed, 2),
        "of_ideal": round(done / passed / ideal, 4),
        "calls_in_flight_at_most": stub.peak.value,
        "worker_cpu_ms_per_case": round(1000 * (sum(map(_cpu_s, pids)) - cpu) / max(done, 1), 3),
        "workers_cpu_share_of_their_core": round((sum(map(_cpu_s, pids)) - cpu) / passed, 3),
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


def _await_admitted(settings: Settings) -> None:
    deadline = time.monotonic() + 180
    with LagReader(settings) as lag:
        while any(row.lag or row.committed < 0 for row in lag.read() if row.group == "intake" and row.end):
            if time.monotonic() > deadline:
                raise TimeoutError("intake has not admitted the backlog within 180 s")
            time.sleep(0.3)


def _pin(pid: int, core: int) -> None:
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, {core})


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def main() -> None:
    """Parses the command line."""
    if sys.argv[1:2] == ["--pinned"]:  # one of our processes, on a core of its own
        os.sched_setaffinity(0, {int(sys.argv[2])})
        sys.path.insert(0, str(Path(__file__).parents[1]))  # where the settings' verifier lies
        sys.argv = ["goldstream", *sys.argv[3:]]
        runpy.run_module("goldstream", run_name="__main__")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves through what stops broker and workers
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=2, help="of 1, 2 and 4 workers, interleaved")
    parser.add_argument("--long-s", type=float, default=60.0, help="how long the worker with 512 in flight is watched")
    parser.add_argument("--in-flight", type=int, default=IN_FLIGHT, help="calls of each worker, of 1, 2 and 4")
    options = parser.parse_args()
    each = options.in_flight
    rounds = [{n: measure(n, each, WINDOW_S) for n in WORKERS} for _ in range(options.rounds)]
    many = measure(1, MANY, options.long_s, stages="student")
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
