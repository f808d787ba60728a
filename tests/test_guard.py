"""Claims about the canary share and the live guard: what is a drop, what is none, who takes a version back."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rolling import RECORD, THIRD, InThread, ListRecords, a_record, on_vllm, publish_and_promote, traffic, tried
from stub_models import StubModels
from stub_vllm import StubVllm
from toys import NEW, OLD, add_gold, with_task
from waiting import wait_until

from agents.models import Models, calling_for
from schemas.adapters import served_name
from schemas.case import Case, Message, Source
from schemas.settings import Rollout, Settings, Webhook
from schemas.status import read_rollout_status as read_status
from streams.serving import Serving
from trainer.guard import Guard, Trial, cut, evidence, judge
from trainer.registry import promote, promotions

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
