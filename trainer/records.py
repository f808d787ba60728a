"""Adapter records: the topic gs.adapters, who may write to it, and which record counts.

trainer.rollout is the one writer; workers follow the topic through streams.follow.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from schemas.adapters import AdapterRecord
from schemas.errors import BrokerError
from schemas.kafka import connect
from schemas.settings import Settings
from schemas.topics import ADAPTERS

log = logging.getLogger("goldstream.rollout")

KAFKA_TIMEOUT_S = 30.0


class RecordLog(Protocol):
    """Where adapter records are kept: the topic gs.adapters, or a list in tests."""

    def read(self) -> list[AdapterRecord]:
        """Returns every record now there, in order."""

    def append(self, record: AdapterRecord) -> None:
        """Adds a record and returns once it is durable."""


def latest_records(records: Sequence[AdapterRecord]) -> dict[str, AdapterRecord]:
    """Returns the record that counts for each task: the highest (lease epoch, sequence)."""
    latest: dict[str, AdapterRecord] = {}
    for record in records:
        if record.supersedes(latest.get(record.task)):
            latest[record.task] = record
    return latest


class NewerRollout(BrokerError):
    """A rollout with a higher lease epoch has written; this one must end."""


class KafkaRecords:
    """gs.adapters as a RecordLog: one record per switch, keyed by task.

    As a context manager it keeps its connections until it is left: making them takes longer than a switch.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.topic = settings.topic(ADAPTERS)
        self._keeps = False
        self._consumer: Any = None
        self._producer: Any = None
        self._found: list[AdapterRecord] = []  # by the consumer, up to where it is now

    def __enter__(self) -> KafkaRecords:
        self._keeps = True
        return self

    def __exit__(self, *error: object) -> None:
        self._keeps = False
        self._close()

    def read(self) -> list[AdapterRecord]:
        """Reads the topic to its end, without a group; raises BrokerError where it cannot."""
        from kafka.errors import KafkaError  # trainer/ imports without Kafka

        with self._connected():
            try:
                self._read()
                return list(self._found)
            except KafkaError as error:
                raise BrokerError(f"{self.topic} cannot be read: {type(error).__name__}: {error}") from error

    def _read(self) -> None:
        from kafka import KafkaConsumer, TopicPartition

        if self._consumer is None:
            self._found = []
            options = {"group_id": None, "enable_auto_commit": False, "allow_auto_create_topics": False}
            self._consumer = connect(KafkaConsumer, self.settings, isolation_level="read_committed", **options)
            known = sorted(self._consumer.partitions_for_topic(self.topic) or ())
            if not known:
                raise BrokerError(f"the topic {self.topic} does not exist. `goldstream topics create` makes it.")
            self._consumer.assign([TopicPartition(self.topic, number) for number in known])
            for partition, first in self._consumer.beginning_offsets(self._consumer.assignment()).items():
                self._consumer.seek(partition, first)
        consumer, partitions = self._consumer, list(self._consumer.assignment())
        ends = consumer.end_offsets(partitions)
        if any(consumer.position(p) > ends[p] for p in partitions):
            raise BrokerError(f"{self.topic} was made anew while it was followed; it is read from its beginning next.")
        deadline = time.monotonic() + KAFKA_TIMEOUT_S
        # Positions, not records, tell the end: an empty or compacted topic has fewer records than offsets.
        while any(consumer.position(p) < ends[p] for p in partitions):
            if time.monotonic() > deadline:
                raise BrokerError(f"{self.topic} was not read to its end within {KAFKA_TIMEOUT_S:.0f} s")
            for batch in consumer.poll(timeout_ms=500).values():
                for message in batch:
                    try:
                        self._found.append(msgspec.json.decode(message.value or b"", type=AdapterRecord))
                    except msgspec.DecodeError as error:
                        log.warning("%s offset %d is no adapter record: %s", self.topic, message.offset, error)

    def append(self, record: AdapterRecord) -> None:
        """Produces one record and waits until every in-sync replica has it; raises BrokerError where that fails."""
        from kafka import KafkaProducer
        from kafka.errors import KafkaError

        with self._connected():
            try:
                if self._producer is None:
                    self._producer = connect(
                        KafkaProducer,
                        self.settings,
                        acks="all",
                        enable_idempotence=True,
                        allow_auto_create_topics=False,
                        max_block_ms=int(KAFKA_TIMEOUT_S * 1000),
                    )
                sent = self._producer.send(self.topic, key=record.task.encode(), value=msgspec.json.encode(record))
                sent.get(timeout=KAFKA_TIMEOUT_S)
            except KafkaError as error:
                raise BrokerError(f"{self.topic} did not take a record: {type(error).__name__}: {error}") from error

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Ends the connections after a failure, and where nobody keeps them."""
        try:
            yield
        except BaseException:
            self._close()
            raise
        if not self._keeps:
            self._close()

    def _close(self) -> None:
        consumer, producer = self._consumer, self._producer
        self._consumer = self._producer = None
        if consumer is not None:
            consumer.close()
        if producer is not None:
            producer.close(timeout=KAFKA_TIMEOUT_S)


class Writer:
    """The one who may append: numbers records and notices a newer rollout."""

    def __init__(self, records: RecordLog, known: Sequence[AdapterRecord], epoch: int) -> None:
        self.records, self.epoch, self.sequence = records, epoch, 0
        self.latest = latest_records(known)

    def append(self, record: AdapterRecord) -> AdapterRecord:
        """Gives a record its place and time, and returns it once it is durable."""
        self.sequence += 1
        record = msgspec.structs.replace(
            record, lease_epoch=self.epoch, sequence=self.sequence, at_ms=int(time.time() * 1000)
        )
        self.records.append(record)
        self.latest[record.task] = record
        return record

    def refresh(self) -> None:
        """Reads the records again: an append that failed may have arrived, or another rollout may have written."""
        self.latest = latest_records(self.records.read())
        newest = max((record.lease_epoch for record in self.latest.values()), default=0)
        if newest > self.epoch:
            raise NewerRollout(f"a rollout with lease epoch {newest} writes too; this one, with {self.epoch}, ends.")


def next_epoch(descriptor: int, known: Sequence[AdapterRecord]) -> int:
    """Returns this acquisition's lease epoch and keeps it in the lease file.

    Above the file's and above every record's, so that a lost state folder cannot make workers ignore us.
    """
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    epoch = 1 + max([int(text) if text.isdigit() else 0, *(record.lease_epoch for record in known)])
    os.pwrite(descriptor, f"{epoch:020d}\n".encode(), 0)  # fixed width: a shorter number leaves no old digits
    os.fsync(descriptor)
    return epoch
