"""How many cases of a day a task takes: `per_day`, counted by the records' own clock.

The day is that of the record's timestamp in Kafka, not that of the reading. So a backlog gives `per_day` cases of each
of its days, and a record that is read again after a crash, or tomorrow, meets the same count. A record from the future,
by our own clock, counts for today, as one without a timestamp does.

Several processes share a task by partitions, and a partition's counts travel with its position: they are the metadata
of its committed offset, which Kafka stores with that offset or not at all. What a partition may take is granted to it
in small portions, and a grant is committed before the first case is taken from it. What follows:

- What was admitted is admitted again when it is read again from a committed position, whichever process reads it and
  however partitions are interleaved. What was refused is refused again, unless partitions moved meanwhile and something
  was left; its first outcome, dropped, stands all the same.
- One process that reads all partitions takes `per_day` exactly, where there are so many: a partition that has none
  left gets what others of the process hold unused. A partition gives only once it has been read to where it ended when
  it was assigned: before that, another process may have used more of its grant than it had committed.
- With several processes, up to a portion of each partition may stay unused: a quarter of its even share. Two processes
  that ask in the same instant may exceed `per_day` by a portion.

Beyond the quota records are dropped, not held: a held partition would hold back every other task that reads it, and
retention would take the oldest of them unseen. What spends money is held by its budget, later in the flow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import msgspec

from schemas.case import Case
from schemas.settings import Settings

DAY_MS = 86_400_000
_DAYS_KEPT = 3  # of grants, for partitions that are a midnight behind others
_LONGEST = 3500  # bytes of metadata; Kafka allows 4096 unless told otherwise


class Count(msgspec.Struct, array_like=True):
    """What one partition has taken of one task on its present day, and what it was granted of this day and others."""

    day: int = 0  # since the epoch
    taken: int = 0
    granted: dict[int, int] = {}


Counts = dict[str, Count]  # by task


class Partition(NamedTuple):
    """A partition of a product's topic."""

    topic: str
    partition: int


class _Ours(msgspec.Struct):
    """A partition of this process: its counts now, those at its committed position, and from where on it gives."""

    now: Counts
    committed: dict[str, tuple[int, int]]  # task -> (day, taken)
    gives_from: int  # offset
    position: int = 0


class Quotas:
    """The counts of the partitions this process reads.

    `read` returns what is committed for partitions of other processes. `write` commits `at_committed` of some of ours,
    all or none, at the positions they have; it raises where it cannot, and then everything must be assigned anew.
    """

    def __init__(
        self,
        settings: Settings,
        partitions_of: Callable[[str], Collection[int]],
        read: Callable[[Collection[Partition]], Mapping[Partition, Counts]],
        write: Callable[[Collection[Partition]], None],
    ) -> None:
        self._limits = {name: task.per_day for name, task in settings.tasks.items() if task.per_day}
        self._topics = {name: settings.tasks[name].topics for name in self._limits}
        self._partitions_of = partitions_of
        self._read = read
        self._write = write
        self._ours: dict[Partition, _Ours] = {}
        self._spent: set[tuple[str, int]] = set()  # (task, day) of which nothing was left when it was last asked

    def __bool__(self) -> bool:
        return bool(self._limits)

    def keep_only(self, assigned: Collection[Partition]) -> None:
        """Forgets partitions that are another process's now."""
        self._ours = {partition: ours for partition, ours in self._ours.items() if partition in assigned}
        self._spent.clear()

    def assign(self, partition: Partition, counts: Counts, ends_at: int) -> None:
        """Begins to count a partition from what is committed for it; `ends_at` is where it ends now."""
        committed = {task: (count.day, count.taken) for task, count in counts.items()}
        self._ours[partition] = _Ours(counts, committed, ends_at)
        self._spent.clear()

    def passed(self, partition: Partition, position: int) -> None:
        """Notes that a position was committed, with `at_position`."""
        if ours := self._ours.get(partition):
            ours.position = position
            ours.committed = {task: (count.day, count.taken) for task, count in ours.now.items()}

    def at_position(self, partition: Partition) -> Counts:
        """Returns the counts to commit with a new position: everything taken so far is behind it."""
        ours = self._ours.get(partition)
        return ours.now if ours else {}

    def at_committed(self, partition: Partition) -> Counts:
        """Returns the counts to commit with the position that is committed already: grants of now, taken as of then."""
        ours = self._ours[partition]
        return {task: Count(*ours.committed.get(task, (0, 0)), count.granted) for task, count in ours.now.items()}

    def take(self, case: Case, now_ms: int) -> bool:
        """Counts a case, and returns False where it is beyond its task's quota. Raises what `write` does."""
        if case.task not in self._limits:
            return True
        partition = Partition(case.source.topic, case.source.partition)
        if partition not in self._ours:
            return True  # revoked since it was polled: whoever reads it now decides
        count = self._ours[partition].now.setdefault(case.task, Count())
        at_ms = case.source.timestamp_ms
        day = (min(at_ms, now_ms) if at_ms > 0 else now_ms) // DAY_MS
        if day > count.day:  # late records of the day before count for the present one
            count.day, count.taken = day, 0
            count.granted = {kept: count.granted[kept] for kept in sorted(count.granted)[-_DAYS_KEPT:]}
        if count.taken >= count.granted.get(count.day, 0) and not self._grant(partition, case.task, count):
            return False
        count.taken += 1
        return True

    def _grant(self, partition: Partition, task: str, count: Count) -> bool:
        """Gets a partition one more portion: of what is left, else of what another of ours holds unused."""
        day = count.day
        if (task, day) in self._spent:
            return False
        everywhere = [Partition(topic, number) for topic in self._topics[task] for number in self._partitions_of(topic)]
        others = [one for one in everywhere if one not in self._ours]
        theirs = [counts.get(task) for counts in self._read(others).values()] if others else []
        granted = sum(one.granted.get(day, 0) for one in theirs if one)
        granted += sum(ours.now[task].granted.get(day, 0) for ours in self._ours.values() if task in ours.now)
        portion = max(1, self._limits[task] // (4 * max(len(everywhere), 1)))
        if granted < self._limits[task]:
            count.granted[day] = count.granted.get(day, 0) + min(portion, self._limits[task] - granted)
            self._write([partition])
            return True
        for giver, ours in self._ours.items():
            other = ours.now.get(task)
            if other is None or giver == partition or other.day != day or ours.position < ours.gives_from:
                continue
            unused = other.granted.get(day, 0) - other.taken
            if unused > 0:
                other.granted[day] -= min(portion, unused)
                count.granted[day] = count.granted.get(day, 0) + min(portion, unused)
                self._write([giver, partition])
                return True
        self._spent.add((task, day))
        return False


def encode_counts(counts: Counts) -> str:
    """Returns counts as they stand in a position's metadata; "" for none."""
    if not counts:
        return ""
    text = msgspec.json.encode(counts).decode()
    if len(text) <= _LONGEST:
        return text
    present = {task: Count(c.day, c.taken, {c.day: c.granted.get(c.day, 0)}) for task, c in counts.items()}
    return msgspec.json.encode(present).decode()


_decoder = msgspec.json.Decoder(Counts)


def decode_counts(text: str) -> Counts:
    """Reads what `encode_counts` wrote; anything else counts as nothing taken yet."""
    try:
        return _decoder.decode(text) if text else {}
    except (msgspec.DecodeError, msgspec.ValidationError):
        return {}
