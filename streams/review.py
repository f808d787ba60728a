"""The review queue: what experts should look at, and their decisions, which supersede the judge's.

`goldstream review` and the dashboard call read_queue, show_case and decide; nothing here prints or asks. In the queue
are all unresolved cases and a sample of the accepted ones, drawn by a keyed hash of the id.

A decision is the case itself on gs.outcomes with the next epoch, so the sink's rule settles everything: a repeated
or redelivered decision is written once, a late copy of the case's first end changes nothing, and of two reviewers
who decide the same case at once the one whose record came first in the log wins. `decide` reads the log up to its
own record and tells the other one so. Until the sink has written it, a decision is read from the log.
"""

from __future__ import annotations

import hmac
import logging
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import pyarrow.parquet as pq
from kafka import TopicPartition
from kafka.errors import KafkaError

from agents.expert import Decision, check_decision, decided_case, judged_attempt, told
from schemas.case import Case, Source, decode_case, encode_case
from schemas.errors import AlreadyReviewed, BrokerError, RecordError, ReviewError
from schemas.gold import END_OFFSET, landing_above, landing_partitions
from schemas.manifests import latest_manifest
from schemas.rows import row_case
from schemas.settings import Settings
from schemas.topics import OUTCOMES
from streams.clients import make_producer
from streams.flow import now_ms
from streams.gold import open_gold, story
from streams.lookup import make_reader, read_ranges, read_records
from streams.tracing import trace_hops

log = logging.getLogger(__name__)

Why = Literal["unresolved", "accepted"]
WHYS: tuple[Why, ...] = ("unresolved", "accepted")


class Item(NamedTuple):
    """One case of the queue."""

    case_id: str
    task: str
    why: Why  # unresolved, or accepted and drawn into the sample
    reason: str  # why it is unresolved
    rounds: int
    score: float | None
    max_score: float | None
    prompt: str
    answer: str  # the accepted one, or the best attempt
    ended_at: datetime
    epoch: int


class Queue(NamedTuple):
    """What waits: the first items, and how many there are in all, by why."""

    items: list[Item]
    sizes: dict[Why, int]


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a decision: it stands, or somebody else's was first."""

    case_id: str
    stands: bool
    decision: str
    outcome: str
    epoch: int
    detail: str


def list_queue(
    settings: Settings, task: str | None = None, why: Why | None = None, limit: int | None = 50
) -> list[Item]:
    """Returns what waits for an expert, as `read_queue` does."""
    return read_queue(settings, task, why, limit).items


def read_queue(settings: Settings, task: str | None = None, why: Why | None = None, limit: int | None = 50) -> Queue:
    """Returns what waits for an expert: unresolved cases first, each kind in the order of a keyed hash.

    The order is a random one that stays, so that whoever works through the first n of a kind has seen a random sample
    of it. Cases decided on a moment ago are left out where a broker answers.
    """
    with open_gold(settings.gold) as connection:
        waiting = _waiting(settings, connection, task)
        order = [case_id for its_why, case_id in waiting if why in (None, its_why)][:limit]
        result = connection.execute(_ITEMS, {"ids": order})
        names = [column[0] for column in result.description or []]
        found = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    rows = {row["case_id"]: row for row in found}
    items = [_item(rows[case_id]) for case_id in order if case_id in rows]
    return Queue(items, {kind: sum(1 for its_why, _ in waiting if its_why == kind) for kind in WHYS})


def show_case(settings: Settings, case_id: str) -> dict[str, Any]:
    """Returns {"case": the row, "proposed_round", "in_queue", "pending"}; `pending` is a decision not yet in a file.

    Raises ReviewError for an id that has no row.
    """
    row = _row(settings, case_id)
    case = row_case(row)
    pending = _unlanded_reviews(settings).get(case_id)
    row.pop("case_json")
    return {
        "case": row,
        "proposed_round": case.attempts[judged_attempt(case)].round if case.attempts else None,
        "in_queue": _in_queue(settings, case) and case.review is None and pending is None,
        "pending": None if pending is None else msgspec.to_builtins(pending.review),
    }


