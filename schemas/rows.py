"""The way back from a row of the gold set to the case it was, for what supersedes it.

Rows hold nearly all of a case (schemas.outcomes); rows of dead and unresolved cases hold all of it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from schemas.case import Attempt, Case, Charge, Outcome, Review, Source, Spend, Verdict, Violation, decode_case
from schemas.outcomes import row_messages, row_strategy


def row_case(row: dict[str, Any]) -> Case:
    """Returns the case of a row that has every column of OUTCOME_SCHEMA.

    Lost are only the marks of retries and what a newer version had put into the message.
    """
    if row["case_json"]:
        return decode_case(row["case_json"])
    source = Source(
        cluster=row["source_cluster"],
        topic=row["source_topic"],
        partition=row["source_partition"],
        offset=row["source_offset"],
        index=row["source_index"],
        timestamp_ms=_ms(row["source_at"]),
        **({"count": row["source_count"]} if row["source_count"] is not None else {}),
    )
    spend = Spend(row["calls"], row["prompt_tokens"], row["completion_tokens"], row["cost_usd"], row["model_s"])
    texts = ("pipeline", "body_sha256", "trace_id", "session", "workload", "user", "trace_key")
    product = ("production_model", "shape", "production_finish")
    known: dict[str, Any] = {name: row[name] for name in ("case_id", "epoch", "task", "split", "schema_version")}
    known |= {name: row[name] or "" for name in (*texts, *product)}
    return Case(
        **known,
        source=source,
        created_ms=_ms(row["created_at"]),
        event_ms=_ms(row["event_at"]),
        messages=tuple(row_messages(row)),
        production_answer=row["production_answer"],
        production_prompt_tokens=row["production_prompt_tokens"] or 0,
        production_completion_tokens=row["production_completion_tokens"] or 0,
        production_cost_usd=row["production_cost_usd"],
        tools=tuple(_json(row["tools"], [])),
        production_tool_calls=tuple(_json(row["production_tool_calls"], [])),
        params=_json(row["params"], {}),
        feedback=_json(row["feedback"], {}),
        placeholders=tuple(row["placeholders"] or ()),
        attempts=tuple(_attempt(attempt) for attempt in row["attempts"] or ()),
        strategy=row_strategy(row),
        spend=spend,
        charges=tuple(Charge(**charge) for charge in row["charges"] or ()),
        outcome=Outcome(row["outcome"], row["stage"], _ms(row["ended_at"]), row["reason"], row["detail"]),
        review=_review(row),
    )


def _attempt(row: dict[str, Any]) -> Attempt:
    known = _present(row, Attempt) | {"verdict": _verdict(row), "tool_calls": tuple(_json(row.get("tool_calls"), []))}
    return Attempt(**known)


def _verdict(row: dict[str, Any]) -> Verdict | None:
    if row["passed"] is None:
        return None
    known = _present(row, Verdict) | {"violations": tuple(Violation(**v) for v in row["violations"] or ())}
    return Verdict(**known, kind=row["judge_kind"])


def _review(row: dict[str, Any]) -> Review | None:
    if not row["review"]:
        return None
    return Review(
        decision=row["review"],
        by=row["reviewer"],
        at_ms=_ms(row["reviewed_at"]),
        reason=row["review_reason"] or "",
        rules=tuple(row["review_rules"] or ()),
        sampled=bool(row["review_sampled"]),
        judged_passed=row["judge_passed"],
        judged_by=row["judge_name"] or "",
        judged_rules=tuple(row["judge_rules"] or ()),
    )


def _present(row: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Returns what a row says of a struct's fields; a null is the field's default."""
    names = [field.name for field in msgspec.structs.fields(kind)]
    return {name: row[name] for name in names if row.get(name) is not None}


def _json(text: str | None, empty: Any) -> Any:
    return msgspec.json.decode(text) if text else empty


def _ms(at: datetime | None) -> int:
    return round(at.timestamp() * 1000) if at is not None else 0
