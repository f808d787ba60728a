"""Names, found by Presidio's real engine with a spaCy model; `make test-full` sets both up in a place of their own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.full
ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".goldstream" / "presidio" / "bin" / "python"
SAID = {
    "My name is John Smith and I live in Paris. Write to john@x.example or Maria Garcia.": (
        "My name is <NAME_1> and I live in Paris. Write to <EMAIL_1> or <NAME_2>."
    ),
    "Jane Roe met Dr. Peter Müller; Jane Roe left. 🙂 Then Anna Schmidt spoke.": (
        "<NAME_1> met Dr. <NAME_2>; <NAME_1> left. 🙂 Then <NAME_3> spoke."
    ),
    "JANE ROE called 202-555-0143.": "<NAME_1> called <PHONE_1>.",
    "Patient takes Metformin 500 mg.": "Patient takes Metformin 500 mg.",
    "<EMAIL_1> said hi": "<EMAIL_1> said hi",
}


def test_presidio_finds_names_where_they_stand_and_is_safe_in_threads() -> None:
    assert PYTHON.exists(), "run this through `make test-full`, which sets Presidio up"
    done = subprocess.run(
        [str(PYTHON), str(ROOT / "tests" / "redact_names.py")],
        input=json.dumps(list(SAID)),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["alone"] == list(SAID.values())
    assert found["same_in_threads"]
