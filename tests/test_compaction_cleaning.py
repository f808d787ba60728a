"""What compaction has superseded: put aside, listed no more and still opened, then removed, by the keeper too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ended_cases import ended, land
from test_compaction import data_files, everything, filled, landing_files, plainly
from waiting import wait_until

from schemas.gold import read_chain
from schemas.manifests import latest_manifest, manifest_numbers
from schemas.settings.gold import Gold
from streams.compaction.cleaning import next_at_ms
from streams.compaction.compact import compact
from streams.compaction.keeper import Keeper, due


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    return filled(tmp_path)


def listed(gold: Path, folder: str) -> int:
    """Returns how many files a plain client finds."""
    return int(plainly(gold, f"SELECT count(*) FROM glob('{gold}/{folder}/**')")[0][0])


def test_superseded_files_stay_for_the_grace_period_and_as_long_again_for_whoever_has_listed_them(gold: Path) -> None:
    start_ms = 1_000_000_000_000
    compact(gold, Gold(), now_ms=start_ms)
    first = data_files(gold)
    land(gold, [ended(40)])
    compact(gold, Gold(merge_files=2), now_ms=start_ms + 200_000)
    assert (manifest_numbers(gold), landing_files(gold), listed(gold, "landing/p=0*")) == ([0, 1, 2], 5, 5)
    report = compact(gold, Gold(), now_ms=start_ms + 301_000)  # manifest 0 has gone, and what only it needed is aside
    assert (manifest_numbers(gold), report.removed.manifests, report.removed.landing) == ([1, 2], 1, 0)
    assert (landing_files(gold), listed(gold, "landing/p=0*"), listed(gold, "manifests")) == (5, 1, 1)
    report = compact(gold, Gold(), now_ms=start_ms + 502_000)
    assert (manifest_numbers(gold), listed(gold, "landing/p=0*")) == ([2], 0)
    assert set(first) <= set(data_files(gold))
    report = compact(gold, Gold(), now_ms=start_ms + 602_000)
    assert (report.removed.landing, landing_files(gold)) == (4, 1)
    report = compact(gold, Gold(), now_ms=start_ms + 803_000)
    assert (report.removed.landing, landing_files(gold)) == (1, 0)
    assert data_files(gold) == sorted(file.name for file in latest_manifest(gold).files)


def test_a_file_put_aside_is_listed_no_more_and_still_opened_by_its_name(gold: Path) -> None:
    (before,) = plainly(gold, f"SELECT list(file) FROM glob('{gold}/landing/p=0*/**')")[0]
    opened = f"SELECT case_id FROM read_parquet({before}) ORDER BY ALL"
    rows = plainly(gold, opened)
    compact(gold, Gold(), now_ms=1_000_000_000_000)
    compact(gold, Gold(), now_ms=1_000_000_301_000)
    assert listed(gold, "landing/p=0*") == 0
    assert plainly(gold, opened) == rows
    moved = gold.rename(gold.with_name("moved"))
    assert plainly(moved, opened.replace(str(gold), str(moved))) == rows
    compact(moved, Gold(), now_ms=1_000_000_602_000)
    assert landing_files(moved) == 0


def test_what_a_power_cut_left_of_a_file_put_aside_is_cleaned_away(gold: Path) -> None:
    compact(gold, Gold(), now_ms=1_000_000_000_000)
    compact(gold, Gold(), now_ms=1_000_000_301_000)
    shutil.rmtree(gold / "superseded")
    before = everything(gold)
    compact(gold, Gold(), now_ms=1_000_000_302_000)
    assert (landing_files(gold), manifest_numbers(gold)) == (0, [1])
    assert everything(gold) == before


def test_copies_beside_the_files_that_hold_are_not_counted(gold: Path) -> None:
    compact(gold, Gold())
    land(gold, [ended(60)])
    landing, data = read_chain(gold, 0)[-1].path, gold / latest_manifest(gold).files[0].name
    before = plainly(gold, "FROM landed ORDER BY ALL")
    for path in (landing, data):
        (path.parent / "copy").mkdir()
        shutil.copy(path, path.parent / "copy")
        shutil.copy(path, path.with_suffix(".bak"))
    assert plainly(gold, "FROM landed ORDER BY ALL") == before


def test_the_keeper_compacts_when_it_is_due_and_stops_with_the_sink(gold: Path) -> None:
    now = 0.0
    settings = Gold(compact_files=3)
    keeper = Keeper(gold, settings, lambda: now)
    try:
        keeper.tick()
        assert due(gold, settings) == "4 landing files"
        now = 6.0
        keeper.tick()
        wait_until(lambda: latest_manifest(gold).number, 60)
        assert due(gold, settings) is None
    finally:
        keeper.stop()
    off = Keeper(gold, Gold(compact=False, compact_files=1), lambda: now)
    now = 1000.0
    off.tick()
    assert latest_manifest(gold).number == 1


def test_compaction_gives_way_to_other_sessions_too() -> None:
    asks = (
        "import os; from pathlib import Path; from schemas.process import work_in_background; work_in_background(7);"
        "group = Path('/proc/self/autogroup'); print(os.nice(0), os.getsid(0));"
        "print(group.read_text() if group.exists() else 'nice 7')"
    )
    told = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True).stdout
    nice, session, group = told.split(maxsplit=2)
    assert (nice, group.strip().endswith("nice 7")) == ("7", True)
    assert int(session) != os.getsid(0)


def test_the_keeper_removes_what_was_put_aside_also_where_nothing_new_lands(gold: Path) -> None:
    now = 0.0
    settings = Gold(grace_s=0.05)
    compact(gold, settings)
    before = everything(gold)
    keeper = Keeper(gold, settings, lambda: now)

    def all_removed() -> bool:
        nonlocal now
        now += 6.0
        keeper.tick()
        return not landing_files(gold) and next_at_ms(gold, settings.grace_s) is None

    try:
        wait_until(all_removed, 60, every_s=0.05)
    finally:
        keeper.stop()
    assert everything(gold) == before
    assert manifest_numbers(gold) == [1]
