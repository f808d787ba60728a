"""CloudEvents: an envelope in Kafka headers (binary mode) or around the payload (structured mode)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from schemas.errors import RecordError
from schemas.tracing.context import header_of
from streams.shapes.values import first, kind, time_ms


def is_structured(body: dict[str, Any]) -> bool:
    """Whether an object is an event with its payload inside."""
    return "specversion" in body and ("data" in body or "data_base64" in body or ("id" in body and "source" in body))


def structured_data(body: dict[str, Any]) -> Any:
    """Returns the payload of an event: bytes where it is base64."""
    if body.get("data_base64") is not None:
        raw = body["data_base64"]
        if not isinstance(raw, str):
            raise RecordError("wrong_type", f"`data_base64` is {kind(raw)}, expected text")
        try:
            return msgspec.convert(raw, bytes)  # base64; binascii takes seven times as long
        except msgspec.ValidationError:
            raise RecordError("wrong_type", "`data_base64` is not base64") from None
    if body.get("data") is None:
        raise RecordError("empty", "the event has no data")
    return body["data"]


def context_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what an event says of its payload, as fields of a record; used where the payload says nothing."""
    found: dict[str, Any] = {}
    if ts_ms := time_ms(attributes.get("time")):
        found["ts_ms"] = ts_ms
    if source := first(attributes.get("source")):
        found["source"] = source
    if event_id := first(attributes.get("id")):  # unique together with its source, says the specification
        found["event_id"] = f"{source}#{event_id}"
    if (given := attributes.get("traceparent")).__class__ is str and (header := header_of(given)):
        found["trace_id"], found["traceparent"] = header[3:35], header
    return found


def from_headers(headers: Any) -> dict[str, str]:
    """Returns the attributes in `ce_` headers; none where the message is no event in binary mode."""
    found = {}
    for name, value in headers or ():
        if isinstance(name, str) and name[:3] == "ce_" and value is not None:
            found[name[3:]] = bytes(value).decode("utf-8", "replace")
    return found if "specversion" in found or "id" in found else {}
