"""The gold set with a million rows: statistics, queries, a listing of many files, compaction, and the sink's writing.

`make bench-gold` runs it; JSON=FILE keeps the figures. The sink's write path (temp file, checksum, seal, fsync, link)
is measured against a bare pyarrow writer of the same schema and codec, interleaved: the median of paired ratios; and
with and without a compaction of 300,000 rows beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from ended_cases import ended

from bench.gold_beside import beside
from bench.row import Ratios, paired
from schemas.case import Message, Strategy
from schemas.outcomes import OUTCOME_SCHEMA, outcome_row, outcome_table
from schemas.settings.gold import Gold
from schemas.tables import print_table
from streams.compaction.compact import compact
from streams.gold import open_gold, query
from streams.landing import LandingChain
from streams.stats import stats

FILTERED = "SELECT count(*) FROM gold WHERE task = 'triage' AND corrected AND dt = '2026-09-21'"
_COMPACT = """
import resource, sys, time
from pathlib import Path
from schemas.settings.gold import Gold
from streams.compaction.compact import compact
began = time.perf_counter()
compact(Path(sys.argv[1]), Gold())
print(time.perf_counter() - began, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def batch(rows: int, seed: int = 7) -> pa.Table:
    """Returns rows of about 1.2 KB of text each, of all kinds and three tasks."""
    dice = random.Random(seed)
    words = ["".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=dice.randint(2, 10))) for _ in range(3000)]

    def text(count: int) -> str:
        return " ".join(dice.choices(words, k=count))

    def row(number: int) -> dict[str, Any]:
        kind = dice.choices(["gold", "unresolved", "dropped", "dead", "holdout"], [60, 10, 20, 3, 7])[0]
        if kind == "dropped":
            bare = ended(number, "dropped", reason="unsampled", messages=(), attempts=(), strategy=None)
            return outcome_row(bare, 0, number)
        tries = [msgspec.structs.replace(one, text=text(27)) for one in ended(number).attempts]
        case = ended(
            number,
            kind,  # type: ignore[arg-type]
            messages=(Message("system", text(12)), Message("user", text(60))),
            attempts=tuple(tries),
            strategy=Strategy(text(6), text(8)) if dice.random() < 0.5 else None,
            task=dice.choice(["support", "triage", "notes"]),
        )
        return outcome_row(case, 0, number)

    return outcome_table([row(number) for number in range(rows)])


def placed(table: pa.Table, partition: int, start: int, first: int) -> pa.Table:
    """Returns the rows under ids and offsets of their own."""
    count = len(table)
    columns = {
        "case_id": pa.array([f"chatcmpl-{(first + n) * 2654435761 % 2**64:016x}" for n in range(count)]),
        "kafka_partition": pa.array(np.full(count, partition, np.int32)),
        "kafka_offset": pa.array(np.arange(start, start + count)),
        "source_offset": pa.array(np.arange(first, first + count)),
    }
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), OUTCOME_SCHEMA.field(name), values)
    return table


def fill(gold: Path, rows: int, files: int, templates: list[pa.Table]) -> None:
    """Writes rows as landing files of four partitions."""
    chains = {partition: LandingChain(gold, partition) for partition in range(4)}
    for file in range(files):
        chain, count = chains[file % 4], rows // files
        start = chain.tip or 0
        chain.write(
            start, start + count, placed(templates[file % len(templates)][:count], file % 4, start, file * count)
        )


def write_ratio(folder: Path, table: pa.Table, rounds: int) -> Ratios:
    """Returns the sink's rows a second over a bare pyarrow writer's, in pairs of changing order."""
    chain = LandingChain(folder / "gold", 0)

    def bare() -> None:
        pq.write_table(table, folder / "bare.parquet", compression="zstd", compression_level=1)

    def ours() -> None:
        start = chain.tip or 0
        chain.write(start, start + len(table), table)

    return paired(lambda: len(table) / _seconds(ours), lambda: len(table) / _seconds(bare), rounds)


def measure(rows: int, rounds: int) -> dict[str, Any]:
    """Runs everything and returns the figures."""
    templates = [batch(5000, seed) for seed in range(4)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write = write_ratio(folder, templates[0], rounds)
        found: dict[str, Any] = {
            "rows": rows,
            "write": {
                "rows_per_file": len(templates[0]),
                "sink_rows_per_s": round(write.ours),
                "bare_rows_per_s": round(write.theirs),
                "ratio": round(write.median, 3),
            },
        }
        crowded = folder / "beside" / "gold"
        fill(crowded, min(rows, 300_000), 600, templates)
        found["beside_compaction"] = beside(crowded, templates[0][:500])
        gold = folder / "state" / "gold"
        fill(gold, rows, max(rows // 500, 4), templates)
        found["landing_files"] = len(list(gold.glob("landing/p=0*/*.parquet")))
        found["listing_s"] = round(
            _best(lambda: query(gold, "SELECT outcome, count(*) FROM outcomes GROUP BY 1"), 2), 3
        )
        done = subprocess.run(
            [sys.executable, "-c", _COMPACT, str(gold)], capture_output=True, text=True, check=True
        ).stdout.split()
        wall, cpu, peak = map(float, done)
        found["compaction"] = {"s": round(wall, 2), "cpu_s": round(cpu, 2), "peak_mb": round(peak)}
        compact(gold, Gold(grace_s=0.0))
        found["files"] = len(list((gold / "data").rglob("*.parquet")))
        found["stats_s"] = round(_best(lambda: stats(gold), 5), 3)
        with open_gold(gold) as connection:
            found["filtered_s"] = round(_best(lambda: connection.execute(FILTERED).fetchall(), 5), 3)
        found["filtered_with_opening_s"] = round(_best(lambda: query(gold, FILTERED), 5), 3)
        state = ["--set", f"state_dir={folder / 'state'}", "--json"]
        commands = {"stats": ["gold", "stats"], "filtered": ["gold", "sql", FILTERED]}
        for name, words in commands.items():
            command = [sys.executable, "-m", "goldstream", *words, *state]
            found[f"{name}_command_s"] = round(
                _best(lambda command=command: subprocess.run(command, capture_output=True, check=True), 3), 3
            )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    found["machine"] = (
        f"{platform.machine()}, {psutil.cpu_count()} cores, load {load}, Python {platform.python_version()}"
    )
    found["date"] = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return found


def _lines(found: dict[str, Any], inside: str = "") -> Iterator[list[str]]:
    for name, value in found.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{inside}{name} ")
        else:
            yield [inside + name, str(value)]


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _best(run: Callable[[], object], times: int) -> float:
    return min(_seconds(run) for _ in range(times))


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.rows, options.rounds)
    print_table(["what", "measured"], list(_lines(found)), as_json=False)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
