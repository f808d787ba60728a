"""What topics still hold of the forgotten, and until when: Kafka deletes by age, a whole segment at a time.

Source topics are not read: where a row came from is known, and whether the topic still has that offset. Our own are,
since a case leaves a copy on every one it has passed.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Any, NamedTuple

import msgspec
from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from schemas.case import Case, Source
from schemas.errors import BrokerError
from schemas.forgotten import Forgetting, Forgotten
from schemas.settings import Settings
from schemas.topics import ACCEPTED, ATTEMPTS, OUTCOMES, PROMPTS, REFINE, retry_topic
from streams.forgetting.forget import Row
from streams.lookup import make_reader, read_ranges
from streams.topics import connect_admin

_DECIDE = ("cleanup.policy", "retention.ms", "segment.ms")


class Held(NamedTuple):
    """What one topic still has. Times are in ms; None where nothing on the topic ever deletes it."""

    topic: str
    records: int
    oldest_offset: str  # partition:offset of the oldest
    retention_ms: int | None
    newest_ms: int  # of the newest of these records
    gone_from_ms: int | None  # from then on Kafka may have deleted all of them
    gone_by_ms: int | None  # by then it has, if the topic is written to: a segment goes as a whole


class _Who(msgspec.Struct, frozen=True):
    """What of a case tells whether it is forgotten."""

    case_id: str
    source: Source
    task: str = ""
    trace_id: str = ""
    trace_key: str = ""
    session: str = ""
    user: str = ""
    event_ms: int = 0
    created_ms: int = 0


def held(settings: Settings, record: Forgetting, rows: Iterable[Row]) -> list[Held]:
    """Returns the topics that still hold something of what a record forgets, sources first.

    `rows` are those it means. Raises BrokerError where no Kafka answers.
    """
    found: dict[str, list[tuple[int, int, int]]] = {}  # topic -> partition, offset, timestamp
    try:
        with closing(make_reader(settings)) as reader, closing(connect_admin(settings)) as admin:
            for topic, partition, offset, at_ms in _from_sources(reader, rows):
                found.setdefault(topic, []).append((partition, offset, at_ms))
            one = Forgotten().joined([record])
            for message in _on_ours(reader, settings):
                if _covers(one, message.value, settings.intake.split_key):
                    found.setdefault(message.topic, []).append((message.partition, message.offset, message.timestamp))
            configs = _configs(admin, list(found))
    except KafkaError as error:
        raise BrokerError(f"the topics cannot be looked at: {error!r}. `goldstream doctor`, then try again.") from error
    return [_held(topic, places, configs.get(topic, {})) for topic, places in found.items()]


def _from_sources(reader: Any, rows: Iterable[Row]) -> Iterable[tuple[str, int, int, int]]:
    starts: dict[Any, int] = {}
    for (topic, partition, offset), at_ms in sorted({(row.source, row.source_ms) for row in rows}):
        tp = TopicPartition(topic, partition)
        if tp not in starts:
            known = partition in (reader.partitions_for_topic(topic) or ())
            starts[tp] = reader.beginning_offsets([tp])[tp] if known else -1
        if 0 <= starts[tp] <= offset:
            yield topic, partition, offset, at_ms


def _on_ours(reader: Any, settings: Settings) -> Iterable[Any]:
    retries = [retry_topic(s) for s in settings.worker.retry_delays_s]
    for name in (PROMPTS, ATTEMPTS, REFINE, ACCEPTED, *retries, OUTCOMES):
        topic = settings.topic(name)
        tps = [TopicPartition(topic, p) for p in sorted(reader.partitions_for_topic(topic) or ())]
        if tps:
            starts, ends = reader.beginning_offsets(tps), reader.end_offsets(tps)
            yield from read_ranges(reader, {tp: (starts[tp], ends[tp]) for tp in tps})


def _covers(one: Forgotten, value: bytes | None, split_key: str) -> bool:
    try:
        who = _who.decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    case = Case(split="train", **msgspec.structs.asdict(who))
    # What is left of a forgotten case has no user, trace or session; by its id it would be found for ever.
    is_left = not (who.user or who.session or who.trace_id)
    return not is_left and one.covers(case, split_key)


def _configs(admin: Any, topics: list[str]) -> dict[str, dict[str, str]]:
    """Returns, by topic, the settings that decide when its records go."""
    wanted = [ConfigResource(ConfigResourceType.TOPIC, topic, dict.fromkeys(_DECIDE)) for topic in topics]
    found = admin.describe_configs(wanted, config_filter="all").get("topic", {}) if wanted else {}
    return {topic: {name: one["value"] for name, one in settings.items()} for topic, settings in found.items()}


def _held(topic: str, places: list[tuple[int, int, int]], config: dict[str, str]) -> Held:
    partition, offset, _ = min(places)
    newest_ms = max(at_ms for _, _, at_ms in places)
    retention_ms = int(config.get("retention.ms", -1))
    deletes = "delete" in config.get("cleanup.policy", "delete") and retention_ms >= 0
    gone_from = newest_ms + retention_ms if deletes else None
    gone_by = gone_from + int(config.get("segment.ms", 0)) if gone_from is not None else None
    return Held(
        topic,
        len(places),
        f"{partition}:{offset}",
        retention_ms if deletes else None,
        newest_ms,
        gone_from,
        gone_by,
    )


_who = msgspec.json.Decoder(_Who)
