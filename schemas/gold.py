"""Where the gold set's files lie, what their names promise, and how to read them.

The sink (streams.sink) extends the landing chain: per partition of gs.outcomes, files that hold
contiguous offset ranges. Compaction moves their rows to the files of a manifest (schemas.manifests), whose
watermark is where the chain begins from then on. The trainer and the command line read through `read_outcomes`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.errors import ChainBroken
from schemas.forgotten import MATCHED_ON, read_forgotten
from schemas.manifests import Manifest, consistently
from schemas.manifests import Watermark as Watermark
from schemas.outcomes import OUTCOME_SCHEMA

START_OFFSET = b"goldstream.start_offset"  # footer key: first offset of the file's range, as its name says
END_OFFSET = b"goldstream.end_offset"  # footer key: first offset after the file's range
SEAL = b"goldstream.seal"  # footer key: a SHA-256 of all other bytes stands before the footer, where no reader looks
_SEAL_MARK = b"\0seal256"  # with the key twice the sign that a file is sealed: no single flip removes both
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


def landing_starts(gold: Path, partition: int) -> list[int]:
    """Returns where the files of a partition's landing folder begin, in order; opens none of them.

    Raises ChainBroken for a file that has no place there.
    """
    folder = landing_folder(gold, partition)
    starts: list[int] = []
    for path in folder.glob("*.parquet") if folder.is_dir() else []:
        name = _NAME.fullmatch(path.name)
        if not name or int(name[1]) != partition:
            raise ChainBroken(f"{path}: not a landing file of partition {partition}. Move it out of this folder.")
        starts.append(int(name[2]))
    return sorted(starts)


def landing_above(gold: Path, partition: int, manifest: Manifest) -> list[Path]:
    """Returns a partition's landing files whose rows the manifest's files do not hold, in order; opens none of them.

    Raises ChainBroken where the first of them is missing.
    """
    folder = landing_folder(gold, partition)
    ends = manifest.watermark.get(partition)
    starts = [start for start in landing_starts(gold, partition) if ends is None or start >= ends]
    if starts and ends is not None and starts[0] != ends:
        raise ChainBroken(
            f"{folder}: rows below offset {ends} are compacted, but the first landing file after them starts at "
            f"{starts[0]}. A file is missing: restore it from a backup."
        )
    return [folder / landing_name(partition, start) for start in starts]


def read_chain(gold: Path, partition: int, manifest: Manifest | None = None) -> list[LandingFile]:
    """Returns a partition's landing files in offset order, without those whose rows the manifest's files hold.

    Raises ChainBroken for an unreadable file, a footer without its offsets, a gap or an overlap.
    """
    if manifest is None:
        return consistently(gold, lambda latest: read_chain(gold, partition, latest))
    folder = landing_folder(gold, partition)
    chain: list[LandingFile] = []
    for path in landing_above(gold, partition, manifest):
        start = int(path.stem[6:])
        try:
            metadata = pq.read_metadata(path).metadata or {}
            end, noted = int(metadata[END_OFFSET]), int(metadata[START_OFFSET])
        except FileNotFoundError:
            raise  # compacted and removed since the folder was listed
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

    def read(manifest: Manifest) -> Watermark:
        chains = {p: read_chain(gold, p, manifest) for p in landing_partitions(gold)}
        return dict(manifest.watermark) | {p: chain[-1].end for p, chain in chains.items() if chain}

    return consistently(gold, read)


def read_outcomes(
    gold: Path,
    columns: Sequence[str] | None = None,
    task: str | None = None,
    watermark: Mapping[int, int] | None = None,
    above: Mapping[int, int] | None = None,
) -> pa.Table:
    """Returns one row per case, in (partition, offset) order; of several epochs the highest; nothing forgotten.

    `watermark` leaves out what came later, `above` what was below that one. The columns needed for that choice are
    read besides and dropped.
    """
    needed = ("case_id", "epoch", "task", "kafka_partition", "kafka_offset")
    wanted = list(columns) if columns is not None else list(OUTCOME_SCHEMA.names)
    forgotten = read_forgotten(gold)
    read = list(dict.fromkeys([*wanted, *needed, *(MATCHED_ON if forgotten else ("reason",))]))

    def tables(manifest: Manifest) -> list[pa.Table]:
        found = [pa.schema([OUTCOME_SCHEMA.field(name) for name in read]).empty_table()]
        for path, whole in _files_between(gold, manifest, watermark, above or {}):
            table = read_columns(path, read)
            if not whole:
                table = table.filter(_between(table, watermark, above or {}))
            if task is not None:
                table = table.filter(pc.equal(table["task"], task))
            found.append(forgotten.without(table))
        return found

    return _latest_epoch(_in_order(consistently(gold, tables))).select(wanted)


def read_columns(path: Path, names: Sequence[str]) -> pa.Table:
    """Returns columns of OUTCOME_SCHEMA of a landing or compacted file, null where it was written before there were.

    Raises ChainBroken where a page is not as it was written.
    """
    schema = pa.schema([OUTCOME_SCHEMA.field(name) for name in names])
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        present = set(file.schema_arrow.names)
        table = file.read(columns=[name for name in names if name in present])
    except (pa.ArrowException, OSError) as error:
        raise ChainBroken(f"{path}: cannot be read ({error}). It was damaged on disk: restore it.") from error
    return conform(table, schema)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns a table with the columns of a schema, null where it has none of the name."""
    for field in schema:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names).cast(schema)


def _files_between(
    gold: Path, manifest: Manifest, watermark: Mapping[int, int] | None, above: Mapping[int, int]
) -> Iterator[tuple[Path, bool]]:
    """Yields every file with rows below one watermark and not below another, and whether all its rows are so."""

    def place(offsets: Mapping[int, tuple[int, int]]) -> tuple[bool, bool]:  # some, all
        inside = [
            (last >= above.get(p, 0), first >= above.get(p, 0))
            if watermark is None
            else (
                first < watermark.get(p, 0) and last >= above.get(p, 0),
                last < watermark.get(p, 0) and first >= above.get(p, 0),
            )
            for p, (first, last) in offsets.items()
        ]
        return any(some for some, _ in inside), all(whole for _, whole in inside)

    for data in manifest.files:
        some, whole = place(data.offsets)
        if some:
            yield gold / data.name, whole
    for partition in landing_partitions(gold):
        for file in read_chain(gold, partition, manifest):
            some, whole = place({partition: (file.start, file.end - 1)})
            if some:
                yield file.path, whole


def _between(table: pa.Table, watermark: Mapping[int, int] | None, above: Mapping[int, int]) -> pa.ChunkedArray:
    """Returns which rows lie below one watermark and not below another."""
    partitions, offsets = table["kafka_partition"], table["kafka_offset"]
    found = pa.chunked_array([pa.repeat(pa.scalar(False), len(table))])
    for partition in pc.unique(partitions).to_pylist():
        inside = pc.and_(pc.equal(partitions, partition), pc.greater_equal(offsets, above.get(partition, 0)))
        if watermark is not None:
            inside = pc.and_(inside, pc.less(offsets, watermark.get(partition, 0)))
        found = pc.or_(found, inside)
    return found


def _in_order(tables: Sequence[pa.Table]) -> pa.Table:
    """Returns tables as one, by partition and offset."""
    table = pa.concat_tables(tables)
    keys = table.select(["kafka_partition", "kafka_offset"])
    order = pc.sort_indices(keys, sort_keys=[("kafka_partition", "ascending"), ("kafka_offset", "ascending")])
    if order.equals(pa.array(np.arange(len(table), dtype=np.uint64))):
        return table
    return table.take(order)


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
