"""Helicone's request log: `request_body` and `response_body`, with properties, scores and ratings beside them."""

from __future__ import annotations

from typing import Any

import msgspec

from schemas.errors import RecordError
from streams.records import Record
from streams.shapes.openai import read_halves
from streams.shapes.values import amount, first, number, obj, parsed, time_ms

_OMITTED = {"request_body": "Helicone-Omit-Request", "response_body": "Helicone-Omit-Response"}


def is_helicone(body: dict[str, Any]) -> bool:
    """Whether an object is a row of Helicone's request log."""
    return "request_body" in body and "response_body" in body


def read_helicone(body: dict[str, Any]) -> Record:
    """Returns the record of one row."""
    status = body.get("response_status")
    if number(status) >= 400 or (isinstance(status, int) and status < 0):
        raise RecordError("failed_call", f"Helicone's response_status is {status}")
    halves = {name: parsed(body[name]) for name in _OMITTED}
    for name, half in halves.items():
        if half.__class__ is dict and len(half) == 1 and "model" in half:
            raise RecordError("redacted", f"`{name}` holds the model alone; {_OMITTED[name]} takes the rest out")
    record = read_halves(halves["request_body"], halves["response_body"], body, "helicone")
    properties = {str(name).lower(): value for name, value in obj(body.get("request_properties")).items()}
    feedback: dict[str, Any] = {}
    if scores := obj(body.get("scores")):
        feedback["scores"] = scores
    rating = parsed(body.get("feedback_rating"))
    if rating is not None and rating != "":
        feedback["rating"] = rating
    return msgspec.structs.replace(
        record,
        event_id=first(body.get("request_id"), record.event_id),
        ts_ms=time_ms(body.get("request_created_at")) or record.ts_ms,
        source="helicone",
        session_id=first(properties.get("helicone-session-id"), properties.get("session_id"), properties.get("session"))
        or record.session_id,
        workload=first(properties.get("workload"), properties.get("app"), record.workload),
        user=first(body.get("request_user_id"), record.user),
        model=first(record.model, body.get("response_model"), body.get("request_model")),
        prompt_tokens=record.prompt_tokens or number(body.get("prompt_tokens")),
        completion_tokens=record.completion_tokens or number(body.get("completion_tokens")),
        cost_usd=next(
            (c for name in ("cost", "cost_usd", "costUSD") if (c := amount(body.get(name))) is not None), None
        ),
        feedback=feedback,
    )
