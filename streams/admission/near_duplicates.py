"""Dropping prompts that almost repeat an earlier one: best-effort, in bounded memory, the same after a restart.

Every decision is appended to a file of the source partition in the state folder before the case is produced, with the
case_id and, where the prompt is remembered, its signature. So a record that is read again after kill -9 finds its own
decision and takes it again; it is no duplicate of itself. Rebuilding from gs.prompts instead was decided against: it
costs a signature each at every start, and lacks what was refused and what a crash has kept from being produced.

Best-effort: a process compares with what it has read itself, and with the files of its partitions in its own state
folder; where partitions move to another machine, comparing begins anew there. The files hold hashes, no text.

Two prompts are compared where they are of one task and have the same number of messages: the next turn of a
conversation repeats all of it, and is none the less another prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from schemas.case import Case
from schemas.settings import Settings
from streams.admission.minhash import BINS, Remembered, Signature, signature

log = logging.getLogger(__name__)

_ENTRY = np.dtype([("case", "<u8"), ("group", "<u4"), ("decided", "<u4"), ("signature", "<u2", (BINS,))])
_Entries = NDArray[np.void]
_REMEMBERED, _DUPLICATE, _PASSED = 0, 1, 2  # passed: no duplicate, but refused for another reason


class NearDuplicates:
    """What one process remembers of prompts, and what it decided."""

    def __init__(self, settings: Settings) -> None:
        self._thresholds = {
            name: task.near_duplicates.threshold
            for name, task in settings.tasks.items()
            if task.near_duplicates.threshold
        }
        self._capacity = settings.intake.remembered_prompts
        self._folder = settings.state / "intake" / "prompts"
        rows = 8 if min(self._thresholds.values(), default=1.0) >= 0.7 else 4
        self._remembered = Remembered(self._capacity, rows) if self._thresholds else None
        self._decided: dict[int, int] = {}  # digest of case_id -> decision; the oldest go first
        self._unwritten: dict[Path, list[tuple[int, int, int, Signature]]] = {}
        self._loaded: set[Path] = set()

    def __bool__(self) -> bool:
        return bool(self._thresholds)

    def load(self, partitions: Collection[tuple[str, int]]) -> None:
        """Reads what was decided for partitions that are not read yet, and shortens their files."""
        if self._remembered is None:
            return
        share = max(1000, self._capacity // max(len(partitions), 1))
        for path in [self._path(topic, number) for topic, number in partitions]:
            if path in self._loaded:
                continue
            self._loaded.add(path)
            entries = _read(path)
            if len(entries) > 2 * share:
                entries = entries[-share:]
                _replace(path, entries)
            for case, decided in zip(entries["case"].tolist(), entries["decided"].tolist(), strict=True):
                self._note(case, decided)
            kept = entries[entries["decided"] == _REMEMBERED]
            for at in range(0, len(kept), 10_000):
                part = kept[at : at + 10_000]
                self._remembered.add_many(part["signature"], part["group"])

    def is_duplicate(self, case: Case) -> bool:
        """Whether a case of a task that wants it almost repeats an earlier one. The same case is answered the same."""
        threshold = self._thresholds.get(case.task)
        if threshold is None or self._remembered is None:
            return False
        key = _digest(case)
        known = self._decided.get(key)
        if known is not None:
            return known == _DUPLICATE
        text = compared_text(case)
        if not text:
            return False
        new, group = signature(text), _group(case)
        duplicate = self._remembered.most_similar(new, group) >= threshold
        self._remember(case, key, group, new, _DUPLICATE if duplicate else _PASSED)
        return duplicate

    def admitted(self, case: Case) -> None:
        """Remembers the prompt of a case that nothing else refused either."""
        entries = self._unwritten.get(self._path(case.source.topic, case.source.partition))
        if self._remembered is None or not entries or entries[-1][0] != _digest(case):
            return
        key, group, _, new = entries[-1]
        entries[-1] = (key, group, _REMEMBERED, new)
        self._decided[key] = _REMEMBERED
        self._remembered.add(new, group)

    def write(self) -> None:
        """Appends what was decided to the files, to be called before anything of it is produced.

        A full disk costs the memory of what follows a restart, not a record.
        """
        for path, entries in self._unwritten.items():
            rows = np.zeros(len(entries), _ENTRY)
            for row, (case, group, decided, new) in zip(rows, entries, strict=True):
                row["case"], row["group"], row["decided"], row["signature"] = case, group, decided, new
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab", buffering=0) as file:
                    file.write(rows.tobytes())
            except OSError as error:
                log.warning("near duplicates: %s not written (%s); a restart will not know these prompts", path, error)
        self._unwritten.clear()

    def _remember(self, case: Case, key: int, group: int, new: Signature, decided: int) -> None:
        path = self._path(case.source.topic, case.source.partition)
        self._unwritten.setdefault(path, []).append((key, group, decided, new))
        self._note(key, decided)

    def _note(self, key: int, decided: int) -> None:
        self._decided[key] = decided
        if len(self._decided) > 2 * self._capacity:
            self._decided.pop(next(iter(self._decided)))

    def _path(self, topic: str, partition: int) -> Path:
        return self._folder / f"{topic}-{partition}.bin"


def compared_text(case: Case) -> str:
    """Returns what of a case is compared: all messages but the system's, which every prompt of a product shares."""
    return "\n".join(text for m in case.messages if m.role not in ("system", "developer") and (text := m.text()))


def _group(case: Case) -> int:
    return crc32(f"{case.task}\0{len(case.messages)}".encode())


def _digest(case: Case) -> int:
    return int.from_bytes(blake2b(case.case_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _read(path: Path) -> _Entries:
    """Returns a file's entries; one that a crash has cut short is removed, or all that follow would be shifted."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return np.zeros(0, _ENTRY)
    whole = len(data) // _ENTRY.itemsize * _ENTRY.itemsize
    entries = np.frombuffer(data[:whole], _ENTRY)
    if whole != len(data):
        _replace(path, entries)
    return entries


def _replace(path: Path, entries: _Entries) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(entries.tobytes())
    temporary.replace(path)
