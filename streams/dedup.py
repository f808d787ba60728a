"""The index of ended cases of one partition: what has been written, and so what a new arrival is.

All messages of a case_id lie in one partition of gs.outcomes, so the index needs no other. The
sink rebuilds it from compacted and landing files whenever it is given a partition.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import msgspec
import pyarrow as pa

from schemas.case import Case, Outcome, coordinates_id
from schemas.forgotten import REASON, is_bare

COLUMNS = (
    "case_id",
    "source_cluster",
    "source_topic",
    "source_partition",
    "source_offset",
    "source_index",
    "epoch",
    "body_sha256",
)
_PLACE_BITS, _BODY_BITS = 96, 64
_LOADED_ROWS = 20_000  # at a time, when the index is rebuilt


class OutcomeIndex:
    """Which case ids are written, where each was read, with which body and at which epoch.

    A digest of 16 bytes stands for an id, one packed integer for the rest: about 150 bytes a case.
    """

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}  # digest of case_id -> epoch, digest of the place, digest of the body
        self.repeats = 0  # skipped since this index was made

    def __len__(self) -> int:
        return len(self._seen)

    def load(self, tables: Iterable[pa.Table]) -> None:
        """Adds every row of the tables, which have COLUMNS."""
        for batch in (batch for table in tables for batch in table.to_batches(max_chunksize=_LOADED_ROWS)):
            columns = batch.to_pydict()
            for case_id, *place, epoch, body in zip(*(columns[name] for name in COLUMNS), strict=True):
                self._put(_digest(case_id), _pack(place, body, epoch))

    def admit(self, case: Case) -> Case | None:
        """Returns the case to write for an arriving ended case, and remembers it; None where there is nothing to write.

        1. An id not seen before is written as it is.
        2. The same record again is a repeated hop: skipped, unless its epoch is higher, which supersedes.
        3. Another record under a seen id was sent twice by the product. The first wins; this one is
           written as dropped, without its text, under the id of its coordinates, by rules 1 and 2.
        """
        source = case.source
        place = (source.cluster, source.topic, source.partition, source.offset, source.index)
        key = _digest(case.case_id)
        entry = _pack(place, case.body_sha256, case.epoch)
        seen = self._seen.get(key)
        # 3. Another record under a seen id
        if seen is not None and _place(seen) != _place(entry):
            case = _dropped(case, same_body=_body(seen) == _body(entry))
            key = _digest(case.case_id)
            seen = self._seen.get(key)
        # 2. The same record again
        if seen is not None and _epoch(entry) <= _epoch(seen):
            self.repeats += 1
            return None
        # 1. Not seen before, or superseding
        self._seen[key] = entry
        return case

    def _put(self, key: int, entry: int) -> None:
        seen = self._seen.get(key)
        if seen is None or _epoch(entry) > _epoch(seen):
            self._seen[key] = entry


def _dropped(case: Case, *, same_body: bool) -> Case:
    """Returns what is kept of a record whose id belongs to another: where it lies and what it cost, no text."""
    reason = REASON if is_bare(case) else "duplicate" if same_body else "id_conflict"
    at_ms = case.outcome.at_ms if case.outcome else case.created_ms
    return msgspec.structs.replace(
        case,
        case_id=coordinates_id(case.source),
        messages=(),
        production_answer=None,
        attempts=(),
        strategy=None,
        outcome=Outcome("dropped", "sink", at_ms, reason, f"its id is taken: case {case.case_id} was read first"),
    )


def _digest(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest(), "big")


def _pack(place: Iterable[object], body: str, epoch: int) -> int:
    where = "\0".join(map(str, place))
    digest = blake2b(where.encode("utf-8", "surrogatepass"), digest_size=_PLACE_BITS // 8).digest()
    content = blake2b(body.encode("utf-8", "surrogatepass"), digest_size=_BODY_BITS // 8).digest()
    return (epoch << (_PLACE_BITS + _BODY_BITS)) | int.from_bytes(digest + content, "big")


def _epoch(entry: int) -> int:
    return entry >> (_PLACE_BITS + _BODY_BITS)


def _place(entry: int) -> int:
    return (entry >> _BODY_BITS) & ((1 << _PLACE_BITS) - 1)


def _body(entry: int) -> int:
    return entry & ((1 << _BODY_BITS) - 1)
