"""Claims about rollout: records, vLLM servers, the canary share, the live guard, servers that sleep.

Everything real but Kafka (a list) and vLLM (a server of ours; tests/test_vllm_server.py asks the real one).
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rollout_process import FileRecords
from stub_models import Reply, StubModels
from stub_vllm import StubVllm
from tiny import make_tiny_adapter
from toys import NEW, OLD, Service, a_manifest, add_gold, wait_until, with_task

from agents.models import Models, calling_for
from schemas.adapters import AdapterRecord, served_name
from schemas.case import Attempt, Case, Message, Source, Verdict
from schemas.errors import ModelError, SettingsError, SetupError
from schemas.settings import Model, Rollout, Settings, Trainer, Webhook, load_settings
from streams.serving import Serving
from trainer.guard import Guard, Trial, cut, evidence, judge
from trainer.lease import lease
from trainer.records import NewerRollout, latest_records
from trainer.registry import promote, promotions, publish
from trainer.rollout import read_status, run_rollout
from trainer.servers import max_lora_rank, vllm_arguments
from trainer.sleep import servers_asleep, sleeping_servers

THIRD = "v0003-cccccc"


class ListRecords:
    """gs.adapters as a list."""

    def __init__(self, *records: AdapterRecord) -> None:
        self.records = list(records)

    def read(self) -> list[AdapterRecord]:
        return list(self.records)

    def append(self, record: AdapterRecord) -> None:
        self.records.append(record)


class InThread(Service):
    """Rollout in a thread; leaving the block stops it."""

    def __init__(self, settings: Settings, records: ListRecords) -> None:
        self.stop = threading.Event()
        options = {"stop": self.stop, "records": records, "poll_s": 0.02}
        self.thread = threading.Thread(target=run_rollout, args=(settings,), kwargs=options)


@pytest.fixture
def vllm() -> Iterator[StubVllm]:
    server = StubVllm()
    yield server
    server.close()


@pytest.fixture
def other() -> Iterator[StubVllm]:
    server = StubVllm()
    yield server
    server.close()


@pytest.fixture
def hook(models: StubModels, monkeypatch: pytest.MonkeyPatch) -> StubModels:
    """What the variable HOOK points to; keeps the events it is told."""
    monkeypatch.setenv("HOOK", models.api_base)
    models.answer = lambda request: Reply(raw=b"{}")
    return models


def on_vllm(settings: Settings, base: Path, *servers: StubVllm, share_gpu: bool = False, **rollout: Any) -> Settings:
    """Returns settings whose student is served by these servers."""
    return with_task(
        settings,
        student=Model(model="hosted_vllm/tiny", api_base=servers[0].url),
        trainer=Trainer(base=str(base), share_gpu=share_gpu),
        rollout=Rollout(servers=tuple(s.url for s in servers), **rollout),
    )


def a_record(version: str, **changes: Any) -> AdapterRecord:
    fields: dict[str, Any] = {"task": "toy", "version": version, "lease_epoch": 1, "sequence": 1, "at_ms": 1}
    return AdapterRecord(**(fields | changes))


def publish_and_promote(settings: Settings, base: Path, run_folder: Path, version: str) -> None:
    publish(settings.adapters, run_folder, a_manifest(base, version))
    promote(settings.adapters, "toy", version, by="gate", reason="better")


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


# The canary share


def test_the_same_cases_stay_on_the_version_before_in_every_process() -> None:
    record = a_record(NEW, previous=OLD, fallback=OLD, canary_share=0.1)
    serving = Serving()
    serving.apply(b"toy", msgspec.json.encode(record))
    cases = [f"case-{number}" for number in range(5000)]
    canary = {case for case in cases if serving.versions("toy", case) == (OLD, NEW)}
    assert 420 < len(canary) < 580
    assert all(serving.versions("toy", case) == (NEW, OLD) for case in cases if case not in canary)
    assert canary == {case for case in cases if record.in_canary(case)}
    later = msgspec.structs.replace(record, version=THIRD)
    assert len(canary & {case for case in cases if later.in_canary(case)}) < 100, "each switch draws anew"


def test_a_worker_asks_for_the_canarys_adapter_and_says_which_one_answered(
    settings: Settings, base: Path, vllm: StubVllm
) -> None:
    vllm.loaded = dict.fromkeys([served_name("toy", OLD), served_name("toy", NEW)], "")
    serving, record = Serving(), a_record(NEW, previous=OLD, fallback=OLD, canary_share=0.5)
    serving.apply(b"toy", msgspec.json.encode(record))
    cases = [f"case-{number}" for number in range(8)]

    async def run() -> list[tuple[str, str]]:
        models = Models(on_vllm(settings, base, vllm), serving=serving.versions)
        await models.warm("toy")
        answers = []
        for case_id in cases:
            calling_for.set(case_id)
            deadline = asyncio.get_running_loop().time() + 60
            made = await models.complete("student", "toy", [Message("user", "red")], deadline=deadline)
            answers.append((made.adapter, made.text))
        await models.close()
        return answers

    right = [OLD if record.in_canary(case) else NEW for case in cases]
    assert {OLD, NEW} == set(right)
    assert asyncio.run(run()) == [(version, served_name("toy", version)) for version in right]
    del vllm.loaded[served_name("toy", OLD)]  # the canary's is gone: the other one answers, and the attempt says so
    assert asyncio.run(run()) == [(NEW, served_name("toy", NEW))] * len(cases)


# The guard

RECORD = a_record(NEW, previous=OLD, canary_share=0.1, at_ms=1000)


def tried(case_id: str, passed: bool | None, record: AdapterRecord = RECORD, **changes: Any) -> Case:
    """Returns an ended case whose first attempt the version of its arm made; `passed` None: it died at the student."""
    adapter = changes.pop("adapter", record.previous if record.in_canary(case_id) else record.version)
    verdict = Verdict(passed=bool(passed), score=0, max_score=1, judge="test")
    first = Attempt(round=0, source="student", text="?", model="m", adapter=adapter, verdict=verdict)
    fields: dict[str, Any] = {
        "task": "toy",
        "split": "train",
        "source": Source(cluster="c", topic="t", partition=0, offset=0),
        "messages": (Message("user", "red"),),
        "created_ms": 2000,
    }
    case = Case(case_id=case_id, attempts=() if passed is None else (first,), **(fields | changes))
    if passed is None:
        return case.ended("dead", "student", 1, "bad_answer")
    return case.ended("gold" if passed else "unresolved", "sink", 1)


def traffic(cases: int, rate: Callable[[bool, int], float], seed: int, record: AdapterRecord = RECORD) -> list[Case]:
    """Returns cases that pass at rate(in the canary, number)."""
    dice = random.Random(seed)
    ids = [f"{seed}-{number}" for number in range(cases)]
    return [
        tried(i, dice.random() < rate(record.in_canary(i), number), record, split=dice.choice(["train", "holdout"]))
        for number, i in enumerate(ids)
    ]


def look(gold: Path, cases: Sequence[Case], **changes: Any) -> Any:
    """Writes cases over two partitions and has a new guard look at them."""
    add_gold(gold, cases[::2], 0)
    add_gold(gold, cases[1::2], 1)
    return Guard(gold, RECORD, Rollout(**changes)).look()


def test_a_drop_is_found(tmp_path: Path) -> None:
    found = look(tmp_path, traffic(1200, lambda canary, n: 0.8 if canary else 0.55, seed=1))
    assert found.decision == "drop"
    assert found.drop == pytest.approx(0.25, abs=0.1)
    assert f"of {found.new} with {NEW}" in found.reason
    assert f"of {found.old} with {OLD}" in found.reason


def test_traffic_that_becomes_hard_is_no_drop(tmp_path: Path) -> None:
    found = look(tmp_path, traffic(1200, lambda canary, n: 0.9 if n < 600 else 0.2, seed=2))
    assert found.decision == "watching"
    assert found.passed_new / found.new < 0.6


def test_a_drop_within_min_drop_is_left_alone(tmp_path: Path) -> None:
    cases = traffic(1200, lambda canary, n: 0.8 if canary else 0.55, seed=1)
    assert look(tmp_path, cases, min_drop=0.4).decision == "watching"


def test_a_version_that_held_its_own_has_all_cases_after_watch_cases(tmp_path: Path) -> None:
    found = look(tmp_path, traffic(600, lambda canary, n: 0.8, seed=3), watch_cases=50)
    assert (found.decision, found.old >= 50) == ("as_good", True)


def test_an_adapter_that_answers_nothing_is_a_drop(tmp_path: Path) -> None:
    cases = traffic(400, lambda canary, n: 0.6, seed=4)
    cases = [case if RECORD.in_canary(case.case_id) else tried(case.case_id, None) for case in cases]
    assert look(tmp_path, cases).decision == "drop"


def test_what_says_nothing_about_either_arm_is_left_out(tmp_path: Path) -> None:
    canary = next(i for i in map(str, range(100)) if RECORD.in_canary(i))
    rest = next(i for i in map(str, range(100)) if not RECORD.in_canary(i))
    cases = [
        tried(f"{rest}", True),
        tried(f"{canary}", False),
        tried(rest, True, adapter=OLD, source=Source(cluster="c", topic="t", partition=0, offset=1)),  # fell back
        tried(canary, True, adapter=""),
        tried(rest, True, created_ms=999),  # admitted before the switch
        tried(rest, True, epoch=1),  # redriven
        tried(rest, True, task="other"),
    ]
    add_gold(tmp_path, cases[:2])
    guard = Guard(tmp_path, RECORD, Rollout())
    assert (guard.look().new, guard.look().old) == (1, 1)
    for number, case in enumerate(cases[2:], 1):
        add_gold(tmp_path, [msgspec.structs.replace(case, case_id=case.case_id)], number)
        found = guard.look()
        assert (found.new, found.old, found.passed_new, found.passed_old) == (1, 1, 1, 0), case


def simulated(seed: int, rate_new: float, rate_old: float, cases: int = 3000, share: float = 0.1) -> bool:
    """Looks after every block of a stream whose difficulty wanders; tells whether any look found a drop."""
    dice, partitions = random.Random(seed), [list[Trial]() for _ in range(2)]
    blocks = []
    hard = 0.0
    for number in range(cases):
        hard = min(0.3, max(-0.05, hard + dice.uniform(-0.02, 0.02)))
        new = dice.random() >= share
        trials = partitions[number % 2]
        trials.append(Trial(new, dice.random() < (rate_new if new else rate_old) - hard))
        if len(trials) == 20:
            blocks += cut(trials)
            trials.clear()
            if evidence(blocks) >= 1 / 0.05:
                return True
    return False


def test_false_alarms_stay_below_the_significance_however_often_one_looks() -> None:
    alarms = sum(simulated(seed, 0.8, 0.8, cases=1500) for seed in range(400))
    assert alarms <= 400 * 0.05, f"{alarms} of 400"


def test_a_drop_of_twenty_points_is_found_in_nearly_every_run() -> None:
    assert sum(simulated(seed, 0.6, 0.8) for seed in range(40)) >= 38


def test_a_canary_that_is_missing_in_a_hard_hour_raises_no_alarm() -> None:
    dice = random.Random(5)
    easy = [Trial(dice.random() > 0.5, dice.random() < 0.9) for _ in range(1000)]
    hard = [Trial(dice.random() > 0.02, dice.random() < 0.2) for _ in range(1000)]
    assert judge([[*easy, *hard]], RECORD, Rollout(watch_cases=10_000)).decision == "watching"


def test_rollout_takes_a_drop_back_by_itself_and_says_why(
    settings: Settings, base: Path, run_folder: Path, vllm: StubVllm, hook: StubModels
) -> None:
    settings, records = on_vllm(settings, base, vllm), ListRecords()
    settings = msgspec.structs.replace(settings, webhook=Webhook(url_env="HOOK"))
    with InThread(settings, records):
        for count, version in enumerate((OLD, NEW), 1):
            publish_and_promote(settings, base, run_folder, version)
            wait_until(lambda count=count: len(records.records) == count)  # type: ignore[misc]
        record = records.records[-1]
        now = record.at_ms + 1
        cases = traffic(800, lambda canary, n: 0.8 if canary else 0.3, seed=6, record=record)
        add_gold(settings.gold, [msgspec.structs.replace(case, created_ms=now) for case in cases])
        wait_until(lambda: len(records.records) == 3)
        wait_until(lambda: (s := read_status(settings, "toy")) and s.serving == OLD)
    last, entry = records.records[-1], promotions(settings.adapters, "toy")[-1]
    assert (last.version, last.previous, last.canary_share, last.fallback) == (OLD, NEW, 0.0, "")
    assert (entry.version, entry.by) == (OLD, "guard")
    assert "a drop of" in entry.reason
    assert last.reason == f"guard: {entry.reason}"
    (told,) = hook.requests
    assert (told["event"], told["version"], told["previous"], told["by"]) == ("rollback", OLD, NEW, "guard")


def test_rollout_ends_the_canary_of_a_version_that_held_its_own(
    settings: Settings, base: Path, run_folder: Path
) -> None:
    settings, records = with_task(settings, rollout=Rollout(watch_cases=20)), ListRecords()
    with InThread(settings, records):
        publish_and_promote(settings, base, run_folder, OLD)
        wait_until(lambda: len(records.records) == 1)
        record = records.records[-1]
        cases = traffic(400, lambda canary, n: 0.7, seed=7, record=record)
        add_gold(settings.gold, [msgspec.structs.replace(case, created_ms=record.at_ms + 1) for case in cases])
        wait_until(lambda: len(records.records) == 2)
        time.sleep(0.1)
    first, last = records.records
    assert (last.version, last.previous, last.canary_share) == (OLD, "", 0.0)
    assert "no significant drop" in last.reason
    assert last.supersedes(first)
    assert len(promotions(settings.adapters, "toy")) == 1


def test_the_guard_leaves_a_choice_made_by_hand_alone(settings: Settings, base: Path, run_folder: Path) -> None:
    for version in (OLD, NEW):
        publish_and_promote(settings, base, run_folder, version)
    record = a_record(NEW, previous=OLD, canary_share=0.1, at_ms=1000, lease_epoch=1)
    add_gold(settings.gold, traffic(800, lambda canary, n: 0.8 if canary else 0.3, seed=8, record=record))
    promote(settings.adapters, "toy", "", by="hand", reason="complaints")
    records = ListRecords(record)
    with InThread(settings, records):
        wait_until(lambda: len(records.records) == 2)
        time.sleep(0.3)
    assert [entry.by for entry in promotions(settings.adapters, "toy")] == ["gate", "gate", "hand"]
    assert records.records[-1].version == ""


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


# Servers that sleep while an adapter is trained


def test_servers_sleep_during_a_run_and_wake_after_it_also_when_it_fails(
    settings: Settings, base: Path, vllm: StubVllm, other: StubVllm
) -> None:
    settings = on_vllm(settings, base, vllm, other, share_gpu=True)
    with servers_asleep(settings, "toy"):
        assert vllm.asleep
        assert other.asleep
        assert set(sleeping_servers(settings, "toy") or ()) == {vllm.root, other.root}
    assert not vllm.asleep
    with pytest.raises(ValueError, match="out of memory"), servers_asleep(settings, "toy"):
        raise ValueError("out of memory")
    assert not vllm.asleep
    assert sleeping_servers(settings, "toy") is None
    assert ("sleep", "level 1, wait") in vllm.calls, "calls under way end first"
    before = len(vllm.calls)
    with servers_asleep(on_vllm(settings, base, vllm), "toy"):
        assert not vllm.asleep
    assert len(vllm.calls) == before, "trainer.share_gpu is off by default"


def test_a_server_that_cannot_sleep_is_an_error_that_says_so_and_the_others_wake(
    settings: Settings, base: Path, vllm: StubVllm
) -> None:
    plain = StubVllm(dev_mode=False)
    settings = on_vllm(settings, base, vllm, plain, share_gpu=True)
    with pytest.raises(SetupError, match="--enable-sleep-mode"), servers_asleep(settings, "toy"):
        pytest.fail("a run began")
    plain.close()
    assert not vllm.asleep
    assert sleeping_servers(settings, "toy") is None


def test_an_adapter_that_waking_lost_is_loaded_again(
    settings: Settings, base: Path, run_folder: Path, vllm: StubVllm, caplog: pytest.LogCaptureFixture
) -> None:
    settings = on_vllm(settings, base, vllm, share_gpu=True)
    folder = publish(settings.adapters, run_folder, a_manifest(base, OLD))
    name = served_name("toy", OLD)
    vllm.loaded[name] = str(folder)
    vllm.loses_on_wake.add(name)
    with servers_asleep(settings, "toy"):
        pass
    assert vllm.calls[-2:] == [("load", name), ("ask", name)]
    assert "loaded it again" in caplog.text


def test_rollout_wakes_servers_whose_trainer_was_killed_and_loads_nothing_before(
    settings: Settings, base: Path, run_folder: Path, vllm: StubVllm
) -> None:
    settings, records = on_vllm(settings, base, vllm, share_gpu=True), ListRecords()
    with lease(settings.adapters / "toy" / "lease", threading.Event()) as held:
        assert held is not None
        run = servers_asleep(settings, "toy")
        run.__enter__()  # and nothing leaves it: the trainer is killed
        publish_and_promote(settings, base, run_folder, OLD)
        with InThread(settings, records):
            wait_until(lambda: (s := read_status(settings, "toy")) and s.servers == {vllm.root: "asleep"})
            assert vllm.asleep
        assert records.records == []
    with InThread(settings, records):
        wait_until(lambda: len(records.records) == 1, timeout_s=30)
    assert not vllm.asleep
    assert sleeping_servers(settings, "toy") is None


def test_cases_wait_while_their_server_sleeps(settings: Settings, base: Path, vllm: StubVllm) -> None:
    settings = on_vllm(settings, base, vllm, share_gpu=True)
    student = msgspec.structs.replace(settings.tasks["toy"].student, timeout_s=0.5, retries=0)
    settings = with_task(settings, student=student)
    worker = msgspec.structs.replace(settings.worker, breaker_failures=2, breaker_longest_s=1.0)
    settings = msgspec.structs.replace(settings, worker=worker)

    async def run() -> bool:
        models = Models(settings)
        loop = asyncio.get_running_loop()
        patient = Models(with_task(settings, student=msgspec.structs.replace(student, timeout_s=60)))
        await patient.warm("toy")
        # LiteLLM's first call of a process takes longer than a case here may.
        await patient.complete("student", "toy", [Message("user", "red")], deadline=loop.time() + 60)
        asleep = threading.Event()
        awake = threading.Event()

        def train() -> None:
            with servers_asleep(settings, "toy"):
                asleep.set()
                awake.wait(20)

        training = asyncio.create_task(asyncio.to_thread(train))
        await asyncio.to_thread(asleep.wait, 20)
        for number in range(2):
            calling_for.set(f"case-{number}")
            with pytest.raises(ModelError):
                await models.complete("student", "toy", [Message("user", "red")], deadline=loop.time() + 5)
        held = models.held("student")
        awake.set()
        await training
        await asyncio.to_thread(wait_until, lambda: not models.held("student"), 60)  # its probes go on by themselves
        await models.close()
        return held

    assert asyncio.run(run()), "the breaker does not hold the cases"


def test_settings_about_vllm_are_refused_where_the_student_is_not_on_vllm(tmp_path: Path) -> None:
    path = tmp_path / "goldstream.toml"
    task = '[tasks.toy]\ntopics = ["log"]\nrubric.verifier = "a:b"\nrubric.rules = [{ id = "a", text = "b" }]\n'
    models = "".join(f'{role}.model = "scripted/x"\n' for role in ("student", "refiner", "strategist"))
    path.write_text(task + models + 'rollout.servers = ["http://127.0.0.1:1/v1"]\n')
    with pytest.raises(SettingsError, match=r"tasks\.toy\.rollout\.servers is about vLLM"):
        load_settings(path, environ={})
    path.write_text(task + models + 'rollout.servers = ["http://me:hush@127.0.0.1:1/v1"]\n')
    with pytest.raises(SettingsError, match="plain addresses") as refused:
        load_settings(path, environ={})
    assert "hush" not in str(refused.value)
