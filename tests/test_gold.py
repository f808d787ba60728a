"""The gold set in DuckDB: what the views say, in our connections and in a plain client."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow.parquet as pq
import pytest
from ended_cases import ended, land

from schemas.case import Source
from schemas.chat import strategy_text
from schemas.errors import GoldError
from schemas.gold import landing_folder
from schemas.outcomes import OUTCOME_SCHEMA, outcome_row, outcome_table, row_strategy
from schemas.tables import cell_text, print_table, to_json
from streams.gold import VIEWS, open_gold, query, stats, story
from streams.landing import LandingChain

VIEW_NAMES = [
    "outcomes",
    "gold",
    "rgt_pairs",
    "unresolved",
    "dead",
    "holdout",
    "reviews",
    "acceptance",
    "violations",
    "cost",
]


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    """A gold set of two partitions: two corrected rows, one right at once, and one of every other ending."""
    at_once = ended(2)
    at_once = msgspec.structs.replace(
        at_once, strategy=None, attempts=(msgspec.structs.replace(at_once.attempts[1], round=0, source="student"),)
    )
    failed = msgspec.structs.replace(ended(3, "unresolved"), attempts=ended(3).attempts[:1])
    land(tmp_path, [ended(0), ended(1), at_once, failed])
    land(
        tmp_path,
        [
            ended(4, "dead", reason="model_timeout", attempts=(), strategy=None),
            ended(5, "holdout", split="holdout", attempts=ended(5).attempts[:1], strategy=None),
            ended(6, "dropped", reason="unsampled", attempts=(), strategy=None, messages=()),
        ],
        partition=1,
    )
    return tmp_path


def ask(gold: Path, sql: str) -> list[tuple[Any, ...]]:
    return query(gold, sql)[1]


@pytest.mark.parametrize("view", VIEW_NAMES)
def test_views_are_empty_on_an_empty_gold_set(tmp_path: Path, view: str) -> None:
    columns, rows = query(tmp_path / "gold", f"SELECT * FROM {view}")
    assert rows == []
    assert {"task", "outcome", "pair", "judged", "rule"} & set(columns)


def test_an_empty_gold_set_has_statistics_and_every_column(tmp_path: Path) -> None:
    assert query(tmp_path, "FROM outcomes")[0] == OUTCOME_SCHEMA.names
    numbers = stats(tmp_path)
    assert (numbers["cases"], numbers["duplicates"], numbers["outcomes"]) == (0, 0, {})


def test_views_split_outcomes_by_kind(gold: Path) -> None:
    kinds = ("gold", "unresolved", "dead", "holdout")
    assert [ask(gold, f"SELECT count(*) FROM {kind}")[0][0] for kind in kinds] == [3, 1, 1, 1]
    assert ask(gold, "SELECT count(*) FROM outcomes") == [(7,)]


def test_a_higher_epoch_supersedes(gold: Path) -> None:
    land(gold, [ended(4, "gold", epoch=1)], partition=1)
    assert ask(gold, "SELECT epoch, outcome FROM outcomes WHERE case_id = 'req-4'") == [(1, "gold")]
    assert ask(gold, "SELECT count(*) FROM dead") == [(0,)]
    assert ask(gold, "SELECT count(*) FROM landed") == [(8,)]
    assert stats(gold)["duplicates"] == 0


def test_rgt_pairs_hold_a_strategy_only_where_one_was_learned(gold: Path) -> None:
    pairs = ask(gold, "SELECT case_id, pair, strategy, answer FROM rgt_pairs ORDER BY case_id, pair")
    row = outcome_row(ended(0), 0, 0)
    strategy = row_strategy(row)
    assert strategy is not None
    learned = strategy_text(strategy)
    assert pairs == [
        ("req-0", "A", None, "42"),
        ("req-0", "B", learned, "42"),
        ("req-1", "A", None, "42"),
        ("req-1", "B", learned, "42"),
        ("req-2", "A", None, "42"),
    ]


def test_acceptance_is_by_round_and_by_who_made_the_attempt(gold: Path) -> None:
    rows = ask(gold, "SELECT split, round, source, adapter, judged, accepted, pass_rate FROM acceptance")
    assert sorted(rows) == [
        ("holdout", 0, "student", "v0001-abcdef", 1, 0, 0.0),
        ("train", 0, "student", "", 1, 1, 1.0),
        ("train", 0, "student", "v0001-abcdef", 3, 0, 0.0),
        ("train", 1, "refiner", "", 2, 2, 1.0),
    ]


def test_violations_are_counted_by_rule(gold: Path) -> None:
    assert ask(gold, "SELECT split, rule, violations, cases FROM violations ORDER BY ALL") == [
        ("holdout", "no_greeting", 1, 1),
        ("train", "no_greeting", 3, 3),
    ]


def test_cost_adds_up(gold: Path) -> None:
    assert ask(gold, "SELECT sum(cases), sum(calls), sum(cost_usd) FROM cost") == [(7, 28, 3.5)]


def test_statistics(gold: Path) -> None:
    numbers = stats(gold)
    assert numbers["outcomes"] == {"gold": 3, "dead": 1, "dropped": 1, "holdout": 1, "unresolved": 1}
    assert numbers["tasks"] == {"scribe": {"dead": 1, "dropped": 1, "gold": 3, "holdout": 1, "unresolved": 1}}
    assert numbers["gold"] == {"rows": 3, "corrected": 2, "with_strategy": 2}
    assert numbers["first_attempt"] == [
        {"task": "scribe", "adapter": "", "judged": 1, "passed": 1, "pass_rate": 1.0},
        {"task": "scribe", "adapter": "v0001-abcdef", "judged": 4, "passed": 0, "pass_rate": 0.0},
    ]
    assert numbers["rounds"] == {"0": 1, "1": 2}
    assert numbers["violations"] == {"no_greeting": 4}
    assert (numbers["dead"], numbers["dropped"]) == ({"model_timeout": 1}, {"unsampled": 1})
    assert (numbers["unresolved"], numbers["reviews"]) == ({"not told": 1}, {})
    assert numbers["spend"]["calls"] == 28
    assert numbers["duplicates"] == 0


def test_statistics_count_a_duplicate_row_as_such(gold: Path) -> None:
    LandingChain(gold, 2).write(0, 1, [outcome_row(ended(0), 2, 0)])
    assert stats(gold)["duplicates"] == 1


def test_a_story_is_the_row_of_a_case(gold: Path) -> None:
    told = story(gold, "req-0")
    assert told is not None
    assert [attempt["passed"] for attempt in told["attempts"]] == [False, True]
    assert story(gold, "no'such") is None


def test_a_plain_client_reads_views_sql_without_our_code(gold: Path) -> None:
    with duckdb.connect() as client:
        client.execute(f"SET VARIABLE gold = '{gold}'")
        client.execute(VIEWS.read_text())
        assert client.execute("SELECT count(*) FROM gold").fetchone() == (3,)
        land(gold, [ended(7)])
        assert client.execute("SELECT count(*) FROM gold").fetchone() == (4,)


def test_a_quote_in_the_path_is_no_sql(tmp_path: Path) -> None:
    land(tmp_path / "it's", [ended(0)])
    assert ask(tmp_path / "it's", "SELECT count(*) FROM gold") == [(1,)]


def test_rows_written_before_a_column_was_added_have_it_as_null(gold: Path) -> None:
    path = next(landing_folder(gold, 0).glob("*.parquet"))
    table = pq.ParquetFile(path).read()
    pq.write_table(table.drop_columns(["ref_logprob"]), path)
    assert ask(gold, "SELECT count(*), count(ref_logprob) FROM outcomes") == [(7, 0)]


def test_temp_files_are_not_read(gold: Path) -> None:
    (gold / "tmp" / "00000-00000000000000000000.1-aa.tmp").write_bytes(b"half")
    assert ask(gold, "SELECT count(*) FROM outcomes") == [(7,)]


def test_duckdb_reads_while_the_sink_writes(tmp_path: Path) -> None:
    def write() -> None:
        for number in range(20):
            land(tmp_path, [ended(number)])

    seen = [0]
    sink = threading.Thread(target=write)
    open_gold(tmp_path).close()
    with duckdb.connect() as client:
        client.execute(f"SET VARIABLE gold = '{tmp_path}'")
        client.execute(VIEWS.read_text())
        sink.start()
        while sink.is_alive() or seen[-1] < 20:
            row = client.execute("SELECT count(*), count(DISTINCT case_id), max(kafka_offset) FROM gold").fetchone()
            assert row is not None
            assert row[0] == row[1]
            assert row[0] in (0, (row[2] or 0) + 1)
            seen.append(row[0])
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nothing FROM gold", "nothing"),
        ("SELECT * FROM nowhere", "The views are acceptance, attempts, cost"),
        ("", "the query is empty"),
        ("COPY (SELECT 1) TO 'x.csv'", "a COPY statement does more than read"),
        ("SELECT 1; DROP VIEW gold", "a DROP statement does more than read"),
        ("ATTACH 'x.db'", "a ATTACH statement does more than read"),
        ("EXPLAIN ANALYZE COPY (SELECT 1) TO 'x.csv'", "a COPY statement does more than read"),
        ("COPY (PIVOT outcomes ON outcome USING count(*)) TO 'x.csv'", "a COPY statement does more than read"),
        ("/* a */ -- b\nCREATE TABLE x AS PIVOT gold ON task", "a CREATE statement does more than read"),
    ],
)
def test_bad_sql_is_a_clear_error(tmp_path: Path, sql: str, message: str) -> None:
    with pytest.raises(GoldError, match=message):
        query(tmp_path, sql)


def test_queries_may_explain_describe_and_pivot(gold: Path) -> None:
    for sql in (
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE SELECT 1",
        "EXPLAIN (FORMAT json) FROM gold",
        "DESCRIBE gold",
        "SUMMARIZE cost",
        "PIVOT outcomes ON outcome USING count(*)",
    ):
        assert query(gold, sql)[1]


def test_a_file_where_the_gold_set_should_lie_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GoldError, match="A file lies where a folder should"):
        open_gold(tmp_path / "file")


@pytest.mark.parametrize("ask", [open_gold, stats])
@pytest.mark.parametrize("nobody_may_write", ["/sys/goldstream", "x" * 300])
def test_a_reader_in_a_folder_that_is_not_its_own_is_told_of_the_folder_not_the_sink(
    tmp_path: Path, nobody_may_write: str, ask: Callable[[Path], Any]
) -> None:
    with pytest.raises(GoldError, match="cannot read or write") as caught:
        ask(tmp_path / nobody_may_write)
    assert "GOLDSTREAM_STATE_DIR" in str(caught.value)
    assert "start the sink" not in str(caught.value)


def test_reading_a_gold_set_that_is_whole_writes_nothing(gold: Path) -> None:
    before = sorted(path.stat().st_mtime_ns for path in gold.rglob("*"))
    open_gold(gold).close()
    stats(gold)
    assert sorted(path.stat().st_mtime_ns for path in gold.rglob("*")) == before


def test_tables_print_json_with_iso_timestamps(gold: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns, rows = query(gold, "SELECT case_id, ended_at, attempts, case_json, 1 AS n, 2 AS n FROM dead")
    print_table(columns, rows, as_json=True)
    (row,) = json.loads(capsys.readouterr().out)
    assert row["ended_at"] == "2026-09-21T14:13:20Z"
    assert (row["attempts"], row["n"], row["n_2"]) == ([], 1, 2)
    assert json.loads(row["case_json"])["case_id"] == "req-4"


def test_tables_cut_long_cells_and_show_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["text", "n"], [("\x1b[31m[red]a\nb", 1), ("x" * 500, 2)], as_json=False, title="rows")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[31m[red]a b" in out
    assert "x" * 81 not in out
    assert "…" in out
    assert cell_text(None) == ""


def test_rows_wider_than_any_screen_are_printed_one_below_another(
    gold: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_table(*query(gold, "FROM outcomes ORDER BY case_id"), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("row ")] == [f"row {number}" for number in range(1, 8)]
    assert ["case_id", "req-0"] in [line.split() for line in lines]
    print_table(*query(gold, "FROM outcomes WHERE false"), as_json=False)
    assert capsys.readouterr().out.startswith("no rows; the columns are schema_version, case_id, ")


def test_an_empty_answer_is_an_empty_json_array() -> None:
    assert to_json(["a"], []) == "[]"


def test_a_copied_gold_set_is_the_same_gold_set(gold: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("copy") / "gold"
    shutil.copytree(gold, copy)
    assert ask(copy, "SELECT count(*) FROM outcomes") == [(7,)]


def test_a_row_survives_the_table(tmp_path: Path) -> None:
    case = msgspec.structs.replace(ended(0), source=Source(cluster="c", topic="t", partition=1, offset=2, index=3))
    row = outcome_table([outcome_row(case, 0, 9)]).to_pylist()[0]
    assert (row["source_partition"], row["source_offset"], row["source_index"], row["kafka_offset"]) == (1, 2, 3, 9)
