"""Parquet: typed columns that `datasets`, TRL and any SQL engine read, with each pair's provenance beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streams.export.chat import calls_row, json_text, message_row
from streams.export.pairs import FACTS, Pair

_BATCH = 1000  # pairs a row group is made of
_function = pa.struct([("name", pa.string()), ("arguments", pa.string())])
_call = pa.struct([("id", pa.string()), ("type", pa.string()), ("function", _function)])
_message = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("name", pa.string()),
        ("tool_calls", pa.list_(_call)),
        ("tool_call_id", pa.string()),
    ]
)
_answer = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("reasoning_content", pa.string()),
        ("tool_calls", pa.list_(_call)),
    ]
)
_facts: dict[str, pa.DataType] = {
    "corrected": pa.bool_(),
    "rounds": pa.int32(),
    "score": pa.float64(),
    "max_score": pa.float64(),
}
PAIR_SCHEMA = pa.schema(
    [
        ("prompt", pa.list_(_message)),
        ("completion", pa.list_(_answer)),
        ("tools", pa.string()),  # JSON, null where the prompt offered none
        ("chat_template_kwargs", pa.struct([("enable_thinking", pa.bool_())])),
        ("case_id", pa.string()),
        ("pair", pa.string()),
        ("split", pa.string()),
        *((name, _facts.get(name, pa.string())) for name in FACTS),
    ]
)


def table_row(pair: Pair, *, tools: bool, thinking: bool) -> dict[str, Any]:
    """Returns a pair as a row of PAIR_SCHEMA; prompt and completion are TRL's."""
    answer: dict[str, Any] = {"role": "assistant", "content": pair.answer, "reasoning_content": pair.strategy or None}
    answer["tool_calls"] = calls_row(pair.calls)
    return {
        "prompt": [message_row(message, tools=True) for message in pair.messages],
        "completion": [answer],
        "tools": json_text(pair.tools) if pair.tools else None,
        "chat_template_kwargs": {"enable_thinking": bool(pair.strategy)},
        "case_id": pair.case_id,
        "pair": pair.pair,
        "split": pair.split,
        **{name: pair.facts[name] for name in FACTS},
    }


class TableFile:
    """One Parquet file, written in batches."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, PAIR_SCHEMA, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row of PAIR_SCHEMA."""
        self._rows.append(row)
        if len(self._rows) >= _BATCH:
            self._write()

    def close(self) -> None:
        """Writes what is left, and the footer."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=PAIR_SCHEMA))
            self._rows = []
