"""Claims about rollout: records, vLLM servers, a kill at any point.

Everything real but Kafka (a list) and vLLM (a server of ours; tests/test_vllm_server.py asks the real one).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rolling import THIRD, InThread, ListRecords, a_record, on_vllm, publish_and_promote, traffic
from rollout_process import FileRecords
from stub_vllm import StubVllm
from tiny import make_tiny_adapter
from toys import NEW, OLD, a_manifest, add_gold
from waiting import wait_until

from schemas.adapters import AdapterRecord, served_name
from schemas.errors import SettingsError
from schemas.settings import Settings, Trainer
from schemas.status import read_rollout_status as read_status
from trainer.records import NewerRollout, latest_records
from trainer.registry import promote, promotions, publish
from trainer.rollout import run_rollout
from trainer.servers import max_lora_rank, vllm_arguments

# Records


def test_rollout_records_what_was_promoted_and_what_was_taken_back(
    settings: Settings, base: Path, run_folder: Path
) -> None:
    records = ListRecords()
    with InThread(settings, records):
        publish_and_promote(settings, base, run_folder, OLD)
        wait_until(lambda: len(records.records) == 1)
        promote(settings.adapters, "toy", "", by="hand", reason="complaints")
        wait_until(lambda: len(records.records) == 2)
        time.sleep(0.1)
    first, second = records.records
    assert (first.version, first.previous, first.reason, first.served_as) == (OLD, "", "gate: better", "")
    assert (second.version, second.previous, second.reason) == ("", OLD, "hand: complaints")
    assert [(r.lease_epoch, r.sequence) for r in records.records] == [(1, 1), (1, 2)]


def test_a_new_version_leaves_a_canary_share_behind_and_going_back_does_not(
    settings: Settings, base: Path, run_folder: Path
) -> None:
    records = ListRecords()
    with InThread(settings, records):
        for count, version in enumerate((OLD, NEW), 1):
            publish_and_promote(settings, base, run_folder, version)
            wait_until(lambda count=count: len(records.records) == count)  # type: ignore[misc]
        promote(settings.adapters, "toy", OLD, by="hand")
        wait_until(lambda: len(records.records) == 3)
    shares = [(r.version, r.previous, r.fallback, r.canary_share) for r in records.records]
    assert shares == [(OLD, "", "", 0.1), (NEW, OLD, OLD, 0.1), (OLD, NEW, "", 0.0)]


def test_a_version_of_another_base_does_not_stay_beside_a_new_one(
    settings: Settings, base: Path, run_folder: Path
) -> None:
    records = ListRecords(a_record(OLD))
    publish(settings.adapters, run_folder, a_manifest(base, OLD, base_sha256="0" * 64))
    promote(settings.adapters, "toy", OLD, by="hand")
    publish_and_promote(settings, base, run_folder, NEW)
    with InThread(settings, records):
        wait_until(lambda: len(records.records) == 2)
    last = records.records[-1]
    assert (last.version, last.previous, last.canary_share, last.fallback) == (NEW, OLD, 0.0, "")


def test_each_rollout_has_a_higher_epoch_even_where_its_lease_file_was_lost(
    settings: Settings, base: Path, run_folder: Path
) -> None:
    publish_and_promote(settings, base, run_folder, OLD)
    records = ListRecords(a_record("", task="other", lease_epoch=7, sequence=3))
    with InThread(settings, records):
        wait_until(lambda: len(records.records) == 2)
    assert records.records[-1].lease_epoch == 8
    with InThread(settings, records):  # nothing to switch: it only takes the lease
        wait_until(lambda: int((settings.adapters / "rollout.lease").read_text()) == 9)
        promote(settings.adapters, "toy", "", by="hand")
        wait_until(lambda: len(records.records) == 3)
    assert latest_records(records.records)["toy"].lease_epoch == 9


def test_rollout_ends_where_a_newer_one_writes(settings: Settings, base: Path, run_folder: Path) -> None:
    class Overtaken(ListRecords):
        def read(self) -> list[AdapterRecord]:
            found = super().read()
            self.records = [a_record(NEW, lease_epoch=99)]
            return found

    publish_and_promote(settings, base, run_folder, OLD)
    with pytest.raises(NewerRollout, match="lease epoch 99"):
        run_rollout(settings, stop=threading.Event(), records=Overtaken(), poll_s=0.01)


# Servers


def test_every_server_answers_before_the_record_and_the_one_before_last_is_unloaded_after_it(
    settings: Settings, base: Path, run_folder: Path, vllm: StubVllm, other: StubVllm
) -> None:
    settings = on_vllm(settings, base, vllm, other)
    records = ListRecords()
    names = [served_name("toy", version) for version in (OLD, NEW, THIRD)]
    with InThread(settings, records):
        for count, version in enumerate((OLD, NEW, THIRD), 1):
            publish_and_promote(settings, base, run_folder, version)
            wait_until(lambda count=count: len(records.records) == count)  # type: ignore[misc]
        wait_until(lambda: len(vllm.loaded) == len(other.loaded) == 2)
    for server in (vllm, other):
        assert server.calls == [*((call, n) for n in names for call in ("load", "ask")), ("unload", names[0])]
    assert vllm.loaded[names[1]] == str((settings.adapters / "toy" / NEW).resolve())
    assert [record.served_as for record in records.records] == names


def test_nothing_switches_while_one_server_fails_the_smoke_test_and_the_status_says_why(
    settings: Settings, base: Path, run_folder: Path, vllm: StubVllm, other: StubVllm
) -> None:
    settings = on_vllm(settings, base, vllm, other)
    records = ListRecords()
    other.broken.add(served_name("toy", OLD))
    with InThread(settings, records):
        publish_and_promote(settings, base, run_folder, OLD)
        wait_until(lambda: (s := read_status(settings, "toy")) and "engine failure" in s.errors.get("switch", ""))
        assert records.records == []
        other.broken.clear()
        wait_until(lambda: len(records.records) == 1)
        wait_until(lambda: (s := read_status(settings, "toy")) and s.serving == OLD and not s.errors)
    assert vllm.calls.count(("load", served_name("toy", OLD))) == 1, "loaded once, asked at every try"


def test_a_changed_adapter_is_not_loaded(
    settings: Settings, base: Path, run_folder: Path, vllm: StubVllm, caplog: pytest.LogCaptureFixture
) -> None:
    records = ListRecords()
    publish_and_promote(settings, base, run_folder, OLD)
    (settings.adapters / "toy" / OLD / "adapter_config.json").write_text("{}")
    with InThread(on_vllm(settings, base, vllm), records):
        wait_until(lambda: "changed after it was written" in caplog.text)
    assert (records.records, vllm.loaded) == ([], {})


def test_servers_are_given_their_adapters_also_where_the_base_lies_on_another_machine(
    settings: Settings, base: Path, run_folder: Path, vllm: StubVllm, tmp_path: Path
) -> None:
    records = ListRecords()
    publish_and_promote(settings, base, run_folder, OLD)
    with InThread(on_vllm(settings, tmp_path / "elsewhere", vllm), records):
        wait_until(lambda: len(records.records) == 1)
    assert list(vllm.loaded) == [served_name("toy", OLD)]


def test_an_adapter_of_another_base_is_not_loaded_where_the_base_is_at_hand(
    settings: Settings, base: Path, run_folder: Path, vllm: StubVllm, caplog: pytest.LogCaptureFixture
) -> None:
    records = ListRecords()
    publish(settings.adapters, run_folder, a_manifest(base, OLD, base_sha256="0" * 64))
    promote(settings.adapters, "toy", OLD, by="hand")
    with InThread(on_vllm(settings, base, vllm), records):
        wait_until(lambda: "another base" in caplog.text)
    assert (records.records, vllm.loaded) == ([], {})


def test_a_server_that_is_down_holds_up_nobody_and_gets_its_adapters_when_it_is_back(
    settings: Settings, base: Path, run_folder: Path, vllm: StubVllm
) -> None:
    gone = StubVllm()
    settings = on_vllm(settings, base, vllm, gone)
    gone.close()
    records = ListRecords()
    with InThread(settings, records):
        for count, version in enumerate((OLD, NEW), 1):
            publish_and_promote(settings, base, run_folder, version)
            wait_until(lambda count=count: len(records.records) == count)  # type: ignore[misc]
        back = StubVllm(gone.port)
        wait_until(lambda: len(back.loaded) == 2)  # the canary's too
        back.close()
    assert back.loaded.keys() == vllm.loaded.keys() == {served_name("toy", v) for v in (OLD, NEW)}


def test_no_server_up_switches_nothing(
    settings: Settings, base: Path, run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = StubVllm()
    settings = on_vllm(settings, base, gone)
    gone.close()
    publish_and_promote(settings, base, run_folder, OLD)
    records = ListRecords()
    with InThread(settings, records):
        wait_until(lambda: "no server of task toy can take an adapter now" in caplog.text)
    assert records.records == []


def test_what_a_crash_left_loaded_is_unloaded_and_what_is_not_ours_stays(
    settings: Settings, base: Path, run_folder: Path, vllm: StubVllm
) -> None:
    for version in (OLD, NEW, THIRD):
        publish_and_promote(settings, base, run_folder, version)
        vllm.loaded[served_name("toy", version)] = "loaded before the crash"
    foreign = [served_name("toy", "v0009-ffffff"), served_name("other", OLD), "hand-made"]
    vllm.loaded.update(dict.fromkeys(foreign, "loaded by others"))
    with InThread(on_vllm(settings, base, vllm), ListRecords(a_record(THIRD, previous=NEW, fallback=NEW))):
        wait_until(lambda: served_name("toy", OLD) not in vllm.loaded)
        time.sleep(0.1)
    assert set(vllm.loaded) == {served_name("toy", NEW), served_name("toy", THIRD), *foreign}


def test_a_refused_rank_says_which_flag_and_the_incumbent_keeps_serving(
    settings: Settings, base: Path, run_folder: Path, vllm: StubVllm, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = ListRecords()
    large = make_tiny_adapter(tmp_path / "large", base, rank=20)
    (large / "manifest.json").unlink()
    with InThread(on_vllm(settings, base, vllm), records):
        publish_and_promote(settings, base, run_folder, OLD)
        wait_until(lambda: len(records.records) == 1)
        publish_and_promote(settings, base, large, NEW)
        wait_until(lambda: "Start it with --max-lora-rank 32" in caplog.text)
    assert "its rank is 20" in caplog.text
    assert [r.version for r in records.records] == [OLD]
    assert set(vllm.loaded) == {served_name("toy", OLD)}


def test_vllm_is_started_with_a_rank_it_takes_that_fits_every_task_and_every_adapter_kept(
    settings: Settings, base: Path, run_folder: Path, vllm: StubVllm, tmp_path: Path
) -> None:
    assert [max_lora_rank(rank) for rank in (1, 8, 9, 100, 256, 512)] == [1, 8, 16, 128, 256, 512]
    with pytest.raises(SettingsError, match="up to rank 512"):
        max_lora_rank(513)
    settings = on_vllm(settings, base, vllm, share_gpu=True)
    toy = settings.tasks["toy"]
    small = msgspec.structs.replace(toy, trainer=Trainer(base=str(base), rank=8))
    two = msgspec.structs.replace(settings, tasks={"toy": small, "more": small})
    flags = ["--model", str(base), "--served-model-name", "tiny", "--enable-lora"]
    assert vllm_arguments(two, "toy") == [*flags, "--max-lora-rank", "8", "--max-loras", "6"]
    large = make_tiny_adapter(tmp_path / "large", base, rank=20)
    (large / "manifest.json").unlink()
    publish(settings.adapters, large, a_manifest(base, OLD))
    one = msgspec.structs.replace(settings, tasks={"toy": small})
    assert vllm_arguments(one, "toy") == [*flags, "--max-lora-rank", "32", "--max-loras", "3"]
    assert "--enable-sleep-mode" in vllm_arguments(settings, "toy")


# kill -9


class Killable:
    """Rollout in a process that a crash point, or leaving the block, kills."""

    def __init__(self, settings: Settings, folder: Path, crash_at: str = "") -> None:
        self.settings, self.records = folder / "settings.json", FileRecords(folder / "records.jsonl")
        self.settings.write_bytes(msgspec.json.encode(settings))
        self.environment = os.environ | {"GOLDSTREAM_CRASH_AT": crash_at}

    def __enter__(self) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("rollout_process.py")
        words = [sys.executable, str(script), str(self.settings), str(self.records.path)]
        self.process = subprocess.Popen(words, env=self.environment)
        return self.process

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait(20)


@pytest.mark.parametrize(
    "point",
    [
        "rollout.after_load",
        "rollout.before_record",
        "rollout.after_record",
        "rollout.before_unload",
        "rollout.before_rollback",
        "rollout.after_rollback",
    ],
)
def test_killed_anywhere_rollout_goes_on_where_it_was(
    settings: Settings, base: Path, run_folder: Path, vllm: StubVllm, tmp_path: Path, point: str
) -> None:
    """OLD, NEW and THIRD are promoted one after the other; THIRD is bad and is taken back. One kill on the way."""
    settings = on_vllm(settings, base, vllm)
    records = FileRecords(tmp_path / "records.jsonl")
    crashed = False

    def run_until(done: Callable[[list[AdapterRecord]], Any]) -> None:
        nonlocal crashed
        while True:
            with Killable(settings, tmp_path, "" if crashed else point) as process:
                wait_until(lambda: process.poll() is not None or done(records.read()), 60)
                time.sleep(0.1)  # done, and killed right after it
                killed = process.poll()
                if killed is not None:
                    assert (killed, crashed) == (-signal.SIGKILL, False)
                    crashed = True
                elif done(records.read()):
                    return

    for version in (OLD, NEW, THIRD):
        publish_and_promote(settings, base, run_folder, version)
        loaded = {served_name("toy", v) for v in (OLD, NEW, THIRD) if v <= version}
        kept = loaded - ({served_name("toy", OLD)} if version == THIRD else set())
        run_until(
            lambda found, version=version, kept=kept: (
                found and found[-1].version == version and set(vllm.loaded) == kept
            )
        )
    record = records.read()[-1]
    cases = traffic(800, lambda canary, n: 0.8 if canary else 0.3, seed=9, record=record)
    add_gold(settings.gold, [msgspec.structs.replace(case, created_ms=record.at_ms + 1) for case in cases])
    run_until(lambda found: found[-1].version == NEW)
    assert crashed, f"{point} was never reached"
    assert [r.version for r in records.read()] == [OLD, NEW, THIRD, NEW]
    assert [entry.by for entry in promotions(settings.adapters, "toy")] == ["gate", "gate", "gate", "guard"]
