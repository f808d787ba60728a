"""The gold set in numbers: `goldstream gold stats`.

Compaction writes beside each of its files how many rows of it are alike, its facts; here they are added up with those
of the landing files, so that a million rows answer at once. It imports no pyarrow: that alone would take longer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import msgspec

from schemas.manifests import Manifest, consistently

if TYPE_CHECKING:
    from schemas.manifests import Watermark


def stats(gold: Path, as_of: Watermark | None = None) -> dict[str, Any]:
    """Returns the gold set in numbers: how cases ended, what gold there is, what failed and what it cost.

    `duplicates` counts rows beyond the first of a case after the choice of epochs; anything but 0 is a fault of ours.
    """
    with _facts(gold, as_of) as connection:

        def rows(sql: str) -> list[dict[str, Any]]:
            result = connection.execute(sql)
            names = [column[0] for column in result.description or []]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

        def counts(sql: str) -> dict[str, int]:
            return {str(name): number for name, number in connection.execute(sql).fetchall()}

        tasks: dict[str, dict[str, int]] = {}
        for row in rows(f"SELECT task, outcome, {_N} AS n FROM facts GROUP BY ALL HAVING n <> 0 ORDER BY ALL"):
            tasks.setdefault(row["task"], {})[row["outcome"]] = row["n"]
        (total,) = rows(_TOTALS)
        return {
            "cases": total["cases"],
            "duplicates": total["duplicates"],
            "outcomes": counts(_COUNTS.format(name="outcome", where="true", order="2 DESC, 1")),
            "tasks": tasks,
            "gold": {name: total[name] for name in ("rows", "corrected", "with_strategy")},
            "first_attempt": rows(_FIRST_ATTEMPT),
            "rounds": counts(_COUNTS.format(name="rounds", where="outcome = 'gold'", order="1")),
            "violations": counts(_COUNTS.format(name="unnest(rules)", where="true", order="2 DESC, 1")),
            "spend": {name: total[name] for name in _SPEND},
            **{kind: counts(_COUNTS.format(name="coalesce(nullif(reason, ''), 'not told')",
                                           where=f"outcome = '{kind}'", order="2 DESC, 1"))
               for kind in ("unresolved", "dead", "dropped")},
            "redacted": counts(_COUNTS.format(name="unnest(kinds)", where="true", order="2 DESC, 1")),
            "reviews": counts(_COUNTS.format(name="review", where="review IS NOT NULL", order="1")),
        }  # fmt: skip


def write_facts(gold: Path, name: str, target: Path) -> None:
    """Writes the facts of a compacted file to a file of their own."""
    with duckdb.connect(":memory:", config={"threads": 1}) as connection:
        rows = f"read_parquet('{_quoted(gold / name)}', hive_partitioning = false)"
        connection.execute(f"COPY ({_of(rows)}) TO '{_quoted(target)}' (FORMAT parquet, COMPRESSION zstd)")


def _facts(gold: Path, as_of: Watermark | None) -> duckdb.DuckDBPyConnection:
    """Returns a connection with a table of facts; read once, so that the numbers fit together while the sink writes."""
    connection = _added_up(gold) if as_of is None else None
    if connection is None:
        from streams.gold import open_gold

        connection = open_gold(gold, as_of)
        connection.execute(f"CREATE TEMP TABLE facts AS {_of('outcomes')}")
    return connection


def _added_up(gold: Path) -> duckdb.DuckDBPyConnection | None:
    """Returns a connection with the facts of compacted files and of landing files; None where they do not tell all.

    1. Add up the facts of all files.
    2. Take off those of rows that a higher epoch supersedes: few, and found by the ids that were redriven.
    """
    columns = gold / "landing" / "p=schema" / "columns.parquet"
    keys = gold / "forgotten" / "keys.json"
    if not (os.path.exists(columns) and os.path.exists(keys)):
        return None  # nor where one may not look: opening the gold set says what is wrong

    def read(manifest: Manifest) -> duckdb.DuckDBPyConnection | None:
        if not manifest.files or not all(file.facts and (gold / file.facts).exists() for file in manifest.files):
            return None  # such as a snapshot that was fetched
        connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": "false"})
        if msgspec.json.decode(keys.read_bytes())["rows"] and not _searched(gold, manifest):
            connection.close()
            return None
        landing = _landing(gold, manifest)
        of_files = f"SELECT * FROM read_parquet({_list(gold / file.facts for file in manifest.files)})"
        fresh = f"read_parquet({_list([columns, *landing])}, union_by_name = true, hive_partitioning = false)"
        connection.execute(f"CREATE TEMP TABLE facts AS {of_files} UNION ALL BY NAME {_of(fresh)}")  # 1.
        again = connection.execute(_AGAIN).fetchall()
        if again:  # 2.
            connection.execute("CREATE TEMP TABLE redriven (id VARCHAR, latest INT)")
            connection.executemany("INSERT INTO redriven VALUES (?, ?)", again)
            everything = _list([columns, *(gold / file.name for file in manifest.files), *landing])
            rows = f"read_parquet({everything}, union_by_name = true, hive_partitioning = false)"
            old = f"(SELECT r.* FROM {rows} AS r JOIN redriven ON r.case_id = id WHERE r.epoch < latest)"
            minus = ", ".join(f"-{name} AS {name}" for name in ("n", *_SUMS))
            connection.execute(f"INSERT INTO facts BY NAME SELECT * REPLACE ({minus}, [] AS ids) FROM ({_of(old)})")
        return connection

    return consistently(gold, read)


def _searched(gold: Path, manifest: Manifest) -> bool:
    """Tells whether compacted files were searched for all that is forgotten, and no landing file is left to search."""
    from schemas.forgotten import read_forgotten
    from streams.compaction.compact import fingerprint

    return fingerprint(read_forgotten(gold)) == manifest.forgotten and not _landing(gold, manifest)


def _landing(gold: Path, manifest: Manifest) -> list[Path]:
    found: list[Path] = []
    for folder in sorted((gold / "landing").glob("p=[0-9]*")):
        end = manifest.watermark.get(int(folder.name[2:]), 0)
        names = sorted(name for name in os.listdir(folder) if name.endswith(".parquet") and int(name[6:26]) >= end)
        found += [folder / name for name in names]
    return found


def _of(rows: str) -> str:
    """Returns the query for the facts of rows."""
    return _FACTS.format(rows=rows, sums=", ".join(f"sum({name}) AS {name}" for name in _SUMS))


def _list(paths: Any) -> str:
    return "[" + ", ".join(f"'{_quoted(path)}'" for path in paths) + "]"


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


_SUMS = ("calls", "prompt_tokens", "completion_tokens", "cost_usd", "model_s")
_SPEND = (*_SUMS, "cost_per_gold_row_usd")
_N = "sum(n)::BIGINT"

_FACTS = """
SELECT task, outcome, reason, review, rounds, corrected, strategy_guardrail <> '' AS with_strategy, first_adapter,
       first_attempt_passed,
       flatten([[violation.rule for violation in attempt.violations] for attempt in attempts]) AS rules,
       list_distinct([lower(regexp_extract(placeholder, '^[A-Z]+')) for placeholder in placeholders]) AS kinds,
       count(*) AS n, {sums},
       list(md5_number_lower(case_id)) AS ids,
       list({{'id': case_id, 'epoch': epoch}}) FILTER (epoch > 0) AS again
