"""kafka-python's clients as ours are made."""

from __future__ import annotations

import time
from collections.abc import Callable

from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.structs import OffsetAndMetadata

from schemas.settings import Settings
from streams.clients import make_consumer, subscribe
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
