"""Intake: reads the product's log topics and admits each record as a case, or says why not.

A plain kafka-python loop, `goldstream intake`. It acknowledges by position: what a poll returned is
committed once every successor is confirmed by the broker.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any

import msgspec
from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.errors import KafkaError, MessageSizeTooLargeError
from kafka.structs import OffsetAndMetadata

from schemas.case import DROPPED_REASONS, Case, OutcomeKind, Source, Split, coordinates_id, encode_case, producer_id
from schemas.commands import Pause
from schemas.errors import RecordError, RegistryDown, SettingsError
from schemas.faults import crash_point
from schemas.settings import Settings
from schemas.topics import COMMANDS, OUTCOMES, PROMPTS
from streams.clients import client_name, make_consumer, make_producer, subscribe
from streams.follow import Follower
from streams.reader import Headers, Reader
from streams.records import Record
from streams.stage import now_ms
from streams.topics import cluster_id
from streams.watchdog import Membership, Watchdog

log = logging.getLogger(__name__)


def admit(value: bytes | None, headers: Headers, source: Source, settings: Settings, reader: Reader) -> list[Case]:
    """Returns the cases a source record becomes, at least one; one that is not admitted has its outcome set.

    What is refused enters no topic of ours with its text: its case holds coordinates, hash and reason. Raises
    RegistryDown where the record cannot be read now.
    """
    task = settings.task_of_topic(source.topic)
    try:
        if task is None:
            raise RecordError("no_task", f"no task lists {source.topic} in its topics")
        if value is not None and len(value) > settings.intake.max_record_bytes:
            limit = settings.intake.max_record_bytes
            raise RecordError("too_large", f"{len(value)} bytes; intake.max_record_bytes is {limit}")
    except RecordError as error:
        return [_refused(value, source, task or "", error)]
    found = reader.read(value, headers, source.topic)
    cases = []
    for one in found:
        place = msgspec.structs.replace(source, index=one.index, count=len(found))
        if isinstance(one.record, RecordError):
            cases.append(_refused(value, place, task, one.record))
        else:
            cases.append(_admit_one(value, one.record, place, task, settings))
    return cases


def _admit_one(value: bytes | None, record: Record, source: Source, task: str, settings: Settings) -> Case:
    case_id = producer_id(record.event_id) if record.event_id else coordinates_id(source)
    key = settings.intake.split_key
    if share_of(key, "sample", case_id) >= settings.tasks[task].sample:
        return _refused(value, source, task, RecordError("unsampled", ""), case_id)
    body = (
        (record.messages, record.answer, record.tool_calls) if record.tool_calls else (record.messages, record.answer)
    )
    case = Case(
        case_id=case_id,
        task=task,
        split=split_of(settings, conversation(record)),
        pipeline=settings.pipeline_version(task),
        source=source,
        body_sha256=hashlib.sha256(msgspec.json.encode(body)).hexdigest(),
        trace_id=record.trace_id,
        session=keyed_hash(key, "session", conversation(record)),
        user=keyed_hash(key, "user", record.user) if record.user else "",
        workload=record.workload,
        created_ms=now_ms(),
        messages=record.messages,
        production_answer=record.answer,
        production_model=record.model,
        shape=record.shape,
        event_ms=record.ts_ms,
        tools=record.tools,
        params=record.params,
        production_tool_calls=record.tool_calls,
        production_finish=record.finish_reason,
        production_prompt_tokens=record.prompt_tokens,
        production_completion_tokens=record.completion_tokens,
        production_cost_usd=record.cost_usd,
        feedback=record.feedback,
    )
    size, limit = len(encode_case(case)), settings.kafka.max_message_bytes
    if size > limit:
        detail = f"{size} bytes as a case; kafka.max_message_bytes is {limit}"
        return _refused(value, source, task, RecordError("too_large", detail), case_id)
    return case


def conversation(record: Record) -> str:
    """Returns what later turns and near copies of a conversation share: its session, or its first user turn."""
    return record.session_id or next(m.text() for m in record.messages if m.role == "user")


def split_of(settings: Settings, conversation: str) -> Split:
    """Returns the split of a conversation, by a keyed hash: the same today, tomorrow and on every machine."""
    in_holdout = share_of(settings.intake.split_key, "split", conversation) < settings.intake.holdout_share
    return "holdout" if in_holdout else "train"


def share_of(key: str, purpose: str, text: str) -> float:
    """Returns a number in [0, 1) that depends on nothing but its arguments, uniform over texts."""
    return int(keyed_hash(key, purpose, text)[:13], 16) / 16**13


def keyed_hash(key: str, purpose: str, text: str) -> str:
    """Returns 32 hexadecimal digits of HMAC-SHA-256 over purpose and text."""
    message = f"{purpose}\0{text}".encode("utf-8", "surrogatepass")
    return hmac.new(key.encode(), message, hashlib.sha256).hexdigest()[:32]


def run_intake(settings: Settings, stop: threading.Event, ready: Callable[[], None] = lambda: None) -> None:
    """Reads the source topics until `stop` is set.

    1. poll
    2. admit each record and produce its case to gs.prompts, or its outcome to gs.outcomes
    3. wait until the broker has confirmed them all
    4. commit the positions
    A failure between 2 and 4 reads the same records again: same records, same identities. A schema registry that
    is down does too: the batch is given back and partitions are held, until it answers.
    """
    topics = settings.source_topics()
    if not topics:
        raise SettingsError("no task names a log topic to read; add [tasks.NAME] with topics to goldstream.toml.")
    cluster = cluster_id(settings)
    reader = Reader(settings)
    paused = threading.Event()
    follower = Follower(settings, COMMANDS, lambda key, value: _apply_pause(value, paused)).start()
    follower.wait_ready()
    producer = make_producer(settings, "intake")
    consumer = make_consumer(
        settings,
        "intake",
        auto_offset_reset="none",  # positions are always set by us, see _Positions
        max_poll_records=settings.intake.poll_records,
        session_timeout_ms=10_000,  # a killed one is replaced soon; the client's own 45 s would be an outage
        heartbeat_interval_ms=3_000,
        max_poll_interval_ms=600_000,
    )
    watchdog = Watchdog(settings, [Membership(settings.topic("intake"), client_name("intake"), topics)]).start()
    try:
        positions = _Positions(consumer, settings)
        subscribe(consumer, topics, positions)
        announced = False
        outage = _Outage()
        while not stop.is_set():
            watchdog.check()
            # 1.
            records = consumer.poll(timeout_ms=200)
            if positions.settle() and not announced:
                announced = True
                ready()
            _hold(consumer, paused.is_set() or outage.lasts(), positions)
            if not records:
                positions.pass_markers()
                continue
            # 2. 3.
            batch = [record for part in records.values() for record in part]
            try:
                cases = _admit_all(batch, settings, cluster, reader)
            except RegistryDown as error:
                outage.note(error)
                for tp, part in records.items():
                    consumer.seek(tp, part[0].offset)
                continue
            outage.over()
            _produce_all(producer, cases, settings, stop)
            if stop.is_set():
                return  # not all confirmed: nothing is committed, the batch is read again
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


def _admit_all(batch: list[Any], settings: Settings, cluster: str, reader: Reader) -> list[Case]:
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
        cases += admit(record.value, record.headers, source, settings, reader)
    return cases


def _produce_all(producer: Any, waiting: list[Case], settings: Settings, stop: threading.Event) -> None:
    """Produces cases and returns once all are confirmed, or `stop` is set."""
    pause_s = 0.2
    while waiting and not stop.is_set():
        sent = [(case, _send(producer, case, settings)) for case in waiting]
        producer.flush()
        waiting = [case for case, future in sent if not _confirmed(future, case)]
        crash_point("intake.after_produce")
        if waiting:
            log.warning("intake: %d records not confirmed by the broker, again in %.1f s", len(waiting), pause_s)
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, 5.0)


def _send(producer: Any, case: Case, settings: Settings) -> Any:
    topic = settings.topic(PROMPTS if case.outcome is None else OUTCOMES)
    try:
        return producer.send(topic, key=case.case_id.encode(), value=encode_case(case))
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


def _refused(value: bytes | None, source: Source, task: str, error: RecordError, case_id: str = "") -> Case:
    """Returns the ended case of what is not admitted; without an id of its own, for another record may have that."""
    case = Case(
        case_id=case_id or coordinates_id(source),
        task=task,
        split="train",
        source=source,
        body_sha256=hashlib.sha256(value or b"").hexdigest(),
        created_ms=now_ms(),
    )
    kind: OutcomeKind = "dropped" if error.reason in DROPPED_REASONS else "dead"
    return case.ended(kind, "intake", now_ms(), error.reason, error.detail)


def _apply_pause(value: bytes, paused: threading.Event) -> None:
    pause = msgspec.json.decode(value, type=Pause)
    if pause.stage == "intake":
        if pause.paused:
            paused.set()
        else:
            paused.clear()


def _hold(consumer: Any, paused: bool, positions: _Positions) -> None:
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


class _Positions(ConsumerRebalanceListener):  # type: ignore[misc]
    """Where each partition is read from, and how far it is committed.

    A partition without a committed position gets the one the settings ask for, committed at once: else a crash
    before the first record would move "latest" further on, past records. The commit's metadata keeps when and where
    reading began: for partitions that are added to the topic later, and for the audit.
    Rebalance callbacks come on the client's own thread and must not block it: they take notes, `settle` acts.
    """

    def __init__(self, consumer: Any, settings: Settings) -> None:
        self._consumer = consumer
        self._start_at = settings.intake.start_at
        self._began: dict[Any, str] = {}  # partition -> its note, see `began`
        self._committed: dict[Any, int] = {}
        self._new: deque[Any] = deque()

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

    def settle(self) -> bool:
        """Seeks new partitions to their positions and lets them flow; returns whether any were new."""
        settled = False
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
        self._consumer.commit(
            {tp: OffsetAndMetadata(offset, self._began.get(tp, ""), -1) for tp, offset in offsets.items()}
        )
        self._committed |= offsets

    def pass_markers(self) -> None:
        """Commits past trailing offsets without records, such as a transaction's end: lag would stay at 1 for ever.

        To be called after a poll that gave nothing, so that all before the positions is produced.
        """
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
        committed = self._consumer.committed(tp, metadata=True)
        if committed is not None:
            self._began[tp] = committed.metadata
            self._committed[tp] = int(committed.offset)
            return self._committed[tp]
        offset, began_ms = self._first(tp)
        self._began[tp] = f"{began_ms}@{offset}"
        self.commit({tp: offset})
        log.info("intake starts %s[%d] at offset %d", tp.topic, tp.partition, offset)
        return offset

    def _first(self, tp: Any) -> tuple[int, int]:
        """Returns (first offset, time in ms at which reading of the topic began).

        The offset is the one the settings ask for; where they say "latest" and the topic is already being read,
        the partition was added since and is read from that time on.
        """
        now = now_ms()
        if self._start_at == "earliest":
            return int(self._consumer.beginning_offsets([tp])[tp]), now
        if self._start_at == "latest":
            began_ms = self._began_elsewhere(tp)
            if began_ms is None:
                return int(self._consumer.end_offsets([tp])[tp]), now
            return self._since(tp, began_ms), began_ms
        since = datetime.fromisoformat(self._start_at)
        since_ms = int((since if since.tzinfo else since.replace(tzinfo=UTC)).timestamp() * 1000)
        return self._since(tp, since_ms), now

    def _since(self, tp: Any, since_ms: int) -> int:
        found = self._consumer.offsets_for_times({tp: since_ms}).get(tp)
        return int(found.offset if found else self._consumer.end_offsets([tp])[tp])

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


def began(metadata: str) -> tuple[int, int]:
    """Reads what intake notes beside a position, "<ms>@<offset>": when reading of the topic began, and where.

    Returns (0, 0), the beginning, for a note it did not write.
    """
    ms, _, offset = metadata.partition("@")
    return (int(ms), int(offset)) if ms.isdigit() and offset.isdigit() else (0, 0)