def decide(settings: Settings, case_id: str, decision: Decision) -> Decided:
    """Makes a decision and returns once the broker has it, telling whether it stands.

    1. note how far the files reach, then read the row: what is not in it lies beyond in the log
    2. take the whole case from the log where that still holds it, else from the row
    3. refuse where somebody has decided meanwhile
    4. produce the case with its decision, at the next epoch, to the partition it lies in
    5. read the log up to that record: an earlier one of the same epoch stands in its place
    Raises ReviewError where the decision cannot be made, BrokerError where the broker does not confirm it; made
    again, a decision counts once.
    """
    topic = settings.topic(OUTCOMES)
    try:
        with closing(make_reader(settings)) as reader:
            # 1.
            tips = _tips(settings.gold)
            row = _row(settings, case_id)
            place = TopicPartition(topic, row["kafka_partition"])
            tip = tips.get(place.partition, 0)
            # 2.
            case = _whole(row, reader, place)
            check_decision(case, decision, settings)
            decided = decided_case(case, decision, now_ms(), _in_queue(settings, case))
            value = encode_case(decided)
            if len(value) > settings.kafka.max_message_bytes:
                limit = settings.kafka.max_message_bytes
                raise ReviewError(f"the case would be {len(value)} bytes; kafka.max_message_bytes is {limit}.")
            # 3.
            before = _first_above(reader, place, tip, reader.end_offsets([place])[place], case)
            if before is not None:
                raise AlreadyReviewed(told(before[1]))
            # 4.
            producer = make_producer(settings, "review")
            try:
                hops = trace_hops(settings, "review")
                relay = hops.bring_back(decided, topic) if hops is not None else None
                headers = relay.headers if relay is not None else None
                where = {"partition": place.partition, "headers": headers}
                sent = producer.send(topic, key=case_id.encode(), value=value, **where)
                if relay is not None:
                    relay.sent(sent)
                offset = sent.get(timeout=30).offset
            finally:
                producer.close(timeout=5)
            # 5.
            first = _first_above(reader, place, tip, offset + 1, case)
    except KafkaError as error:
        raise BrokerError(
            f"the decision on {case_id} was not confirmed: {error!r}. Make it again: one that did arrive is told."
        ) from error
    assert decided.outcome is not None
    stands = first is None or first[0] == offset
    detail = f"{decision.decision} by {decision.by}" if stands or first is None else told(first[1])
    return Decided(
        case_id=case_id,
        stands=stands,
        decision=decision.decision,
        outcome=decided.outcome.kind,
        epoch=decided.epoch,
        detail=detail,
    )


def draw(settings: Settings, case_id: str) -> float:
    """Returns a case's place in the queue, from 0 to 1: the same today, tomorrow and on every machine."""
    digest = hmac.new(settings.intake.split_key.encode(), b"review\0" + case_id.encode("utf-8", "replace"), "sha256")
    return int.from_bytes(digest.digest()[:6], "big") / 2**48


def _waiting(settings: Settings, connection: Any, task: str | None) -> list[tuple[Why, str]]:
    """Returns (why, case id) of what waits, in the queue's order."""
    decided = _unlanded_reviews(settings)
    chosen: list[tuple[int, float, Why, str]] = []
    for case_id, its_task, outcome in connection.execute(_WAITING, {"task": task}).fetchall():
        if case_id in decided or its_task not in settings.tasks:
            continue
        drawn = draw(settings, case_id)
        why: Why = "accepted" if outcome == "gold" else "unresolved"
        if why == "unresolved" or drawn < settings.task(its_task).review.sample:
            chosen.append((WHYS.index(why), drawn, why, case_id))
    return [(why, case_id) for *_, why, case_id in sorted(chosen)]


def _row(settings: Settings, case_id: str) -> dict[str, Any]:
    row = story(settings.gold, case_id)
    if row is None:
        raise ReviewError(
            f"no case {case_id} in the gold set. `goldstream review list` names what waits, `goldstream case ID` "
            "says whether it is still on its way."
        )
    return row


