"""`goldstream send`: puts logged records from files onto a topic, for products that do not log to Kafka yet.

Records go out in transactions. How far the files were read is an offset that the same transaction commits, for a
consumer group that nobody reads with: a send that was killed goes on behind the last record that was committed,
none twice and none left out, on whatever machine. Whoever reads the topic must read committed records only, as
intake does. A second send of the same files fences the first.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaError, MessageSizeTooLargeError, ProducerFencedError
from kafka.structs import OffsetAndMetadata

from schemas.errors import BrokerError, SettingsError
from schemas.faults import crash_point
from schemas.kafka import connect
from schemas.settings import Settings
from streams.clients import client_name, make_consumer
from streams.recorded import Found, Place, read_from

BATCH_RECORDS, BATCH_BYTES = 1000, 8_000_000
LONGEST_S = 60.0  # of a transaction, after which the broker ends it


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """What a send came to."""

    records: int = 0  # sent now
    earlier: int = 0  # sent by earlier calls
    not_json: int = 0  # of those sent now; intake refuses each with its reason
    too_large: tuple[str, ...] = ()  # file and record number of what no topic takes; left out
    finished: bool = True  # False where it was stopped


def send_files(
    settings: Settings,
    path: Path,
    topic: str,
    *,
    restart: bool = False,
    rate: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, Place], None] = lambda records, place: None,
) -> Sent:
    """Sends the records of a file or folder that were not sent yet; `rate` bounds them per second, 0 does not.

    1. read where the last send of the same path to the same topic ended;
    2. take a batch, send it, commit its end with it;
    3. tell `progress` how many records are out in all.

    Raises SettingsError for a path without records or one that changed, RecordError for a file that cannot be read,
    BrokerError for a topic that does not exist, a broker that is away, or another send that took over.
    """
    name = send_name(path, topic)
    where = TopicPartition(topic, 0)
    group = settings.topic(name)
    try:
        producer = connect(
            KafkaProducer,
            settings,
            client_id=client_name("send"),
            acks="all",
            linger_ms=20,
            transactional_id=group,
            transaction_timeout_ms=int(LONGEST_S * 1000),
            max_request_size=settings.intake.max_record_bytes + 100_000,
        )
    except KafkaError as error:
        raise BrokerError(f"nothing was sent: {type(error).__name__}.") from error
    done, earlier, not_json, too_large = 0, 0, 0, []
    began = time.monotonic()
    try:
        producer.init_transactions()  # before the place is read: a send at work is fenced by now
        start, earlier = (Place(), 0) if restart else _last_place(settings, group, where)  # 1
        for batch in _batches(read_from(path, start), settings.intake.max_record_bytes):  # 2
            fitting = [one for one in batch if len(one.value) <= settings.intake.max_record_bytes]
            too_large += [f"{b.place.file}, record {b.place.records}" for b in batch if b not in fitting]
            _send(producer, topic, fitting, group, where, earlier + done + len(fitting), batch[-1].place)
            done += len(fitting)
            not_json += sum(not _is_object(one.value) for one in fitting)
            progress(earlier + done, batch[-1].place)  # 3
            while rate and done / rate > time.monotonic() - began and not stop():
                time.sleep(min(0.1, done / rate - (time.monotonic() - began)))
            if stop():
                return _sent(done, earlier, not_json, too_large, finished=False)
        return _sent(done, earlier, not_json, too_large)
    except ProducerFencedError as error:
        raise BrokerError(
            f"another send of {path} to {topic} has taken over; this one stopped after {done} records, none is lost."
        ) from error
    except KafkaError as error:
        raise BrokerError(
            f"{type(error).__name__} after {done} records. The same command goes on behind them once Kafka answers."
        ) from error
    finally:
        producer.close(timeout=5)


def send_name(path: Path, topic: str) -> str:
    """Returns the short name under which the progress of a path to a topic is kept."""
    return "send." + hashlib.sha256(f"{path.resolve()}\0{topic}".encode()).hexdigest()[:16]


def check_topic(settings: Settings, topic: str) -> None:
    """Raises BrokerError where a topic does not exist, SettingsError where it is one of ours."""
    if settings.kafka.topic_prefix and topic.startswith(settings.kafka.topic_prefix):
        raise SettingsError(f"{topic} has our own prefix; records of a product go to a topic of the product's.")
    consumer = make_consumer(settings)
    try:
        if not consumer.partitions_for_topic(topic):
            raise BrokerError(f"topic {topic} does not exist. Create it, or let --create make it.")
    finally:
        consumer.close()


def _sent(done: int, earlier: int, not_json: int, too_large: list[str], *, finished: bool = True) -> Sent:
    return Sent(records=done, earlier=earlier, not_json=not_json, too_large=tuple(too_large), finished=finished)


def _last_place(settings: Settings, group: str, where: TopicPartition) -> tuple[Place, int]:
    """Returns where the last committed batch ended, and how many records are out."""
    consumer = make_consumer(settings, None, group_id=group)
    try:
        committed = consumer.committed(where, metadata=True)
    finally:
        consumer.close()
    if committed is None or not committed.metadata:
        return Place(), 0
    return msgspec.json.decode(committed.metadata, type=Place), int(committed.offset)


def _batches(found: Iterator[Found], largest: int) -> Iterator[list[Found]]:
    batch: list[Found] = []
    size = 0
    for one in found:
        batch.append(one)
        size += min(len(one.value), largest)
        if len(batch) >= BATCH_RECORDS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _send(
    producer: Any, topic: str, batch: list[Found], group: str, where: TopicPartition, total: int, place: Place
) -> None:
    producer.begin_transaction()
    try:
        futures = [producer.send(topic, value=one.value) for one in batch]
        producer.flush()
        for future in futures:
            future.get(timeout=LONGEST_S)
        crash_point("send.before_commit")
        kept = msgspec.json.encode(place).decode()
        producer.send_offsets_to_transaction({where: OffsetAndMetadata(total, kept, -1)}, group)
        producer.commit_transaction()
    except MessageSizeTooLargeError as error:
        producer.abort_transaction()
        raise BrokerError(
            f"{topic} takes no record as large as one of {place.file}. Raise the topic's max.message.bytes, or lower "
            "intake.max_record_bytes so that such records are left out and named."
        ) from error
    crash_point("send.after_commit")


def _is_object(value: bytes) -> bool:
    if value[:1] != b"{":
        return False
    try:
        msgspec.json.decode(value, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
