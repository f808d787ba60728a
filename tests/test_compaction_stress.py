"""A sink that writes, compactions that publish and remove, readers that count: real processes, all at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import duckdb
from ended_cases import ended, land

from schemas.gold import read_chain, read_outcomes
from schemas.manifests import latest_manifest
from streams.gold import VIEWS, open_gold

ROOT = Path(__file__).parents[1]
FILES, ROWS = 40, 3
_WRITE = f"""
import sys, time
from pathlib import Path
from ended_cases import ended, land
for file in range(1, {FILES}):
    land(Path(sys.argv[1]), [ended(file * {ROWS} + row) for row in range({ROWS})])
    time.sleep(0.05)
"""
GRACE_S = 3.0  # a reader's query is shorter, and much is removed while others read
_COMPACT = f"""
import sys, time
from pathlib import Path
from schemas.settings.gold import Gold
from streams.compaction.compact import compact
while True:
    compact(Path(sys.argv[1]), Gold(grace_s={GRACE_S}, merge_files=2))
"""
_FORGET = """
import itertools, sys
from pathlib import Path
from schemas.forgotten import Forgotten
from streams.forgetting.file import write_forgotten, writing
for number in itertools.count():
    with writing(Path(sys.argv[1])):
        write_forgotten(Path(sys.argv[1]), Forgotten({}, {(0, offset) for offset in range([1, 900][number % 2])}))
    if number == 1:
        print("begun", flush=True)
"""


def test_no_query_fails_or_miscounts_while_the_sink_writes_and_compaction_publishes_and_removes(
    tmp_path: Path,
) -> None:
    land(tmp_path, [ended(row) for row in range(ROWS)])
    open_gold(tmp_path).close()
    (first,) = read_chain(tmp_path, 0)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}

    def start(code: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)

    def gone() -> bool:
        return not first.path.exists() and latest_manifest(tmp_path).number > 3

    seen = [0]
    with start(_WRITE) as sink, start(_COMPACT) as compaction, duckdb.connect() as client:
        try:
            client.execute(f"SET VARIABLE gold = '{tmp_path}'")
            client.execute(VIEWS.read_text())
            while sink.poll() is None or seen[-1] < FILES * ROWS or not gone():
                sql = "SELECT count(*), count(DISTINCT case_id), max(kafka_offset) + 1 FROM landed"
                began = time.monotonic()
                try:
                    rows, cases, end = client.execute(sql).fetchone() or (0, 0, 0)
                except duckdb.IOException:
                    if time.monotonic() - began < GRACE_S:
                        raise
                    continue  # slower than the grace period: told so, and not given a wrong number
                assert rows == cases == end  # none twice, none left out
                assert len(read_outcomes(tmp_path, ["case_id"])) >= rows
                seen.append(rows)
                assert compaction.poll() is None
        finally:
            sink.kill()
            compaction.kill()
    assert sink.returncode == 0
    assert seen == sorted(seen)


def test_a_query_never_fails_while_what_is_forgotten_is_replaced(tmp_path: Path) -> None:
    land(tmp_path, [ended(row) for row in range(1000)])
    open_gold(tmp_path).close()
    command = [sys.executable, "-c", _FORGET, str(tmp_path)]
    with duckdb.connect() as client, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as forgetting:
        try:
            assert forgetting.stdout is not None
            forgetting.stdout.readline()
            client.execute(f"SET VARIABLE gold = '{tmp_path}'")
            client.execute(VIEWS.read_text())
            seen = {client.execute("SELECT count(*) FROM landed").fetchone() for _ in range(12)}
        finally:
            forgetting.kill()
    assert seen <= {(999,), (100,)}
