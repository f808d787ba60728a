"""Looking records up by their offsets, without a consumer group: nothing is committed, nobody is disturbed.

streams.audit reads the unfinished ends of topics this way, streams.dlq single source records.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from kafka import TopicPartition
from kafka.errors import KafkaError

from schemas.errors import BrokerError
from schemas.settings import Settings
from streams.clients import make_consumer

_STALLED_S = 30.0
_NEAR = 1000  # offsets

Range = tuple[int, int]  # start <= offset < end


def make_reader(settings: Settings) -> Any:
    """Returns a consumer for the functions below; it sees committed transactions only, as intake does."""
    # A range that retention has begun to delete is read from what is left of it.
    return make_consumer(settings, auto_offset_reset="earliest", max_poll_records=5000)


def read_ranges(reader: Any, ranges: Mapping[Any, Range]) -> Iterator[Any]:
    """Yields the records at start <= offset < end of each partition, in the order of their arrival here.

    Offsets without a record (transaction markers, compacted or deleted records) are passed over. Raises
    BrokerError where nothing moves for 30 s.
    """
    ends = {tp: end for tp, (start, end) in ranges.items() if start < end}
    try:
        reader.assign(list(ends))
        reader.resume(*ends)
        for tp in ends:
            reader.seek(tp, ranges[tp][0])
        moved = time.monotonic()
        while ends:
            for tp, records in reader.poll(timeout_ms=200).items():
                moved = time.monotonic()
                start, end = ranges[tp]
                yield from (record for record in records if start <= record.offset < end)
            for tp in [tp for tp, end in ends.items() if reader.position(tp) >= end]:
                moved = time.monotonic()
                reader.pause(tp)
                del ends[tp]
            if time.monotonic() - moved > _STALLED_S:
                left = ", ".join(f"{tp.topic}[{tp.partition}]" for tp in ends)
                raise BrokerError(
                    f"nothing of {left} arrived for {_STALLED_S:.0f} s. Is the broker healthy? Try again."
                )
    except KafkaError as error:
        raise BrokerError(f"reading was interrupted: {error!r}. `goldstream broker status`, then try again.") from error


def read_scattered(reader: Any, wanted: Mapping[Any, Sequence[Range]]) -> Iterator[Any]:
    """Yields the records that lie in the ranges of each partition; the ranges are in order and apart.

    Ranges near each other are fetched as one.
    """
    left = {tp: _joined(ranges) for tp, ranges in wanted.items() if ranges}
    starts = {tp: [start for start, _ in ranges] for tp, ranges in wanted.items()}
    while left:
        for record in read_ranges(reader, {tp: ranges[0] for tp, ranges in left.items()}):
            tp = TopicPartition(record.topic, record.partition)
            if record.offset < wanted[tp][bisect_right(starts[tp], record.offset) - 1][1]:
                yield record
        left = {tp: ranges[1:] for tp, ranges in left.items() if len(ranges) > 1}


def read_records(reader: Any, places: Iterable[tuple[str, int, int]]) -> dict[tuple[str, int, int], Any]:
    """Returns the records at (topic, partition, offset); one the topic no longer holds, or never did, is left out."""
    wanted: dict[Any, list[Range]] = {}
    try:
        for topic, partition, offset in sorted(set(places)):
            tp = TopicPartition(topic, partition)
            if partition not in (reader.partitions_for_topic(topic) or ()):
                continue
            if reader.beginning_offsets([tp])[tp] <= offset < reader.end_offsets([tp])[tp]:
                wanted.setdefault(tp, []).append((offset, offset + 1))
    except KafkaError as error:
        raise BrokerError(f"the topics cannot be looked at: {error!r}. `goldstream doctor`, then try again.") from error
    return {(r.topic, r.partition, r.offset): r for r in read_scattered(reader, wanted)}


def _joined(ranges: Iterable[Range]) -> list[Range]:
    joined: list[Range] = []
    for start, end in ranges:
        if joined and start - joined[-1][1] < _NEAR:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined
