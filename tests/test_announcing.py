"""Claims about the way from a promotion to the worker: noticed at once, over connections that stay, loaded ahead."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from rolling import InThread, ListRecords, a_record, publish_and_promote
from tiny import make_tiny_adapter
from toys import NEW, OLD
from waiting import wait_until

from agents.models import Models
from schemas.adapters import served_name
from schemas.errors import BrokerError
from schemas.settings import LocalModel, Settings
from schemas.topics import ADAPTERS
from streams.clients import make_admin
from streams.serving import Serving
from streams.topics import create_topics
from trainer.glance import TICK_NS, glance, gold_folders, wait_for_news
from trainer.records import KafkaRecords

# Glances


def test_a_glance_is_old_once_a_file_came_to_any_folder_or_a_folder_itself(tmp_path: Path) -> None:
    def folders() -> list[Path]:
        return gold_folders(tmp_path)

    def look_later() -> None:
        for folder in folders():
            if folder.exists():
                os.utime(folder, ns=(0, folder.stat().st_mtime_ns - 2 * TICK_NS))

    assert not glance(folders()).is_old(folders())
    for new in ("landing", "landing/p=00003", "landing/p=00003/a.parquet", "manifests", "forgotten", "forgotten/keys"):
        look_later()
        before = glance(folders())
        assert not before.is_old(folders())
        (tmp_path / new).mkdir()
        assert before.is_old(folders()), new


def test_a_glance_in_the_tick_of_a_change_is_never_trusted(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    before = glance([tmp_path])
    os.utime(tmp_path, ns=(0, before.times[0][1]))  # another file, and the clock has not moved
    assert before.is_old([tmp_path])


def test_waiting_ends_with_news_and_work_done_meanwhile_leaves_no_pause(tmp_path: Path) -> None:
    done: list[int] = []

    def work() -> bool:
        done.append(1)
        if len(done) == 1000:
            (tmp_path / "new").mkdir()
        return True

    os.utime(tmp_path, ns=(0, 0))
    wait_for_news(glance([tmp_path]), lambda: [tmp_path], threading.Event(), 600.0, work)
    assert len(done) == 1000


# Rollout


def test_a_promotion_is_announced_however_rarely_rollout_looks(
    settings: Settings, base: Path, run_folder: Path
) -> None:
    records = ListRecords()
    with InThread(settings, records, poll_s=3600.0):
        for count, version in enumerate((OLD, NEW), 1):
            publish_and_promote(settings, base, run_folder, version)
            wait_until(lambda count=count: len(records.records) == count)  # type: ignore[misc]
    assert [record.version for record in records.records] == [OLD, NEW]


def test_a_promotion_does_not_hurry_what_has_just_failed(
    settings: Settings, base: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.rollout.FIRST_RETRY_S", 3600.0)
    tries: list[str] = []

    class Refusing(ListRecords):
        def append(self, record: object) -> None:
            tries.append("append")
            raise BrokerError("no")

    with InThread(settings, Refusing()):
        publish_and_promote(settings, base, run_folder, OLD)
        wait_until(lambda: tries)
        publish_and_promote(settings, base, run_folder, NEW)
        threading.Event().wait(0.3)
    assert tries == ["append"]


# Records


def test_kept_connections_see_what_others_wrote_since_and_end_with_the_block(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings()
    create_topics(settings)
    first, second, third = (a_record(OLD, sequence=number) for number in (1, 2, 3))
    threads = threading.active_count()
    with KafkaRecords(settings) as kept:
        assert kept.read() == []
        kept.append(first)
        assert kept.read() == [first]
        KafkaRecords(settings).append(second)
        assert kept.read() == [first, second]
        consumer, producer = kept._consumer, kept._producer
        kept.append(third)
        assert kept.read() == KafkaRecords(settings).read() == [first, second, third]
        assert (kept._consumer, kept._producer) == (consumer, producer)
    wait_until(lambda: threading.active_count() <= threads)
    assert kept.read() == [first, second, third]  # a connection of its own, as before


def test_a_topic_made_anew_is_an_error_once_and_then_read_from_its_beginning(
    make_settings: Callable[..., Settings],
) -> None:
    settings = make_settings()
    create_topics(settings)
    topic = settings.topic(ADAPTERS)
    with KafkaRecords(settings) as kept:
        kept.append(a_record(OLD))
        kept.append(a_record(NEW, sequence=2))
        assert len(kept.read()) == 2
        admin = make_admin(settings)
        try:
            admin.delete_topics([topic])
            wait_until(lambda: topic not in admin.list_topics())
        finally:
            admin.close()
        create_topics(settings)
        KafkaRecords(settings).append(a_record(NEW, sequence=3))
        with pytest.raises(BrokerError, match=r"was made anew|cannot be read"):
            kept.read()
        assert [record.sequence for record in kept.read()] == [3]


# Worker


def test_an_announced_adapter_is_loaded_before_anybody_asks_for_it(
    settings: Settings, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = msgspec.structs.replace(settings, local={"tiny": LocalModel(path=str(base), threads=1)})
    for version in ("v0001-abcdef12", "v0002-abcdef12"):
        make_tiny_adapter(settings.adapters / "toy" / version, base, version, seed=int(version[4]))
    caplog.set_level(logging.WARNING)

    async def follow() -> list[list[str]]:
        serving, loop = Serving(), asyncio.get_running_loop()
        models = Models(task, serving=serving.versions)
        try:
            await models.warm("toy", ["student"])
            serving.changed = lambda task: loop.call_soon_threadsafe(models.preload, task)
            engine, found = models.engine("tiny"), []
            for sequence, version in enumerate(("v0001-abcdef12", "v0003-nowhere", "v0002-abcdef12"), 1):
                record = msgspec.json.encode(a_record(version, sequence=sequence))
                await asyncio.to_thread(serving.apply, b"toy", record)
                if version != "v0003-nowhere":
                    served = served_name("toy", version)
                    await asyncio.to_thread(wait_until, lambda served=served: served in engine.adapters())
                found.append(engine.adapters())
            serving.apply(b"other", msgspec.json.encode(a_record("v0001-abcdef12", task="other")))  # no task of ours
            await asyncio.sleep(0.05)
            return found
        finally:
            await models.close()

    first, nowhere, second = asyncio.run(follow())
    assert first == nowhere == ["toy-v0001-abcdef12"]
    assert second == ["toy-v0001-abcdef12", "toy-v0002-abcdef12"]
