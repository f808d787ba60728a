"""kafka-python's clients as all of our processes make them: the same addresses, security and safety settings."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

from schemas.kafka import connect
from schemas.settings import Settings

# A consumer that joined its group before a topic's metadata arrived holds no partition of it until the next refresh.
METADATA_MAX_AGE_MS = 5_000
JOIN_MS = 2_000  # beside the poll's own time


def make_consumer(settings: Settings, group: str | None = None, **options: Any) -> Any:
    """Returns a consumer that never commits by itself and never makes topics; `group` is a short name.

    Raises BrokerError where no Kafka answers.
    """
    defaults = {
        "client_id": client_name(group or "reader"),
        "group_id": settings.topic(group) if group else None,
        "enable_auto_commit": False,
        "isolation_level": "read_committed",
        "allow_auto_create_topics": False,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
    }
    return connect(_Consumer, settings, **(defaults | options))


class _Consumer(KafkaConsumer):  # type: ignore[misc]  # kafka-python carries no types
    """kafka-python's consumer, which cannot forget a rebalance that it has begun.

    One that is over just after poll's time was up is never looked at again by kafka-python 3.0.12: its answer to
    "must I join again?" rests on metadata that the assignment itself has updated. The consumer then sends no
    heartbeat, falls out of its group and stays out, seen at one start in ten and 38 of 40 with polls of 3 ms. A
    second join may end unseen like the first, on a busy machine again and again: a poll waits for it.
    """

    def poll(self, timeout_ms: float = 0, *arguments: Any, **options: Any) -> Any:
        """Fetches records; waits for a join under way, and joins again where one has ended unseen."""
        records = super().poll(timeout_ms, *arguments, **options)
        joining = self._joining()
        if not records and joining is not None and not joining.is_done:
            records = super().poll(max(timeout_ms, JOIN_MS), *arguments, **options)
            joining = self._joining()
        if joining is not None and joining.is_done:
            self._coordinator.request_rejoin()
        return records

    def _joining(self) -> Any:
        """Returns the join that kafka-python has begun and not yet looked at, None where there is none."""
        return getattr(self._coordinator, "_join_task", None)


def subscribe(consumer: Any, topics: Sequence[str], listener: Any, wait_s: float = 5.0) -> None:
    """Subscribes once the client knows the topics' partitions, or after `wait_s` where a topic does not exist yet.

    A member that leads its group before the metadata has come assigns nobody anything, and has been seen to be
    thrown out of the group over it and never to come back.
    """
    deadline = time.monotonic() + wait_s
    while any(not consumer.partitions_for_topic(topic) for topic in topics) and time.monotonic() < deadline:
        time.sleep(0.1)
    consumer.subscribe(list(topics), listener=listener)


def make_producer(settings: Settings, name: str, **options: Any) -> Any:
    """Returns a producer whose sends all in-sync replicas confirm. Raises BrokerError where no Kafka answers."""
    defaults = {
        "client_id": client_name(name),
        "acks": "all",
        "linger_ms": 5,
        "max_request_size": settings.kafka.max_message_bytes + 100_000,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
    }
    return connect(KafkaProducer, settings, **(defaults | options))


def make_admin(settings: Settings, timeout_s: float = 8.0) -> Any:
    """Returns an admin client; raises BrokerError where no Kafka answers within `timeout_s`."""
    return connect(
        KafkaAdminClient,
        settings,
        client_id=client_name("admin"),
        bootstrap_timeout_ms=int(timeout_s * 1000),
        request_timeout_ms=20_000,
    )


def client_name(name: str) -> str:
    """Returns a client id that tells this process apart in the members of a group."""
    return f"goldstream-{name}-{os.uname().nodename}-{os.getpid()}"
