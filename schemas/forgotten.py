"""Who and what is forgotten: the records of gs.forgotten, the file readers consult, and what is left of a row.

`goldstream forget` writes them (streams.forgetting). A forgotten row is told by three columns of keyed hashes (user,
trace_key, session), or by its place on gs.outcomes where a hash cannot tell it. Three things are asked of `Forgotten`:

    without(table)   for readers: the rows nobody has forgotten. The views of views.sql leave out the same rows.
    erased(table)    for compaction: every row stays, and a forgotten one keeps no text and no hash, only where it came
                     from and what it cost. It ends as dropped, "forgotten", so that each source record still has its
                     outcome, the sink still knows the id, and costs add up. Readers do not see it.
    covers(case, k)  for whoever moves cases; `bare_case` is what moves on of one that is forgotten.

On disk: gold/forgotten/keys.json, replaced whole, one row for each key or place: kind is user, trace, session, case
(a hash in `key`) or row (partition, offset); rows created before `until_ms` are forgotten. The view `forgotten` shows
it. It is no Parquet file: DuckDB opens such a file twice in one query, and fails where it was replaced between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from schemas.case import Case, Source, Stage
from schemas.errors import GoldError
from schemas.hashing import keyed_hash
from schemas.outcomes import OUTCOME_SCHEMA, outcome_row

Kind = Literal["user", "trace", "session", "case"]
KINDS: tuple[Kind, ...] = ("user", "trace", "session", "case")
REASON = "forgotten"  # of a dropped row: what is left of one
KEY_COLUMNS: dict[Kind, str] = {"user": "user", "trace": "trace_key", "session": "session"}
MATCHED_ON = (*KEY_COLUMNS.values(), "reason", "created_at", "kafka_partition", "kafka_offset")
KEPT = (
    *("schema_version", "case_id", "epoch", "task", "split", "dt", "pipeline"),
    *("source_cluster", "source_topic", "source_partition", "source_offset", "source_index", "source_at"),
    *("calls", "prompt_tokens", "completion_tokens", "cost_usd", "model_s", "created_at", "ended_at"),
    *("kafka_partition", "kafka_offset", "source_count", "charges"),
)
_FOR_EVER_MS = 253_402_300_799_000  # the end of the year 9999

Place = tuple[int, int]  # partition and offset on gs.outcomes


class _Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One row of the file; of a place there is no more than that."""

    kind: str
    key: str = ""
    at_ms: int = 0
    until_ms: int = _FOR_EVER_MS  # unless withdrawn
    partition: int = -1
    offset: int = -1


class _File(msgspec.Struct, frozen=True):
    sha256: str  # of the bytes of `rows`
    rows: msgspec.Raw


class Forgetting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One record of gs.forgotten: what is forgotten, by its keyed hash, never by itself."""

    kind: Kind
    key: str
    at_ms: int  # when it was asked for
    until_ms: int = 0  # when it was withdrawn: what was logged from then on is not forgotten; 0 while it stands

    @property
    def name(self) -> bytes:
        """Returns its key on the compacted topic."""
        return f"{self.kind}/{self.key}".encode()

    def supersedes(self, other: Forgetting | None) -> bool:
        """Tells which of two about the same key counts: the later; of two at once the one that forgets more."""
        return other is None or self._order() > other._order()

    def covers(self, logged_ms: int) -> bool:
        """Tells whether something logged then is forgotten."""
        return not self.until_ms or logged_ms < self.until_ms

    def _order(self) -> tuple[int, bool]:
        return max(self.at_ms, self.until_ms), not self.until_ms


class Forgotten:
    """All that is forgotten, at one moment. It never changes; `joined` returns the next one."""

    def __init__(
        self, records: Mapping[tuple[str, str], Forgetting] | None = None, places: Set[Place] = frozenset()
    ) -> None:
        self.records = dict(records or {})
        self.places = frozenset(places)
        self._has_cases = any(kind == "case" for kind, _ in self.records)

    def __bool__(self) -> bool:
        return bool(self.records or self.places)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Forgotten) and (self.records, self.places) == (other.records, other.places)

    __hash__ = None  # type: ignore[assignment]

    def joined(self, records: Iterable[Forgetting], places: Iterable[Place] = ()) -> Forgotten:
        """Returns this and more; in whatever order records come, the result is the same."""
        known = dict(self.records)
        for record in records:
            if record.supersedes(known.get((record.kind, record.key))):
                known[record.kind, record.key] = record
        return Forgotten(known, self.places.union(places))

    def covers(self, case: Case, split_key: str) -> bool:
        """Tells whether a case on its way is forgotten; `split_key` is the setting that keys the hashes."""
        if not self.records or is_bare(case):
            return False
        known = {"user": case.user, "session": case.session, "trace": case.trace_key}
        return self._covers(known, case.trace_id, case.case_id, logged_ms(case), split_key)

    def covers_row(self, row: Mapping[str, Any], split_key: str) -> bool:
        """Tells the same of a row before it is in a file; it has the columns of OUTCOME_SCHEMA, times in ms."""
        if not self.records or row["reason"] == REASON:
            return False
        known = {kind: row[column] or "" for kind, column in KEY_COLUMNS.items()}
        return self._covers(known, row["trace_id"], row["case_id"], row["created_at"], split_key)

    def _covers(self, known: Mapping[Any, str], trace_id: str, case_id: str, at_ms: int, split_key: str) -> bool:
        keys = dict(known)
        if trace_id and not keys["trace"]:
            keys["trace"] = keyed_hash(split_key, "trace", trace_id)
        if self._has_cases:
            keys["case"] = keyed_hash(split_key, "case", case_id)
        found = (self.records.get((kind, key)) for kind, key in keys.items())
        return any(record is not None and record.covers(at_ms) for record in found)

    def mask(self, table: pa.Table) -> pa.ChunkedArray:
        """Returns which rows are forgotten and still have what must go; the table has the columns MATCHED_ON.

        trace_key may be missing: files written before rows had it are matched by place.
        """
        found = pa.chunked_array([pa.repeat(pa.scalar(False), len(table))])
        created_ms = table["created_at"].cast(pa.timestamp("ms", "UTC")).cast(pa.int64())
        for kind, column in KEY_COLUMNS.items():
            known = [record for record in self.records.values() if record.kind == kind]
            if not known or column not in table.column_names:
                continue
            until = pa.array([record.until_ms or _FOR_EVER_MS for record in known], pa.int64())
            at = pc.index_in(table[column], value_set=pa.array([record.key for record in known], pa.string()))
            found = pc.or_(found, pc.fill_null(pc.less(created_ms, pc.take(until, at)), False))
        for partition in {partition for partition, _ in self.places}:
            offsets = pa.array([offset for p, offset in self.places if p == partition], pa.int64())
            here = pc.equal(table["kafka_partition"], partition)
            found = pc.or_(found, pc.and_(here, pc.is_in(table["kafka_offset"], value_set=offsets)))
        return pc.and_(found, pc.not_equal(pc.fill_null(table["reason"], ""), REASON))

    def without(self, table: pa.Table) -> pa.Table:
        """Returns the rows that nobody has forgotten, for readers; what is left of erased ones is left out too."""
        table = table.filter(pc.not_equal(pc.fill_null(table["reason"], ""), REASON))
        return table.filter(pc.invert(self.mask(table))) if self else table

    def erased(self, table: pa.Table) -> pa.Table:
        """Returns the table with as many rows in the same order, of forgotten ones only what may stay; for files.

        It may lack columns of OUTCOME_SCHEMA, not those of MATCHED_ON but trace_key. Erasing twice changes nothing.
        """
        if not self:
            return table
        mask = self.mask(table)
        if not pc.any(mask).as_py():
            return table
        gone = table.filter(mask)
        columns = [
            gone[field.name].combine_chunks()
            if field.name in KEPT
            else pa.array([_BARE_ROW.get(field.name)] * len(gone), field.type)
            for field in table.schema
        ]
        both = pa.concat_tables([table.filter(pc.invert(mask)), pa.table(columns, schema=table.schema)])
        at = pc.indices_nonzero(pc.invert(mask)), pc.indices_nonzero(mask)
        return both.take(pc.sort_indices(pa.concat_arrays([_flat(at[0]), _flat(at[1])])))


def logged_ms(case: Case) -> int:
    """Returns when a case's record was logged, as far as anything tells; a replayed one is as old as it ever was."""
    return min((ms for ms in (case.event_ms, case.source.timestamp_ms, case.created_ms) if ms > 0), default=0)


