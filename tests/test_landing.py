"""The landing chain: files appear whole or not at all, in one order, from one writer."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ended_cases import ended, land

from schemas.errors import ChainBroken, Fenced, GoldError
from schemas.gold import END_OFFSET, START_OFFSET, current_watermark, landing_folder, read_chain, read_outcomes
from schemas.outcomes import outcome_row, outcome_table
from streams.landing import LandingChain

ROOT = Path(__file__).parents[1]

_WRITE_ONE_MORE = """
import sys
from pathlib import Path
from ended_cases import ended, land
from schemas.outcomes import outcome_row, outcome_table
from streams.landing import LandingChain

chain = LandingChain(Path(sys.argv[1]), 0)
start = chain.tip or 0
chain.write(start, start + 1, [outcome_row(ended(start), 0, start)])
"""


def rows(start: int, end: int) -> list[dict[str, object]]:
    return [outcome_row(ended(offset), 0, offset) for offset in range(start, end)]


def write_one_more(gold: Path, crash_at: str) -> int:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"GOLDSTREAM_CRASH_AT": crash_at, "PYTHONPATH": path}
    return subprocess.run([sys.executable, "-c", _WRITE_ONE_MORE, str(gold)], env=environment, check=False).returncode


def test_files_form_one_gapless_chain(tmp_path: Path) -> None:
    chain = LandingChain(tmp_path, 0)
    assert chain.tip is None
    chain.write(7, 10, rows(7, 10))
    chain.write(10, 12, rows(10, 12))
    assert [(f.start, f.end) for f in read_chain(tmp_path, 0)] == [(7, 10), (10, 12)]
    assert LandingChain(tmp_path, 0).tip == 12
    assert current_watermark(tmp_path) == {0: 12}
    assert read_outcomes(tmp_path, ["kafka_offset"])["kafka_offset"].to_pylist() == [7, 8, 9, 10, 11]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_range_that_does_not_begin_at_the_tip_is_refused(tmp_path: Path) -> None:
    chain = LandingChain(tmp_path, 0)
    chain.write(0, 2, rows(0, 2))
    with pytest.raises(GoldError, match="continues at 2"):
        chain.write(3, 4, rows(3, 4))


def test_a_range_without_rows_still_advances_the_chain(tmp_path: Path) -> None:
    chain = LandingChain(tmp_path, 0)
    path = chain.write(0, 5, [])
    assert pq.read_metadata(path).num_rows == 0
    assert LandingChain(tmp_path, 0).tip == 5


@pytest.mark.parametrize("point", ["sink.after_temp", "sink.after_fsync"])
def test_crash_before_link_leaves_gold_unchanged(tmp_path: Path, point: str) -> None:
    LandingChain(tmp_path, 0).write(0, 2, rows(0, 2))
    before = read_outcomes(tmp_path)
    assert write_one_more(tmp_path, point) == -signal.SIGKILL
    assert read_outcomes(tmp_path).equals(before)
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    assert LandingChain(tmp_path, 0).tip == 2
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("point", ["sink.after_link", "sink.before_dir_fsync"])
def test_crash_after_link_has_written_the_whole_file(tmp_path: Path, point: str) -> None:
    assert write_one_more(tmp_path, point) == -signal.SIGKILL
    assert LandingChain(tmp_path, 0).tip == 1
    assert len(read_outcomes(tmp_path)) == 1
    assert list((tmp_path / "tmp").iterdir()) == []
    assert write_one_more(tmp_path, "") == 0
    assert LandingChain(tmp_path, 0).tip == 2


def test_crash_point_counts_the_times_it_is_reached(tmp_path: Path) -> None:
    twice = (
        "from schemas.faults import crash_point as at\n"
        "at('a'); at('b'); print('once', flush=True); at('a'); print('twice', flush=True)"
    )
    environment = os.environ | {"GOLDSTREAM_CRASH_AT": "a:2"}
    done = subprocess.run([sys.executable, "-c", twice], env=environment, cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"once\n")


def test_the_second_of_two_writers_is_fenced(tmp_path: Path) -> None:
    LandingChain(tmp_path, 0).write(0, 2, rows(0, 2))
    zombie, owner = LandingChain(tmp_path, 0), LandingChain(tmp_path, 0)
    owner.write(2, 3, rows(2, 3))
    before = read_outcomes(tmp_path)
    with pytest.raises(Fenced, match="another sink wrote this range"):
        zombie.write(2, 5, rows(2, 5))
    assert read_outcomes(tmp_path).equals(before)
    owner.write(3, 4, rows(3, 4))
    assert LandingChain(tmp_path, 0).tip == 4


def test_two_first_writers_are_fenced_even_from_different_starts(tmp_path: Path) -> None:
    zombie, owner = LandingChain(tmp_path, 0), LandingChain(tmp_path, 0)
    owner.write(5, 6, rows(5, 6))
    with pytest.raises(Fenced):
        zombie.write(0, 6, rows(0, 6))


def test_a_live_writers_temp_file_is_left_alone(tmp_path: Path) -> None:
    LandingChain(tmp_path, 0)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    hold = (
        "import sys; from pathlib import Path; from streams.durable import open_temp\n"
        "file, temp = open_temp(Path(sys.argv[1]), '00000-x'); print(temp, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path / "tmp")]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        temp = Path(process.stdout.readline().strip())
        LandingChain(tmp_path, 0)
        assert temp.exists()
        process.kill()
    LandingChain(tmp_path, 0)
    assert not temp.exists()


def test_a_file_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path: Path) -> None:
    def no_space() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    LandingChain(tmp_path, 0)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", _WRITE_ONE_MORE, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=no_space,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "GoldError: cannot write" in done.stderr
    assert "start the sink again" in done.stderr
    assert read_chain(tmp_path, 0) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_truncated_file_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = LandingChain(tmp_path, 0).write(0, 2, rows(0, 2))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ChainBroken, match="restore it from a backup"):
        LandingChain(tmp_path, 0)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    chain = LandingChain(tmp_path, 0)
    paths = [chain.write(offset, offset + 1, rows(offset, offset + 1)) for offset in range(3)]
    paths[1].unlink()
    with pytest.raises(ChainBroken, match="A file is missing"):
        LandingChain(tmp_path, 0)


def test_a_renamed_file_is_refused(tmp_path: Path) -> None:
    path = LandingChain(tmp_path, 0).write(0, 2, rows(0, 2))
    path.rename(landing_folder(tmp_path, 0) / path.name.replace("00000.parquet", "00001.parquet"))
    with pytest.raises(ChainBroken, match="its name contradicts"):
        LandingChain(tmp_path, 0)


def test_a_single_flipped_bit_anywhere_is_found_when_the_chain_is_opened(tmp_path: Path) -> None:
    land(tmp_path, [ended(number) for number in range(20)])
    (path,) = (tmp_path / "landing" / "p=00000").glob("*.parquet")
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(ChainBroken, match=path.name):
            LandingChain(tmp_path, 0)
    path.write_bytes(whole)
    assert LandingChain(tmp_path, 0).tip == 20


def test_a_file_from_before_files_were_sealed_is_read(tmp_path: Path) -> None:
    table = outcome_table([])
    footer = {START_OFFSET: b"0", END_OFFSET: b"3"}
    folder = tmp_path / "landing" / "p=00000"
    folder.mkdir(parents=True)
    pq.write_table(table.replace_schema_metadata(footer), folder / f"00000-{0:020d}.parquet")
    assert LandingChain(tmp_path, 0).tip == 3
