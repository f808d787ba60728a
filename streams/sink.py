"""The sink: from gs.outcomes to Parquet, each outcome in exactly one row, whatever dies when.

The chain of landing files is the truth, Kafka's committed offsets only tell others how far it is.
streams.partition_writer holds the rules and knows no Kafka; `Sink` moves records to it; `run_sink` is
the process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kafka import (
    ConsumerRebalanceListener,
    OffsetAndMetadata,
    TopicPartition,
)
from kafka import errors as kafka_errors

from schemas.errors import BrokerError, GoldError
from schemas.faults import crash_point
from schemas.forgotten import Forgotten
from schemas.settings import Settings
from schemas.settings import Sink as SinkSettings
from schemas.topics import OUTCOMES
from streams.clients import client_name, make_consumer, subscribe
from streams.compaction.keeper import Keeper
from streams.forgetting.following import Remembered
from streams.forgetting.writing import Erasing
from streams.landing import LandingChain
from streams.partition_writer import PartitionWriter, Record
from streams.topics import cluster_id
from streams.tracing import trace_landing
from streams.watchdog import Membership, Watchdog

log = logging.getLogger("goldstream.sink")

_POLL_MS = 200
_POLL_RECORDS = 2000
_POSITIONS_EVERY_S = 1.0
_OUTAGE_WAIT_S = 1.0
_CLIENT_WAIT_MS = 10_000  # for one offset look-up or commit, before it is tried again or left


class Sink(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python carries no types
    """Moves records from a consumer to the writers of the partitions it is given.

    Rebalance callbacks come on the client's own thread, so they only take notes; the loop acts on them.
    """

    def __init__(
        self,
        consumer: Any,
        gold: Path,
        *,
        topic: str,
        cluster: str,
        settings: SinkSettings,
        forgotten: Callable[[], Forgotten] = Forgotten,
        split_key: str = "",
    ) -> None:
        self.writers: dict[TopicPartition, PartitionWriter] = {}
        self._consumer = consumer
        self._gold = gold
        self._topic, self._cluster = topic, cluster
        self._settings = settings
        self._forgotten, self._split_key = forgotten, split_key
        self._changes: deque[tuple[str, list[TopicPartition]]] = deque()
        self._to_open: list[TopicPartition] = []
        self._joined = False
        self._positions_at = 0.0
        self._tracing = trace_landing(topic, "sink")

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Notes that partitions were taken away; what their buffers hold is read again by the next owner."""
        self._changes.append(("revoked", list(revoked)))

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Notes new partitions and holds them back: their chains are opened on our own thread."""
        partitions = sorted(assigned)
        self._consumer.pause(*partitions)
        for partition in partitions:
            self._consumer.seek(partition, 0)  # any position, so that the client does not ask for the committed one
        self._changes.append(("assigned", partitions))

    def run(
        self,
        stop: threading.Event,
        ready: Callable[[], object] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Consumes until `stop` is set, then writes what it holds. `check` is called every turn and may raise.

        1. Drop the writers of revoked partitions, open those of new ones at the tip of their chain.
        2. Poll; a broker that does not answer is waited for.
        3. Give records to their writers, but none of a partition that changed hands during the poll: its
           new writer begins at the tip and reads them again.
        4. Write the files that are due, then commit: the chain first, Kafka last.

        Raises Fenced where another sink took over, ChainBroken or GoldError where the chain and the topic
        do not fit together.
        """
        subscribe(self._consumer, [self._topic], self)
        while not stop.is_set():
            check()
            # 1. Partitions gone and new
            self._follow_changes()
            self._open_partitions()
            if ready is not None and self._joined and not self._to_open:
                ready()
                ready = None
            # 2. Poll
            batches = self._poll(stop)
            # 3. Records
            changed = {partition for _, partitions in list(self._changes) for partition in partitions}
            for partition, records in batches.items():
                writer = self.writers.get(partition)
                if writer is None or partition in changed:
                    continue
                for record in records:
                    writer.add(record)
                    if self._tracing is not None:
                        self._tracing.read(partition, record)
                    if writer.due:
                        self._flush([partition])
            # 4. Files
            self._note_positions()
            self._flush([partition for partition, writer in self.writers.items() if writer.due])
        self._follow_changes()
        self._flush(list(self.writers))

    def _poll(self, stop: threading.Event) -> dict[TopicPartition, list[Record]]:
        try:
            batches: dict[TopicPartition, list[Record]] = self._consumer.poll(_POLL_MS, max_records=_POLL_RECORDS)
            return batches
        except (kafka_errors.OffsetOutOfRangeError, kafka_errors.LogTruncationError) as error:
            if self._changes:
                return {}  # the position of a partition that is changing hands
            raise GoldError(
                f"the next offset the sink needs is gone from {self._topic} ({error}): retention deleted outcomes "
                "before they were written, or the topic was made anew. Start the sink again: it says which, and what "
                "can be done."
            ) from error
        except kafka_errors.NoOffsetForPartitionError:
            return {}  # a rebalance is half done; the next poll brings the partitions
        except kafka_errors.KafkaError as error:
            if not _passes_by_itself(error):
                raise BrokerError(
                    f"Kafka refuses the sink on {self._topic}: {error!r}. Mend that and restart."
                ) from error
            log.warning("Kafka does not answer (%s); waiting for it", type(error).__name__)
            stop.wait(_OUTAGE_WAIT_S)
            return {}

    def _follow_changes(self) -> None:
        while self._changes:
            kind, partitions = self._changes.popleft()
            for partition in partitions:
                # Dropped in both cases: an assignment begins again at the tip.
                self.writers.pop(partition, None)
                if self._tracing is not None:
                    self._tracing.dropped(partition)
            if kind == "assigned":
                self._joined = True
                self._to_open = partitions
            else:
                self._to_open = [p for p in self._to_open if p not in partitions]

    def _open_partitions(self) -> None:
        if not self._to_open:
            return
        try:
            log_start = self._consumer.beginning_offsets(self._to_open, timeout_ms=_CLIENT_WAIT_MS)
            log_end = self._consumer.end_offsets(self._to_open, timeout_ms=_CLIENT_WAIT_MS)
        except kafka_errors.KafkaError as error:
            if not _passes_by_itself(error):
                raise BrokerError(f"Kafka does not tell the offsets of {self._topic}: {error!r}.") from error
            log.warning("no offsets of %s yet (%s); trying again", self._topic, type(error).__name__)
            return
        for partition in self._to_open:
            chain = LandingChain(self._gold, partition.partition)
            start = resume_offset(chain, self._topic, log_start[partition], log_end[partition])
            writer = PartitionWriter(
                chain,
                start=start,
                cluster=self._cluster,
                topic=self._topic,
                settings=self._settings,
                forgotten=self._forgotten,
                split_key=self._split_key,
            )
            try:
                self._consumer.seek(partition, start)
                self._consumer.resume(partition)
            except (ValueError, kafka_errors.IllegalStateError):
                continue  # revoked meanwhile; the note about it follows
            self.writers[partition] = writer
            log.info("%s-%d continues at %d, %d cases known", *partition, start, len(writer.index))
        self._to_open = []

    def _note_positions(self) -> None:
        """Lets ranges cover trailing offsets without records, such as the marker that ends a transaction."""
        if time.monotonic() < self._positions_at:
            return
        self._positions_at = time.monotonic() + _POSITIONS_EVERY_S
        for partition, writer in self.writers.items():
            try:
                position = self._consumer.position(partition, timeout_ms=0)
            except (kafka_errors.KafkaError, AssertionError):
                continue  # revoked meanwhile
            if position is not None and not self._changes:  # else it may be the next owner's
                writer.reached(position)

    def _flush(self, partitions: list[TopicPartition]) -> None:
        tips = {p: tip for p in partitions if (tip := self.writers[p].flush()) is not None}
        if not tips:
            return
        if self._tracing is not None:
            for partition, tip in tips.items():
                self._tracing.written(partition, tip)
        crash_point("sink.before_commit")
        try:
            offsets = {partition: OffsetAndMetadata(tip, "", -1) for partition, tip in tips.items()}
            self._consumer.commit(offsets, timeout_ms=_CLIENT_WAIT_MS)
        except kafka_errors.KafkaError as error:
            # Lag looks larger until the next commit; the chain alone decides where anyone continues.
            log.warning("offsets not committed (%s); the files are safe", type(error).__name__)


