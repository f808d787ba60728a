"""Claims about `goldstream send`: every record once, in order, whatever interrupts it; and about the files it reads."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kafka import TopicPartition
from steps import command_line

from schemas.errors import BrokerError, RecordError, SettingsError
from schemas.settings import Settings
from streams import send as sending
from streams.lookup import make_reader, read_ranges
from streams.recorded import Place, files_in, read_from
from streams.send import check_topic, send_files
from streams.topics import ensure_source_topic

BEGINNING = Place()


def values(path: Path, start: Place = BEGINNING) -> list[bytes]:
    return [one.value for one in read_from(path, start)]


def lines(*numbers: int) -> bytes:
    return b"".join(b'{"n": %d}\n' % number for number in numbers)


def on_topic(settings: Settings, topic: str) -> list[int]:
    """Returns the numbers on a topic of one partition, in order."""
    reader = make_reader(settings)
    try:
        where = TopicPartition(topic, 0)
        end = reader.end_offsets([where])[where]
        return [json.loads(record.value)["n"] for record in read_ranges(reader, {where: (0, end)})]
    finally:
        reader.close()


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings()


@pytest.fixture
def topic(settings: Settings) -> str:
    name = f"sent-{settings.kafka.topic_prefix}x"
    ensure_source_topic(settings, name, partitions=1)
    return name


# Files


def test_each_kind_of_file_yields_its_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\n{"n": 1}\r\n  \nnot json\n{"n": 2}')
    (tmp_path / "b.ndjson.gz").write_bytes(gzip.compress(lines(3, 4)))
    (tmp_path / "c.json").write_text('[{"n": 5}, {"n": 6}]')
    (tmp_path / "d.json").write_text('  {"n": 7}')
    at = datetime(2026, 11, 20, tzinfo=UTC)
    pq.write_table(pa.table({"n": [8, 9], "at": [at, None]}), tmp_path / "e.parquet")
    (tmp_path / "notes.txt").write_text("no records")
    (tmp_path / "f.jsonl").write_text("")
    assert values(tmp_path) == [
        *(b'{"n": 1}', b"not json", b'{"n": 2}', b'{"n": 3}', b'{"n": 4}', b'{"n": 5}', b'{"n": 6}', b'{"n": 7}'),
        *(b'{"n":8,"at":"2026-11-20T00:00:00Z"}', b'{"n":9,"at":null}'),
    ]


def test_reading_goes_on_from_any_place(tmp_path: Path) -> None:
    (tmp_path / "2026-11-19").mkdir()
    (tmp_path / "2026-11-20").mkdir()
    (tmp_path / "2026-11-19/time-10_a.json").write_bytes(lines(1))
    (tmp_path / "2026-11-20/all.jsonl").write_bytes(lines(2, 3, 4))
    (tmp_path / "2026-11-20/more.jsonl.gz").write_bytes(gzip.compress(lines(5, 6)))
    pq.write_table(pa.table({"n": [7, 8]}), tmp_path / "2026-11-20/old.parquet")
    whole = list(read_from(tmp_path, Place()))
    assert len(whole) == 8
    for number, found in enumerate(whole, 1):
        assert values(tmp_path, found.place) == [one.value for one in whole[number:]]


def test_a_file_that_grew_goes_on_and_one_that_was_replaced_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(lines(*range(30_000)))  # its head is settled long before its end
    place = list(read_from(file, Place()))[-1].place
    with file.open("ab") as grown:
        grown.write(lines(30_000))
    assert values(file, place) == [b'{"n": 30000}']
    file.write_bytes(lines(*range(1, 30_002)))
    with pytest.raises(SettingsError, match=r"is not the file that was sent up to record 30000.*--restart"):
        values(file, place)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("bad.json", b'[{"n": 1}, ', "bad.json"),
        ("bad.parquet", b"PAR1 no table PAR1", "bad.parquet"),
        ("bad.jsonl.gz", gzip.compress(lines(1, 2))[:-9], "bad.jsonl.gz"),
    ],
    ids=["json", "parquet", "gzip"],  # gzip writes the time: two processes that collect would name it differently
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordError, match=says):
        values(tmp_path)


def test_nothing_to_send_is_an_error_that_names_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        files_in(tmp_path / "absent")
    with pytest.raises(SettingsError, match=r"holds nothing to send. Expected .jsonl"):
        files_in(tmp_path)


# Sending


def test_what_was_sent_is_not_sent_again_and_what_was_added_is(
    settings: Settings, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "BATCH_RECORDS", 4)
    file = tmp_path / "log.jsonl"
    file.write_bytes(lines(*range(10)))
    seen: list[int] = []
    first = send_files(settings, file, topic, progress=lambda records, place: seen.append(records))
    assert (first.records, first.earlier, first.finished, seen) == (10, 0, True, [4, 8, 10])
    with file.open("ab") as grown:
        grown.write(lines(10, 11))
    again = send_files(settings, file, topic)
    assert (again.records, again.earlier) == (2, 10)
    assert on_topic(settings, topic) == list(range(12))
    stopped = send_files(settings, file, topic, restart=True, stop=lambda: True)
    assert (stopped.records, stopped.finished) == (4, False)
    assert send_files(settings, file, topic).records == 8
    assert on_topic(settings, topic) == [*range(12), *range(12)]


@pytest.mark.parametrize("point", ["send.before_commit", "send.after_commit"])
def test_a_killed_send_goes_on_with_every_record_once(
    settings: Settings, topic: str, tmp_path: Path, point: str
) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(lines(*range(2500)))
    arguments = ["--bootstrap-servers", settings.kafka.bootstrap_servers]
    arguments += ["--set", f"kafka.topic_prefix={settings.kafka.topic_prefix}"]
    killed = subprocess.run(
        [sys.executable, "-m", "goldstream", "send", str(file), "--topic", topic, *arguments],
        env=os.environ | {"GOLDSTREAM_CRASH_AT": f"{point}:2"},
        check=False,
        timeout=120,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    sent = send_files(settings, file, topic)
    assert sent.earlier == (1000 if point == "send.before_commit" else 2000)
    assert on_topic(settings, topic) == list(range(2500))


def test_a_second_send_of_the_same_file_takes_over(
    settings: Settings, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "BATCH_RECORDS", 4)
    file = tmp_path / "log.jsonl"
    file.write_bytes(lines(*range(12)))

    def another(records: int, place: Place) -> None:
        if records == 4:
            assert send_files(settings, file, topic).records == 8

    with pytest.raises(BrokerError, match="has taken over"):
        send_files(settings, file, topic, progress=another)
    assert on_topic(settings, topic) == list(range(12))


def test_the_command_tells_what_it_did_and_what_it_left_out(settings: Settings, topic: str, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(lines(1) + b'{"n": 2, "text": "' + b"x" * 1_000_001 + b'"}\n' + b"[3]\n" + lines(4))
    done = command_line(settings, tmp_path, "send", str(file), "--topic", topic)
    assert done.exit_code == 1
    assert f"3 records sent to {topic}" in done.output
    assert "1 of them are no JSON objects" in done.output
    assert "larger than intake.max_record_bytes: log.jsonl, record 2" in done.output
    again = command_line(settings, tmp_path, "send", str(file), "--topic", topic, "--json")
    assert json.loads(again.output)["records"] == 0
    with pytest.raises(BrokerError, match=r"does not exist\. Create it"):
        check_topic(settings, f"{topic}-absent")
    with pytest.raises(SettingsError, match="our own prefix"):
        check_topic(settings, settings.topic("prompts"))
