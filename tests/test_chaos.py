"""One fault of the fault suite, so that the suite itself cannot rot; `make chaos` runs them all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CHAOS = Path(__file__).parent / "chaos" / "run.py"


def test_a_sink_killed_between_link_and_commit_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, str(CHAOS), "--only", "sink-after-link", "--cases", "60", "--seed", "1"]
    done = subprocess.run([*command, "--json", str(record)], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = json.loads(record.read_text())["faults"]
    assert (line["kills"], line["cases"], line["lost"], line["duplicates"]) == (1, 60, 0, 0)
