"""kafka-python's clients as ours are made."""

from __future__ import annotations

import gc
import socket
import time
import warnings
from collections.abc import Callable

import pytest
from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.structs import OffsetAndMetadata

from schemas.errors import BrokerError
from schemas.settings import Settings
from streams.clients import make_consumer, make_producer, subscribe
from streams.topics import create_topics


class _Unmoved(ConsumerRebalanceListener):  # type: ignore[misc]
    """Does nothing."""

    def on_partitions_revoked(self, revoked: object) -> None:
        """Nothing to give back."""

    def on_partitions_assigned(self, assigned: object) -> None:
        """Nothing to take up."""


def test_a_join_that_ends_between_two_polls_is_not_forgotten(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings()
    create_topics(settings)
    topic = settings.topic("outcomes")
    for number in range(4):
        consumer = make_consumer(settings, f"joins-{number}", auto_offset_reset="earliest")
        try:
            subscribe(consumer, [topic], _Unmoved())
            until = time.monotonic() + 2
            while time.monotonic() < until:
                consumer.poll(timeout_ms=3)  # a join takes longer, so that it ends between two of them
            # Refused with RebalanceInProgressError where the client believes that it is joining still.
            consumer.commit({TopicPartition(topic, 0): OffsetAndMetadata(0, "", -1)})
        finally:
            consumer.close()


def test_connection_attempts_that_fail_or_are_given_up_leave_no_socket(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings("", "kafka.bootstrap_servers=127.0.0.1:9")
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:  # its queue full, an attempt hangs
        where = silent.getsockname()
        waiting = [socket.socket() for _ in range(8)]
        try:
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(where)
            for address in ("127.0.0.1:9", f"127.0.0.1:{where[1]}"):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always", ResourceWarning)
                    with pytest.raises(BrokerError):
                        make_producer(settings, "x", bootstrap_servers=[address], bootstrap_timeout_ms=300)
                    gc.collect()
                assert [str(w.message) for w in caught if "unclosed" in str(w.message)] == []
        finally:
            for one in waiting:
                one.close()
