"""The gold set as narrow tables in memory, kept up to date file by file: what the dashboard's figures are counted from.

At the start everything is read once through the view `landed`; after that only landing files that are new. What no
longer adds up is read anew as a whole: files that were compacted away before we read them, rows that were erased.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa

from schemas.gold import landing_folder, landing_partitions
from streams.gold import open_gold
from streams.landing import write_columns_file

ANYWAY_S = 900.0  # after which everything is read again
_MANY_FILES = 200  # new ones at once: everything is read again, without a list of them all


class Facts:
    """Tables `facts`, `tries` and `charged` of every case's last epoch; use them through `connection`."""

    def __init__(self, gold: Path, draw: Callable[[str], float] | None = None) -> None:
        self._gold = gold
        self._draw = draw  # case id -> its place in the review queue
        self._connection: duckdb.DuckDBPyConnection | None = None
        self._seen: dict[int, str] = {}  # partition -> newest landing file read
        self._again = 0.0
        self._forgotten = 0
        self._redriven = False  # a case of a higher epoch has been seen
        self.tips: dict[int, int] = {}  # partition -> first offset that is not in the tables
        self.whole_readings = 0

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The connection that holds the tables."""
        assert self._connection is not None, "call refresh first"
        return self._connection

    def refresh(self) -> bool:
        """Takes in what has landed since; returns whether anything has changed.

        Raises duckdb.Error and OSError; the next call begins anew.
        """
        names = _landed(self._gold)
        newest = {partition: files[-1] for partition, files in names.items() if files}
        forgotten = _changed_at(self._gold / "forgotten" / "keys.json")
        due = self._connection is None or time.monotonic() >= self._again or forgotten != self._forgotten
        if newest == self._seen and not due:
            return False
        new = [
            landing_folder(self._gold, partition) / name
            for partition, files in names.items()
            for name in files
            if name > self._seen.get(partition, "")
        ]
        # The files of a partition follow each other without a gap, as long as the last one read is still there.
        gone = any(name not in names.get(partition, ()) for partition, name in self._seen.items())
        try:
            if due or gone or len(new) > _MANY_FILES:
                self._read_whole()
            else:
                self._take(new)
        except BaseException:
            self.close()  # half of it may be in the tables
            raise
        self._seen, self._forgotten = newest, forgotten
        return True

    def close(self) -> None:
        """Frees the tables."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _read_whole(self) -> None:
        self.close()
        self._connection = open_gold(self._gold)
        self._connection.execute("SET threads = 1")  # beside the sink and the workers, in no hurry
        self._connection.execute(_TABLES)
        self.tips, self._redriven = {}, False
        self._columns = write_columns_file(self._gold)
        self._add("landed")
        self.whole_readings += 1
        self._again = time.monotonic() + ANYWAY_S

    def _take(self, paths: list[Path]) -> None:
        if paths:
            files = ", ".join("'" + str(path).replace("'", "''") + "'" for path in (self._columns, *paths))
            self._add(_NEW.format(files=files))

    def _add(self, rows: str) -> None:
        """Adds the rows above the tips, and drops those of lower epochs."""
        connection = self.connection
        above = " AND ".join(
            f"NOT (kafka_partition = {partition} AND kafka_offset < {tip})" for partition, tip in self.tips.items()
        )
        connection.execute(_BATCH.format(rows=rows, above=above or "true"))
        connection.execute(_INSERT)
        self._draw_new()
        (again,) = connection.execute("SELECT count(*) FROM batch WHERE epoch > 0").fetchone() or (0,)
        self._redriven = self._redriven or again > 0
        if self._redriven:
            connection.execute(_SUPERSEDE)
        for partition, tip in connection.execute("SELECT part, max(off) + 1 FROM batch GROUP BY part").fetchall():
            self.tips[partition] = max(tip, self.tips.get(partition, 0))
        connection.execute("DROP TABLE batch")

    def _draw_new(self) -> None:
        """Notes the place in the review queue of what is gold and was not decided on."""
        if self._draw is None:
            return
        rows = self.connection.execute(
            "SELECT id, case_id FROM batch WHERE outcome = 'gold' AND review IS NULL"
        ).fetchall()
        if rows:
            drawn = pa.table(
                {
                    "id": pa.array([row[0] for row in rows], pa.uint64()),
                    "drawn": pa.array([self._draw(row[1]) for row in rows], pa.float32()),
                }
            )
            self.connection.register("new_draws", drawn)
            self.connection.execute("INSERT INTO draws SELECT * FROM new_draws")
            self.connection.unregister("new_draws")


