"""The chain of landing files of one partition: how the sink extends it, with no Kafka in sight.

A file appears whole or not at all, and only one writer can add the next one. The shape of the
chain and how it is read are in schemas.gold; streams.sink calls this.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import Fenced, GoldError
from schemas.faults import crash_point
from schemas.gold import (
    END_OFFSET,
    SEAL,
    START_OFFSET,
    LandingFile,
    check_seal,
    landing_folder,
    landing_name,
    read_chain,
    read_columns,
    sealed,
)
from schemas.manifests import Manifest, consistently, latest_manifest, manifest_numbers, manifest_path
from schemas.measures import SINK_FSYNC
from schemas.outcomes import OUTCOME_SCHEMA, outcome_table
from streams.durable import fsync_folder, make_folder, open_temp, remove_stale_temp_files
from streams.forgetting.file import keep_forgotten

_REMEDY = {
    errno.ENOSPC: "Free space there",
    errno.EDQUOT: "Raise the quota or free space there",
    errno.EFBIG: "Raise the file size limit, or lower sink.rows_per_file",
    errno.EROFS: "The file system is read-only: remount it writable",
    errno.EACCES: "Give the sink's user write access to it",
    errno.EPERM: "Give the sink's user write access, on a file system that supports hard links",
    errno.EOPNOTSUPP: "The file system must support hard links: choose another state_dir",
}

_NO_FOLDER = "A file lies where a folder should: name another in goldstream.toml (state_dir) or GOLDSTREAM_STATE_DIR."
_FRAME_REMEDY = {
    errno.ENOSPC: "Free space there and try again.",
    errno.EDQUOT: "Raise the quota or free space there, and try again.",
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
}


class LandingChain:
    """One partition's landing files, open for appending.

    `tip` is the first offset not yet in a file, None while there is no file. Opening verifies the chain, every byte
    of it, and raises ChainBroken where it is damaged: what is extended must be whole.
    """

    def __init__(self, gold: Path, partition: int) -> None:
        self.gold = gold
        self.partition = partition
        self.folder = landing_folder(gold, partition)
        self.manifest, self.files = consistently(gold, self._read)  # as they were at opening
        self.tip: int | None = self.files[-1].end if self.files else self.manifest.watermark.get(partition)
        try:
            make_folder(self.folder)
            make_folder(gold / "tmp")
            remove_stale_temp_files(gold / "tmp", f"{partition:05d}-")
        except OSError as error:
            raise _readable(error, self.folder) from error
        write_columns_file(gold)

    def _read(self, manifest: Manifest) -> tuple[Manifest, list[LandingFile]]:
        files = read_chain(self.gold, self.partition, manifest)
        for file in files:
            check_seal(file.path)
        return manifest, files

    def write(self, start: int, end: int, rows: Sequence[dict[str, Any]] | pa.Table) -> Path:
        """Adds the file of offsets start <= o < end, which may hold no row at all, and returns its path.

        1. Write a temp file outside the readers' glob, holding a lock that tells the living from the dead.
        2. fsync it, so that the name never points at less than the whole.
        3. Link it to its landing name, which fails where another writer was first.
        4. Take the name back where compaction has freed it: a writer this slow is fenced as well. Readers do not look
           at names below the watermark.
        5. fsync the folder, so that the name survives a power cut.
        6. Remove the temp name.

        Raises Fenced where another sink wrote this range, GoldError where the disk refuses; either way no
        reader sees anything of it.
        """
        if end <= start or (self.tip is not None and start != self.tip):
            raise GoldError(
                f"partition {self.partition}: asked to write offsets {start} to {end}, but the chain continues at "
                f"{self.tip}. Restart the sink: it reads the tip again."
            )
        target = self.folder / landing_name(self.partition, start)
        if self.tip is None and (any(self.folder.glob("*.parquet")) or self._compacted(0)):
            # Two first files could carry different names if retention moved the log start between two openings.
            raise _fenced(target)
        data = _parquet_bytes(rows if isinstance(rows, pa.Table) else outcome_table(rows), start, end)
        temp: Path | None = None
        try:
            # 1. Write
            file, temp = open_temp(self.gold / "tmp", target.stem)
            with file:
                file.write(data)
                file.flush()
                crash_point("sink.after_temp")
                # 2. fsync
                with SINK_FSYNC.seconds():
                    os.fsync(file.fileno())
                crash_point("sink.after_fsync")
                # 3. Link
                os.link(temp, target)
                crash_point("sink.after_link")
                # 4. Take it back
                if self._compacted(start):
                    target.unlink(missing_ok=True)
                    raise _fenced(target)
                # 5. fsync the folder
                crash_point("sink.before_dir_fsync")
                with SINK_FSYNC.seconds():
                    fsync_folder(self.folder)
        except FileExistsError as error:
            raise _fenced(target) from error
        except OSError as error:
            raise _readable(error, target) from error
        finally:
            # 6. Remove the temp name
            if temp is not None:
                temp.unlink(missing_ok=True)
        self.tip = end
        return target

    def rows(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yields columns of all rows of the partition as they were at opening, compacted ones first."""
        for data in self.manifest.files:
            if self.partition in data.offsets:
                table = read_columns(self.gold / data.name, [*columns, "kafka_partition"])
                yield table.filter(pc.equal(table["kafka_partition"], self.partition)).select(list(columns))
        for file in self.files:
            yield read_columns(file.path, columns)

    def _compacted(self, start: int) -> bool:
        """Tells whether an offset is below the watermark: its name is taken, even where its file has gone."""
        numbers = manifest_numbers(self.gold)
        if numbers and numbers[-1] != self.manifest.number:
            self.manifest = latest_manifest(self.gold)
        return start < self.manifest.watermark.get(self.partition, 0)


