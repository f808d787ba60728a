"""`make chaos`: every fault of tests/chaos/faults.py while thousands of cases flow, then drain, audit and count.

Prints the table of faults, counts and results; exits 1 if anything is lost, double, stuck or a fault did not happen.
A whole run without --json keeps its record in tests/chaos/records/, and so does --keep; a seed repeats the schedule.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# What the tests share, and the code this suite lies beside.
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
sys.path.insert(2, str(Path(__file__).resolve().parents[2]))

import psutil
from broker import Broker
from disks import Skipped
from factory import Aborted
from faults import FAULTS, LANES, TURNS, Fault

from streams.audit import audit

RECORDS = Path(__file__).parent / "records"
TOTALS = ("runs", "kills", "cases", "lost", "duplicates", "repeated_calls")


def run_fault(fault: Fault, lane: Any, cases: int, seed: int) -> dict[str, Any]:
    """Runs one fault on a lane and returns its line of the record."""
    began = time.monotonic()
    line: dict[str, Any] = {"name": fault.name, "runs": 1}
    problems = []
    lane.begin(fault.name, random.Random(f"{seed} {fault.name}"))
    try:
        said = fault.act(lane, max(int(cases * fault.share), 20))
        if said:
            problems.append(said)
        if not lane.drain():
            problems.append(f"stuck, lag { ({group: lag for group, lag in lane.lag.items() if lag}) }")
        line |= lane.count() | lane.notes
        books = audit(lane.settings)  # our own count beside the independent one; they must agree
        line["audit"] = {"missing": books.missing_records, "double": books.double_rows, "balanced": books.balanced}
        if not books.balanced:
            problems.append(f"goldstream audit: {line['audit']}")
    except Skipped as reason:
        return line | {"result": f"skipped: {reason}"}
    except Aborted:
        raise
    except Exception as error:
        problems.append(f"{type(error).__name__}: {error}")
    problems += [f"{line[name]} {name}" for name in ("lost", "duplicates", "beyond_uncommitted") if line.get(name)]
    if "unexpected" in line:
        problems.append(f"unexpected outcomes: {line['unexpected']}")
    line |= {"result": "; ".join(problems) or "ok", "seconds": round(time.monotonic() - began, 1)}
    if problems:
        line["events"] = lane.events[-20:]
        line["logs"] = lane.tails().splitlines()
    return line


def run(faults: list[Fault], cases: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Runs faults and returns their lines in the order of the table; those of one lane share its processes."""
    broker = Broker(folder / "broker")
    lines: list[dict[str, Any]] = []

    def run_lanes(names: tuple[str, ...]) -> None:
        for name in names:
            mine = [fault for fault in faults if fault.lane == name]
            try:
                with LANES[name](folder, broker) if mine else contextlib.nullcontext() as lane:
                    for fault in mine:
                        lines.append(run_fault(fault, lane, cases, seed))
                        show(lines[-1])
            except Skipped as reason:
                lines.extend({"name": f.name, "runs": 0, "result": f"skipped: {reason}"} for f in mine)

    try:
        for turn in TURNS:
            with ThreadPoolExecutor(len(turn)) as pool:
                running = [pool.submit(run_lanes, names) for names in turn]
                try:
                    for lanes in as_completed(running):
                        lanes.result()
                except BaseException:
                    broker.given_up.set()
                    raise
    finally:
        broker.stop()
    order = [fault.name for fault in faults]
    return sorted(lines, key=lambda line: order.index(line["name"]))


def sum_of_records() -> dict[str, int]:
    """Returns what all kept records come to together."""
    totals = [json.loads(path.read_text())["totals"] for path in sorted(RECORDS.glob("*.json"))]
    return {"records": len(totals)} | {name: sum(total[name] for total in totals) for name in TOTALS}


COLUMNS = ("kills", "cases", "lost", "duplicates", "repeated_calls", "seconds")


def show(line: dict[str, Any]) -> None:
    """Prints one line of the table."""
    numbers = "".join(f"{line.get(name, '-')!s:>{max(len(name), 6) + 2}}" for name in COLUMNS)
    sys.stdout.write(f"{line['name']:<28}{numbers}  {line['result']}\n")
    if "logs" in line:
        sys.stdout.write("".join(f"    | {text}\n" for text in [*line["events"], *line["logs"]]))
    sys.stdout.flush()


def main() -> None:
    """Parses the command line, runs, and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="cases per fault; slow ones have a share of them")
    parser.add_argument("--seed", type=int, default=0, help="default: drawn from the clock, and printed")
    parser.add_argument("--only", default="", help="comma-separated names, or beginnings of them")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", action="store_true", help="keep the record in tests/chaos/records too")
    parser.add_argument("--folder", type=Path, help="keep all files here, for looking at them")
    options = parser.parse_args()
    seed = options.seed or int(time.time()) % 1_000_000
    wanted = [name for name in options.only.split(",") if name]
    faults = [fault for fault in FAULTS if not wanted or fault.name.startswith(tuple(wanted))]
    if unknown := [name for name in wanted if not any(fault.name.startswith(name) for fault in FAULTS)]:
        known = ", ".join(fault.name for fault in FAULTS)
        parser.error(f"no fault begins with {', '.join(unknown)}; known: {known}")
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves through the lanes, which stop their processes
    sys.stdout.write(f"{len(faults)} faults, {options.cases} cases each, seed {seed}\n")
    sys.stdout.write(f"{'fault':<28}{''.join(f'{name:>{max(len(name), 6) + 2}}' for name in COLUMNS)}  result\n")
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lines = run(faults, options.cases, seed, folder)
    failed = [line["name"] for line in lines if line["result"] != "ok" and not line["result"].startswith("skipped")]
    record = {
        "faults": lines,
        "totals": {name: sum(line.get(name, 0) for line in lines) for name in TOTALS} | {"failed": failed},
        "seed": seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
        "seconds": round(time.monotonic() - began, 1),
    }
    totals = record["totals"]
    sys.stdout.write(f"{len(lines)} faults in {record['seconds']} s: {json.dumps(totals)}\n")
    text = json.dumps(record, indent=1) + "\n"
    if options.json:
        options.json.write_text(text)
    if options.keep or (not options.json and not wanted):
        RECORDS.mkdir(exist_ok=True)
        kept = RECORDS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-seed{seed}.json"
        # What was said on this machine stays on it: the record has the counts and the verdict.
        lines = [{name: value for name, value in line.items() if name not in ("logs", "events")} for line in lines]
        kept.write_text(json.dumps(record | {"faults": lines}, indent=1) + "\n")
        sys.stdout.write(f"kept in {kept.relative_to(Path.cwd()) if kept.is_relative_to(Path.cwd()) else kept}\n")
        sys.stdout.write(f"all records there: {json.dumps(sum_of_records())}\n")
    sys.exit(1 if failed or totals["lost"] or totals["duplicates"] else 0)


if __name__ == "__main__":
    main()
