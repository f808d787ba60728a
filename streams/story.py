"""Where a case is and what happened to it: `goldstream case ID`.

Looks in the gold set first, then on our own topics, last hop first; a redriven case is where its new epoch is.
"""

from __future__ import annotations

from typing import Any

import msgspec
from kafka import TopicPartition

from schemas.case import Case, decode_case, encode_case
from schemas.errors import RecordError
from schemas.forgotten import bare_case, read_forgotten
from schemas.settings import Settings
from schemas.topics import ACCEPTED, ATTEMPTS, OUTCOMES, PROMPTS, REFINE, retry_topic
from streams.clients import make_consumer
from streams.gold import story as gold_story
from streams.telling import tell as tell

REDRIVABLE = ("dead", "unresolved")  # these may be on their way again at a higher epoch


def find_case(settings: Settings, case_id: str) -> dict[str, Any] | None:
    """Returns {"where": ..., "case": {...}} of the furthest point a case has reached; None where it is unknown."""
    row = gold_story(settings.gold, case_id)
    if row is not None and row["outcome"] not in REDRIVABLE:
        row.pop("case_json", None)
        return {"where": "gold set", "case": row}
    retries = [retry_topic(s) for s in reversed(settings.worker.retry_delays_s)]
    found: list[tuple[Case, str]] = []
    for topic in (OUTCOMES, ACCEPTED, REFINE, ATTEMPTS, *retries, PROMPTS):
        case = _last_on_topic(settings, settings.topic(topic), case_id)
        if case is not None:
            found.append((case, settings.topic(topic)))
    if row is not None and not any(case.epoch > row["epoch"] for case, _ in found):
        row.pop("case_json", None)
        return {"where": "gold set", "case": row}
    remembered = read_forgotten(settings.gold)
    for case, _ in found:
        if remembered.covers(case, settings.intake.split_key):
            left = bare_case(case, "sink", case.created_ms)
            return {"where": "books alone: it is forgotten", "case": msgspec.json.decode(encode_case(left))}
    if not found:
        return None
    # The furthest copy is the one with most behind it; earlier topics come later in `found`.
    case, where = max(found, key=lambda f: (f[0].epoch, f[0].outcome is not None, len(f[0].attempts), f[0].spend.calls))
    return {"where": f"topic {where}, not yet in the gold set", "case": msgspec.json.decode(encode_case(case))}


def _last_on_topic(settings: Settings, topic: str, case_id: str) -> Case | None:
    """Reads a whole topic for one key; meant for a person's question, not for a hot path."""
    consumer = make_consumer(settings)
    last = None
    try:
        tps = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic) or ())]
        if not tps:
            return None
        consumer.assign(tps)
        consumer.seek_to_beginning(*tps)
        ends = consumer.end_offsets(tps)
        key = case_id.encode()
        while any(consumer.position(tp) < ends[tp] for tp in tps):
            for records in consumer.poll(timeout_ms=500).values():
                for record in records:
                    if record.key == key:
                        try:
                            last = decode_case(record.value)
                        except RecordError:
                            continue
        return last
    finally:
        consumer.close()