def resume_offset(chain: LandingChain, topic: str, log_start: int, log_end: int) -> int:
    """Returns where a partition continues: the chain's tip, or the log start where there is no chain.

    Raises GoldError where the topic no longer holds that offset, or does not hold it yet.
    """
    if chain.tip is None:
        return log_start
    name = f"{topic}-{chain.partition}"
    if chain.tip < log_start:
        raise GoldError(
            f"{name}: the gold set ends at offset {chain.tip}, but the topic begins at {log_start}. Retention deleted "
            f"{log_start - chain.tip} outcomes before the sink wrote them. To go on without them, move {chain.folder} "
            "away (its rows leave the gold set), or start a new state_dir; raise kafka.retention_hours first."
        )
    if chain.tip > log_end:
        raise GoldError(
            f"{name}: the gold set ends at offset {chain.tip}, but the topic ends at {log_end}: it was made anew, or "
            "this is another cluster. Use the cluster this gold set came from, or start a new state_dir."
        )
    return chain.tip


def run_sink(settings: Settings, *, stop: threading.Event, ready: Callable[[], object] | None = None) -> None:
    """Runs the sink until `stop` is set; `ready` is called once it holds its partitions.

    Raises what `Sink.run` raises, and BrokerError where no broker answers at the start.
    """
    topic = settings.topic(OUTCOMES)
    cluster = cluster_id(settings)
    remembered = Remembered(settings).start()
    remembered.wait_ready()
    consumer = make_consumer(
        settings,
        "sink",
        # Positions come from the chain. An offset the log no longer holds must halt the sink, not be skipped.
        auto_offset_reset="none",
        fetch_min_bytes=1 << 20,  # few large fetches: rows wait for their file anyway
        fetch_max_wait_ms=500,
        max_partition_fetch_bytes=4 << 20,
        max_poll_interval_ms=600_000,  # opening a long chain rebuilds its index
        session_timeout_ms=10_000,  # a killed sink is replaced soon; a slow one is fenced by the chain
        heartbeat_interval_ms=3_000,
    )
    keeper = Keeper(settings.gold, settings.gold_set)
    watchdog = Watchdog(settings, [Membership(settings.topic("sink"), client_name("sink"), [topic])]).start()
    try:
        sink = Sink(
            consumer,
            settings.gold,
            topic=topic,
            cluster=cluster,
            settings=settings.sink,
            forgotten=remembered.now,
            split_key=settings.intake.split_key,
        )
        erasing = Erasing(settings, remembered.now, sink.writers)

        def check() -> None:
            watchdog.check()
            erasing.check()
            keeper.tick()

        sink.run(stop, ready, check)
    finally:
        keeper.stop()
        remembered.stop()
        watchdog.stop()
        consumer.close(autocommit=False, timeout_ms=_CLIENT_WAIT_MS)


def _passes_by_itself(error: Exception) -> bool:
    return isinstance(
        error,
        kafka_errors.RetriableError
        | kafka_errors.RebalanceInProgressError
        | kafka_errors.UnknownMemberIdError
        | kafka_errors.IllegalGenerationError,
    )
