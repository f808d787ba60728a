"""What a stage has taken and not acknowledged yet: the events of a partition, in offset order."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any


class Entry:
    """An event being worked on."""

    __slots__ = ("done", "event", "offset", "task", "tp")

    def __init__(self, event: Any, tp: Any, offset: int) -> None:
        self.event = event
        self.tp = tp
        self.offset = offset
        self.done = False
        self.task: asyncio.Task[None] | None = None


class Queue:
    """Events of one partition in offset order, all read under one assignment generation."""

    __slots__ = ("entries", "generation")

    def __init__(self, generation: int | None) -> None:
        self.generation = generation
        self.entries: deque[Entry] = deque()
