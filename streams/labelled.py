"""Labelled examples: reading what experts say of answers, from JSONL or Parquet, for `goldstream judge calibrate`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from agents.calibration import Example
from schemas.case import Message
from schemas.errors import LabelError
from schemas.settings import Rubric

_SHAPE = (
    'expected {"messages": [{"role": "user", "content": "..."}], "answer": "...", "passed": true}, or "prompt": "..." '
    'in place of messages; "violated": ["rule-id"] where rules were labelled too'
)


def read_examples(path: Path, rubric: Rubric, limit: int | None = None) -> list[Example]:
    """Reads labelled examples; raises LabelError with the line or row for the first that is none."""
    rules = {rule.id for rule in rubric.rules}
    found: list[Example] = []
    for where, record in _records(path):
        if limit is not None and len(found) >= limit:
            break
        one = read_example(record, f"{path}, {where}", labelled=True)
        unknown = sorted((one.violated or frozenset()) - rules)
        if unknown:
            raise LabelError(
                f"{one.where}: violated names {', '.join(unknown)}, which the rubric does not have; it has "
                f"{', '.join(sorted(rules))}."
            )
        found.append(one)
    if not found:
        raise LabelError(f"{path} holds no examples; {_SHAPE}.")
    return found


def read_example(record: Any, where: str, *, labelled: bool) -> Example:
    """Reads one example; without `labelled` it needs no label. Raises LabelError."""
    if not isinstance(record, dict):
        raise LabelError(f"{where}: found no object; {_SHAPE}.")
    told = record.get("messages")
    if told is None and isinstance(record.get("prompt"), str):
        told = [{"role": "user", "content": record["prompt"]}]
    try:
        messages = msgspec.convert(told, tuple[Message, ...])
    except msgspec.ValidationError as error:
        raise LabelError(f"{where}: messages: {error}; {_SHAPE}.") from None
    answer, passed, violated = (record.get(name) for name in ("answer", "passed", "violated"))
    if not messages or not isinstance(answer, str):
        raise LabelError(f"{where}: messages and answer are needed; {_SHAPE}.")
    if labelled and not isinstance(passed, bool):
        raise LabelError(f"{where}: passed is {passed!r}; expected true or false, what an expert says of the answer.")
    if violated is not None and not (isinstance(violated, list) and all(isinstance(rule, str) for rule in violated)):
        raise LabelError(f"{where}: violated is {violated!r}; expected a list of rule ids.")
    known = record.get("record")
    if known is not None and not isinstance(known, dict):
        raise LabelError(f'{where}: record is {known!r}; expected an object such as {{"production_answer": "..."}}.')
    rules = None if violated is None else frozenset(violated)
    return Example(where, messages, answer, bool(passed), rules, known)


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields records with where they stand: lines of JSONL, rows of Parquet."""
    try:
        if path.suffix == ".parquet":
            rows = pq.read_table(path).to_pylist()
            for number, row in enumerate(rows, 1):
                yield f"row {number}", {key: _without_none(value) for key, value in row.items()}
            return
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if line.strip():
                yield f"line {number}", msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LabelError(f"{path}, line {number}: not JSON ({error}); one example a line, {_SHAPE}.") from None
    except pa.ArrowException as error:
        raise LabelError(f"{path} cannot be read as Parquet: {error}") from error


def _without_none(value: Any) -> Any:
    """Leaves out what a row's columns hold only because other rows have it."""
    if isinstance(value, dict):
        return {key: _without_none(held) for key, held in value.items() if held is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