def _changed_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _landed(gold: Path) -> dict[int, list[str]]:
    """Returns the names of each partition's landing files, in order; opens none."""
    found = {}
    for partition in landing_partitions(gold):
        with os.scandir(landing_folder(gold, partition)) as entries:
            found[partition] = sorted(entry.name for entry in entries if entry.name.endswith(".parquet"))
    return found


_TABLES = """
CREATE TEMP TABLE facts (
    id UBIGINT, epoch INTEGER, task VARCHAR, split VARCHAR, outcome VARCHAR, reason VARCHAR, stage VARCHAR,
    ended_s BIGINT, rounds INTEGER, corrected BOOLEAN, strategy BOOLEAN, usd DOUBLE, review VARCHAR,
    review_sampled BOOLEAN, reviewer VARCHAR, judge_passed BOOLEAN, judge_rules VARCHAR[], review_rules VARCHAR[]
);
CREATE TEMP TABLE tries (
    id UBIGINT, epoch INTEGER, task VARCHAR, split VARCHAR, round INTEGER, source VARCHAR, adapter VARCHAR,
    passed BOOLEAN, ended_s BIGINT, is_last BOOLEAN, broken STRUCT(rule VARCHAR, severity VARCHAR)[]
);
CREATE TEMP TABLE charged (
    id UBIGINT, epoch INTEGER, task VARCHAR, role VARCHAR, model VARCHAR, calls BIGINT, prompt_tokens BIGINT,
    completion_tokens BIGINT, usd DOUBLE
);
CREATE TEMP TABLE draws (id UBIGINT, drawn FLOAT);
"""

_BATCH = """
CREATE TEMP TABLE batch AS
SELECT hash(case_id) AS id, case_id, epoch, kafka_partition AS part, kafka_offset AS off, coalesce(task, '') AS task,
       split, outcome, coalesce(reason, '') AS reason, stage, epoch(ended_at)::BIGINT AS ended_s, rounds,
       coalesce(corrected, false) AS corrected, coalesce(strategy_guardrail, '') <> '' AS strategy,
       coalesce(cost_usd, 0.0) AS usd, review, review_sampled, reviewer, judge_passed, judge_rules, review_rules,
       list_transform(attempts, lambda one: {{
           'round': one.round, 'source': one.source, 'adapter': one.adapter, 'passed': one.passed,
           'broken': list_transform(one.violations, lambda v: {{'rule': v.rule, 'severity': v.severity}})
       }}) AS attempts,
       list_transform(charges, lambda one: {{
           'role': one.role, 'model': one.model, 'calls': one.calls, 'prompt_tokens': one.prompt_tokens,
           'completion_tokens': one.completion_tokens, 'usd': one.cost_usd
       }}) AS charges
FROM {rows} WHERE {above}
"""

# What the view `landed` shows of some landing files.
_NEW = """(
    SELECT stored.* FROM read_parquet([{files}], union_by_name = true, hive_partitioning = false) AS stored
    ANTI JOIN (SELECT "partition", "offset" FROM forgotten WHERE kind = 'row') AS gone
      ON stored.kafka_partition = gone."partition" AND stored.kafka_offset = gone."offset"
    WHERE stored.reason IS DISTINCT FROM 'forgotten'
)"""

_INSERT = """
INSERT INTO facts
SELECT id, epoch, task, split, outcome, reason, stage, ended_s, rounds, corrected, strategy, usd, review,
       review_sampled, reviewer, judge_passed, judge_rules, review_rules
FROM batch;
INSERT INTO tries
SELECT id, epoch, task, split, one.round, one.source, coalesce(one.adapter, ''), one.passed, ended_s,
       one.round = last, one.broken
FROM (SELECT id, epoch, task, split, ended_s, attempts[-1].round AS last, unnest(attempts) AS one FROM batch);
INSERT INTO charged
SELECT id, epoch, task, one.role, one.model, one.calls, one.prompt_tokens, one.completion_tokens, one.usd
FROM (SELECT id, epoch, task, unnest(charges) AS one FROM batch);
"""

_SUPERSEDE = """
CREATE TEMP TABLE newest AS SELECT id, max(epoch) AS epoch FROM facts
WHERE id IN (SELECT id FROM facts WHERE epoch > 0) GROUP BY id;
DELETE FROM facts USING newest WHERE facts.id = newest.id AND facts.epoch < newest.epoch;
DELETE FROM tries USING newest WHERE tries.id = newest.id AND tries.epoch < newest.epoch;
DELETE FROM charged USING newest WHERE charged.id = newest.id AND charged.epoch < newest.epoch;
DROP TABLE newest;
"""
