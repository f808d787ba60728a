"""Where the gold set's files lie, what their names promise, and how to read them.

The sink (streams.sink) extends the landing chain: per partition of gs.outcomes, files that hold
contiguous offset ranges. The trainer and the command line read through `read_outcomes`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import ChainBroken
from schemas.outcomes import OUTCOME_SCHEMA

START_OFFSET = b"goldstream.start_offset"  # footer key: first offset of the file's range, as its name says
END_OFFSET = b"goldstream.end_offset"  # footer key: first offset after the file's range
SEAL = b"goldstream.seal"  # footer key: a SHA-256 of all other bytes stands before the footer, where no reader looks
_SEAL_MARK = b"\0seal256"  # with the key twice the sign that a file is sealed: no single flip removes both
Watermark = dict[int, int]  # partition -> first offset not included

_NAME = re.compile(r"(\d{5})-(\d{20})\.parquet")


class LandingFile(NamedTuple):
    """One link of the chain: offsets start <= o < end of a partition."""

    path: Path
    partition: int
    start: int
    end: int


def landing_folder(gold: Path, partition: int) -> Path:
    """Returns the folder of a partition's chain."""
    return gold / "landing" / f"p={partition:05d}"


def landing_name(partition: int, start: int) -> str:
    """Returns the file name of the range that begins at `start`; the zero-padding makes names sort by offset."""
    return f"{partition:05d}-{start:020d}.parquet"


def read_chain(gold: Path, partition: int) -> list[LandingFile]:
    """Returns a partition's landing files in offset order.

    Raises ChainBroken for an unreadable file, a footer without its offsets, a gap or an overlap.
    """
    folder = landing_folder(gold, partition)
    chain: list[LandingFile] = []
    for path in sorted(folder.glob("*.parquet")) if folder.is_dir() else []:
        name = _NAME.fullmatch(path.name)
        if not name or int(name[1]) != partition:
            raise ChainBroken(f"{path}: not a landing file of partition {partition}. Move it out of this folder.")
        start = int(name[2])
        try:
            metadata = pq.read_metadata(path).metadata or {}
            end, noted = int(metadata[END_OFFSET]), int(metadata[START_OFFSET])
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise ChainBroken(
                f"{path}: its footer cannot be read ({error}). The file was damaged after it was written: restore it "
                "from a backup, or move it and every later file of this folder away, and the sink rebuilds them from "
                "the topic as far as its retention reaches."
            ) from error
        if noted != start or end <= start:
            raise ChainBroken(
                f"{path}: its footer says offsets {noted} to {end}, which its name contradicts. It was renamed or "
                "overwritten: give it back its name, or restore it from a backup."
            )
        if chain and start != chain[-1].end:
            raise ChainBroken(
                f"{folder}: {chain[-1].path.name} ends before offset {chain[-1].end}, but the next file starts at "
                f"{start}. A file is missing or doubled: restore it from a backup."
            )
        chain.append(LandingFile(path, partition, start, end))
    return chain


def sealed(data: bytes | memoryview) -> bytes:
    """Returns the bytes of a Parquet file with their SHA-256 put in before the footer.

    Parquet finds damage only where it happens to break an encoding; one flipped bit in a text is simply another text.
    """
    cut = _footer_start(data)
    return b"".join((data[:cut], _SEAL_MARK, _digest(data[:cut], data[cut:]), data[cut:]))


def check_seal(path: Path) -> None:
    """Reads a whole landing file and raises ChainBroken where a bit of it is not as it was written."""
    data = memoryview(path.read_bytes())
    footer = _footer_start(data)
    cut = footer - len(_SEAL_MARK) - hashlib.sha256().digest_size
    if cut < 0 or _SEAL_MARK + _digest(data[:cut], data[footer:]) != data[cut:footer]:
        whole = bytes(data)
        if SEAL not in whole and _SEAL_MARK not in whole:
            return  # written before files were sealed
        raise ChainBroken(
            f"{path}: its bytes are not those that were written (the SHA-256 before its footer differs). The file was "
            "damaged on disk: restore it from a backup, or move it and every later file of this folder away, and the "
            "sink rebuilds them from the topic as far as its retention reaches."
        )


def _footer_start(data: bytes | memoryview) -> int:
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def _digest(*parts: bytes | memoryview) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def landing_partitions(gold: Path) -> list[int]:
    """Returns the partitions that have a landing folder."""
    return sorted(int(p.name[2:]) for p in (gold / "landing").glob("p=*") if p.name[2:].isdigit())


def current_watermark(gold: Path) -> Watermark:
    """Returns, per partition, the first offset not yet in a file: pinning it freezes what a run trains on."""
    chains = {p: read_chain(gold, p) for p in landing_partitions(gold)}
    return {p: chain[-1].end for p, chain in chains.items() if chain}


def read_outcomes(
    gold: Path,
    columns: Sequence[str] | None = None,
    task: str | None = None,
    watermark: Mapping[int, int] | None = None,
    above: Mapping[int, int] | None = None,
) -> pa.Table:
    """Returns one row per case, in (partition, offset) order; of several epochs the highest.

    `watermark` leaves out what came later, `above` what was below that one. The columns needed for that choice are
    read besides and dropped.
    """
    needed = ("case_id", "epoch", "task", "kafka_partition", "kafka_offset")
    wanted = list(columns) if columns is not None else list(OUTCOME_SCHEMA.names)
    read = list(dict.fromkeys([*wanted, *needed]))
    schema = pa.schema([OUTCOME_SCHEMA.field(name) for name in read])
    tables = [schema.empty_table()]
    for partition in landing_partitions(gold):
        limit = None if watermark is None else watermark.get(partition, 0)
        first = (above or {}).get(partition, 0)
        for file in read_chain(gold, partition):
            if limit is not None and file.start >= limit:
                break
            if file.end <= first:
                continue
            present = set(pq.read_schema(file.path).names)
            columns_here = [name for name in read if name in present]
            table = _read_checked(file.path, columns_here)
            for name in read:
                if name not in present:  # written before the column was added
                    field = OUTCOME_SCHEMA.field(name)
                    table = table.append_column(field, pa.nulls(len(table), field.type))
            table = table.select(read).cast(schema)
            if limit is not None and file.end > limit:
                table = table.filter(pc.less(table["kafka_offset"], limit))
            if file.start < first:
                table = table.filter(pc.greater_equal(table["kafka_offset"], first))
            tables.append(table)
    whole = pa.concat_tables(tables)
    if task is not None:
        whole = whole.filter(pc.equal(whole["task"], task))
    return _latest_epoch(whole).select(wanted)


def _read_checked(path: Path, columns: list[str]) -> pa.Table:
    """Reads some columns of a landing file; raises ChainBroken where a page is not as it was written."""
    try:
        return pq.ParquetFile(path, page_checksum_verification=True).read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise ChainBroken(f"{path}: cannot be read ({error}). It was damaged on disk: restore it.") from error


def _latest_epoch(table: pa.Table) -> pa.Table:
    """Keeps the row of the highest epoch of each case; the sink has already kept one row per epoch."""
    if len(table) == 0 or pc.max(table["epoch"]).as_py() == 0:
        return table
    ids, epochs = table["case_id"].to_pylist(), table["epoch"].to_pylist()
    best: dict[str, int] = {}
    for row, (case_id, epoch) in enumerate(zip(ids, epochs, strict=True)):
        if case_id not in best or epoch > epochs[best[case_id]]:
            best[case_id] = row
    return table.take(pa.array(sorted(best.values()), pa.int64()))
