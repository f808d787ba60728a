"""NVIDIA's data-flywheel records: `{request, response, timestamp, client_id, workload_id}`, OpenAI-shaped inside."""

from __future__ import annotations

from typing import Any

import msgspec

from streams.records import Record
from streams.shapes.openai import read_halves
from streams.shapes.values import first, time_ms


def is_flywheel(body: dict[str, Any]) -> bool:
    """Whether an object is a data-flywheel record."""
    return "workload_id" in body and "request" in body


def read_flywheel(body: dict[str, Any]) -> Record:
    """Returns the record."""
    record = read_halves(body["request"], body.get("response"), body, "flywheel")
    ts_ms = time_ms(body.get("timestamp")) or record.ts_ms
    return msgspec.structs.replace(record, ts_ms=ts_ms, source=first(body.get("client_id")))
