"""`make bench`: the table of ratios. Each row is measured in a process of its own; a failed row is told, not hidden."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import psutil

from bench.row import Result, Row
from bench.table import ROWS
from schemas.tables import print_table

OURS = ("kafka-python", "faust-streaming", "aiokafka", "litellm", "pyarrow", "duckdb", "msgspec")


def measure_row(row: Row) -> tuple[Result | None, str, float]:
    """Runs a row in a process of its own; returns what it found or why it found nothing, and seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "result.json"
        command = [sys.executable, "-m", "bench", "--row", row.name, "--into", str(into)]
        process = subprocess.Popen(
            command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            _, told = process.communicate(timeout=row.at_most_s)
        except subprocess.TimeoutExpired:
            told = f"not done within {row.at_most_s:.0f} s"
        finally:
            _end(process)
        seconds = time.monotonic() - began
        if into.exists():
            return msgspec.json.decode(into.read_bytes(), type=Result), "", seconds
        return None, (told.strip().splitlines() or ["ended without a result"])[-1], seconds


def _end(process: subprocess.Popen[str]) -> None:
    """Ends what a row left running, by its own ids."""
    left = [] if process.poll() is not None else psutil.Process(process.pid).children(recursive=True)
    for one in left:
        one.terminate()
    if process.poll() is None:
        process.terminate()
    psutil.wait_procs(left, timeout=10)
    for one in left:
        if one.is_running():
            one.kill()
    process.wait(20)


def machine() -> dict[str, Any]:
    """Says what this was measured on."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "cores": psutil.cpu_count(),
        "processor": platform.machine(),
        "load": [round(one, 2) for one in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in OURS},
    }


def main() -> None:
    """Parses the command line; ends with 1 where a row could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make bench")
    parser.add_argument("--only", default="", help="rows, with commas between them")
    parser.add_argument("--json", type=Path, help="where to keep the figures")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        with tempfile.TemporaryDirectory() as room:
            result = importlib.import_module(f"bench.{options.row}").measure(Path(room))
        options.into.write_bytes(msgspec.json.encode(result))
        return
    chosen = [name for name in options.only.split(",") if name] or [row.name for row in ROWS]
    if unknown := set(chosen) - {row.name for row in ROWS}:
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(row.name for row in ROWS)}")
    kept: dict[str, Any] = {"machine": machine(), "rows": {}}
    lines = []
    for row in (one for one in ROWS if one.name in chosen):
        sys.stderr.write(f"{row.name}: {row.what} ...\n")
        result, failure, seconds = measure_row(row)
        lines.append(_line(row, result, failure))
        kept["rows"][row.name] = {
            "target": row.target,
            "better": row.better,
            "unit": row.unit,
            "seconds": round(seconds, 1),
            "met": result.met(row) if result else None,
            "failure": failure,
            **(msgspec.to_builtins(result) if result else {}),
        }
    _print(kept["machine"], lines)
    if options.json:
        options.json.write_text(json.dumps(kept, indent=2) + "\n")
    sys.exit(any(one["met"] is None for one in kept["rows"].values()))


def _line(row: Row, result: Result | None, failure: str) -> Sequence[str]:
    target = f"{'<=' if row.better == 'less' else '>='} {row.target:g} {row.unit}"
    if result is None:
        return [row.name, row.what, row.against, "", "", target, f"not measured: {failure}"]
    spread = f" ({result.low:.3g} to {result.high:.3g})" if result.low is not None and result.high is not None else ""
    verdict = "met" if result.met(row) else "NOT met"
    also = "".join(f"; {told}{'' if met else ' (not met)'}" for told, met in result.also)
    figure = f"{result.figure:.3g} {row.unit}{spread}"
    beside = f"{result.ours} | {result.theirs}" if result.theirs else result.ours
    return [row.name, row.what, row.against, figure, beside + also, target, verdict]


def _print(about: dict[str, Any], lines: Sequence[Sequence[str]]) -> None:
    columns = ["row", "what", "against", "figure (quartiles)", "ours | theirs", "target", ""]
    print_table(columns, lines, as_json=False, title=f"Measured side by side, {about['date']} UTC")
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    load = ", ".join(map(str, about["load"]))
    sys.stdout.write(
        f"{about['cores']} cores ({about['processor']}), load {load}, Python {about['python']}; {versions}\n"
    )


if __name__ == "__main__":
    main()
