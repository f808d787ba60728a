"""The balance of the books: every source record that intake has read is an outcome, or still on its way.

`goldstream audit` runs at any time, beside everything else. It compares three things by source coordinates: the
source topics, what the stages have not finished, and the rows of the gold set. A message that holds several calls is
as many records: each case tells how many there were.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import msgspec
import numpy as np
from kafka import TopicPartition
from kafka.errors import KafkaError, RetriableError
from numpy.typing import NDArray

from schemas.errors import BrokerError
from schemas.gold import current_watermark
from schemas.settings import Settings
from schemas.tables import print_table
from schemas.topics import OUTCOMES, STAGE_INPUT
from streams.books import Books, Glance, Place, Waiting
from streams.lag import once_loaded
from streams.lookup import Range, make_reader, read_ranges, read_scattered
from streams.positions import began
from streams.topics import cluster_id, connect_admin

# So near to where intake began, a record's own clock cannot tell whether intake began before or after it.
_COORDINATOR_S = 20.0
_LISTED = 1000  # missing and double coordinates named one by one; beyond, they are only counted


class PartitionBalance(msgspec.Struct, kw_only=True):
    """One source partition. records = ended, all kinds + in_flight + not_landed + missing."""

    topic: str
    partition: int
    committed: int  # intake has read up to here; -1 where it never did
    unread: int  # offsets
    records: int = 0
    ended: dict[str, int] = {}  # by outcome kind, of the latest epoch
    in_flight: int = 0
    not_landed: int = 0  # in gs.outcomes, not yet in a file
    missing: int = 0
    uncomparable: int = 0  # offsets without an outcome that retention has deleted: nobody knows if they were records
    deleted_unread: int = 0  # offsets that retention deleted before intake read them


class Audit(msgspec.Struct, kw_only=True):
    """What `goldstream audit` found. `missing` and `double` name the first thousand of each."""

    balanced: bool
    partitions: list[PartitionBalance]
    waiting: list[Waiting]
    missing_records: int
    missing: list[Place]
    double_rows: int
    double: list[dict[str, Any]]
    notes: list[str]


def audit(settings: Settings, task: str | None = None, again_after_s: float = 2.0) -> Audit:
    """Returns the balance of all source topics, or of one task's.

    What is missing is looked for a second time before it is said to be. Raises BrokerError, and GoldError where
    the chain of landing files is damaged.
    """
    topics = list(settings.task(task).topics) if task else None
    try:
        with closing(connect_admin(settings)) as admin, closing(make_reader(settings)) as reader:
            cluster = cluster_id(settings)
            found, missing = _take_stock(settings, topics, cluster, admin, reader)
            if missing:
                time.sleep(again_after_s)
                suspects = Counter(missing)
                found, missing = _take_stock(settings, topics, cluster, admin, reader)
                missing = sorted((suspects & Counter(missing)).elements())
    except KafkaError as error:
        raise BrokerError(f"the topics could not be read: {error!r}. `goldstream doctor`, then try again.") from error
    for balance in found.partitions:
        balance.missing = sum(1 for p in missing if (p.topic, p.partition) == (balance.topic, balance.partition))
        balance.records += balance.missing
    found.missing_records, found.missing = len(missing), missing[:_LISTED]
    found.balanced = not missing and not found.double_rows
    return found


def print_audit(found: Audit) -> None:
    """Prints a balance as tables, and in the last line what it comes to."""
    kinds = sorted({kind for balance in found.partitions for kind in balance.ended})
    columns = ["topic", "partition", "records", *kinds, "in flight", "not landed", "missing", "not yet read"]
    rows = []
    for b in found.partitions:
        by_kind = [b.ended.get(kind, 0) for kind in kinds]
        rows.append([b.topic, b.partition, b.records, *by_kind, b.in_flight, b.not_landed, b.missing, b.unread])
    print_table(columns, rows, as_json=False, title="Source records")
    if found.waiting:
        print_table(["source", "waiting on", "cases"], found.waiting, as_json=False, title="In flight")
    if found.missing:
        print_table(Place._fields, found.missing[:20], as_json=False, title="MISSING (the first 20)")
    if found.double:
        double = [[one["what"], {k: v for k, v in one.items() if k != "what"}] for one in found.double[:20]]
        print_table(["double", "which"], double, as_json=False, title="DOUBLE (the first 20)")
    for b in found.partitions:
        where = f"{b.topic}[{b.partition}]"
        if b.uncomparable:
            print(f"{where}: retention has deleted {b.uncomparable} offsets that cannot be compared any more")
        if b.deleted_unread:
            print(f"{where}: retention has deleted {b.deleted_unread} offsets before intake read them")
    for note in found.notes:
        print(note)
    records, ended = sum(b.records for b in found.partitions), sum(sum(b.ended.values()) for b in found.partitions)
    moving, unlanded = sum(b.in_flight for b in found.partitions), sum(b.not_landed for b in found.partitions)
    print(
        f"{'balanced' if found.balanced else 'NOT BALANCED'}: {records} records = {ended} ended + {moving} in flight + "
        f"{unlanded} not landed + {found.missing_records} missing; {found.double_rows} double"
    )


def moving_cases(settings: Settings, admin: Any, reader: Any) -> Iterator[tuple[Glance | None, str]]:
    """Yields every case that is not finished, with the short name of our topic it lies on; None for what is no case.

    A stage's topic is read from the position its group has committed, gs.outcomes from the end of the landing
    files. All positions are noted before the first end is asked for. So a case is found however it moves
    meanwhile, also back to the judge or through a retry: it lay behind some position when the last was noted, and
    a topic of ours still holds it there. One that moves is found twice, one that is finished meanwhile too.
    """
    tips = current_watermark(settings.gold)
    positions: dict[Any, int] = {}
    names: dict[str, str] = {}  # full name -> short name
    retry = re.compile(re.escape(settings.topic("retry.")) + r"\d+s")
    inputs = dict(STAGE_INPUT) | {"retries": "", "sink": OUTCOMES}
    for group, short in inputs.items():
        # Retry topics that are no longer in the settings may still hold cases.
        full = [settings.topic(short)] if short else sorted(t for t in reader.topics() if retry.fullmatch(t))
        committed = _committed(admin, settings.topic(group)) if group != "sink" else {}
        for topic in full:
            names[topic] = topic.removeprefix(settings.kafka.topic_prefix)
            for partition in sorted(reader.partitions_for_topic(topic) or ()):
                tp = TopicPartition(topic, partition)
                position = tips.get(partition, 0) if group == "sink" else committed[tp].offset if tp in committed else 0
                positions[tp] = max(position, 0)
    starts, ends = reader.beginning_offsets(list(positions)), reader.end_offsets(list(positions))
    decoder = msgspec.json.Decoder(Glance)
    ranges = {tp: (max(position, starts[tp]), ends[tp]) for tp, position in positions.items()}
    for record in read_ranges(reader, ranges):
        try:
            yield decoder.decode(record.value or b""), names[record.topic]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            yield None, names[record.topic]


def gaps(known: NDArray[np.int64], start: int, end: int) -> list[Range]:
    """Returns the ranges of start <= offset < end that are not in `known`, which is sorted and has no repeats."""
    if start >= end:
        return []
    inside = known[(known >= start) & (known < end)]
    edges = np.concatenate(([start - 1], inside, [end]))
    (before,) = np.nonzero(np.diff(edges) > 1)
    return [(int(edges[i]) + 1, int(edges[i + 1])) for i in before]


def _take_stock(
    settings: Settings, topics: list[str] | None, cluster: str, admin: Any, reader: Any
) -> tuple[Audit, list[Place]]:
    """Returns the balance without its missing records, and these.

    1. note how far intake is
    2. read what the stages have not finished
    3. read the rows of the gold set
    4. ask the source topics for the records at unmatched offsets: a gap may never have been a record. A record of
       several calls of which some are there needs no asking

    What intake had committed at 1 was durable on a topic of ours by then, and so is found at 2 or has landed by 3.
    """
    # 1.
    committed = _committed(admin, settings.topic("intake"))
    read_to = {tp: position for tp, position in committed.items() if topics is None or tp.topic in topics}
    # 2. 3.
    with Books(settings, moving_cases(settings, admin, reader), cluster, topics) as books:
        # 4.
        balances, unmatched, incomplete = _compare(settings, reader, topics, read_to, books)
        missing = [Place(r.topic, r.partition, r.offset) for r in read_scattered(reader, unmatched)] + incomplete
        double = books.double()
        found = Audit(
            balanced=False,
            partitions=[balances[tp] for tp in sorted(balances)],
            waiting=books.waiting,
            missing_records=0,
            missing=[],
            double_rows=len(double),
            double=double[:_LISTED],
            notes=books.notes,
        )
    return found, sorted(missing)


def _compare(
    settings: Settings, reader: Any, topics: list[str] | None, read_to: Mapping[Any, Any], books: Books
) -> tuple[dict[Any, PartitionBalance], dict[Any, list[Range]], list[Place]]:
    """Returns the balance of every source partition, what of those that intake reads is unmatched, and what is
    missing of records that are matched in part."""
    names = topics if topics is not None else settings.source_topics()
    existing = {TopicPartition(name, p) for name in names for p in reader.partitions_for_topic(name) or ()}
    existing |= {
        tp for tp in {*read_to, *books.counts} if tp.partition in (reader.partitions_for_topic(tp.topic) or ())
    }
    log_starts, log_ends = (look(sorted(existing)) for look in (reader.beginning_offsets, reader.end_offsets))
    balances, unmatched, incomplete = {}, {}, []
    for tp in {*existing, *read_to, *books.counts}:
        position = read_to[tp].offset if tp in read_to else -1
        balance = balances[tp] = PartitionBalance(
            topic=tp.topic, partition=tp.partition, committed=position, unread=0, **books.counts.get(tp, {})
        )
        if tp not in existing:
            books.notes.append(f"{tp.topic}[{tp.partition}] no longer exists; its records cannot be compared")
            continue
        balance.unread = max(log_ends[tp] - max(position, log_starts[tp]), 0)
        if tp not in read_to:
            continue
        known, readable_from = books.offsets(tp), min(log_starts[tp], position)
        balance.deleted_unread = log_starts[tp] - readable_from
        if len(known):
            balance.uncomparable = sum(end - start for start, end in gaps(known, int(known[0]), readable_from))
        _, first = began(read_to[tp].metadata or "")
        unmatched[tp] = gaps(known, max(first, log_starts[tp]), position)
        incomplete += books.incomplete(tp, first, position)
    return balances, unmatched, incomplete


def _committed(admin: Any, group: str) -> dict[Any, Any]:
    """Returns the committed positions of a group; waits for its coordinator, which a young or moving cluster lacks."""
    found: dict[Any, Any] = once_loaded(
        lambda: admin.list_group_offsets({group: None}), _COORDINATOR_S, (RetriableError,)
    ).get(group, {})
    return {tp: position for tp, position in found.items() if position.offset >= 0}
