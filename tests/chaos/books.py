"""The independent count: what of the records sent is in the files of the gold set, read with nothing of ours."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

Place = tuple[str, int, int]  # topic, partition and offset of a source record
FINE = ("gold", "holdout", "dropped")

_ROWS = """
CREATE TABLE rows AS
SELECT case_id, epoch, outcome, reason, source_topic t, source_partition p, source_offset o, source_index i,
       kafka_partition kp, kafka_offset ko
FROM read_parquet({}, union_by_name = true)
"""
# No two rows may share one of these.
_KEYS = ("case_id, epoch", "t, p, o, i, epoch", "kp, ko")


def count_rows(gold: Path, sent: Sequence[Place], tolerated: Iterable[str] = ()) -> dict[str, Any]:
    """Counts lost records among those sent, double rows in the whole gold set, and how the sent ones ended.

    `unexpected` are plain cases (no "-x" at the end of the id) that ended otherwise than FINE or `tolerated` say.
    """
    topics, partitions, offsets = zip(*sent, strict=True) if sent else ((), (), ())
    places = [pa.array(topics, "str"), pa.array(partitions, "int32"), pa.array(offsets, "int64")]
    fine = ", ".join(f"'{word}'" for word in (*FINE, *sorted(tolerated)))
    odd = (
        f"""case_id NOT LIKE '%-x' AND case_id NOT LIKE 'at-%' AND outcome NOT IN ({fine}) AND reason NOT IN ({fine})"""
    )
    with duckdb.connect(":memory:") as db:
        db.register("sent", pa.table(places, ["t", "p", "o"]))
        db.execute(_ROWS.format(_files(gold)))
        db.execute("CREATE TABLE mine AS SELECT * FROM rows SEMI JOIN sent USING (t, p, o)")

        def number(sql: str) -> int:
            (found,) = db.execute(sql).fetchone() or (0,)
            return int(found)

        counted: dict[str, Any] = {
            "lost": number("SELECT count(*) FROM sent ANTI JOIN rows USING (t, p, o)"),
            "duplicates": sum(number(f"SELECT count(*) - count(DISTINCT ({key})) FROM rows") for key in _KEYS),
            "outcomes": dict(db.execute("SELECT outcome, count(*) FROM mine GROUP BY 1 ORDER BY 1").fetchall()),
            "reasons": dict(
                db.execute("SELECT reason, count(*) FROM mine WHERE reason <> '' GROUP BY 1 ORDER BY 1").fetchall()
            ),
        }
        if strange := number(f"SELECT count(*) FROM mine WHERE {odd}"):
            examples = db.execute(f"SELECT case_id, outcome, reason FROM mine WHERE {odd} LIMIT 5").fetchall()
            counted["unexpected"] = {"rows": strange, "examples": [" ".join(row) for row in examples]}
    return counted


def _files(gold: Path) -> str:
    """Returns the compacted files of the newest manifest and the landing files above its watermark, as a SQL list."""
    manifests = sorted((gold / "manifests").glob("*.json"))
    manifest = json.loads(manifests[-1].read_text()) if manifests else {"files": [], "watermark": {}}
    ends = {int(partition): offset for partition, offset in manifest["watermark"].items()}
    files = [gold / file["name"] for file in manifest["files"]]
    files += [f for f in (gold / "landing").glob("p=0*/*.parquet") if int(f.name[6:26]) >= ends.get(int(f.name[:5]), 0)]
    return "[" + ", ".join("'" + str(file).replace("'", "''") + "'" for file in files) + "]"
