"""Rollout as a process of its own, for tests that kill it: settings and records are files.

usage: rollout_process.py SETTINGS.json RECORDS.jsonl      (runs until it is killed)
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import msgspec

from schemas.adapters import AdapterRecord
from schemas.settings import Settings
from trainer.rollout import run_rollout


class FileRecords:
    """gs.adapters as a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[AdapterRecord]:
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        return [msgspec.json.decode(line, type=AdapterRecord) for line in lines]

    def append(self, record: AdapterRecord) -> None:
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")


if __name__ == "__main__":
    settings = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Settings)
    run_rollout(settings, stop=threading.Event(), records=FileRecords(Path(sys.argv[2])), poll_s=0.05)
