"""CloudEvents: an envelope in Kafka headers (binary mode) or around the payload (structured mode)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import UNSET

from schemas.errors import RecordError
from schemas.tracing.context import header_of
from streams.records import Record, set_field
from streams.shapes.values import first, kind, time_ms

STRUCTURED = b'{"specversion"'  # as most libraries begin an event: 14 bytes
Said = tuple[Any, Any, Any, Any]  # time, source, id and traceparent of an event, of any type


class _Event(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """An event in structured mode as nearly all are; decoding it into this takes the base64 off on the way."""

    specversion: Any
    id: Any = None
    source: Any = None
    type: Any = None
    subject: Any = None
    time: Any = None
    datacontenttype: Any = None
    dataschema: Any = None
    traceparent: Any = None
    tracestate: Any = None
    partitionkey: Any = None
    data: Any = None
    data_base64: bytes | msgspec.UnsetType = UNSET


_decode = msgspec.json.Decoder(_Event).decode


def read_event(value: bytes) -> tuple[Said, Any] | None:
    """Returns (what an event says, its payload, bytes where it was base64); None for what takes more care to read."""
    try:
        event = _decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    data = event.data if event.data_base64 is UNSET else event.data_base64
    return None if data is None else ((event.time, event.source, event.id, event.traceparent), data)


def is_structured(body: dict[str, Any]) -> bool:
    """Whether an object is an event with its payload inside."""
    return "specversion" in body and ("data" in body or "data_base64" in body or ("id" in body and "source" in body))


def structured_data(body: dict[str, Any]) -> Any:
    """Returns the payload of an event: bytes where it is base64."""
    if (raw := body.get("data_base64")) is not None:
        if not isinstance(raw, str):
            raise RecordError("wrong_type", f"`data_base64` is {kind(raw)}, expected text")
        try:
            return msgspec.convert(raw, bytes)  # base64; binascii takes seven times as long
        except msgspec.ValidationError:
            raise RecordError("wrong_type", "`data_base64` is not base64") from None
    if body.get("data") is None:
        raise RecordError("empty", "the event has no data")
    return body["data"]


def said_in(event: Mapping[str, Any]) -> Said:
    """Returns what an event says of its payload."""
    get = event.get
    return get("time"), get("source"), get("id"), get("traceparent")


def fill_in(said: Said, record: Record) -> None:
    """Writes into a record what an event says of its payload and the payload does not say itself."""
    time, source, event_id, traceparent = said
    if not record.ts_ms:
        set_field(record, "ts_ms", time_ms(time))
    if not (record.source and record.event_id):
        source, event_id = first(source), first(event_id)
        if not record.source:
            set_field(record, "source", source)
        if not record.event_id and event_id:  # unique together with its source, says the specification
            set_field(record, "event_id", f"{source}#{event_id}")
    if traceparent.__class__ is str and not (record.trace_id and record.traceparent):
        header = header_of(traceparent)
        if header:
            fill_in_trace(header, record)


def fill_in_trace(traceparent: str, record: Record) -> None:
    """Writes a traceparent and the trace that it names into a record, each where it has none."""
    if not record.trace_id:
        set_field(record, "trace_id", traceparent[3:35])
    if not record.traceparent:
        set_field(record, "traceparent", traceparent)


def from_headers(headers: Any) -> dict[str, str]:
    """Returns the attributes in `ce_` headers; none where the message is no event in binary mode."""
    found = {}
    for name, value in headers or ():
        if isinstance(name, str) and name[:3] == "ce_" and value is not None:
            found[name[3:]] = bytes(value).decode("utf-8", "replace")
    return found if "specversion" in found or "id" in found else {}
