"""Following a compacted topic of ours from its beginning, without a consumer group.

Workers and intake follow gs.commands and gs.adapters this way: everyone sees every record, and
`wait_ready` returns once all that was there at the start has been read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from kafka import TopicPartition
from kafka.errors import KafkaError

from schemas.errors import BrokerError
from schemas.settings import Settings
from streams.clients import make_consumer

log = logging.getLogger(__name__)


class Follower:
    """A thread that hands every record of a topic to `apply(key, value)`, oldest first."""

    def __init__(self, settings: Settings, topic: str, apply: Callable[[bytes, bytes], None]) -> None:
        self._settings = settings
        self._topic = settings.topic(topic)
        self._apply = apply
        self._ready = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow-{topic}", daemon=True)

    def start(self) -> Follower:
        """Starts reading; returns itself."""
        self._thread.start()
        return self

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Waits until everything older than the start has been applied; raises BrokerError after `timeout_s`."""
        if not self._ready.wait(timeout_s):
            raise BrokerError(
                f"topic {self._topic} could not be read within {timeout_s:.0f} s. Does it exist? "
                "`goldstream topics create` makes it."
            )

    def stop(self) -> None:
        """Stops the thread and waits for it."""
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._read()
            except (KafkaError, BrokerError) as error:
                log.warning("following %s was interrupted (%s); connecting again", self._topic, error)
                self._stop.wait(1.0)

    def _read(self) -> None:
        consumer = make_consumer(self._settings, fetch_max_wait_ms=2_000)  # a record ends the wait
        try:
            partitions = None
            while not partitions and not self._stop.is_set():
                partitions = consumer.partitions_for_topic(self._topic)
                if not partitions:
                    time.sleep(0.3)
            if not partitions:  # stopped before the topic was made
                return
            tps = [TopicPartition(self._topic, p) for p in sorted(partitions)]
            consumer.assign(tps)
            consumer.seek_to_beginning(*tps)
            ends = consumer.end_offsets(tps)
            while not self._stop.is_set():
                if not self._ready.is_set() and all(consumer.position(tp) >= ends[tp] for tp in tps):
                    self._ready.set()
                for records in consumer.poll(timeout_ms=500).values():
                    for record in records:
                        if record.key is not None and record.value is not None:
                            self._apply(record.key, record.value)
        finally:
            consumer.close()
