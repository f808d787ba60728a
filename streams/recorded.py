"""Files of logged records, read one by one from any place: JSONL, JSON, Parquet, and folders of them.

`goldstream send` reads through here. A folder is read in the order of its paths, which is the order of time in the
layout of LiteLLM's S3 logger (PREFIX/2026-11-20/TIME_ID.json, one record a file). Parquet apart, a file may end in .gz.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import RecordError, SettingsError

LINES, WHOLE, TABLES = (".jsonl", ".ndjson"), (".json",), (".parquet",)
HEAD_BYTES = 65_536


class Place(msgspec.Struct, frozen=True):
    """How far files have been read: all before `file`, and `records` of `file` itself."""

    file: str = ""  # path relative to what was named, "" before the first
    records: int = 0
    byte: int = 0  # where the next line begins, in files of lines that are not compressed
    head: str = ""  # hash of the file's beginning, by which a file that was replaced is known


class Found(NamedTuple):
    """One record and the place behind it."""

    value: bytes
    place: Place


def files_in(path: Path) -> list[tuple[str, Path]]:
    """Returns (name, path) of the files to read, in order. Raises SettingsError where there are none."""
    if path.is_dir():
        found = sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file() and _kind(p))
    elif not path.exists():
        raise SettingsError(f"{path} does not exist. Name a file or a folder of {_known()}.")
    else:
        found = [(path.name, path)] if _kind(path) else []
    if not found:
        raise SettingsError(f"{path} holds nothing to send. Expected {_known()}; each may end in .gz, but for Parquet.")
    return found


def read_from(path: Path, start: Place) -> Iterator[Found]:
    """Yields the records behind `start`, a place that an earlier call gave for the same files.

    Blank lines are passed over; whatever else stands in a file of lines is a record, be it JSON or not. Raises
    RecordError where a file cannot be read, SettingsError where the file of `start` is not the one it was.
    """
    for name, file in files_in(path):
        if name < start.file:
            continue
        here = start if name == start.file else Place(name)
        try:
            if here.records and here.head != head_of(file, here.byte):
                raise SettingsError(
                    f"{file} is not the file that was sent up to record {here.records}: its beginning differs. "
                    "--restart sends it from its beginning."
                )
            yield from _records(file, msgspec.structs.replace(here, file=name))
        except (OSError, EOFError, msgspec.DecodeError, pa.ArrowException) as error:
            raise RecordError("unreadable", f"{file}: {error}. What stands before it was sent.") from error


def passed_over(path: Path, start: Place) -> int:
    """Returns how many files come before the one that was reached: where any is new, it is not sent any more."""
    return sum(name < start.file for name, _ in files_in(path))


def head_of(file: Path, upto: int = 0) -> str:
    """Returns the hash of a file's first bytes: of those before `upto`, at most HEAD_BYTES."""
    with file.open("rb") as opened:
        return hashlib.sha256(opened.read(min(upto or HEAD_BYTES, HEAD_BYTES))).hexdigest()[:16]


def _records(file: Path, start: Place) -> Iterator[Found]:
    kind = _kind(file)
    if kind in LINES:
        yield from _lines(file, start)
        return
    head = head_of(file)
    values = _rows(file) if kind in TABLES else _whole(file)
    for number, value in enumerate(values, 1):
        if number > start.records:
            yield Found(value, Place(start.file, number, 0, head))


def _lines(file: Path, start: Place) -> Iterator[Found]:
    plain = file.suffix != ".gz"
    number, byte, head, whole = start.records, start.byte, "", False
    with _open(file) as lines:
        if plain:
            lines.seek(byte)
        skip = 0 if plain else number
        for line in lines:
            byte += len(line) if plain else 0
            if not line.strip():
                continue
            if skip:
                skip -= 1
                continue
            number += 1
            if not whole:
                head, whole = head_of(file, byte), not plain or byte >= HEAD_BYTES
            yield Found(line.strip(), Place(start.file, number, byte, head))


def _whole(file: Path) -> Iterator[bytes]:
    with _open(file) as opened:
        value = opened.read()
    if value.lstrip()[:1] == b"[":
        yield from map(bytes, msgspec.json.decode(value, type=list[msgspec.Raw]))
    elif value.strip():
        yield value.strip()


def _rows(file: Path) -> Iterator[bytes]:
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=500):
            for row in batch.to_pylist():
                yield msgspec.json.encode(row, enc_hook=str)


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _kind(file: Path) -> str:
    """Returns the ending that decides how a file is read, "" for one that is not."""
    ending = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
    known = (*LINES, *WHOLE) if file.suffix == ".gz" else (*LINES, *WHOLE, *TABLES)
    return ending if ending in known else ""


def _known() -> str:
    return ", ".join((*LINES, *WHOLE, *TABLES))
