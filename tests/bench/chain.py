"""The row `chain`: draft, judge, refine to Parquet on one core, ours against distilabel and curator.

Every side makes the same five calls an item with the same prompts to the same stub (bench.chain_work): draft, verdict,
rewrite, verdict on the rewrite, what was learned. That is what a case with a failed draft costs here, so the others are
given as many. Every client process has one core; the stub, our broker and who produces have the other.

What is timed, in wall time, and what is not:
- ours: from before the first record is produced until the sink has linked the file with the last row (exactly once,
  with fsync). The factory is up, as in production; it has done WARM items. Retries and the broker run too.
- distilabel: from the first call that reaches the stub (each run starts a process a step) until its Parquet is written.
- curator: from the call on the whole dataset until its Parquet is written, in a process that has done a few items.
What their start-up takes, and ours, is told beside.

What was set for the others, by their documentation, to be at their best:
- distilabel 1.5.3: OpenAILLM calls asynchronously as many at once as `input_batch_size`; of 50, 100, 300 and 600 the
  largest costs least (49, 35, 26, 24 ms of CPU an item), for it writes its state after each batch. No cache between
  runs, no raw inputs and outputs beside the row, log level WARNING: at INFO it prints a line a call.
- curator 0.1.31: backend "openai", which calls over aiohttp, with rate limits that nothing reaches (left alone it keeps
  to 200 calls a minute), 256 calls at once (64 and 600 cost the same), no cache, viewer, telemetry or live table,
  and the tokenizer that its estimates need from LiteLLM's package, as there is no network. No response_format, which
  would have it read each answer twice. It works through a step's whole dataset before the next; so it is meant.
- both: no progress bars, no structured output.
Ours is set as a user would: `[worker] cases_in_flight`, `[sink] seconds_per_file`, hosted_vllm/ models.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import pyarrow.parquet as pq

from bench.chain_factory import Factory, on
from bench.chain_work import prompts, steps, write
from bench.row import Result, cores, cpu_s, ratios
from bench.stub import Stub

LATENCY_S = 0.1
ROUNDS, WARM = 3, 200
ITEMS = {"ours": 4000, "distilabel": 800, "curator": 1200}  # some 20 s each: filling and emptying take 1 to 2 of them
THEIRS = {"distilabel": "1.5.3", "curator": "0.1.31"}
ENVIRONMENTS = Path(__file__).resolve().parents[2] / ".goldstream"
QUIET = {
    "DISTILABEL_LOG_LEVEL": "WARNING",
    "CURATOR_DISABLE_CACHE": "1",
    "CURATOR_DISABLE_RICH_DISPLAY": "1",
    "CURATOR_VIEWER": "0",
    "TELEMETRY_ENABLED": "false",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
LIMIT_S = 120.0  # of one run of another side


class Run(NamedTuple):
    """What one run of a side did; `start_s` is what came before its first item."""

    items_per_s: float
    start_s: float
    cpu_ms: float  # an item: of every process of the client, without start-up
    stub_share: float  # of the stub's core


def measure(room: Path) -> Result:
    """Runs the sides in turns, in changing order; the figure is ours / the better one of the others."""
    mine, others = cores()
    missing = [name for name in THEIRS if not _python(name).exists()]
    if missing:
        raise FileNotFoundError(f"no environment for {' and '.join(missing)}: `make bench ONLY=chain` sets it up")
    os.sched_setaffinity(0, others)
    runs: dict[str, list[Run]] = {name: [] for name in ITEMS}
    stub = Stub(LATENCY_S, others, "bench.chain_work:answer")
    with stub, Factory(room / "ours", stub.api_base, mine, others) as factory:
        factory.run("warm", prompts("warm", WARM))
        for number in range(ROUNDS):
            for name in list(ITEMS)[:: -1 if number % 2 else 1]:
                texts = prompts(f"{name}{number}", ITEMS[name])
                into = room / f"{name}{number}"
                run = _ours(factory, stub, texts) if name == "ours" else _other(name, into, stub, texts, mine)
                print(f"  {name}: {run.items_per_s:.1f} items/s, {run.cpu_ms:.2f} ms of CPU an item", flush=True)
                runs[name].append(run)
        factory.check(WARM + ROUNDS * ITEMS["ours"])
    return _result(runs)


def _ours(factory: Factory, stub: Stub, texts: Sequence[str]) -> Run:
    before = stub.count()
    ran = factory.run(texts[0].partition(".")[0].replace(" ", "-"), texts)
    after = stub.count()
    _expect(after.answered - before.answered == len(texts) * len(steps()), "ours made another number of calls")
    used_s = sum(seconds for name, seconds in ran.cpu_s.items() if name != "broker")
    share = (after.cpu_s - before.cpu_s) / (after.at_s - before.at_s)
    return Run(len(texts) / ran.seconds, factory.started_s, 1000 * used_s / len(texts), share)


def _other(name: str, room: Path, stub: Stub, texts: Sequence[str], mine: set[int]) -> Run:
    """Runs another side in a process group of its own, which ends with it."""
    room.mkdir()
    out = room / "out.parquet"
    write(room / "work.json", stub.api_base, texts)
    script = Path(__file__).with_name(f"chain_{name}.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    before, used, began = stub.count(), resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with on(mine), (room / "errors").open("w") as errors:
        words = [str(script), str(room / "work.json"), str(out)]
        process = subprocess.Popen(
            [str(_python(name)), "-P", *words],  # -P: our modules are not theirs
            env=environment | QUIET | {"HOME": str(room), "HF_HOME": str(room / "hf")},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        first = _Watch(stub, before.answered, process.pid)
        told, _ = process.communicate(timeout=LIMIT_S)
    finally:
        first.end()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    _expect(process.returncode == 0, f"{name} failed: {(room / 'errors').read_text()[-2000:]}")
    times: Mapping[str, float] = json.loads(told.strip().splitlines()[-1])
    after, spent = stub.count(), resource.getrusage(resource.RUSAGE_CHILDREN)
    _check(name, out, len(texts))
    begun = times.get("warmed", first.at_s)
    used_s = times.get("cpu_s", spent.ru_utime + spent.ru_stime - used.ru_utime - used.ru_stime - first.cpu_s)
    share = (after.cpu_s - before.cpu_s) / (after.at_s - before.at_s)
    return Run(len(texts) / (times["written"] - begun), begun - began, 1000 * used_s / len(texts), share)


class _Watch:
    """Learns when the first call of a run reached the stub, and what CPU its processes had used by then."""

    def __init__(self, stub: Stub, answered: int, pid: int) -> None:
        self.at_s = self.cpu_s = 0.0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(stub, answered), daemon=True)
        self._thread.start()

    def _look(self, stub: Stub, answered: int) -> None:
        while not self._ended.wait(0.05):
            seen = stub.count()
            if seen.waiting or seen.answered > answered:
                self.at_s = seen.at_s
                parent = psutil.Process(self._pid)
                self.cpu_s = sum(map(cpu_s, (parent, *parent.children(recursive=True))))
                return

    def end(self) -> None:
        """Stops looking."""
        self._ended.set()
        self._thread.join(20)


def _check(name: str, out: Path, items: int) -> None:
    """Raises where another side's file lacks a row, a column or an answer."""
    table = pq.read_table(out)
    columns = ["prompt", *(step.column for step in steps())]
    empty = [one for one in columns if one not in table.column_names or not all(table.column(one).to_pylist())]
    _expect(table.num_rows == items and not empty, f"{name}: {table.num_rows} of {items} rows, empty: {empty}")


