"""Questions to the gold set, through DuckDB: connections with the views loaded, statistics, one case's story.

The command line and the dashboard call this. Readers never block the sink, nor it them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from schemas.errors import GoldError
from schemas.gold import Watermark, landing_above, landing_partitions
from schemas.manifests import Manifest, consistently
from streams.landing import columns_file, write_columns_file
from streams.statements import reading_statements
from streams.stats import stats as stats

VIEWS = Path(__file__).with_name("views.sql")


def open_gold(gold: Path, as_of: Watermark | None = None) -> duckdb.DuckDBPyConnection:
    """Returns an in-memory connection with the views of views.sql over this gold set, empty or not.

    It sees the files that hold when it is opened; `look_again` shows it what came since. With `as_of` every view is as
    it was at that watermark: rows that came later, and what they supersede, undone.
    """
    write_columns_file(gold)
    connection = duckdb.connect(":memory:", config={"autoinstall_known_extensions": "false"})
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET parquet_metadata_cache = true")  # `outcomes` reads twice, and most of it are footers
    connection.execute(f"SET VARIABLE gold = '{_quoted(gold)}'")
    # A client of its own finds the files at every query; we know them, and reading their names in SQL costs more.
    finding, views = VIEWS.read_text("utf-8").split(_VIEWS_BEGIN)
    connection.execute(finding[: finding.index(_FINDING_BEGINS)])
    connection.execute(_STORED)
    connection.execute(_VIEWS_BEGIN + views)
    look_again(connection, gold)
    if as_of is not None:
        connection.execute("ALTER VIEW landed RENAME TO landed_ever")  # all other views ask `landed` by its name
        connection.execute(f"CREATE VIEW landed AS SELECT * FROM landed_ever WHERE {below(as_of)}")
    return connection


def look_again(connection: duckdb.DuckDBPyConnection, gold: Path) -> None:
    """Shows a connection of `open_gold` the files that hold now: those of the newest manifest and the landing files."""
    names = ", ".join(f"'{_quoted(path)}'" for path in current_files(gold))
    connection.execute(f"SET VARIABLE files = [{names}]")


def current_files(gold: Path) -> list[Path]:
    """Returns the file of all columns and every file with rows, each row in one of them."""

    def read(manifest: Manifest) -> list[Path]:
        landing = [file for p in landing_partitions(gold) for file in landing_above(gold, p, manifest)]
        return [columns_file(gold), *(gold / file.name for file in manifest.files), *landing]

    return consistently(gold, read)


def below(watermark: Watermark) -> str:
    """Returns the SQL condition that a landed row is below a watermark; a partition it does not name has none."""
    if not watermark:
        return "false"
    ends = ", ".join(f"{int(partition)}: {int(offset)}" for partition, offset in sorted(watermark.items()))
    return f"kafka_offset < coalesce(MAP {{{ends}}}[kafka_partition], 0)"


def query(gold: Path, sql: str, as_of: Watermark | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Returns the column names and rows of a query, of the last one where there are several.

    Raises GoldError with DuckDB's message for SQL it refuses, and for statements that do more than read.
    """
    with open_gold(gold, as_of) as connection:
        return ask(connection, sql)


def ask(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Runs what `query` does on a connection that is open, for a shell."""
    try:
        reading_statements(sql)
        look_again(connection, Path(connection.execute("SELECT getvariable('gold')").fetchall()[0][0]))
        result = connection.execute(sql)
        return [column[0] for column in result.description or []], result.fetchall()
    except duckdb.Error as error:
        raise GoldError(f"DuckDB refuses the query: {error}\nThe views are {', '.join(views(connection))}.") from error


def views(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Returns the names of the views."""
    return [row[0] for row in connection.execute(_VIEW_NAMES).fetchall()]


def story(gold: Path, case_id: str, as_of: Watermark | None = None) -> dict[str, Any] | None:
    """Returns everything known of a case, by column; None where no outcome of it has been written."""
    with open_gold(gold, as_of) as connection:
        result = connection.execute("SELECT * FROM outcomes WHERE case_id = ?", [case_id])
        names = [column[0] for column in result.description or []]
        row = result.fetchone()
        return dict(zip(names, row, strict=True)) if row else None


_VIEWS_BEGIN, _FINDING_BEGINS = "-- What is forgotten:", "-- Every row on disk,"
_STORED = """
SET VARIABLE files = [getvariable('columns')];
CREATE VIEW stored AS
SELECT * FROM read_parquet(getvariable('files'), union_by_name = true, hive_partitioning = false);
"""

_VIEW_NAMES = (
    "SELECT view_name FROM duckdb_views() WHERE NOT internal AND view_name <> 'landed_ever' ORDER BY view_name"
)


def _quoted(gold: Path) -> str:
    return str(gold).replace("'", "''")
