"""NVIDIA's data-flywheel records: `{request, response, timestamp, client_id, workload_id}`, OpenAI-shaped inside."""

from __future__ import annotations

from typing import Any

from streams.records import Record, set_field
from streams.shapes.openai import read_halves
from streams.shapes.values import text, time_ms

_OWN = frozenset(("request", "response", "timestamp", "client_id", "workload_id"))  # nothing else to look for


def is_flywheel(body: dict[str, Any]) -> bool:
    """Whether an object is a data-flywheel record."""
    return "workload_id" in body and "request" in body


def read_flywheel(body: dict[str, Any]) -> Record:
    """Returns the record."""
    around = {} if _OWN.issuperset(body) else body
    record = read_halves(body["request"], body.get("response"), around, "flywheel", time_ms(body.get("timestamp")))
    source, workload = body.get("client_id"), body["workload_id"]
    set_field(record, "source", source if source.__class__ is str else text(source or ""))
    if not around and not record.workload:
        set_field(record, "workload", workload if workload.__class__ is str else text(workload or ""))
    return record
