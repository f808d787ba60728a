"""What is forgotten, as gs.forgotten tells it: read to its end before a process takes its first case, then followed.

Intake, workers, retries and the sink each hold one and ask it of every case.
"""

from __future__ import annotations

import logging
import threading

import msgspec

from schemas.case import Case, Stage
from schemas.forgotten import Forgetting, Forgotten, bare_case
from schemas.settings import Settings
from schemas.topics import FORGOTTEN
from streams.follow import Follower

log = logging.getLogger(__name__)

_decoder = msgspec.json.Decoder(Forgetting)


class Remembered:
    """The newest record of each key, kept up to date by a thread."""

    def __init__(self, settings: Settings) -> None:
        self._split_key = settings.intake.split_key
        self._records: dict[tuple[str, str], Forgetting] = {}
        self._lock = threading.Lock()
        self._now = Forgotten()
        self._changed = False
        self._follower = Follower(settings, FORGOTTEN, self.apply)

    def start(self) -> Remembered:
        """Begins to read; returns itself."""
        self._follower.start()
        return self

    def wait_ready(self) -> None:
        """Waits until all that was there at the start is known. Raises BrokerError where the topic cannot be read."""
        self._follower.wait_ready()

    def stop(self) -> None:
        """Ends the thread."""
        self._follower.stop()

    def now(self) -> Forgotten:
        """Returns what is forgotten now: the same object until that changes."""
        if self._changed:
            with self._lock:
                self._changed = False
                self._now = Forgotten(self._records)
        return self._now

    def covers(self, case: Case) -> bool:
        """Tells whether a case is forgotten."""
        return self.now().covers(case, self._split_key)

    def left_of(self, case: Case, stage: Stage, at_ms: int) -> Case:
        """Returns the case, or what is kept of it where it is forgotten."""
        return bare_case(case, stage, at_ms) if self.covers(case) else case

    def apply(self, key: bytes, value: bytes) -> None:
        """Takes a record of gs.forgotten; one that cannot be read is logged and changes nothing."""
        record = read_record(value)
        if record is None:
            log.error("a record on the topic of what is forgotten cannot be read and is ignored")
            return
        with self._lock:
            if record.supersedes(self._records.get((record.kind, record.key))):
                self._records[record.kind, record.key] = record
                self._changed = True


def read_record(value: bytes | None) -> Forgetting | None:
    """Reads a record of gs.forgotten; None for what is none."""
    try:
        return _decoder.decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
