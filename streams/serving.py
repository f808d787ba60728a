"""Which adapter serves each task, as announced on gs.adapters. Read by the student before every call."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from schemas.adapters import AdapterRecord

log = logging.getLogger(__name__)


class Serving:
    """The newest record per task; older ones, by (lease epoch, sequence), are ignored.

    `changed` is told of every task that has a newer one, on the thread that reads them.
    """

    def __init__(self) -> None:
        self._by_task: dict[str, AdapterRecord] = {}
        self.changed: Callable[[str], object] = lambda task: None

    def apply(self, key: bytes, value: bytes) -> None:
        """Takes a record of gs.adapters; a malformed one is logged and changes nothing."""
        try:
            record = msgspec.json.decode(value, type=AdapterRecord)
        except msgspec.DecodeError as error:
            log.error("a record on the adapters topic cannot be read and is ignored: %s", error)
            return
        if record.supersedes(self._by_task.get(record.task)):
            log.info("task %s is now served by %s", record.task, record.version or "the base")
            self._by_task[record.task] = record
            self.changed(record.task)

    def version(self, task: str) -> str:
        """Returns the version serving a task, "" for the base."""
        record = self._by_task.get(task)
        return record.version if record else ""

    def versions(self, task: str, case_id: str) -> tuple[str, ...]:
        """Returns the versions to try for a case, best first; "" is the base. A canary case keeps the one before."""
        record = self._by_task.get(task)
        if record is None:
            return ("",)
        if case_id and record.in_canary(case_id):
            return record.previous, record.version
        return record.version, record.fallback
