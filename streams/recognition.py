"""What `goldstream map test` shows: for each record of a file or a topic, what it is taken for and what it lacks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from kafka import TopicPartition
from kafka.errors import KafkaError

from schemas.case import DEAD_REASONS, DROPPED_REASONS
from schemas.errors import BrokerError, RecordError, SettingsError
from schemas.settings import Settings
from schemas.tables import printable
from streams.lookup import make_reader, read_ranges
from streams.reader import Headers, Reader
from streams.recorded import Place, read_from
from streams.records import Found, Record

_SHOWN = 200  # characters of a text

# What a record without the field comes to; in the order shown.
_CONSEQUENCES = {
    "event_id": "the case is named by its place in the topic, so the same call logged twice becomes two cases",
    "completion": "there is no production answer to compare with, or to begin with",
    "session_id": "turns of a conversation are kept together by its first user turn instead",
    "ts_ms": "Kafka's own time of the record is used",
    "model": "nobody knows which model answered",
    "user": "a user's cases cannot be found for erasure",
}


class Logged(NamedTuple):
    """One message as it lies in a file or on a topic."""

    place: str
    value: bytes | None
    headers: Headers


class Seen(msgspec.Struct, kw_only=True):
    """What one item of a message is taken for."""

    record: str
    index: int
    shape: str
    becomes: str  # "case", "dropped" or "dead"
    reason: str = ""
    means: str = ""
    detail: str = ""
    prompt: str = ""
    answer: str | None = None
    fields: dict[str, Any] = {}
    missing: dict[str, str] = {}  # field -> what follows from that


def look(settings: Settings, logged: list[Logged], topic: str) -> list[Seen]:
    """Returns what each message is taken for, read as messages of `topic`. Raises RegistryDown."""
    reader = Reader(settings)
    return [_seen(one.place, found) for one in logged for found in reader.read(one.value, one.headers, topic)]


def file_records(path: Path) -> list[Logged]:
    """Returns the messages in a file: a line each of JSONL, a row each of Parquet, else the whole file as one.

    A line as `kcat -J` writes it is taken with its headers. Raises SettingsError for a file that cannot be read.
    """
    if not path.is_file():
        raise SettingsError(f"{path} is no file. Name one that holds records: JSON, JSONL, Parquet, or raw bytes.")
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith((".jsonl", ".ndjson", ".parquet")) or name != path.name:
            values = [found.value for found in read_from(path, Place())]
        else:
            values = [path.read_bytes()]
    except RecordError as error:
        raise SettingsError(f"{path} cannot be read: {error.detail}") from error
    return [_from_kcat(value) or Logged(f"{path.name}:{n}", value, ()) for n, value in enumerate(values, 1)]


def last_records(settings: Settings, topic: str, count: int) -> list[Logged]:
    """Returns the latest messages of a topic, the oldest first; without a consumer group. Raises BrokerError."""
    with closing(make_reader(settings)) as reader:
        try:
            tps = [TopicPartition(topic, number) for number in sorted(reader.partitions_for_topic(topic) or ())]
            starts, ends = reader.beginning_offsets(tps), reader.end_offsets(tps)
        except KafkaError as error:
            raise BrokerError(f"the topic {topic} cannot be read: {error!r}. Try `goldstream doctor`.") from error
        if not tps:
            raise SettingsError(f"there is no topic {topic} on this Kafka; check --topic and --bootstrap-servers.")
        ranges = {tp: (max(starts[tp], ends[tp] - count), ends[tp]) for tp in tps}
        records = sorted(read_ranges(reader, ranges), key=lambda record: (record.timestamp or 0, record.offset))
    return [Logged(f"{r.topic}[{r.partition}]@{r.offset}", r.value, r.headers) for r in records[-count:]]


def tell(seen: list[Seen]) -> Iterator[str]:
    """Yields what was seen as lines for people."""
    for one in seen:
        place = f"{one.record} #{one.index}" if one.index else one.record
        yield f"{place}   {one.shape or 'not recognised'}   -> {one.becomes}"
        if one.reason:
            yield f"    {one.reason}: {one.means}"
            if one.detail:
                yield f"    {printable(one.detail)}"
            if one.reason in ("wrong_shape", "no_mapping_match"):
                yield "    `goldstream map infer FILE` proposes a mapping"
        else:
            yield f"    prompt   {_cut(one.prompt)}"
            yield f"    answer   {_cut(one.answer) if one.answer is not None else '-'}"
            yield "    " + "  ".join(f"{name} {_cut(str(value), 40)}" for name, value in one.fields.items())
        for field, why in one.missing.items():
            yield f"    missing  {field.removesuffix('_ms')}: {why}"
        yield ""
    counts = Counter((one.becomes, one.reason or one.shape) for one in seen)
    for (becomes, what), number in counts.most_common():
        yield f"{number:6} {becomes:8} {what}"


def _seen(place: str, found: Found) -> Seen:
    record = found.record
    if isinstance(record, RecordError):
        dropped = record.reason in DROPPED_REASONS
        return Seen(
            record=place,
            index=found.index,
            shape=found.shape,
            becomes="dropped" if dropped else "dead",
            reason=record.reason,
            means=DROPPED_REASONS[record.reason] if dropped else DEAD_REASONS.get(record.reason, ""),
            detail=record.detail,
        )
    return Seen(
        record=place,
        index=found.index,
        shape=found.shape,
        becomes="case",
        prompt=next((m.text() for m in reversed(record.messages) if m.role == "user"), ""),
        answer=record.answer,
        fields=_fields(record),
        missing={field: why for field, why in _CONSEQUENCES.items() if not getattr(record, field)},
    )


def _fields(record: Record) -> dict[str, Any]:
    fields: dict[str, Any] = {"messages": len(record.messages), "roles": [m.role for m in record.messages]}
    for name in ("event_id", "ts_ms", "source", "trace_id", "session_id", "workload", "user", "model"):
        fields[name] = getattr(record, name)
    fields |= {"tools": len(record.tools), "tool_calls": len(record.tool_calls), "params": record.params}
    fields |= {"prompt_tokens": record.prompt_tokens, "completion_tokens": record.completion_tokens}
    fields |= {"finish_reason": record.finish_reason, "cost_usd": record.cost_usd, "feedback": record.feedback}
    return {name: value for name, value in fields.items() if value}


def _from_kcat(value: bytes) -> Logged | None:
    if b'"payload"' not in value or b'"offset"' not in value:
        return None
    try:
        line = json.loads(value)
        names, texts = line.get("headers", [])[::2], line.get("headers", [])[1::2]
        headers = [(str(name), str(text).encode()) for name, text in zip(names, texts, strict=True)]
        payload = line["payload"]
        place = f"{line['topic']}[{line['partition']}]@{line['offset']}"
        return Logged(place, payload if payload is None else payload.encode(), headers)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _cut(text: str, length: int = _SHOWN) -> str:
    return printable(text[:length]) + ("..." if len(text) > length else "")
