"""What a stage has taken and not acknowledged yet, in offset order, and what it need not do again; for streams.stage.

What is acknowledged and not committed when the group is formed anew is read again, and so is what was done behind an
event that is not. Their successors are on the broker all the same, whatever the generation: they are acknowledged at
once, without a call, where the partition stays in this process.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from schemas.faults import crash_point

REMEMBERED = 4_096  # acknowledged events of a stage: some seconds of its fastest, and a commit is due each half second


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
    """Events of one partition in offset order, all read under one assignment generation, and what is done of it.

    What is done is known by offset and timestamp: a topic that was deleted and made anew has other records at the
    offsets of the old.
    """

    __slots__ = ("entries", "generation", "known", "older", "recent")

    def __init__(self) -> None:
        self.generation: int | None = None
        self.entries: deque[Entry] = deque()
        self.recent: dict[int, float | None] = {}  # offset -> timestamp of what was acknowledged last,
        self.older: dict[int, float | None] = {}  # and of as many before; it may be committed or not
        self.known: dict[int, float | None] = {}  # the same of what was done before this generation, and is read again

    def restart(self, generation: int | None, offset: int) -> None:
        """Begins afresh under another generation, from `offset`: what is pending is read again, what is done known."""
        done = {entry.offset: entry.event.message.timestamp for entry in self.entries if entry.done}
        known = self.known | self.older | self.recent | done
        self.generation = generation
        self.known = {at: timestamp for at, timestamp in known.items() if at >= offset}
        self.entries, self.recent, self.older = deque(), {}, {}

    def knows(self, offset: int, timestamp: float | None) -> bool:
        """Returns whether the successor of this record is on the broker. It is asked once."""
        found = self.known.pop(offset, None)
        return found is not None and found == timestamp


class Pending:
    """The queues of a stage's partitions. Nothing beyond an unfinished event of a partition is acknowledged."""

    def __init__(self, role: str, generation: Callable[[], int | None]) -> None:
        self.queues: dict[Any, Queue] = {}
        self.count = 0  # entries in all queues
        self._generation = generation
        self._limit = REMEMBERED  # by partition
        self._before_ack = f"{role}.before_ack"

    def assigned(self, partitions: Collection[Any]) -> None:
        """Drops the partitions that others own now, and what was read of the rest under an older assignment."""
        self._limit = REMEMBERED // max(1, len(partitions))
        for tp, queue in list(self.queues.items()):
            if tp not in partitions:
                self.count -= len(queue.entries)
                del self.queues[tp]
            elif queue.generation != self._generation():
                self.restarted(tp, None)

    def restarted(self, tp: Any, generation: int | None, offset: int = 0) -> Queue:
        """Returns a partition's queue for a new generation, in which it is read from `offset`, its commit."""
        queue = self.queues.get(tp)
        if queue is None:
            queue = self.queues[tp] = Queue()
        self.count -= len(queue.entries)
        queue.restart(generation, offset)
        return queue

    def done(self, entry: Entry) -> None:
        """Notes that an entry's successor is on the broker, and acknowledges what is done at the head of its queue."""
        entry.done = True
        queue, generation = self.queues.get(entry.tp), self._generation()
        if queue is None:
            return  # another's partition
        message = entry.event.message
        if queue.generation != generation or message.generation_id != generation:
            queue.known[entry.offset] = message.timestamp  # read again under the new assignment, from the commit
            return
        entries, recent = queue.entries, queue.recent
        while entries and entries[0].done:
            crash_point(self._before_ack)
            first = entries.popleft()
            event = first.event
            event.ack()
            recent[first.offset] = event.message.timestamp
            self.count -= 1
        if len(recent) > self._limit:
            queue.older, queue.recent = recent, {}
