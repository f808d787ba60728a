"""Delayed retries: holds cases on gs.retry.<delay> topics until their time, then returns them to their stage.

A consumer that pauses partitions and never sleeps, so that waiting blocks nobody. `goldstream retries` runs it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import msgspec
from kafka import ConsumerRebalanceListener
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from schemas.case import Case, Source, coordinates_id, decode_case, encode_case
from schemas.errors import RecordError
from schemas.faults import crash_point
from schemas.settings import Settings
from schemas.topics import OUTCOMES, STAGE_INPUT, retry_topic
from streams.clients import client_name, make_consumer, make_producer, subscribe
from streams.stage import Hop, now_ms
from streams.topics import cluster_id
from streams.watchdog import Membership, Watchdog

log = logging.getLogger(__name__)

_BUFFER_RECORDS = 500  # per partition; beyond it the partition is paused and the rest waits in Kafka


def returned(value: bytes | None, where: Source) -> tuple[int, Hop]:
    """Returns (time in ms before which it must wait, where it goes then) for a record of a retry topic."""
    try:
        case = decode_case(value)
    except RecordError as error:
        broken = Case(case_id=coordinates_id(where), task="", split="train", source=where)
        return 0, Hop(OUTCOMES, broken.ended("dead", "intake", now_ms(), error.reason, error.detail))
    stage = case.retry_stage
    if stage not in STAGE_INPUT:
        detail = f"a retry for stage {stage!r}, which does not exist"
        return 0, Hop(OUTCOMES, case.ended("dead", "intake", now_ms(), "undecodable_case", detail))
    return case.not_before_ms, Hop(STAGE_INPUT[stage], case)


def wait_s(not_before_ms: int, now: int, delay_s: float) -> float:
    """Returns how many seconds a case just read from a topic of `delay_s` still waits.

    Never longer than the topic's own delay: the time was stamped by another machine, whose clock may be hours off.
    """
    return min(max((not_before_ms - now) / 1000, 0.0), delay_s)


def run_retries(settings: Settings, stop: threading.Event, ready: Callable[[], None] = lambda: None) -> None:
    """Returns waiting cases to their stages until `stop` is set.

    1. poll; partitions whose buffer is full are paused, so the poll keeps the group membership alive and no more
    2. produce what is due, and wait for the confirmation
    3. commit behind it, in offset order per partition
    """
    cluster = cluster_id(settings)
    delays_s = {settings.topic(retry_topic(s)): s for s in settings.worker.retry_delays_s}
    topics = list(delays_s)
    producer = make_producer(settings, "retries")
    consumer = make_consumer(
        settings,
        "retries",
        auto_offset_reset="earliest",
        max_poll_records=_BUFFER_RECORDS,
        session_timeout_ms=10_000,  # a killed one is replaced soon; the client's own 45 s would be an outage
        heartbeat_interval_ms=3_000,
        max_poll_interval_ms=600_000,
    )
    watchdog = Watchdog(settings, [Membership(settings.topic("retries"), client_name("retries"), topics)]).start()
    waiting: dict[Any, deque[tuple[int, float, Hop]]] = {}  # offset, when due on the monotonic clock, where to
    assigned = _Assigned()
    try:
        subscribe(consumer, topics, assigned)
        announced = False
        while not stop.is_set():
            watchdog.check()
            # 1.
            polled = consumer.poll(timeout_ms=200)
            fresh = assigned.seek_to_commits(consumer)
            for tp in fresh | (waiting.keys() - consumer.assignment()):
                waiting.pop(tp, None)
            for tp in polled.keys() - fresh:
                records, queue = polled[tp], waiting.setdefault(tp, deque())
                for record in records:
                    where = Source(cluster=cluster, topic=tp.topic, partition=tp.partition, offset=record.offset)
                    not_before_ms, hop = returned(record.value, where)
                    due = time.monotonic() + wait_s(not_before_ms, now_ms(), delays_s[tp.topic])
                    queue.append((record.offset, due, hop))
            if not announced and consumer.assignment():
                announced = True
                ready()
            for tp in consumer.assignment():
                full = len(waiting.get(tp, ())) >= _BUFFER_RECORDS
                (consumer.pause if full else consumer.resume)(tp)
            # 2. 3.
            for tp, queue in list(waiting.items()):
                _return_due(consumer, producer, settings, tp, queue)
    finally:
        watchdog.stop()
        consumer.close()
        producer.close(timeout=5)


def _return_due(
    consumer: Any, producer: Any, settings: Settings, tp: Any, queue: deque[tuple[int, float, Hop]]
) -> None:
    """Produces the cases at the head of a partition whose time has come.

    All wait equally long on one topic, so the head is the first to be due.
    """
    now, sent = time.monotonic(), []
    for offset, due, hop in queue:
        if due > now:
            break
        case = msgspec.structs.replace(hop.case, not_before_ms=0)
        future = producer.send(settings.topic(hop.topic), key=case.case_id.encode(), value=encode_case(case))
        sent.append((offset, future))
    if not sent:
        return
    try:
        producer.flush()
        for _, future in sent:
            future.get(timeout=30)
        crash_point("retries.after_produce")
        consumer.commit({tp: OffsetAndMetadata(sent[-1][0] + 1, "", -1)})
    except KafkaError as error:
        log.warning("retries: %s not confirmed (%s); tried again", tp.topic, type(error).__name__)
        return
    for _ in sent:
        queue.popleft()


class _Assigned(ConsumerRebalanceListener):  # type: ignore[misc]
    """Partitions that were assigned and must be read from their commit.

    kafka-python keeps the position of a partition that stays with its owner in a rebalance: without a seek, what was
    read before and not yet returned would be passed over. Callbacks come on the client's own thread: they take notes.
    """

    def __init__(self) -> None:
        self._new: deque[Any] = deque()

    def on_partitions_revoked(self, revoked: Collection[Any]) -> None:
        """Nothing to do: a partition that does not come back leaves the assignment."""

    def on_partitions_assigned(self, assigned: Collection[Any]) -> None:
        """Notes them."""
        self._new.extend(assigned)

    def seek_to_commits(self, consumer: Any) -> set[Any]:
        """Returns the partitions assigned since the last time; what was read of them before must be dropped.

        One whose commit cannot be asked for now is returned again the next time.
        """
        fresh = set(self._new)
        while self._new:
            tp = self._new[0]
            fresh.add(tp)
            try:
                if tp in consumer.assignment():
                    committed = consumer.committed(tp)
                    consumer.seek(tp, consumer.beginning_offsets([tp])[tp] if committed is None else committed)
            except KafkaError as error:
                log.warning("retries: no position of %s[%d] yet (%s)", tp.topic, tp.partition, type(error).__name__)
                break
            self._new.popleft()
        return fresh