def keep_manifest(gold: Path) -> None:
    """Makes sure that there is a manifest, of an empty gold set where nothing is compacted: the views ask it."""
    if manifest_numbers(gold):
        return
    target = manifest_path(gold, 0)
    make_folder(target.parent)
    make_folder(gold / "tmp")
    file, temp = open_temp(gold / "tmp", "manifest")
    with file:
        file.write(msgspec.json.encode(Manifest()))
        file.flush()
        os.fsync(file.fileno())
        temp.replace(target)


def columns_file(gold: Path) -> Path:
    """Returns the path of the empty file with every column."""
    return gold / "landing" / "p=schema" / "columns.parquet"


def write_columns_file(gold: Path) -> Path:
    """Makes sure an empty file with every column lies where the views look, and returns its path.

    With it the views work before the first outcome, and a column added later exists for older files too. So does an
    empty list of what is forgotten, where nothing is. Raises GoldError where that cannot be written: whoever asks the
    gold set meets it in a folder that is not theirs, or not the sink's.
    """
    path = columns_file(gold)
    try:
        keep_forgotten(gold)
        keep_manifest(gold)
        if path.exists() and set(OUTCOME_SCHEMA.names) <= set(pq.read_schema(path).names):
            return path
        make_folder(path.parent)
        make_folder(gold / "tmp")
        file, temp = open_temp(gold / "tmp", "columns")
        with file:
            file.write(_parquet_bytes(OUTCOME_SCHEMA.empty_table(), 0, 0))
            file.flush()
            os.fsync(file.fileno())
            temp.replace(path)
    except OSError as error:
        raise cannot_open(error, gold, path) from error
    return path


def _parquet_bytes(table: pa.Table, start: int, end: int) -> bytes:
    footer = {START_OFFSET: str(start).encode(), END_OFFSET: str(end).encode(), SEAL: b"sha256"}
    out = pa.BufferOutputStream()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **footer})
    pq.write_table(table, out, compression="zstd", compression_level=1, write_page_checksum=True)
    return sealed(memoryview(out.getvalue()))


def _fenced(target: Path) -> Fenced:
    return Fenced(
        f"{target}: another sink wrote this range first, so this one must stop. Nothing is lost or doubled; restarted, "
        "it continues from the new tip. Only one sink may own a partition of a gold set."
    )


def _readable(error: OSError, path: Path) -> GoldError:
    remedy = _REMEDY.get(error.errno or 0, "Mend that")
    return GoldError(
        f"cannot write {path}: {error.strerror or error}. {remedy} and start the sink again: it continues where the "
        "chain ends, and nothing is lost while Kafka keeps the topic."
    )


def cannot_open(error: OSError, gold: Path, path: Path) -> GoldError:
    """Returns the error of a gold set that lacks what every reader needs, where it cannot be added."""
    remedy = _FRAME_REMEDY.get(error.errno or 0)
    if remedy is None:
        remedy = (
            "state_dir in goldstream.toml, or GOLDSTREAM_STATE_DIR, should name the folder that the sink writes. If it "
            "does, ask as the sink's user: a gold set that is empty, or of an older version, is completed first."
        )
    found = f"cannot read or write {error.filename or path}: {error.strerror or error}"
    return GoldError(f"no gold set can be opened in {gold}: {found}. {remedy}")
