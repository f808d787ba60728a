"""Compaction: few large files in place of many small ones, and no reader, writer or crash notices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from ended_cases import ended, land, records, writer

from schemas.errors import ChainBroken, Fenced, GoldError
from schemas.forgotten import Forgetting, read_forgotten
from schemas.gold import current_watermark, landing_folder, read_chain, read_outcomes
from schemas.manifests import DataFile, Manifest, latest_manifest, manifest_numbers, manifest_path
from schemas.outcomes import OUTCOME_SCHEMA, outcome_row
from schemas.settings.gold import Gold
from streams.compaction.compact import _lock, compact
from streams.compaction.plan import make_plan, why_due
from streams.compaction.publish import publish
from streams.forgetting.file import write_forgotten, writing
from streams.gold import VIEWS, ask, open_gold, query, stats
from streams.landing import LandingChain

ROOT = Path(__file__).parents[1]
NOW = Gold(grace_s=0.0)
POINTS = [
    "compact.after_temp",
    "compact.after_link",
    "compact.after_link:2",
    "compact.after_files",
    "compact.before_manifest",
    "compact.after_manifest",
    "compact.after_aside",
    "compact.after_aside:4",
    "compact.after_link_aside",
    "compact.after_link_aside:5",
    "compact.after_link_removal",
    "compact.after_link_removal:6",
]
_COMPACT = """
import sys
from pathlib import Path
from schemas.settings.gold import Gold
from streams.compaction.compact import compact
compact(Path(sys.argv[1]), Gold(grace_s=0.0, merge_files=2))
"""


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    return filled(tmp_path)


def filled(tmp_path: Path) -> Path:
    """Returns a gold set of two partitions and four files, one of each ending; req-1 was dead and is gold now."""
    land(tmp_path, [ended(0), ended(1, "dead")])
    land(tmp_path, [ended(1, "gold", epoch=1), ended(2, "unresolved")])
    land(tmp_path, [ended(10, "holdout", split="holdout"), ended(11, "dropped", reason="unsampled")], partition=1)
    land(tmp_path, [ended(12)], partition=1)
    return tmp_path


def everything(gold: Path) -> tuple[Any, ...]:
    """Returns what readers of every kind see."""
    with open_gold(gold) as connection:
        views = [ask(connection, f"SELECT * FROM {view} ORDER BY ALL")[1] for view in ("outcomes", "rgt_pairs", "cost")]
        landed = ask(connection, "SELECT * FROM landed ORDER BY kafka_partition, kafka_offset")
    return views, landed, read_outcomes(gold).to_pylist(), current_watermark(gold), stats(gold)


def plainly(gold: Path, sql: str) -> list[tuple[Any, ...]]:
    """Asks as somebody does who has views.sql alone."""
    with duckdb.connect() as client:
        client.execute("SET TimeZone = 'UTC'")
        client.execute(f"SET VARIABLE gold = '{gold}'")
        client.execute(VIEWS.read_text())
        return client.execute(sql).fetchall()


def data_files(gold: Path) -> list[str]:
    return sorted(path.relative_to(gold).as_posix() for path in (gold / "data").rglob("*.parquet"))


def landing_files(gold: Path) -> int:
    return len(list(gold.glob("landing/p=0*/*.parquet")))


def forget(gold: Path, *keys: Forgetting) -> None:
    with writing(gold):
        write_forgotten(gold, read_forgotten(gold).joined(keys))


def test_readers_see_the_same_before_and_after_also_once_the_landing_files_have_gone(gold: Path) -> None:
    before, plain = everything(gold), plainly(gold, "FROM landed ORDER BY case_id, epoch")
    report = compact(gold, Gold())
    assert (report.landing_files, report.rows, report.manifest, landing_files(gold)) == (4, 7, 1, 4)
    assert everything(gold) == before
    assert plainly(gold, "FROM landed ORDER BY case_id, epoch") == plain
    compact(gold, NOW)
    assert landing_files(gold) == 0
    assert everything(gold) == before
    assert plainly(gold, "FROM landed ORDER BY case_id, epoch") == plain


def test_compacted_files_lie_by_outcome_split_and_day_and_the_manifest_tells_of_each(gold: Path) -> None:
    compact(gold, Gold())
    manifest = latest_manifest(gold)
    folders = [file.name.rpartition("/")[0] for file in manifest.files]
    assert folders == [
        "data/dead/train/dt=2026-09-21",
        "data/dropped/train/dt=2026-09-21",
        "data/gold/train/dt=2026-09-21",
        "data/holdout/holdout/dt=2026-09-21",
        "data/unresolved/train/dt=2026-09-21",
    ]
    assert (manifest.watermark, manifest.rows) == ({0: 4, 1: 3}, 7)
    (golden,) = (file for file in manifest.files if "/gold/" in file.name)
    assert golden.offsets == {0: (0, 2), 1: (2, 2)}
    assert golden.bytes == (gold / golden.name).stat().st_size
    assert pq.read_schema(gold / golden.name).names == OUTCOME_SCHEMA.names


def test_the_sink_goes_on_where_the_manifest_ends_and_knows_every_compacted_id(gold: Path) -> None:
    compact(gold, Gold())
    compact(gold, NOW)
    target = writer(gold)
    assert (target.start, len(target.index)) == (4, 3)
    for record in records([ended(0), ended(1, "dead"), ended(3)], start=4):  # the first two were written before
        target.add(record)
    target.flush()
    assert [row[0] for row in query(gold, "SELECT case_id FROM landed WHERE kafka_offset >= 4")[1]] == ["req-3"]
    assert current_watermark(gold) == {0: 7, 1: 3}
    assert stats(gold)["duplicates"] == 0


def test_a_writer_slower_than_compaction_is_fenced_although_the_name_is_free_again(gold: Path) -> None:
    slow = LandingChain(gold, 0)
    land(gold, [ended(5)])
    compact(gold, Gold())
    compact(gold, NOW)
    before = everything(gold)
    with pytest.raises(Fenced, match="another sink wrote this range"):
        slow.write(4, 6, [outcome_row(ended(5), 0, 4), outcome_row(ended(6), 0, 5)])
    assert landing_files(gold) == 0
    assert everything(gold) == before


def test_a_first_writer_slower_than_compaction_is_fenced(tmp_path: Path) -> None:
    slow = LandingChain(tmp_path, 0)
    land(tmp_path, [ended(0)])
    compact(tmp_path, Gold())
    compact(tmp_path, NOW)
    with pytest.raises(Fenced):
        slow.write(0, 1, [outcome_row(ended(0), 0, 0)])
    assert len(read_outcomes(tmp_path)) == 1


def test_what_a_fenced_writer_left_when_it_was_killed_is_never_read(gold: Path) -> None:
    left = gold / "left.parquet"
    path = read_chain(gold, 0)[0].path
    left.write_bytes(path.read_bytes())
    compact(gold, Gold())
    compact(gold, NOW)
    before = everything(gold)
    left.rename(path)  # killed between the link and taking it back
    assert everything(gold) == before
    assert LandingChain(gold, 0).tip == 4
    compact(gold, NOW)
    assert not path.exists()


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_changes_nothing_for_readers_and_the_next_run_goes_on(gold: Path, point: str) -> None:
    for number in (20, 22):
        compact(gold, Gold())
        land(gold, [ended(number), ended(number + 1, "unresolved")])
    before = everything(gold)
    environment = os.environ | {"GOLDSTREAM_CRASH_AT": point, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _COMPACT, str(gold)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert everything(gold) == before
    compact(gold, NOW)
    compact(gold, NOW)
    assert everything(gold) == before
    assert data_files(gold) == sorted(file.name for file in latest_manifest(gold).files)
    assert (landing_files(gold), len(manifest_numbers(gold))) == (0, 1)
    assert [path.name for path in (gold / "tmp").iterdir()] == ["compaction.lock"]
    assert not list((gold / "superseded").iterdir())


def test_the_second_of_two_compactions_is_fenced(gold: Path) -> None:
    with _lock(gold), pytest.raises(Fenced, match="another compaction is at work"):
        compact(gold, Gold())
    manifest = latest_manifest(gold)
    first = Manifest(number=manifest.number + 1, watermark={0: 4})
    publish(gold, first)
    with pytest.raises(Fenced, match="published this manifest first"):
        publish(gold, Manifest(number=manifest.number + 1, watermark={0: 2}))
    assert latest_manifest(gold) == first


def test_a_point_in_time_is_exact_after_compaction_also_where_a_row_was_superseded(gold: Path) -> None:
    compact(gold, Gold())
    land(gold, [ended(30)])
    compact(gold, Gold(merge_files=2))
    compact(gold, NOW)
    then = {0: 2, 1: 3}
    assert query(gold, "SELECT case_id, outcome, epoch FROM outcomes WHERE case_id = 'req-1'", then)[1] == [
        ("req-1", "dead", 0)
    ]
    assert read_outcomes(gold, ["case_id", "epoch"], watermark=then).to_pylist() == [
        {"case_id": name, "epoch": 0} for name in ("req-0", "req-1", "req-10", "req-11", "req-12")
    ]
    assert read_outcomes(gold, ["case_id"], above={0: 3, 1: 2})["case_id"].to_pylist() == ["req-2", "req-30", "req-12"]
    assert stats(gold, then)["outcomes"] == {"gold": 2, "dead": 1, "dropped": 1, "holdout": 1}


def test_small_files_are_merged_once_there_are_enough_or_their_day_is_over() -> None:
    def file(name: str, size: int = 1) -> DataFile:
        return DataFile(name=f"data/gold/train/dt={name}.parquet", rows=1, bytes=size, sha256="", offsets={})

    today = [file(f"2026-11-21/{n}") for n in range(3)]
    over = [file(f"2026-11-20/{n}") for n in range(2)]
    large = [file("2026-11-20/large", 200 << 20)]
    manifest = Manifest(number=1, files=(*today, *over, *large))
    assert make_plan(manifest, [], "2026-11-21", Gold()).merge == tuple(over)
    assert make_plan(manifest, [], "2026-11-21", Gold(merge_files=3)).merge == (*today, *over)
    assert make_plan(manifest, [], "2026-11-20", Gold(), tainted=[large[0].name]).merge == (large[0],)
    assert why_due(99, 0, Gold()) is None
    assert why_due(1, 9999, Gold()) is None
    assert why_due(100, 0, Gold()) == "100 landing files"
    assert why_due(2, 3600, Gold()) == "2 landing files, the oldest 3600 s old"


def test_merging_keeps_every_row(tmp_path: Path) -> None:
    for number in range(4):
        land(tmp_path, [ended(number)])
        compact(tmp_path, Gold(merge_files=99), now_ms=1_790_000_000_000)
    assert len(latest_manifest(tmp_path).files) == 4
    before = everything(tmp_path)
    report = compact(tmp_path, Gold())  # their day is long over
    assert (report.merged_files, report.files, report.rows) == (4, 1, 4)
    assert everything(tmp_path) == before


def test_nothing_new_publishes_nothing(gold: Path) -> None:
    compact(gold, Gold())
    report = compact(gold, Gold())
    assert (report.manifest, report.written_files, report.rows) == (1, 0, 0)
    assert compact(gold, Gold(), dry_run=True).landing_files == 0


def test_forgotten_rows_lose_their_text_in_all_files_that_hold(gold: Path) -> None:
    compact(gold, Gold())
    land(gold, [ended(50, user="hash-of-b")])
    land(gold, [ended(51, user="hash-of-a")], partition=1)
    compact(gold, Gold())
    forget(gold, Forgetting(kind="user", key="hash-of-a", at_ms=1))
    land(gold, [ended(52, user="hash-of-a")])
    report = compact(gold, Gold())
    assert report.erased_rows == 2
    compact(gold, NOW)
    left = [case_id for (case_id,) in query(gold, "SELECT case_id FROM outcomes")[1]]
    assert sorted(left) == ["req-0", "req-1", "req-10", "req-11", "req-12", "req-2", "req-50"]
    for name in data_files(gold):
        table = pq.read_table(gold / name)
        assert "hash-of-a" not in table["user"].to_pylist()
    bare = query(gold, "SELECT case_id, prompt, answer, reason FROM stored WHERE reason = 'forgotten' ORDER BY 1")[1]
    assert [row[0] for row in bare] == ["req-51", "req-52"]
    assert compact(gold, NOW).written_files == 0


def test_a_damaged_landing_file_stops_compaction_and_is_named(gold: Path) -> None:
    path = read_chain(gold, 1)[1].path
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChainBroken, match=path.name):
        compact(gold, Gold())
    assert (latest_manifest(gold).number, data_files(gold)) == (0, [])
    assert not list((gold / "tmp").glob("*.tmp"))


def test_a_file_of_a_newer_version_is_not_rewritten_with_less(gold: Path) -> None:
    path = landing_folder(gold, 0) / f"00000-{4:020d}.parquet"
    table = OUTCOME_SCHEMA.empty_table().append_column("from_the_future", [[]])
    footer = {b"goldstream.start_offset": b"4", b"goldstream.end_offset": b"5"}
    pq.write_table(table.replace_schema_metadata(footer), path)
    with pytest.raises(GoldError, match="from_the_future"):
        compact(gold, Gold())
    assert latest_manifest(gold).number == 0


def test_a_damaged_manifest_is_an_error_with_its_name(gold: Path) -> None:
    compact(gold, Gold())
    manifest_path(gold, 1).write_text('{"number": 1')
    with pytest.raises(ChainBroken, match=r"0001\.json: no manifest"):
        read_outcomes(gold)


def test_a_missing_compacted_file_fails_the_query_and_is_no_shorter_answer(gold: Path) -> None:
    compact(gold, Gold())
    compact(gold, NOW)
    (gold / latest_manifest(gold).files[0].name).unlink()
    with pytest.raises(duckdb.Error, match="is gone"):
        plainly(gold, "SELECT count(*) FROM outcomes")
    with pytest.raises(GoldError):
        query(gold, "SELECT count(*) FROM outcomes")
    with pytest.raises(ChainBroken, match="cannot be read"):
        read_outcomes(gold)


def test_an_open_connection_follows_what_compaction_publishes(gold: Path) -> None:
    with duckdb.connect() as client:
        open_gold(gold).close()
        client.execute(f"SET VARIABLE gold = '{gold}'")
        client.execute(VIEWS.read_text())
        for step in range(3):
            assert client.execute("SELECT count(*), count(DISTINCT case_id) FROM landed").fetchone() == (
                7 + step,
                6 + step,
            )
            land(gold, [ended(60 + step)])
            compact(gold, NOW)