def _whole(row: dict[str, Any], reader: Any, place: Any) -> Case:
    """Returns the case of a row as its message says it, else as the row does."""
    known = (place.topic, place.partition, row["kafka_offset"])
    message = read_records(reader, [known]).get(known)
    try:
        case = decode_case(message.value) if message is not None else None
    except RecordError:
        case = None
    same = case is not None and (case.case_id, case.epoch) == (row["case_id"], row["epoch"])
    return case if case is not None and same else row_case(row)


def _first_above(reader: Any, place: Any, start: int, end: int, case: Case) -> tuple[int, Case] | None:
    """Returns (offset, case) of the first outcome of a case above its present epoch, as the sink will find it."""
    for record in read_ranges(reader, {place: (start, end)}):
        if record.key != case.case_id.encode():
            continue
        try:
            found = decode_case(record.value)
        except RecordError:
            continue
        if found.case_id == case.case_id and found.epoch > case.epoch and found.outcome is not None:
            return record.offset, found
    return None


def _unlanded_reviews(settings: Settings) -> dict[str, Case]:
    """Returns the cases decided on that no file holds yet, by id; none where no broker answers."""
    topic = settings.topic(OUTCOMES)
    found: dict[str, Case] = {}
    try:
        with closing(make_reader(settings)) as reader:
            tips = _tips(settings.gold)
            tps = [TopicPartition(topic, p) for p in sorted(reader.partitions_for_topic(topic) or ())]
            starts, ends = reader.beginning_offsets(tps), reader.end_offsets(tps)
            ranges = {tp: (max(tips.get(tp.partition, 0), starts[tp]), ends[tp]) for tp in tps}
            for record in read_ranges(reader, ranges):
                if record.value is None or _MARK not in record.value:
                    continue
                try:
                    case = decode_case(record.value)
                except RecordError:
                    continue
                if case.review is not None and case.epoch > found.get(case.case_id, _NOBODY).epoch:
                    found[case.case_id] = case
    except (KafkaError, BrokerError) as error:
        log.warning("no broker tells what was decided a moment ago (%s)", type(error).__name__)
    return found


def _tips(gold: Path) -> dict[int, int]:
    """Returns the first offset of each partition that no file holds: of the manifest, and the last files' footers."""
    manifest = latest_manifest(gold)
    tips = dict(manifest.watermark)
    for partition in landing_partitions(gold):
        files = landing_above(gold, partition, manifest)
        if files:
            tips[partition] = int((pq.read_metadata(files[-1]).metadata or {})[END_OFFSET])
    return tips


def _in_queue(settings: Settings, case: Case) -> bool:
    if case.task not in settings.tasks or case.outcome is None:
        return False
    drawn = draw(settings, case.case_id) < settings.task(case.task).review.sample
    return case.outcome.kind == "unresolved" or (case.outcome.kind == "gold" and drawn)


def _item(row: dict[str, Any]) -> Item:
    case = row_case(row)
    chosen = case.attempts[judged_attempt(case)] if case.attempts else None
    verdict = chosen.verdict if chosen else None
    return Item(
        case_id=case.case_id,
        task=case.task,
        why="accepted" if row["outcome"] == "gold" else "unresolved",
        reason=row["reason"],
        rounds=case.rounds,
        score=verdict.score if verdict else None,
        max_score=verdict.max_score if verdict else None,
        prompt=case.prompt(),
        answer=chosen.text if chosen else "",
        ended_at=row["ended_at"],
        epoch=case.epoch,
    )


_MARK = b'"review":'
_NOBODY = Case(case_id="", epoch=-1, task="", split="train", source=Source(cluster="", topic="", partition=0, offset=0))

_WAITING = """
SELECT case_id, task, outcome FROM outcomes
WHERE outcome IN ('gold', 'unresolved') AND review IS NULL AND ($task IS NULL OR task = $task)
"""

_ITEMS = "SELECT * FROM outcomes WHERE list_contains($ids, case_id)"