FROM {rows}
WHERE reason IS DISTINCT FROM 'forgotten'
GROUP BY ALL
"""

_AGAIN = "SELECT one.id, max(one.epoch) FROM (SELECT unnest(again) AS one FROM facts) GROUP BY ALL"

_COUNTS = """
SELECT name, sum(n)::BIGINT AS cases FROM (SELECT {name} AS name, n FROM facts WHERE {where})
GROUP BY ALL HAVING cases <> 0 ORDER BY {order}
"""

_TOTALS = """
SELECT coalesce(sum(n), 0)::BIGINT AS cases,
       cases - (SELECT count(DISTINCT id) FROM (SELECT unnest(ids) AS id FROM facts)) AS duplicates,
       coalesce(sum(n) FILTER (outcome = 'gold'), 0)::BIGINT AS rows,
       coalesce(sum(n) FILTER (outcome = 'gold' AND corrected), 0)::BIGINT AS corrected,
       coalesce(sum(n) FILTER (outcome = 'gold' AND with_strategy), 0)::BIGINT AS with_strategy,
       coalesce(sum(calls), 0)::BIGINT AS calls,
       coalesce(sum(prompt_tokens), 0)::BIGINT AS prompt_tokens,
       coalesce(sum(completion_tokens), 0)::BIGINT AS completion_tokens,
       coalesce(sum(cost_usd), 0.0) AS cost_usd,
       coalesce(sum(model_s), 0.0) AS model_s,
       sum(cost_usd) / nullif(sum(n) FILTER (outcome = 'gold'), 0) AS cost_per_gold_row_usd
FROM facts
"""

_FIRST_ATTEMPT = """
SELECT task, first_adapter AS adapter, sum(n)::BIGINT AS judged,
       coalesce(sum(n) FILTER (first_attempt_passed), 0)::BIGINT AS passed, passed / judged AS pass_rate
FROM facts
WHERE first_attempt_passed IS NOT NULL
GROUP BY ALL HAVING sum(n) <> 0
ORDER BY ALL
"""
