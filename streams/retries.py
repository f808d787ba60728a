"""Delayed retries: holds cases on gs.retry.<delay> topics until their time, then returns them to their stage.

A consumer that pauses partitions and never sleeps, so that waiting blocks nobody. `goldstream retries` runs it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from kafka import ConsumerRebalanceListener
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from schemas.case import Case, Source, coordinates_id, decode_case, encode_case
from schemas.errors import RecordError
from schemas.faults import crash_point
from schemas.forgotten import bare_case
from schemas.measures import RETRIES_RETURNED
from schemas.settings import Settings
from schemas.topics import OUTCOMES, STAGE_INPUT, retry_topic
from schemas.tracing.context import carried
from streams.clients import client_name, make_consumer, make_producer, subscribe
from streams.flow import Hop, now_ms
from streams.forgetting.following import Remembered
from streams.measuring import show_waiting
from streams.topics import cluster_id
from streams.tracing import trace_hops
from streams.watchdog import Membership, Watchdog

if TYPE_CHECKING:
    from streams.tracing.hops import Hops

log = logging.getLogger(__name__)

_BUFFER_RECORDS = 500  # per partition; beyond it the partition is paused and the rest waits in Kafka
_POLL_MS, _IDLE_POLL_MS = 200, 1000  # while a case waits for its time, and while none does; a record ends both


class _Waiting(NamedTuple):
    """A case that was read from a retry topic."""

    offset: int
    due: float  # on the monotonic clock
    hop: Hop
    headers: Any  # of its record: its trace goes on through the wait
    since_ns: int


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
    3. commit behind it, in offset order per partition; where that fails, next time, without producing it again
    """
    cluster, hops = cluster_id(settings), trace_hops(settings, "retries")
    delays_s = {settings.topic(retry_topic(s)): s for s in settings.worker.retry_delays_s}
    topics = list(delays_s)
    remembered = Remembered(settings).start()
    remembered.wait_ready()
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
    waiting: dict[Any, deque[_Waiting]] = {}
    show_waiting(waiting)
    positions = _Positions(consumer)
    try:
        subscribe(consumer, topics, positions)
        announced = False
        while not stop.is_set():
            watchdog.check()
            # 1.
            polled = consumer.poll(timeout_ms=_POLL_MS if any(waiting.values()) or not announced else _IDLE_POLL_MS)
            fresh = positions.settle()
            for tp in fresh | (waiting.keys() - consumer.assignment()):
                waiting.pop(tp, None)
            for tp in polled.keys() - fresh:
                records, queue = polled[tp], waiting.setdefault(tp, deque())
                for record in records:
                    where = Source(cluster=cluster, topic=tp.topic, partition=tp.partition, offset=record.offset)
                    not_before_ms, hop = returned(record.value, where)
                    due = time.monotonic() + wait_s(not_before_ms, now_ms(), delays_s[tp.topic])
                    queue.append(_Waiting(record.offset, due, hop, record.headers, time.time_ns()))
            if not announced and consumer.assignment():
                announced = True
                ready()
            for tp in consumer.assignment():
                full = len(waiting.get(tp, ())) >= _BUFFER_RECORDS
                (consumer.pause if full else consumer.resume)(tp)
            # 2.
            for tp, queue in waiting.items():
                if (offset := _return_due(producer, settings, remembered, tp, queue, hops)) is not None:
                    positions.returned[tp] = offset
            # 3.
            positions.commit()
    finally:
        watchdog.stop()
        consumer.close()
        producer.close(timeout=5)
        remembered.stop()


def _return_due(
    producer: Any, settings: Settings, remembered: Remembered, tp: Any, queue: deque[_Waiting], hops: Hops | None
) -> int | None:
    """Produces the cases at the head of a partition whose time has come; returns the offset behind them.

    All wait equally long on one topic, so the head is the first to be due. None where nothing was due or confirmed.
    """
    now, sent = time.monotonic(), []
    for one in queue:
        if one.due > now:
            break
        case, topic = msgspec.structs.replace(one.hop.case, not_before_ms=0), settings.topic(one.hop.topic)
        if remembered.covers(case):
            case, topic = bare_case(case, "intake", now_ms()), settings.topic(OUTCOMES)
        headers = carried(one.headers)
        relay = hops.give_back(case, topic, tp, one) if hops is not None else None
        if relay is not None:
            case, headers = relay.case, relay.headers
        future = producer.send(topic, key=case.case_id.encode(), value=encode_case(case), headers=headers)
        sent.append((one.offset, future if relay is None else relay.sent(future)))
    if not sent:
        return None
    try:
        producer.flush()
        for _, future in sent:
            future.get(timeout=30)
    except KafkaError as error:
        log.warning("retries: %s not confirmed (%s); tried again", tp.topic, type(error).__name__)
        return None
    crash_point("retries.after_produce")
    for _ in sent:
        queue.popleft()
    RETRIES_RETURNED.add(tp.topic, by=len(sent))
    return sent[-1][0] + 1


class _Positions(ConsumerRebalanceListener):  # type: ignore[misc]
    """How far each partition is returned, committed, and read.

    kafka-python keeps the position of a partition that stays with its owner in a rebalance: without a seek, what was
    read before and not yet returned would be passed over. Callbacks come on the client's own thread: they take notes,
    `settle` acts.
    """

    def __init__(self, consumer: Any) -> None:
        self.returned: dict[Any, int] = {}  # the offset behind what this process has produced, through all rebalances
        self._committed: dict[Any, int] = {}
        self._consumer = consumer
        self._new: deque[Any] = deque()

    def on_partitions_revoked(self, revoked: Collection[Any]) -> None:
        """Nothing to do: a partition that does not come back leaves the assignment."""

    def on_partitions_assigned(self, assigned: Collection[Any]) -> None:
        """Notes them."""
        self._new.extend(assigned)

    def settle(self) -> set[Any]:
        """Seeks what was assigned since the last time to where it goes on; what was read of it before is to be dropped.

        That is its commit, or behind what this process has returned and could not commit. A partition whose commit
        cannot be asked for now is returned again the next time.
        """
        fresh = set(self._new)
        while self._new:
            tp = self._new[0]
            fresh.add(tp)
            try:
                if tp in self._consumer.assignment():
                    committed = self._consumer.committed(tp)
                    start = self._consumer.beginning_offsets([tp])[tp] if committed is None else committed
                    self._committed[tp] = start
                    self._consumer.seek(tp, max(start, self.returned.get(tp, 0)))
            except KafkaError as error:
                log.warning("retries: no position of %s[%d] yet (%s)", tp.topic, tp.partition, type(error).__name__)
                break
            self._new.popleft()
        return fresh

    def commit(self) -> None:
        """Commits what was returned of the partitions that are ours and settled."""
        mine = self._consumer.assignment() - set(self._new)
        behind = {tp: at for tp, at in self.returned.items() if tp in mine and at > self._committed.get(tp, -1)}
        if not behind:
            return
        try:
            self._consumer.commit({tp: OffsetAndMetadata(at, "", -1) for tp, at in behind.items()})
            self._committed |= behind
        except KafkaError as error:
            log.debug("retries: not committed (%s); tried again", type(error).__name__)
