"""Which rows of the gold set are forgotten, as places of gs.outcomes: what makes them gone from every query at once.

A hash in a row says whose it is, but an anti-join on hashes would cost each query three columns of them; a place is
two small integers. Whoever learns of a forgetting looks the places up: `goldstream forget` at once, the sink once it
has heard of it and writes no more of these rows itself.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from schemas.forgotten import MATCHED_ON, REASON, Forgetting, Forgotten, Place, read_forgotten
from schemas.hashing import keyed_hash
from streams.forgetting.file import write_forgotten, writing
from streams.gold import open_gold


def remember(gold: Path, records: list[Forgetting], split_key: str) -> Forgotten:
    """Adds what is forgotten to a gold set's file, looks up the rows that means, and returns all that is forgotten.

    Can be repeated, at once or after a kill: the result is the same. `split_key` keys the hashes.
    """
    with writing(gold):
        before = read_forgotten(gold)
        after = before.joined(records)
        after = after.joined((), places_of(gold, after, split_key))
        if after != before:
            write_forgotten(gold, after)
    return after


def places_of(gold: Path, forgotten: Forgotten, split_key: str) -> set[Place]:
    """Returns where the rows lie that are forgotten and still on disk with what must go."""
    if not forgotten.records:
        return set()
    columns = ", ".join(f'"{name}"' for name in MATCHED_ON)
    with open_gold(gold) as connection:
        rows = connection.sql(f"SELECT {columns} FROM stored WHERE reason <> '{REASON}'").to_arrow_table()
        found = _places(rows.filter(forgotten.mask(rows)))
        # Of these no hash is in the row: case ids, and traces of rows that were written before there was trace_key.
        for kind, column, where in (("case", "case_id", "true"), ("trace", "trace_id", "trace_key IS NULL")):
            if not any(record.kind == kind for record in forgotten.records.values()):
                continue
            query = f"""SELECT {column} AS id, created_at, kafka_partition, kafka_offset FROM stored
                        WHERE {where} AND {column} <> '' AND reason <> '{REASON}'"""
            unhashed = connection.sql(query).to_arrow_table()
            found |= _places(_of_ids(unhashed, kind, forgotten, split_key))
    return found


def _of_ids(rows: pa.Table, kind: str, forgotten: Forgotten, split_key: str) -> pa.Table:
    ids = rows["id"].to_pylist()
    created_ms = rows["created_at"].cast(pa.timestamp("ms", "UTC")).cast(pa.int64()).to_pylist()
    records = [forgotten.records.get((kind, keyed_hash(split_key, kind, text))) for text in ids]
    mask = [r is not None and r.covers(ms) for r, ms in zip(records, created_ms, strict=True)]
    return rows.filter(pa.array(mask, pa.bool_()))


def _places(rows: pa.Table) -> set[Place]:
    return set(zip(rows["kafka_partition"].to_pylist(), rows["kafka_offset"].to_pylist(), strict=True))
