"""Single cases for the page: the latest, one's story, dead letters. Blocking; the server calls it in threads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import duckdb
import msgspec

from schemas.case import DEAD_REASONS, Case
from schemas.errors import BrokerError, GoldError, SettingsError
from schemas.rows import row_case
from schemas.settings import Settings
from streams.dashboard.answers import (
    CaseLine,
    Cases,
    Dead,
    Letter,
    RedriveAsked,
    RedriveDone,
    Redriven,
    Story,
    Superseded,
)
from streams.dashboard.state import DeadGroup
from streams.dlq import LETTER, count_letters, list_letters, redrive
from streams.gold import open_gold
from streams.story import find_case
from streams.telling import tell
from streams.why import find_row

SHOWN = 300  # characters of a text in a list
MOST = 200  # cases or letters of an answer
MOST_IDS = 100  # of a redrive


def list_cases(
    settings: Settings, task: str | None, outcome: str | None, text: str | None, limit: int, before: str
) -> Cases:
    """Returns ended cases, the latest first. Raises SettingsError for a `before` that no answer had as `next`."""
    values: dict[str, Any] = {"task": task, "outcome": outcome, "text": text and text.lower(), "limit": limit + 1}
    where = ["($task IS NULL OR task = $task)", "($outcome IS NULL OR outcome = $outcome)"]
    where.append(f"($text IS NULL OR {_FOUND})")
    if before:
        ms, dot, case_id = before.partition(".")
        if not dot or not ms.isdecimal():
            raise SettingsError("`before` is no `next` of an earlier answer; leave it out to begin with the latest.")
        values |= {"ms": int(ms), "id": case_id}
        where.append("(epoch_ms(ended_at) < $ms OR (epoch_ms(ended_at) = $ms AND case_id < $id))")
    with open_gold(settings.gold) as connection:
        connection.execute("SET threads = 1")
        # First where the rows lie, then the rows: to sort them whole would read every prompt there is.
        places = _dicts(connection, _PLACES.format(where=" AND ".join(where)), values)
        rows = _dicts(connection, _CASES.format(where=_at(places)), {}) if places else []
    shown = tuple(CaseLine(**row) for row in rows[:limit])
    return Cases(cases=shown, next=f"{shown[-1].ended_ms}.{shown[-1].case_id}" if len(rows) > limit else "")


def tell_story(settings: Settings, case_id: str) -> Story | None:
    """Returns a case's story, also of one on its way where Kafka answers; None where it is unknown."""
    note = ""
    try:
        found = find_case(settings, case_id)
    except BrokerError as error:  # what has ended is in the gold set, which needs no Kafka
        try:
            found = {"where": "gold set", "case": find_row(settings, case_id)["row"]}
        except GoldError:
            raise error from None
        note = "; no Kafka answers, so whether it was sent round again is not known"
    if found is None:
        return None
    known = found["case"]
    row = "kafka_offset" in known
    case = row_case({**known, "case_json": None}) if row else msgspec.convert(known, Case)
    older = find_row(settings, case_id)["superseded"] if row else []
    return Story(
        case_id=case.case_id,
        where=str(found["where"]) + note,
        case=_whole(case),
        superseded=tuple(
            Superseded(
                epoch=one["epoch"],
                outcome=one["outcome"],
                reason=one["reason"] or "",
                review=one["review"] or "",
                reviewer=one["reviewer"] or "",
                ended_ms=_ms(one["ended_at"]),
            )
            for one in older
        ),
        lines=tuple(tell(found)),
    )


def list_dead(settings: Settings, task: str | None, stage: str | None, reason: str | None, limit: int) -> Dead:
    """Returns the kinds of dead letters there are, and the latest of those chosen."""
    groups = [
        DeadGroup(task=of, stage=at, reason=why, means=DEAD_REASONS.get(why, ""), letters=letters)
        for of, at, why, letters in count_letters(settings)
    ]
    letters = [dict(zip(LETTER, row, strict=True)) for row in list_letters(settings, reason, stage, task, limit)]
    return Dead(
        groups=tuple(sorted(groups, key=lambda one: -one.letters)),
        letters=tuple(
            Letter(
                **{name: letter[name] for name in LETTER if name not in ("ended_at", "detail")},
                detail=letter["detail"] or "",
                ended_ms=_ms(letter["ended_at"]),
            )
            for letter in letters
        ),
    )


