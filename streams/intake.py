"""Intake: reads the product's log topics and admits each record as a case, or says why not.

A plain kafka-python loop, `goldstream intake`. It acknowledges by position: what a poll returned is
committed once every successor is confirmed by the broker.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kafka.errors import KafkaError, MessageSizeTooLargeError

from schemas.case import Case, Source, encode_case
from schemas.commands import read_pause
from schemas.errors import RegistryDown, SettingsError
from schemas.faults import crash_point
from schemas.settings import Settings
from schemas.topics import COMMANDS, OUTCOMES, PROMPTS
from streams.admission.admit import Admission, refused
from streams.admission.near_duplicates import NearDuplicates
from streams.admission.quota import Quotas
from streams.clients import client_name, make_consumer, make_producer, subscribe
from streams.flow import now_ms
from streams.follow import Follower
from streams.forgetting.following import Remembered
from streams.measuring import count_admitted
from streams.positions import Positions
from streams.topics import cluster_id
from streams.tracing import trace_hops
from streams.watchdog import Membership, Watchdog

if TYPE_CHECKING:
    from streams.tracing.hops import Hops

log = logging.getLogger(__name__)

_POLL_MS = 500  # at most: a record ends it


def run_intake(settings: Settings, stop: threading.Event, ready: Callable[[], None] = lambda: None) -> None:
    """Reads the source topics until `stop` is set.

    1. poll
    2. admit each record, leave nothing of what is forgotten, and note what was decided by the records before it
    3. produce its case to gs.prompts, or its outcome to gs.outcomes, and wait until the broker has confirmed them all
    4. commit the positions, and the daily counts with them
    A failure between 2 and 4 reads the same records again: same records, same identities, same decisions. A schema
    registry that is down does too: the batch is given back and partitions are held, until it answers.
    """
    topics = settings.source_topics()
    if not topics:
        raise SettingsError("no task names a log topic to read; add [tasks.NAME] with topics to goldstream.toml.")
    cluster = cluster_id(settings)
    admission, near = Admission(settings), NearDuplicates(settings)
    hops = trace_hops(settings, "intake")
    paused = threading.Event()
    follower = Follower(settings, COMMANDS, lambda key, value: _apply_pause(key, value, paused)).start()
    remembered = Remembered(settings).start()
    follower.wait_ready()
    remembered.wait_ready()
    producer = make_producer(settings, "intake")
    consumer = make_consumer(
        settings,
        "intake",
        auto_offset_reset="none",  # positions are always set by us, see streams.positions
        max_poll_records=settings.intake.poll_records,
        session_timeout_ms=10_000,  # a killed one is replaced soon; the client's own 45 s would be an outage
        heartbeat_interval_ms=3_000,
        max_poll_interval_ms=600_000,
    )
    watchdog = Watchdog(settings, [Membership(settings.topic("intake"), client_name("intake"), topics)]).start()
    try:
        positions = Positions(consumer, settings)
        subscribe(consumer, topics, positions)
        announced = False
        outage = _Outage()
        while not stop.is_set():
            watchdog.check()
            # 1.
            records = consumer.poll(timeout_ms=_POLL_MS)
            if positions.settle():
                near.load(positions.assigned())
                if not announced:
                    announced = True
                    ready()
            _hold(consumer, paused.is_set() or outage.lasts(), positions)
            if not records:
                positions.pass_markers()
                continue
            # 2.
            batch = [record for part in records.values() for record in part]
            try:
                cases = _admit_all(batch, cluster, admission)
            except RegistryDown as error:
                outage.note(error)
                for tp, part in records.items():
                    consumer.seek(tp, part[0].offset)
                continue
            outage.over()
            cases = [remembered.left_of(case, "intake", now_ms()) for case in cases]
            try:
                cases = decide(cases, near, positions.quotas)
            except KafkaError as error:
                log.warning("intake: a daily quota could not be asked (%s); the records are read again", error)
                positions.begin_again()
                continue
            near.write()
            crash_point("intake.after_decide")
            # 3.
            _produce_all(producer, cases, settings, stop, hops)
            if stop.is_set():
                return  # not all confirmed: nothing is committed, the batch is read again
            count_admitted(cases)
            # 4.
            crash_point("intake.before_commit")
            try:
                positions.commit({tp: part[-1].offset + 1 for tp, part in records.items()})
            except KafkaError as error:
                log.warning("intake: positions not committed (%s); these records may be read again", error)
    finally:
        watchdog.stop()
        consumer.close()
        producer.close(timeout=5)
        follower.stop()
        remembered.stop()


def decide(cases: list[Case], near: NearDuplicates, quotas: Quotas) -> list[Case]:
    """Returns the cases as they are produced: near duplicates and what is beyond a quota are dropped.

    A near duplicate takes nothing of the quota, and what the quota refuses makes no later prompt a duplicate. Raises
    KafkaError where a quota cannot be asked.
    """
    if not near and not quotas:
        return cases
    decided, now = [], now_ms()
    for case in cases:
        if case.outcome is None:
            if near.is_duplicate(case):
                case = refused(case, "near_duplicate")
            elif not quotas.take(case, now):
                case = refused(case, "over_quota")
            else:
                near.admitted(case)
        decided.append(case)
    return decided


def _admit_all(batch: list[Any], cluster: str, admission: Admission) -> list[Case]:
    cases = []
    for record in batch:
        source = Source(
            cluster=cluster,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            timestamp_ms=max(record.timestamp or 0, 0),
        )
        crash_point("intake.after_consume")
        cases += admission.admit(record.value, record.headers, source)
    return cases


def _produce_all(
    producer: Any, waiting: list[Case], settings: Settings, stop: threading.Event, hops: Hops | None = None
) -> None:
    """Produces cases and returns once all are confirmed, or `stop` is set."""
    pause_s = 0.2
    while waiting and not stop.is_set():
        sent = [(case, _send(producer, case, settings, hops)) for case in waiting]
        producer.flush()
        waiting = [case for case, future in sent if not _confirmed(future, case)]
        crash_point("intake.after_produce")
        if waiting:
            log.warning("intake: %d records not confirmed by the broker, again in %.1f s", len(waiting), pause_s)
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, 5.0)


def _send(producer: Any, case: Case, settings: Settings, hops: Hops | None) -> Any:
    topic = settings.topic(PROMPTS if case.outcome is None else OUTCOMES)
    relay = hops.admit(case, topic) if hops is not None else None
    try:
        if relay is None:
            return producer.send(topic, key=case.case_id.encode(), value=encode_case(case))
        value = encode_case(relay.case)
        return relay.sent(producer.send(topic, key=case.case_id.encode(), value=value, headers=relay.headers))
    except MessageSizeTooLargeError:
        raise  # admit has bounded the size; a smaller limit on the topic is a set-up error, not a record's
    except KafkaError as error:
        return error


def _confirmed(future: Any, case: Case) -> bool:
    if isinstance(future, KafkaError):
        return False
    try:
        future.get(timeout=30)
        return True
    except KafkaError as error:
        log.warning("intake: case %s not confirmed: %s", case.case_id, type(error).__name__)
        return False


def _apply_pause(key: bytes, value: bytes, paused: threading.Event) -> None:
    pause = read_pause(key, value)
    if pause is not None and pause.stage == "intake":
        if pause.paused:
            paused.set()
        else:
            paused.clear()


def _hold(consumer: Any, paused: bool, positions: Positions) -> None:
    """Keeps partitions paused while an operator wants it; the group membership stays alive through poll."""
    if positions.unsettled:
        return
    held = set(consumer.paused())
    if paused:
        consumer.pause(*(set(consumer.assignment()) - held))
    elif held:
        consumer.resume(*held)


class _Outage:
    """How long to wait before what could not be read is tried again: 1 s, doubling to 30."""

    def __init__(self) -> None:
        self._pause_s = 0.0
        self._until = 0.0

    def lasts(self) -> bool:
        """Whether to wait still."""
        return time.monotonic() < self._until

    def note(self, error: RegistryDown) -> None:
        """Notes one more failure."""
        self._pause_s = min(max(2 * self._pause_s, 1.0), 30.0)
        self._until = time.monotonic() + self._pause_s
        log.warning("intake holds and tries again in %.0f s: %s", self._pause_s, error)

    def over(self) -> None:
        """Notes that all could be read."""
        self._pause_s = 0.0
