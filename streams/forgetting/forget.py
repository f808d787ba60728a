"""Forgetting somebody: the record on gs.forgotten, the rows that are gone from then on, and taking it back.

`goldstream forget` calls it. The topic is written first and the file after it; whatever is killed between the two, the
sink's next start, or the next `forget`, brings the file up to what the topic says.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from kafka import TopicPartition
from kafka.errors import KafkaError

from schemas.errors import BrokerError, SettingsError
from schemas.faults import crash_point
from schemas.forgotten import Forgetting, Forgotten, Kind, Place, read_forgotten
from schemas.hashing import keyed_hash
from schemas.settings import Settings
from schemas.topics import FORGOTTEN
from streams.clients import make_producer
from streams.flow import now_ms
from streams.forgetting.following import read_record
from streams.forgetting.rows import places_of, remember
from streams.gold import open_gold
from streams.lookup import make_reader, read_ranges


class Row(NamedTuple):
    """One row that a forgetting means."""

    case_id: str
    task: str
    split: str
    outcome: str
    epoch: int
    strategy_id: str
    source: tuple[str, int, int]  # topic, partition, offset
    source_ms: int
    place: Place


class Done(NamedTuple):
    """What a forgetting did, or would do."""

    record: Forgetting
    was: Forgetting | None  # what was known of the same key before
    rows: list[Row]  # on disk with what must go


def key_of(settings: Settings, kind: Kind, text: str) -> str:
    """Returns the keyed hash that stands for a user, trace, session or case; raises SettingsError for an empty one."""
    if not text:
        raise SettingsError(f"--{kind} is empty; say whom or what to forget, as the product's log names it.")
    return keyed_hash(settings.intake.split_key, kind, text)


def forget(settings: Settings, kind: Kind, text: str, dry_run: bool = False) -> Done:
    """Forgets a user, trace, session or case: what was logged of it, and what ever will be, until it is withdrawn.

    1. read what is known, and bring the file up to it where a kill had kept it from that
    2. produce the record, unless it stands already, and wait for the confirmation
    3. look up the rows and write the file: they are gone from every query

    Can be repeated. With `dry_run` nothing is written. Raises BrokerError where no Kafka answers.
    """
    key = key_of(settings, kind, text)
    # 1.
    known = sync(settings, dry_run)
    was = known.records.get((kind, key))
    record = Forgetting(kind=kind, key=key, at_ms=_after(was))
    if was is not None and not was.until_ms:
        record = was
    rows = affected(settings, record)
    if dry_run:
        return Done(record, was, rows)
    # 2.
    if record is not was:
        _produce(settings, [record])
    crash_point("forget.after_topic")
    # 3.
    remember(settings.gold, [record], settings.intake.split_key)
    return Done(record, was, rows)


def withdraw(settings: Settings, kind: Kind, text: str, dry_run: bool = False) -> Done:
    """Lets what is logged from now on in again; what was logged before stays forgotten.

    Raises SettingsError where nothing of the name is forgotten.
    """
    key = key_of(settings, kind, text)
    was = sync(settings, dry_run).records.get((kind, key))
    if was is None:
        raise SettingsError(f"this {kind} is not forgotten, so there is nothing to withdraw. Is it spelled as logged?")
    record = was if was.until_ms else msgspec.structs.replace(was, until_ms=_after(was))
    if not dry_run and record is not was:
        _produce(settings, [record])
        crash_point("forget.after_topic")
        remember(settings.gold, [record], settings.intake.split_key)
    return Done(record, was, [])


def sync(settings: Settings, dry_run: bool = False) -> Forgotten:
    """Makes topic and file say the same, each completed by the other, and returns what is forgotten."""
    on_topic = read_topic(settings)
    on_file = read_forgotten(settings.gold)
    known = on_topic.joined(on_file.records.values())
    if dry_run:
        return known
    lost = [record for key, record in known.records.items() if on_topic.records.get(key) != record]
    if lost:  # the topic was made anew, or an older backup of it restored
        _produce(settings, lost)
    if known.records != on_file.records:
        remember(settings.gold, list(known.records.values()), settings.intake.split_key)
    return known


def read_topic(settings: Settings) -> Forgotten:
    """Returns what gs.forgotten says now. Raises BrokerError where it cannot be read."""
    topic = settings.topic(FORGOTTEN)
    found: list[Forgetting] = []
    with closing(make_reader(settings)) as reader:
        try:
            partitions = reader.partitions_for_topic(topic)
            if not partitions:
                raise BrokerError(f"topic {topic} does not exist yet. `goldstream topics create` makes it.")
            tps = [TopicPartition(topic, p) for p in sorted(partitions)]
            starts, ends = reader.beginning_offsets(tps), reader.end_offsets(tps)
        except KafkaError as error:
            raise BrokerError(f"{topic} cannot be read: {error!r}. `goldstream doctor`, then try again.") from error
        for message in read_ranges(reader, {tp: (starts[tp], ends[tp]) for tp in tps}):
            record = read_record(message.value)
            if record is not None:
                found.append(record)
    return Forgotten().joined(found)


def affected(settings: Settings, record: Forgetting) -> list[Row]:
    """Returns the rows that one record means and that are on disk with what must go, superseded ones too."""
    places = places_of(settings.gold, Forgotten().joined([record]), settings.intake.split_key)
    return rows_at(settings.gold, places)


def rows_at(gold: Path, places: set[Place]) -> list[Row]:
    """Returns the rows at these places, whoever may have forgotten them."""
    if not places:
        return []
    import pyarrow as pa

    partitions, offsets = zip(*sorted(places), strict=True)
    wanted = pa.table({"partition": pa.array(partitions, pa.int32()), "offset": pa.array(offsets, pa.int64())})
    with open_gold(gold) as connection:
        connection.register("wanted", wanted)
        rows: list[tuple[Any, ...]] = connection.execute(_ROWS).fetchall()
    return [
        Row(case_id, task, split, outcome, epoch, name, (topic, partition, offset), at_ms, (p, o))
        for case_id, task, split, outcome, epoch, name, topic, partition, offset, at_ms, p, o in rows
    ]


def lonely_strategies(settings: Settings, rows: list[Row]) -> list[tuple[str, str]]:
    """Returns (task, id) of the strategies that forgotten rows alone have taught: the library's words rest on them."""
    taught = Counter((row.task, row.strategy_id) for row in rows if row.strategy_id)
    if not taught:
        return []
    gone = {row.case_id for row in rows}
    with open_gold(settings.gold) as connection:
        query = "SELECT DISTINCT task, strategy_id, case_id FROM outcomes WHERE strategy_id IS NOT NULL"
        others = {(task, name) for task, name, case_id in connection.execute(query).fetchall() if case_id not in gone}
    return sorted(taught.keys() - others)


def _produce(settings: Settings, records: list[Forgetting]) -> None:
    producer = make_producer(settings, "forget")
    try:
        topic = settings.topic(FORGOTTEN)
        sent = [producer.send(topic, key=r.name, value=msgspec.json.encode(r)) for r in records]
        producer.flush()
        for future in sent:
            future.get(timeout=30)
    except KafkaError as error:
        raise BrokerError(f"the broker did not confirm it: {error!r}. Run it again; it counts once.") from error
    finally:
        producer.close(timeout=5)


def _after(was: Forgetting | None) -> int:
    """Returns the time now, and in any case one after that of the record it replaces: clocks differ."""
    return max(now_ms(), 1 + max(was.at_ms, was.until_ms) if was is not None else 0)


_ROWS = """
SELECT case_id, task, split, outcome, epoch, coalesce(strategy_id, ''), source_topic, source_partition, source_offset,
       coalesce(epoch_ms(source_at), 0), kafka_partition, kafka_offset
FROM stored JOIN wanted ON kafka_partition = wanted."partition" AND kafka_offset = wanted."offset"
ORDER BY kafka_partition, kafka_offset
"""
