"""Compacted snapshots in a bucket, against moto's S3 server: nothing is overwritten, and what comes back is whole."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from ended_cases import ended, land
from moto.server import ThreadedMotoServer

from schemas.errors import Fenced, GoldError
from schemas.settings.gold import Gold, Publish
from streams.compaction.compact import compact
from streams.compaction.s3 import fetch_snapshot, make_client, publish_snapshot
from streams.gold import query, stats


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publish]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-nobody")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        name = f"snapshots-{uuid.uuid4().hex}"  # moto keeps buckets from one server to the next
        place = Publish(s3=f"s3://{name}/gold", endpoint=f"http://127.0.0.1:{port}", region="us-east-1")
        make_client(place).create_bucket(Bucket=name)
        yield place
    finally:
        server.stop()


def test_what_is_published_is_fetched_whole_and_only_new_files_are_copied(tmp_path: Path, bucket: Publish) -> None:
    gold, copy = tmp_path / "gold", tmp_path / "copy"
    land(gold, [ended(0), ended(1, "dead")])
    compact(gold, Gold())
    assert publish_snapshot(gold, bucket).files == 2
    assert publish_snapshot(gold, bucket).there == 2
    land(gold, [ended(2)])
    compact(gold, Gold())
    found = publish_snapshot(gold, bucket)
    assert (found.manifest, found.files) == (2, 1)
    fetch_snapshot(bucket.s3, bucket, copy)
    assert query(copy, "SELECT case_id FROM outcomes ORDER BY 1")[1] == [("req-0",), ("req-1",), ("req-2",)]
    assert stats(copy)["cases"] == 3


def test_a_second_publisher_overwrites_nothing(tmp_path: Path, bucket: Publish) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for number, gold in enumerate((one, other)):
        land(gold, [ended(number)])
        compact(gold, Gold())
    publish_snapshot(one, bucket)
    with pytest.raises(Fenced, match="is there already and is another file"):
        publish_snapshot(other, bucket)
    fetch_snapshot(bucket.s3, bucket, tmp_path / "copy")
    assert query(tmp_path / "copy", "SELECT case_id FROM outcomes")[1] == [("req-0",)]


def test_mistakes_are_told_with_what_to_do(tmp_path: Path, bucket: Publish) -> None:
    with pytest.raises(GoldError, match="goldstream gold compact"):
        publish_snapshot(tmp_path, bucket)
    with pytest.raises(GoldError, match="holds no published gold set"):
        fetch_snapshot(bucket.s3, bucket, tmp_path / "copy")
    with pytest.raises(GoldError, match="The bucket must exist"):
        fetch_snapshot("s3://nobodys-bucket/x", bucket, tmp_path / "copy")
