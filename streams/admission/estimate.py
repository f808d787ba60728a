"""What switching on would do: records to read, cases, calls, money and time, before any of it happens.

`goldstream estimate` calls this. Topics are read without a consumer group and nothing is committed, so it disturbs
nobody and can be asked at any time. Counts of records go by offsets and by how many of these held a record in the
sample; all else is the sample's.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Literal

import msgspec
from kafka import TopicPartition
from kafka.errors import KafkaError

from agents.prices import price_of
from schemas.case import Case, Source
from schemas.errors import BrokerError, SettingsError
from schemas.settings import Budget, Settings
from schemas.start import parse_start
from streams.admission.admit import Admission
from streams.admission.calls import Measured, RoleCalls, longest_s, role_calls
from streams.admission.minhash import Remembered, signature
from streams.admission.near_duplicates import compared_text
from streams.admission.quota import DAY_MS
from streams.gold import open_gold
from streams.lag import LagReader
from streams.lookup import Range, make_reader, read_scattered
from streams.positions import start_offsets
from streams.topics import cluster_id

_PLACES = 10  # of a partition that are looked at
_ENOUGH = 20  # train cases in the gold set, to go by them
NEAR = 0.85  # threshold that is tried where near_duplicates is off


class TopicRecords(msgspec.Struct, frozen=True):
    """One source topic. Counts are of offsets less the share that held no record in the sample: compaction removes
    records, and each transaction ends with a marker. Exact where the sample is the whole."""

    topic: str
    partitions: int
    to_read: int  # from where reading would begin, or goes on, to the end
    last_day: int  # logged in the last 24 hours
    sampled: int


class Amount(msgspec.Struct, frozen=True):
    """What a number of records comes to: least and most."""

    cases: int
    calls: tuple[int, int]
    usd: tuple[float, float]  # of the roles whose price is known
    hours: float
    bound: str  # what decides how long it takes


class TaskEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """One task, by the sample."""

    task: str
    sampled: int  # cases and refused records that were its, or nobody's on its topics
    admitted: int
    interval: tuple[float, float]  # 95 %, of the share admitted (Wilson)
    reasons: dict[str, int]  # why the others are left out
    near_duplicates: int  # of the admitted in the sample, at the task's threshold or NEAR; a sample sees too few
    holdout: int
    redacted: int  # of the admitted, with a personal value in them
    measured: Measured | None
    roles: list[RoleCalls]
    backlog: Amount
    per_day: Amount
    unpriced: list[str]


class Estimate(msgspec.Struct, frozen=True):
    """Everything `goldstream estimate` says."""

    start: str
    topics: list[TopicRecords]
    tasks: list[TaskEstimate]


def estimate(settings: Settings, task: str | None = None, start: str | None = None, sample: int = 500) -> Estimate:
    """Returns what reading from `start` would come to, for one task or all.

    By default a partition is read from where intake is, and one that it never read from where the settings say.
    Raises SettingsError for a start that is none or a topic that does not exist, BrokerError where no Kafka answers.
    """
    asked, start = start, start or settings.intake.start_at
    now_ms = time.time_ns() // 1_000_000
    try:
        begin = parse_start(start, now_ms)
    except ValueError:
        raise SettingsError(
            f'--start {start}: expected latest, earliest, a time such as "2026-11-01T00:00" (UTC), or how far back: '
            "7d, 12h, 30m."
        ) from None
    names = list(settings.task(task).topics) if task else settings.source_topics()
    admission = Admission(settings)
    topics: list[TopicRecords] = []
    cases: dict[str, list[Case]] = {}
    days: dict[str, int] = {}
    try:
        cluster = cluster_id(settings)
        with closing(make_reader(settings)) as reader:
            positions = {} if asked else _positions(settings)
            for name in names:
                found = _look(reader, name, begin, positions, now_ms, sample)
                cases[name] = [one for record in found.sample for one in _admitted(admission, record, cluster)]
                topics.append(found.records)
                days[name] = found.days
    except KafkaError as error:
        raise BrokerError(f"the topics cannot be read: {error!r}. `goldstream doctor`, then try again.") from error
    chosen = [task] if task else list(settings.tasks)
    start = "where intake is" if positions else start
    return Estimate(start, topics, [_of_task(settings, name, topics, cases, days) for name in chosen])


class _Looked(msgspec.Struct):
    records: TopicRecords
    sample: list[Any]
    days: int  # of the calendar, that the records to read span


def _positions(settings: Settings) -> dict[Any, int]:
    """Returns the positions intake has committed."""
    with LagReader(settings) as lag:
        rows = [row for row in lag.read() if row.group == "intake" and row.committed >= 0]
    return {TopicPartition(row.topic, row.partition): row.committed for row in rows}


def _look(
    reader: Any,
    topic: str,
    begin: Literal["latest", "earliest"] | int,
    positions: dict[Any, int],
    now_ms: int,
    sample: int,
) -> _Looked:
    """Counts a topic's records and reads some from places all over what would be read, or over the last day."""
    tps = [TopicPartition(topic, number) for number in sorted(reader.partitions_for_topic(topic) or ())]
    if not tps:
        raise SettingsError(f"topic {topic} does not exist. Does kafka.bootstrap_servers name the right cluster?")
    firsts, starts = start_offsets(reader, tps, "earliest"), start_offsets(reader, tps, begin)
    yesterday, ends = start_offsets(reader, tps, now_ms - DAY_MS), start_offsets(reader, tps, "latest")
    starts = {tp: min(max(positions.get(tp, offset), firsts[tp]), ends[tp]) for tp, offset in starts.items()}
    to_read, last_day = (sum(ends[tp] - one[tp] for tp in tps) for one in (starts, yesterday))
    since = starts if to_read else yesterday if last_day else firsts
    ranges = {tp: (since[tp], ends[tp]) for tp in tps if since[tp] < ends[tp]}
    total = sum(end - first for first, end in ranges.values())
    wanted = {tp: _places(*ranges[tp], math.ceil(sample * (ranges[tp][1] - ranges[tp][0]) / total)) for tp in ranges}
    looked = sum(end - first for places in wanted.values() for first, end in places)
    found = sorted(read_scattered(reader, wanted), key=lambda record: (record.partition, record.offset))
    oldest = min((record.timestamp for record in found if record.timestamp and record.timestamp > 0), default=now_ms)
    days = now_ms // DAY_MS - oldest // DAY_MS + 1
    to_read, last_day = (round(count * len(found) / looked) if looked else 0 for count in (to_read, last_day))
    return _Looked(TopicRecords(topic, len(tps), to_read, last_day, len(found)), found, days)


