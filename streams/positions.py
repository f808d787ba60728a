"""Where intake reads from: its positions in the product's topics, and what Kafka keeps beside them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection, Sequence
from typing import Any, Literal

from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from schemas.settings import Settings
from schemas.start import parse_start
from streams.admission.quota import Counts, Partition, Quotas, decode_counts, encode_counts
from streams.flow import now_ms

log = logging.getLogger(__name__)

_MARKERS_EVERY_S = 1.0


class Positions(ConsumerRebalanceListener):  # type: ignore[misc]
    """Where each partition is read from, and how far it is committed.

    A partition without a committed position gets the one the settings ask for, committed at once: else a crash
    before the first record would move "latest" further on, past records. The commit's metadata keeps when and where
    reading began: for partitions that are added to the topic later, and for the audit.
    Its tasks' daily counts are kept there too, see streams.admission.quota.
    Rebalance callbacks come on the client's own thread and must not block it: they take notes, `settle` acts.
    """

    def __init__(self, consumer: Any, settings: Settings) -> None:
        self.quotas = Quotas(settings, self._numbers, self._counts_elsewhere, self._commit_counts)
        self._consumer = consumer
        self._start_at = settings.intake.start_at
        self._began: dict[Any, str] = {}  # partition -> its note, see `began`
        self._committed: dict[Any, int] = {}
        self._new: deque[Any] = deque()
        self._markers_at = 0.0

    @property
    def unsettled(self) -> bool:
        """Whether partitions still wait for their position."""
        return bool(self._new)

    def on_partitions_revoked(self, revoked: Collection[Any]) -> None:
        """Nothing to do: positions are committed after every batch."""

    def on_partitions_assigned(self, assigned: Collection[Any]) -> None:
        """Holds new partitions back until `settle` has found their position."""
        self._consumer.pause(*assigned)
        for tp in assigned:
            self._consumer.seek(tp, 0)  # any position, so that the client does not look for one itself
        self._new.extend(assigned)

    def assigned(self) -> list[tuple[str, int]]:
        """Returns the partitions this process reads, as (topic, partition)."""
        return sorted((tp.topic, tp.partition) for tp in self._consumer.assignment())

    def begin_again(self) -> None:
        """Gives back what was polled: every partition is read again from its committed position."""
        self._new.clear()
        self.on_partitions_assigned(self._consumer.assignment())

    def settle(self) -> bool:
        """Seeks new partitions to their positions and lets them flow; returns whether any were new."""
        settled = False
        if self._new:
            self.quotas.keep_only([Partition(*one) for one in self.assigned()])
        while self._new:
            tp = self._new[0]
            try:
                offset = self._position(tp)
                if tp in self._consumer.assignment():
                    self._consumer.seek(tp, offset)
                    self._consumer.resume(tp)
            except KafkaError as error:
                log.warning("intake: no position for %s[%d] yet (%s)", tp.topic, tp.partition, type(error).__name__)
                return settled
            self._new.popleft()
            settled = True
        return settled

    def commit(self, offsets: dict[Any, int]) -> None:
        """Commits positions; raises KafkaError."""
        counts = {tp: self.quotas.at_position(_partition(tp)) for tp in offsets}
        self._consumer.commit(
            {tp: OffsetAndMetadata(offset, self._note(tp, counts[tp]), -1) for tp, offset in offsets.items()}
        )
        self._committed |= offsets
        for tp, offset in offsets.items():
            self.quotas.passed(_partition(tp), offset)

    def pass_markers(self) -> None:
        """Commits past trailing offsets without records, such as a transaction's end: lag would stay at 1 for ever.

        To be called after a poll that gave nothing, so that all before the positions is produced.
        """
        if time.monotonic() < self._markers_at:
            return
        self._markers_at = time.monotonic() + _MARKERS_EVERY_S
        passed = {}
        for tp in self._consumer.assignment():
            try:
                position = self._consumer.position(tp, timeout_ms=0)
            except (KafkaError, AssertionError):
                continue  # revoked meanwhile
            if position is not None and position > self._committed.get(tp, position):
                passed[tp] = position
        if passed and not self._new:  # else a position may be the next owner's
            try:
                self.commit(passed)
            except KafkaError as error:
                log.debug("intake: not committed past markers (%s)", type(error).__name__)

    def _position(self, tp: Any) -> int:
        ends_at = int(self._consumer.end_offsets([tp])[tp]) if self.quotas else 0
        committed = self._consumer.committed(tp, metadata=True)
        if committed is not None:
            self._began[tp], _, counts = committed.metadata.partition(" ")
            self._committed[tp] = int(committed.offset)
            self.quotas.assign(_partition(tp), decode_counts(counts), ends_at)
            self.quotas.passed(_partition(tp), self._committed[tp])
            return self._committed[tp]
        offset, began_ms = self._first(tp)
        self._began[tp] = f"{began_ms}@{offset}"
        self.quotas.assign(_partition(tp), {}, ends_at)
        self.commit({tp: offset})
        log.info("intake starts %s[%d] at offset %d", tp.topic, tp.partition, offset)
        return offset

    def _first(self, tp: Any) -> tuple[int, int]:
        """Returns (first offset, time in ms at which reading of the topic began).

        The offset is the one the settings ask for; where they say "latest" and the topic is already being read,
        the partition was added since and is read from that time on.
        """
        now = now_ms()
        start = parse_start(self._start_at, now)
        if start == "latest":
            began_ms = self._began_elsewhere(tp)
            if began_ms is not None:
                return start_offsets(self._consumer, [tp], began_ms)[tp], began_ms
        return start_offsets(self._consumer, [tp], start)[tp], now

    def _began_elsewhere(self, tp: Any) -> int | None:
        for partition in self._consumer.partitions_for_topic(tp.topic) or ():
            other = TopicPartition(tp.topic, partition)
            if other == tp:
                continue
            committed = None if other in self._began else self._consumer.committed(other, metadata=True)
            noted = self._began.get(other) or (committed.metadata if committed is not None else None)
            if noted is not None:
                return began(noted)[0]
        return None

    def _note(self, tp: Any, counts: Counts) -> str:
        return " ".join(part for part in (self._began.get(tp, ""), encode_counts(counts)) if part)

    def _numbers(self, topic: str) -> Collection[int]:
        return self._consumer.partitions_for_topic(topic) or ()

    def _counts_elsewhere(self, partitions: Collection[Partition]) -> dict[Partition, Counts]:
        found = {}
        for one in partitions:
            committed = self._consumer.committed(TopicPartition(*one), metadata=True)
            found[one] = decode_counts(committed.metadata.partition(" ")[2]) if committed is not None else {}
        return found

    def _commit_counts(self, partitions: Collection[Partition]) -> None:
        noted = {}
        for one in partitions:
            tp = TopicPartition(*one)
            noted[tp] = OffsetAndMetadata(self._committed[tp], self._note(tp, self.quotas.at_committed(one)), -1)
        self._consumer.commit(noted)


def start_offsets(consumer: Any, tps: Sequence[Any], start: Literal["latest", "earliest"] | int) -> dict[Any, int]:
    """Returns where reading begins, by partition: `start` as schemas.start reads it."""
    if start == "earliest":
        return {tp: int(offset) for tp, offset in consumer.beginning_offsets(tps).items()}
    ends = {tp: int(offset) for tp, offset in consumer.end_offsets(tps).items()}
    if start == "latest":
        return ends
    found = consumer.offsets_for_times(dict.fromkeys(tps, start))
    return {tp: int(found[tp].offset) if found.get(tp) else ends[tp] for tp in tps}


def _partition(tp: Any) -> Partition:
    return Partition(tp.topic, tp.partition)


def began(metadata: str) -> tuple[int, int]:
    """Reads what intake notes beside a position, "<ms>@<offset> <counts>": when reading of the topic began, and where.

    Returns (0, 0), the beginning, for a note it did not write.
    """
    ms, _, offset = metadata.partition(" ")[0].partition("@")
    return (int(ms), int(offset)) if ms.isdigit() and offset.isdigit() else (0, 0)