def _expect(met: bool, otherwise: str) -> None:
    if not met:
        raise AssertionError(otherwise)


def _python(name: str) -> Path:
    return ENVIRONMENTS / f"bench-{name}" / "bin" / "python"


def _result(runs: Mapping[str, Sequence[Run]]) -> Result:
    median = {name: Run(*map(statistics.median, zip(*some, strict=True))) for name, some in runs.items()}
    better = max(THEIRS, key=lambda name: median[name].items_per_s)
    found = ratios(
        [(own.items_per_s, other.items_per_s) for own, other in zip(runs["ours"], runs[better], strict=True)]
    )

    def told(name: str) -> str:
        one = median[name]
        with_start_s = one.start_s + 1000 / one.items_per_s
        return (
            f"{name} {one.items_per_s:.1f} items/s, {one.cpu_ms:.1f} ms of CPU an item "
            f"(1,000 items with start-up {with_start_s:.0f} s)"
        )

    return Result(
        figure=found.median,
        low=found.low,
        high=found.high,
        ours=told("ours").removeprefix("ours "),
        theirs="; ".join(map(told, sorted(THEIRS, key=lambda name: name != better))),
        versions=THEIRS,
        detail={
            "calls_an_item": len(steps()),
            "items": ITEMS,
            "rounds": {name: [run._asdict() for run in some] for name, some in runs.items()},
        },
    )
