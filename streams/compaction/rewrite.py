"""Writes the rows of many files into few: one open file for each outcome, split and day, with bounded memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import GoldError
from schemas.faults import crash_point
from schemas.gold import check_seal, conform
from schemas.manifests import DataFile
from schemas.outcomes import OUTCOME_SCHEMA
from streams.durable import fsync_folder, make_folder, open_temp

ROWS_PER_GROUP = 50_000
ROWS_PER_FILE = 1_000_000
_BUFFERED_BYTES = 192 << 20  # of all open files; the largest buffer is written out beyond
_READ_ROWS = 20_000
TEMP = "compact-"  # begins the names of our temp files


class Group(NamedTuple):
    """What the rows of one compacted file have in common."""

    outcome: str
    split: str
    dt: str

    @property
    def folder(self) -> str:
        """Its folder below the gold set's."""
        return f"data/{_plain(self.outcome)}/{_plain(self.split)}/dt={_plain(self.dt)}"


def read_landing(path: Path) -> pa.Table:
    """Returns the rows of a landing file after its seal was checked: what replaces it must be what was written."""
    check_seal(path)
    return next(iter(read_batches(path, whole=True)), OUTCOME_SCHEMA.empty_table())


def read_batches(path: Path, *, whole: bool = False) -> Iterator[pa.Table]:
    """Yields the rows of a file with every column of today; raises GoldError for columns this version does not know."""
    file = pq.ParquetFile(path, page_checksum_verification=True)
    unknown = _fields(file.schema_arrow) - _fields(OUTCOME_SCHEMA)
    if unknown:
        raise GoldError(
            f"{path} has columns that this version does not know ({', '.join(sorted(unknown)[:5])}): a newer "
            "Goldstream wrote it. Compact with that version; this one would lose them."
        )
    if whole:
        yield conform(file.read(), OUTCOME_SCHEMA)
        return
    for batch in file.iter_batches(_READ_ROWS):
        yield conform(pa.Table.from_batches([batch]), OUTCOME_SCHEMA)


class Writers:
    """Compacted files in the making; `add` rows, then `finish`."""

    def __init__(self, gold: Path, number: int) -> None:
        self._gold, self._number = gold, number
        self._token = secrets.token_hex(4)  # no two compactions ever make a file of the same name
        self._open: dict[Group, _File] = {}
        self._made: list[DataFile] = []
        self._named = 0

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._open.values():
            file.drop()
        self._open.clear()

    def add(self, table: pa.Table) -> None:
        """Takes rows, each to the file of its outcome, split and day."""
        if len(table) == 0:
            return
        keys = table.group_by(list(Group._fields), use_threads=False).aggregate([]).to_pylist()
        for key in keys:
            group = Group(*(str(key[name]) for name in Group._fields))
            mask = None
            for name in Group._fields if len(keys) > 1 else ():
                same = pc.equal(table[name], key[name]) if key[name] is not None else pc.is_null(table[name])
                mask = same if mask is None else pc.and_(mask, same)
            if group not in self._open:
                self._open[group] = _File(self._gold, f"{TEMP}{self._number:08d}")
            file = self._open[group]
            file.add(table if mask is None else table.filter(mask))
            if file.rows >= ROWS_PER_FILE:
                self._close(group)
        while sum(file.buffered for file in self._open.values()) > _BUFFERED_BYTES:
            max(self._open.values(), key=lambda file: file.buffered).write()

    def finish(self) -> tuple[DataFile, ...]:
        """Completes every file, gives it its name and returns what was written."""
        for group in sorted(self._open):
            self._close(group)
        for folder in {(self._gold / file.name).parent for file in self._made}:
            fsync_folder(folder)
        crash_point("compact.after_files")
        return tuple(self._made)

    def _close(self, group: Group) -> None:
        name = f"{group.folder}/{self._number:08d}-{self._token}-{self._named:04d}.parquet"
        self._named += 1
        self._made.append(self._open.pop(group).close(self._gold, name))


class _File:
    def __init__(self, gold: Path, stem: str) -> None:
        make_folder(gold / "tmp")
        self._file, self._temp = open_temp(gold / "tmp", stem)
        self._writer = pq.ParquetWriter(
            self._file, OUTCOME_SCHEMA, compression="zstd", compression_level=3, write_page_checksum=True
        )
        self._buffer: list[pa.Table] = []
        self.buffered = self._held = self.rows = 0  # bytes and rows in the buffer, rows in all
        self._offsets: dict[int, tuple[int, int]] = {}

    def add(self, table: pa.Table) -> None:
        self._buffer.append(table)
        self.buffered += table.nbytes
        self._held += len(table)
        self.rows += len(table)
        places = table.select(["kafka_partition", "kafka_offset"]).group_by("kafka_partition", use_threads=False)
        for row in places.aggregate([("kafka_offset", "min"), ("kafka_offset", "max")]).to_pylist():
            partition, low, high = row["kafka_partition"], row["kafka_offset_min"], row["kafka_offset_max"]
            first, last = self._offsets.get(partition, (low, high))
            self._offsets[partition] = (min(first, low), max(last, high))
        if self._held >= ROWS_PER_GROUP:
            self.write()

    def write(self) -> None:
        """Writes what is buffered as row groups."""
        if self._held:
            self._writer.write_table(pa.concat_tables(self._buffer), row_group_size=ROWS_PER_GROUP)
        self._buffer, self.buffered, self._held = [], 0, 0

    def close(self, gold: Path, name: str) -> DataFile:
        """Completes the file under its name: sync before the name, so that it never stands for less than the whole."""
        try:
            self.write()
            self._writer.close()
            self._file.flush()
            crash_point("compact.after_temp")
            os.fsync(self._file.fileno())
            written = pq.read_metadata(self._temp).num_rows
            if written != self.rows:
                raise GoldError(f"{name}: {written} rows were written of {self.rows}. Nothing was published.")
            with self._temp.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            target = gold / name
            make_folder(target.parent)
            os.link(self._temp, target)
            crash_point("compact.after_link")
            size = target.stat().st_size
        finally:
            self._file.close()
            self._temp.unlink(missing_ok=True)
        return DataFile(
            name=name, rows=self.rows, bytes=size, sha256=digest, offsets=dict(sorted(self._offsets.items()))
        )

    def drop(self) -> None:
        """Leaves nothing of it."""
        self._buffer = []
        with contextlib.suppress(OSError, pa.ArrowException, ValueError):
            self._writer.close()  # what it still writes goes with the file
        self._file.close()
        self._temp.unlink(missing_ok=True)


def _fields(fields: Iterable[pa.Field], path: str = "") -> set[str]:
    """Returns the paths of all fields, nested ones too."""
    found: set[str] = set()
    for field in fields:
        inner = f"{path}{field.name}"
        found.add(inner)
        kind = field.type.value_type if pa.types.is_list(field.type) else field.type
        if pa.types.is_struct(kind):
            found |= _fields([kind.field(i) for i in range(kind.num_fields)], f"{inner}.")
    return found


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)[:60] or "none"
