"""Claims about when a run starts, and about the service around it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from toys import (
    OLD,
    TOY,
    Service,
    ToyEngine,
    a_case,
    a_manifest,
    add_gold,
    toy_gold,
    toy_judge,
    wait_until,
    with_task,
)

from schemas.adapters import verify_adapter
from schemas.case import Message, Violation
from schemas.errors import SettingsError
from schemas.gold import current_watermark
from schemas.settings import Gate, Model, Rubric, Rule, Settings, Trainer
from trainer.lease import lease
from trainer.registry import incumbent, list_adapters, publish, read_gate
from trainer.run import student_base
from trainer.service import read_status, run_trainer
from trainer.trigger import arrivals


def test_the_trigger_counts_corrected_gold_above_the_last_watermark_only(tmp_path: Path) -> None:
    add_gold(tmp_path, [a_case("old", "red", "stop")])
    above = current_watermark(tmp_path)
    fresh = [
        a_case("new", "red", "stop"),
        a_case("passed at once", "red", "stop", corrected=False),
        a_case("held", "red", "stop", split="holdout"),
        a_case("failed", "red", kind="unresolved"),
        a_case("other", "red", "stop", task="other"),
    ]
    add_gold(tmp_path, fresh)
    add_gold(tmp_path, [a_case("elsewhere", "red", "stop")], partition=1)
    upto = current_watermark(tmp_path)
    add_gold(tmp_path, [a_case("later", "red", "stop")])
    assert arrivals(tmp_path, "toy", {}, upto) == ((1, 1, 1), 4)
    assert arrivals(tmp_path, "toy", above, upto) == ((1, 1), 3)


def test_the_service_trains_gates_and_promotes_once_for_one_watermark(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    registry = settings.adapters
    caplog.set_level(logging.INFO, "goldstream.trainer")
    with Service(settings):
        toy_gold(settings.gold)
        wait_until(lambda: incumbent(registry, "toy"), 40)
        time.sleep(0.2)
    (manifest,) = list_adapters(registry, "toy")
    assert (manifest.rows, manifest.pairs, manifest.watermark, manifest.base) == (4, 8, {0: 8}, "tiny")
    assert (manifest.settings["rank"], manifest.training["steps"]) == (16, 30)
    assert set(manifest.files) == {"adapter_config.json", "adapter_model.safetensors", "steps.jsonl"}
    report = read_gate(registry, "toy", manifest.version)
    assert report is not None
    assert (report.decision, report.before, report.after) == ("promote", 0.0, 1.0)
    assert incumbent(registry, "toy") == manifest.version
    verify_adapter(registry / "toy" / manifest.version)
    status = read_status(settings, "toy")
    assert status is not None
    assert (status.state, status.step, status.error) == ("idle", 30, "")
    assert "red" not in caplog.text  # no prompt text in logs


def test_a_run_asked_for_ignores_the_trigger_and_manual_promotion_waits(settings: Settings) -> None:
    task = settings.tasks["toy"]
    trainer = msgspec.structs.replace(task.trainer, min_corrected_rows=1000, epochs=1)
    settings = with_task(settings, trainer=trainer, gate=Gate(min_holdout=4, promotion="manual"))
    toy_gold(settings.gold)
    answers: dict[str, dict[str, str]] = {"": dict.fromkeys(TOY, "?")}

    class Perfect(ToyEngine):
        def load_adapter(self, name: str, folder: Path) -> None:
            self.answers[name] = TOY

    def make_engine(settings: Settings, task: str) -> Any:
        return Perfect(answers)

    report = run_trainer(settings, once="toy", stop=threading.Event(), judge=toy_judge, make_engine=make_engine)
    assert report is not None
    assert (report.decision, incumbent(settings.adapters, "toy")) == ("promote", "")


def test_a_second_trainer_waits_for_the_first(settings: Settings) -> None:
    toy_gold(settings.gold)
    with lease(settings.adapters / "toy/lease", threading.Event()), Service(settings):
        time.sleep(0.3)
        assert list_adapters(settings.adapters, "toy") == []
        assert read_status(settings, "toy") is None


def test_a_failed_run_keeps_the_incumbent_and_is_not_repeated_in_a_tight_loop(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = with_task(settings, trainer=msgspec.structs.replace(settings.tasks["toy"].trainer, max_length=5))
    toy_gold(settings.gold)
    with Service(settings):
        wait_until(lambda: "nothing to train on" in caplog.text)
        time.sleep(0.3)
    assert caplog.text.count("nothing to train on") == 1
    status = read_status(settings, "toy")
    assert status is not None
    assert status.state == "idle"
    assert "too_long" in status.error
    assert list_adapters(settings.adapters, "toy") == []


def test_a_version_published_but_not_gated_is_gated_at_the_next_start(
    settings: Settings, base: Path, run_folder: Path
) -> None:
    toy_gold(settings.gold)
    publish(settings.adapters, run_folder, a_manifest(base, OLD, watermark=current_watermark(settings.gold)))
    engine = ToyEngine({OLD: TOY, "": dict.fromkeys(TOY, "?")})
    with Service(settings, make_engine=lambda settings, task: engine):
        wait_until(lambda: incumbent(settings.adapters, "toy") == OLD)
    assert engine.closed
    assert [manifest.version for manifest in list_adapters(settings.adapters, "toy")] == [OLD]


def test_a_stopped_run_publishes_nothing(settings: Settings) -> None:
    toy_gold(settings.gold)
    stop = threading.Event()
    stop.set()
    assert run_trainer(settings, once="toy", stop=stop, judge=toy_judge) is None
    assert list_adapters(settings.adapters, "toy") == []
    (left,) = (settings.state / "trainer/runs/toy").iterdir()
    assert (left / "run.json").exists()  # the next start goes on with it


def test_a_student_served_elsewhere_needs_a_base(settings: Settings, base: Path) -> None:
    remote = with_task(settings, student=Model(model="hosted_vllm/Qwen/Qwen3-8B"))
    with pytest.raises(SettingsError, match=r"tasks.toy.trainer.base is missing"):
        run_trainer(remote, stop=threading.Event())
    remote = with_task(remote, trainer=Trainer(base=str(base)))
    assert student_base(remote, "toy") == ("Qwen/Qwen3-8B", base)
    assert student_base(settings, "toy") == ("tiny", base)


def test_the_default_judge_is_the_tasks_own(settings: Settings) -> None:
    from trainer.gate import task_judge

    rubric = Rubric(verifier="test_trigger:no_question_marks", rules=(Rule(id="exact", text="be exact"),))
    judge = task_judge(with_task(settings, rubric=rubric), "toy")

    async def passes(answer: str) -> bool:
        return (await judge([Message("user", "red")], answer)).passed

    assert not asyncio.run(passes("?"))
    assert asyncio.run(passes("stop"))


def no_question_marks(messages: Sequence[Message], answer: str) -> list[Violation]:
    return [Violation("exact", hinge="?")] if "?" in answer else []