def bare_case(case: Case, stage: Stage, at_ms: int) -> Case:
    """Returns what is kept of a forgotten case on its way: where it came from and what it cost."""
    kept = ("case_id", "epoch", "task", "split", "pipeline", "source", "created_ms", "spend", "charges")
    return Case(**{name: getattr(case, name) for name in kept}).ended("dropped", stage, at_ms, REASON)


def bare_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is kept of a forgotten row that is not in a file yet."""
    return {name: value if name in KEPT else _BARE_ROW.get(name) for name, value in row.items()}


def is_bare(case: Case) -> bool:
    """Tells whether a case is what `bare_case` leaves."""
    return case.outcome is not None and case.outcome.reason == REASON


def forgotten_file(gold: Path) -> Path:
    """Returns where a gold set keeps what is forgotten."""
    return gold / "forgotten" / "keys.json"


def read_forgotten(gold: Path) -> Forgotten:
    """Returns what is forgotten in a gold set; nothing where nobody has asked. Raises GoldError for a damaged file."""
    path = forgotten_file(gold)
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
        if hashlib.sha256(file.rows).hexdigest() != file.sha256:
            raise ValueError("its SHA-256 differs")
        rows = msgspec.json.decode(file.rows, type=list[_Row])
    except FileNotFoundError:
        return Forgotten()
    except (ValueError, OSError) as error:
        raise GoldError(
            f"{path} cannot be read ({error}): without it forgotten rows would be read. Remove it and run `goldstream "
            "forget --sync`, which writes it anew from the topic."
        ) from error
    return Forgotten().joined(
        (_record(row) for row in rows if row.kind != "row"),
        ((row.partition, row.offset) for row in rows if row.kind == "row"),
    )


def forgotten_bytes(forgotten: Forgotten) -> bytes:
    """Returns what is forgotten as the bytes of the file."""
    rows = [
        _Row(kind=r.kind, key=r.key, at_ms=r.at_ms, until_ms=r.until_ms or _FOR_EVER_MS)
        for _, r in sorted(forgotten.records.items())
    ]
    rows += [_Row(kind="row", partition=partition, offset=offset) for partition, offset in sorted(forgotten.places)]
    said = msgspec.json.encode(rows)
    return msgspec.json.encode(_File(hashlib.sha256(said).hexdigest(), msgspec.Raw(said)))


def _record(row: _Row) -> Forgetting:
    until_ms = 0 if row.until_ms == _FOR_EVER_MS else row.until_ms
    return msgspec.convert({"kind": row.kind, "key": row.key, "at_ms": row.at_ms, "until_ms": until_ms}, Forgetting)


def _flat(array: Any) -> pa.Array:
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


_BARE = Case(case_id="", task="", split="train", source=Source(cluster="", topic="", partition=0, offset=0))
_BARE_ROW = outcome_row(_BARE.ended("dropped", "sink", 0, REASON), 0, 0)
assert set(KEPT) <= set(OUTCOME_SCHEMA.names)
