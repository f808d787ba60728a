"""Debezium: change events of a database table that calls are written to. The row after the change is the record."""

from __future__ import annotations

from typing import Any

from schemas.errors import RecordError
from streams.records import Record, set_field
from streams.shapes.values import kind, parsed, text, time_ms

_GONE = {"d": "deletes a row", "t": "truncates the table", "m": "is a message of the log"}

_OPEN = ("{", "[")


def is_debezium(body: dict[str, Any]) -> bool:
    """Whether an object is a change event, whole, without its schema, or flattened by Debezium's own transform."""
    payload = body.get("payload")
    if payload.__class__ is dict and "op" in payload and ("after" in payload or "before" in payload):
        return True
    return ("op" in body and ("after" in body or "before" in body)) or "__deleted" in body


def changed_row(body: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Returns (the row after the change, when it was made in ms, 0 for unknown); columns of JSON are parsed.

    Raises RecordError("deleted") for a change that leaves no row.
    """
    if "__deleted" in body:
        if text(body["__deleted"]) == "true" or body["__deleted"] is True:
            raise RecordError("deleted", "the change event deletes a row")
        columns = {
            name: parsed(value) if value.__class__ is str and value[:1] in _OPEN else value
            for name, value in body.items()
            if name[:2] != "__"
        }
        return columns, time_ms(body.get("__ts_ms") or body.get("__source_ts_ms"))
    payload = body["payload"] if isinstance(body.get("payload"), dict) and "op" in body["payload"] else body
    op = payload.get("op")
    if isinstance(op, str) and op in _GONE:
        raise RecordError("deleted", f"the change event {_GONE[op]}")
    row = parsed(payload.get("after"))
    if not isinstance(row, dict):
        raise RecordError("wrong_type", f"`after` of the change event is {kind(row)}, expected an object")
    origin = payload.get("source")
    origin = origin if isinstance(origin, dict) else {}
    return _parsed_columns(row), time_ms(origin.get("ts_ms") or payload.get("ts_ms"))


def fill_in_time(ts_ms: int, record: Record) -> None:
    """Writes when a row was changed into a record that does not say when the call was made."""
    if not record.ts_ms:
        set_field(record, "ts_ms", ts_ms)


def only_column(row: dict[str, Any]) -> Any:
    """Returns the one column of a row that holds an object: an outbox table's payload; None where it is not one."""
    held = [value for value in row.values() if isinstance(value, dict | list)]
    return held[0] if len(held) == 1 else None


def _parsed_columns(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: parsed(value) if value.__class__ is str and value[:1] in _OPEN else value for name, value in row.items()
    }
