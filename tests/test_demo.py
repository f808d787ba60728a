"""The main job, small: a production log topic in, a promoted adapter out, by the command a user types."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(600)
def test_traffic_becomes_gold_and_gold_becomes_an_adapter_that_serves(tmp_path: Path) -> None:
    words = ["demo", "--waves", "60,30", "--holdout", "100", "--json", "demo.json"]
    run = subprocess.run([sys.executable, "-m", "goldstream", *words], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    report = json.loads((tmp_path / "demo.json").read_text())
    ends = {kind: report[kind] for kind in ("gold", "unresolved", "dead", "holdout", "dropped")}
    assert sum(ends.values()) == report["records_in"] == 190
    assert (ends["holdout"], ends["dead"], report["duplicates"]) == (100, 0, 0)
    assert [wave["cases"] for wave in report["waves"]] == [100, 60, 30]
    # 60 corrected notes lift this student from 7 % to some 70 %: if not, something between them is broken.
    (adapter, *_) = report["adapters"]
    assert adapter["promoted"]
    assert adapter["holdout_after"] > adapter["holdout_before"] + 0.2
    # The second wave was attempted under it, by workers that were never restarted.
    assert report["waves"][2]["adapter"] == adapter["version"]
    assert not list((tmp_path / ".goldstream" / "demo" / "kafka").glob("*.tmp"))
