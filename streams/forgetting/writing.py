"""The sink's part in erasure: what it has written or holds of the forgotten is gone from queries once it hears of them.

`goldstream forget` looks up the rows that are there; this one those that landed before the sink had heard of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from schemas.forgotten import Forgotten
from schemas.settings import Settings
from streams.forgetting.rows import remember


class Erasing:
    """Looks whether something was forgotten, or partitions have come, and brings the gold set's file up to date."""

    def __init__(self, settings: Settings, forgotten: Callable[[], Forgotten], writers: Mapping[Any, Any]) -> None:
        self._gold, self._split_key = settings.gold, settings.intake.split_key
        self._forgotten, self._writers = forgotten, writers
        self._done: tuple[Forgotten, frozenset[Any]] = Forgotten(), frozenset()

    def check(self) -> None:
        """Acts where there is something new; to be called by the thread that writes, between two files."""
        forgotten, partitions = self._forgotten(), frozenset(self._writers)
        # A partition that comes may hold rows of an owner that had not heard yet.
        if forgotten is self._done[0] and partitions <= self._done[1]:
            return
        if forgotten:
            for writer in self._writers.values():
                writer.forget()
            remember(self._gold, list(forgotten.records.values()), self._split_key)
        self._done = forgotten, partitions
