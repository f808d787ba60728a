"""One fault of `make chaos`, small: the suite itself works, and what it counts is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

CHAOS = Path(__file__).parent / "chaos" / "run.py"


def test_a_sink_killed_again_and_again_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    command = [sys.executable, str(CHAOS), "--only", "kill-sink", "--cases", "60", "--seed", "1"]
    done = subprocess.run([*command, "--json", str(record)], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = json.loads(record.read_text())["faults"]
    assert line["kills"] > 0
    assert (line["cases"], line["lost"], line["duplicates"]) == (60, 0, 0)
