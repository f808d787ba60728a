"""Helicone's request log: `request_body` and `response_body`, with properties, scores and ratings beside them."""

from __future__ import annotations

from typing import Any

from schemas.errors import RecordError
from streams.records import Record, set_field
from streams.shapes.openai import read_halves
from streams.shapes.values import amount, first, number, obj, parsed, time_ms

_OMITTED = {"request_body": "Helicone-Omit-Request", "response_body": "Helicone-Omit-Response"}


def is_helicone(body: dict[str, Any]) -> bool:
    """Whether an object is a row of Helicone's request log."""
    return "request_body" in body and "response_body" in body


def read_helicone(body: dict[str, Any]) -> Record:
    """Returns the record of one row."""
    status = body.get("response_status")
    if status is not None and (number(status) >= 400 or (isinstance(status, int) and status < 0)):
        raise RecordError("failed_call", f"Helicone's response_status is {status}")
    request, response = parsed(body["request_body"]), parsed(body["response_body"])
    for name, half in (("request_body", request), ("response_body", response)):
        if half.__class__ is dict and len(half) == 1 and "model" in half:
            raise RecordError("redacted", f"`{name}` holds the model alone; {_OMITTED[name]} takes the rest out")
    record = read_halves(request, response, body, "helicone", time_ms(body.get("request_created_at")))
    if body.get("request_properties") and (properties := obj(body["request_properties"])):
        properties = {str(name).lower(): value for name, value in properties.items()}
        session = first(*[properties.get(name) for name in ("helicone-session-id", "session_id", "session")])
        set_field(record, "session_id", session or record.session_id)
        set_field(record, "workload", first(properties.get("workload"), properties.get("app"), record.workload))
    feedback: dict[str, Any] = {}
    if body.get("scores") and (scores := obj(body["scores"])):
        feedback["scores"] = scores
    if "feedback_rating" in body:
        rating = parsed(body["feedback_rating"])
        if rating is not None and rating != "":
            feedback["rating"] = rating
    set_field(record, "source", "helicone")
    if feedback:
        set_field(record, "feedback", feedback)
    if event_id := first(body.get("request_id")):
        set_field(record, "event_id", event_id)
    if user := first(body.get("request_user_id")):
        set_field(record, "user", user)
    for name in ("costUSD", "cost_usd", "cost"):  # the last that is one counts
        if name in body and (cost := amount(body[name])) is not None:
            set_field(record, "cost_usd", cost)
    if not record.model:
        set_field(record, "model", first(body.get("response_model"), body.get("request_model")))
    for name in ("prompt_tokens", "completion_tokens"):
        if not getattr(record, name):
            set_field(record, name, number(body.get(name)))
    return record