def redrive_letters(settings: Settings, asked: RedriveAsked) -> RedriveDone:
    """Sends dead letters round again, as `goldstream dlq redrive` does."""
    if bool(asked.ids) == bool(asked.reason or asked.stage):
        raise SettingsError("name what to redrive: reason and stage, or ids, not both.")
    if len(asked.ids) > MOST_IDS:
        raise SettingsError(f"{len(asked.ids)} ids; at most {MOST_IDS} at once. Name their reason and stage instead.")
    if not asked.ids and not (asked.reason and asked.stage):
        raise SettingsError("name both: reason and stage.")
    counts: Counter[str] = Counter()
    letters: list[Redriven] = []
    for chosen in asked.ids or (None,):
        by_kind = (asked.reason or None, asked.stage or None, asked.task or None)
        for done in redrive(settings, *(by_kind if chosen is None else (None, None, None)), chosen, asked.dry_run):
            counts[done.result] += 1
            if len(letters) < MOST:
                letters.append(Redriven(**done._asdict()))
    return RedriveDone(dry_run=asked.dry_run, counts=dict(counts), letters=tuple(letters))


def _at(places: Sequence[dict[str, Any]]) -> str:
    """Returns the condition that a row lies at one of these places; the range lets DuckDB pass over files."""
    offsets = [int(place["off"]) for place in places]
    each = " OR ".join(f"(kafka_partition = {int(one['part'])} AND kafka_offset = {int(one['off'])})" for one in places)
    return f"kafka_offset BETWEEN {min(offsets)} AND {max(offsets)} AND ({each})"


def _whole(value: Any) -> Any:
    """Returns a struct as JSON holds it, with the fields that have their default."""
    if isinstance(value, msgspec.Struct):
        return {name: _whole(getattr(value, name)) for name in value.__struct_fields__ if name != "original"}
    if isinstance(value, list | tuple):
        return [_whole(one) for one in value]
    return value


def _dicts(connection: duckdb.DuckDBPyConnection, sql: str, values: dict[str, Any]) -> Sequence[dict[str, Any]]:
    used = {name: value for name, value in values.items() if f"${name}" in sql}
    result = connection.execute(sql, used)
    names = [column[0] for column in result.description or []]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


_FOUND = """(contains(lower(prompt), $text) OR contains(lower(coalesce(answer, '')), $text) OR lower(case_id) = $text
    OR contains(lower(coalesce(strategy_guardrail, '')), $text) OR trace_id = $text
    OR list_contains(flatten(list_transform(attempts,
        lambda one: list_transform(one.violations, lambda v: lower(v.rule)))), $text))"""

_CASES = f"""
SELECT case_id, coalesce(task, '') AS task, split, outcome, coalesce(reason, '') AS reason,
       coalesce(stage, '') AS stage, coalesce(rounds, 0) AS rounds, first_attempt_passed,
       CASE WHEN first_adapter <> '' THEN first_adapter WHEN first_adapter IS NULL THEN '' ELSE 'base' END AS adapter,
       score, max_score, coalesce(cost_usd, 0.0) AS usd,
       CASE WHEN epoch_ms(created_at) > 0 THEN epoch_ms(ended_at - created_at) / 1000 END AS duration_s,
       left(coalesce(prompt, ''), {SHOWN}) AS prompt,
       left(coalesce(answer, attempts[-1].text, ''), {SHOWN}) AS answer,
       left(coalesce(strategy_guardrail, ''), {SHOWN}) AS strategy, coalesce(review, '') AS review,
       epoch_ms(ended_at) AS ended_ms
FROM landed WHERE {{where}} ORDER BY ended_at DESC, case_id DESC
"""

_PLACES = """
SELECT kafka_partition AS part, kafka_offset AS off
FROM outcomes WHERE {where} ORDER BY ended_at DESC, case_id DESC LIMIT $limit
"""