def _places(first: int, end: int, count: int) -> Sequence[Range]:
    """Returns up to 10 ranges of `count` offsets together, evenly apart between first and end."""
    if end - first <= count:
        return [(first, end)]
    size = math.ceil(count / _PLACES)
    step = (end - first) / min(_PLACES, count)
    starts = [first + int(step * place) for place in range(min(_PLACES, count))]
    return [(begin, min(begin + size, end)) for begin in starts]


def _admitted(admission: Admission, record: Any, cluster: str) -> list[Case]:
    stamp = max(record.timestamp or 0, 0)
    source = Source(
        cluster=cluster, topic=record.topic, partition=record.partition, offset=record.offset, timestamp_ms=stamp
    )
    return admission.admit(record.value, record.headers, source)


def _of_task(
    settings: Settings, name: str, topics: list[TopicRecords], cases: dict[str, list[Case]], days: dict[str, int]
) -> TaskEstimate:
    task = settings.task(name)
    mine = [records for records in topics if records.topic in task.topics]
    others = {other for other in settings.tasks if other != name}
    seen = [case for records in mine for case in cases[records.topic] if case.task not in others]
    admitted = [case for case in seen if case.outcome is None]
    measured = _measured(settings, name)
    roles = role_calls(task, admitted, measured, price_of)
    near = _near_duplicates(admitted, task.near_duplicates.threshold or NEAR)
    kept = 1 - near / len(admitted) if admitted and task.near_duplicates.threshold else 1.0

    def cases_of(count: Callable[[TopicRecords], int]) -> float:
        found = 0.0
        for records in mine:
            taken = sum(case.outcome is None for case in cases[records.topic] if case.task == name)
            found += count(records) * taken / max(records.sampled, 1)
        return found * kept

    backlog, per_day = cases_of(lambda records: records.to_read), cases_of(lambda records: records.last_day)
    if task.per_day:
        span = max((days[records.topic] for records in mine), default=1)
        backlog, per_day = min(backlog, task.per_day * span), min(per_day, task.per_day)
    at_once = settings.worker.cases_in_flight
    return TaskEstimate(
        task=name,
        sampled=len(seen),
        admitted=len(admitted),
        interval=wilson(len(admitted), len(seen)),
        reasons=dict(Counter(case.outcome.reason for case in seen if case.outcome).most_common()),
        near_duplicates=near,
        holdout=sum(case.split == "holdout" for case in admitted),
        redacted=sum(bool(case.placeholders) for case in admitted),
        measured=measured,
        roles=roles,
        backlog=_amount(backlog, roles, at_once, measured, task.budget),
        per_day=_amount(per_day, roles, at_once, measured, task.budget),
        unpriced=[f"{role.role}: {role.model}" for role in roles if role.usd is None],
    )


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share (Wilson 1927)."""
    if not of:
        return 0.0, 1.0
    z, share = 1.96, hits / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _amount(cases: float, roles: list[RoleCalls], at_once: int, measured: Measured | None, budget: Budget) -> Amount:
    calls = [round(cases * sum(role.calls[end] for role in roles)) for end in (0, 1)]
    known = [role.usd for role in roles if role.usd is not None]
    usd = (cases * sum(one[0] for one in known), cases * sum(one[1] for one in known))
    seconds, bound = longest_s(roles, cases, at_once, measured, budget)
    return Amount(round(cases), (calls[0], calls[1]), usd, seconds / 3600, bound)


def _near_duplicates(admitted: list[Case], threshold: float) -> int:
    remembered = Remembered(max(len(admitted), 1), rows=4)
    found = 0
    for case in admitted:
        text = compared_text(case)
        if not text:
            continue
        new, group = signature(text), len(case.messages)
        if remembered.most_similar(new, group) >= threshold:
            found += 1
        else:
            remembered.add(new, group)
    return found


def _measured(settings: Settings, task: str) -> Measured | None:
    with open_gold(settings.gold) as connection:
        row = connection.execute(_MEASURED, [task]).fetchone()
    return Measured(*row) if row and row[0] >= _ENOUGH else None


_MEASURED = """
SELECT count(*), avg(rounds), avg((coalesce(strategy_guardrail, '') <> '')::int),
       coalesce(sum(model_s) / nullif(sum(calls), 0), 0)
FROM outcomes WHERE task = ? AND split = 'train' AND outcome IN ('gold', 'unresolved')
"""
