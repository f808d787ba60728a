"""Where a worker's time goes in the row `chain`: the bytecodes that its event loop runs for an item, by package.

    python -m bench.chain_profile [--items 300] [--json FILE]        (make bench-profile)

A shared machine gives twice the time for the same code from one minute to the next; bytecodes are the same each time.
First a round as the row runs it, for the CPU that all processes take; then one in which the worker counts its own
(`sys.settrace`, some twenty times slower, of the main thread). The milliseconds of a package are the worker's CPU in
proportion to its bytecodes: what is C (uvloop, the parsers of msgspec and aiohttp, sockets) is counted to who calls it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from bench.chain_factory import Factory
from bench.chain_work import prompts
from bench.row import cores
from bench.stub import Stub
from schemas.tables import print_table

ROOT = Path(__file__).resolve().parents[2]
OURS = ("agents", "schemas", "streams")
FILE = "GOLDSTREAM_BYTECODES"  # where the counting worker writes, in its environment


def count_worker() -> None:
    """The worker, as `goldstream worker`: counts from one SIGUSR2 to the next."""
    import goldstream

    counts: Counter[CodeType] = Counter()
    into = Path(os.environ[FILE])

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        code = frame.f_code

        def count(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "opcode":
                counts[code] += 1
            return count

        return count

    def turn(number: int, frame: FrameType | None) -> None:
        if sys.gettrace() is None:
            sys.settrace(trace)
            return
        sys.settrace(None)
        found: Counter[str] = Counter()
        for code, passed in counts.items():
            found[package_of(code.co_filename)] += passed
        into.with_suffix(".new").write_text(json.dumps(found))
        into.with_suffix(".new").replace(into)

    signal.signal(signal.SIGUSR2, turn)
    sys.argv = ["goldstream", "worker", *sys.argv[2:]]
    goldstream.main()


def package_of(filename: str) -> str:
    """Returns the package that a file belongs to; "stdlib" for Python's own but asyncio."""
    path = Path(filename)
    if path.is_relative_to(ROOT) and "site-packages" not in path.parts:
        return path.relative_to(ROOT).parts[0]
    if "site-packages" in path.parts:
        return path.parts[path.parts.index("site-packages") + 1]
    return "asyncio" if "asyncio" in path.parts else "stdlib"


def measure(room: Path, items: int) -> dict[str, Any]:
    """Returns the milliseconds an item of each process, and the worker's bytecodes an item by package."""
    mine, others = cores()
    os.sched_setaffinity(0, others)
    os.environ[FILE] = str(room / "bytecodes.json")
    counting = ["-m", "bench.chain_profile", "worker"]
    stub = Stub(0.1, others, "bench.chain_work:answer")
    with stub, Factory(room / "ours", stub.api_base, mine, others, worker=counting) as factory:
        factory.run("warm", prompts("warm", 400))
        ran = factory.run("whole", prompts("whole", 10 * items))
        factory.signal("worker", signal.SIGUSR2)
        factory.run("counted", prompts("counted", items))
        factory.signal("worker", signal.SIGUSR2)
        written = Path(os.environ[FILE])
        until = time.monotonic() + 60
        while not written.exists():
            if time.monotonic() > until:
                raise TimeoutError("the worker wrote no counts")
            time.sleep(0.1)
        counts: dict[str, int] = json.loads(written.read_text())
    return {
        "items_per_s": 10 * items / ran.seconds,
        "cpu_ms": {name: 1000 * seconds / (10 * items) for name, seconds in ran.cpu_s.items()},
        "bytecodes": {name: passed / items for name, passed in sorted(counts.items(), key=lambda one: -one[1])},
    }


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(prog="make bench-profile", description="Where a worker's time goes, by package.")
    parser.add_argument("--items", type=int, default=300, help="counted; ten times as many are timed")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        found = measure(Path(room), options.items)
    worker_ms, total = found["cpu_ms"]["worker"], sum(found["bytecodes"].values())
    some = [(name, passed) for name, passed in found["bytecodes"].items() if passed >= 0.005 * total]
    some.append(("others", total - sum(passed for _, passed in some)))
    lines = [
        (name, f"{passed:,.0f}", f"{passed / total:.1%}", f"{worker_ms * passed / total:.2f}") for name, passed in some
    ]
    own = sum(found["bytecodes"].get(name, 0.0) for name in OURS)
    lines.append(("together", f"{total:,.0f}", "", f"{worker_ms:.2f}"))
    lines.append(("of it ours", f"{own:,.0f}", f"{own / total:.1%}", f"{worker_ms * own / total:.2f}"))
    print_table(["package", "bytecodes an item", "share", "ms an item"], lines, as_json=False, title="The worker")
    processes = ", ".join(f"{name} {ms:.2f}" for name, ms in found["cpu_ms"].items())
    sys.stdout.write(f"{found['items_per_s']:.0f} items/s; ms of CPU an item: {processes}\n")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        count_worker()
    else:
        main()
