"""Claims about runs that go wrong: who keeps serving, what is tried again and when, what is asked before."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from test_trainer_service import Perfect, once, untrained
from toys import (
    OLD,
    TOY,
    Service,
    ToyEngine,
    a_case,
    a_manifest,
    add_gold,
    files_of_at_most,
    toy_gold,
    toy_judge,
    with_task,
)
from waiting import wait_until

from schemas.adapters import base_fingerprint
from schemas.case import Message, Violation
from schemas.errors import AdapterError, ModelUnavailable, SettingsError, SetupError, TrainingError
from schemas.gold import current_watermark
from schemas.settings import Model, Rubric, Rule, Settings, Trainer
from schemas.status import read_trainer_status as read_status
from trainer.base import student_base
from trainer.lease import LeaseLost, lease
from trainer.registry import incumbent, list_adapters, promote, publish
from trainer.run import would_fail_again
from trainer.service import run_trainer


def test_a_refused_candidate_and_a_run_without_gold_leave_the_incumbent(
    settings: Settings, base: Path, run_folder: Path
) -> None:
    settings = untrained(settings)
    with pytest.raises(TrainingError, match="nothing to train on"):
        once(settings)
    publish(settings.adapters, run_folder, a_manifest(base, OLD))
    promote(settings.adapters, "toy", OLD, by="gate")
    toy_gold(settings.gold)
    report = once(settings, Perfect(base_fingerprint(base)))  # both know everything: no gain
    assert report is not None
    assert (report.incumbent, report.decision) == (OLD, "refuse")
    assert incumbent(settings.adapters, "toy") == OLD


def test_a_disk_without_room_ends_a_run_and_not_the_service_and_the_run_goes_on_when_there_is_room(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.service.FIRST_RETRY_S", 0.2)
    settings = untrained(settings)
    toy_gold(settings.gold)
    with Service(settings, make_engine=lambda settings, task: Perfect()):
        with files_of_at_most(2000):  # the adapter is larger, what is said about it is not
            wait_until(lambda: "the run ended early" in caplog.text, 60)
            with files_of_at_most(0):
                wait_until(lambda: "toy.json cannot be written" in caplog.text, 60)
        wait_until(lambda: incumbent(settings.adapters, "toy"), 60)
    assert len(list_adapters(settings.adapters, "toy")) == 1


def test_gold_of_one_class_only_is_refused_with_what_to_change(settings: Settings) -> None:
    add_gold(settings.gold, [a_case(color, color, answer, corrected=False) for color, answer in TOY.items()])
    with pytest.raises(TrainingError, match=r"all 4 gold rows of toy passed at the first attempt.*rubric stricter"):
        once(settings)
    assert list_adapters(settings.adapters, "toy") == []
    assert not list((settings.state / "trainer/runs/toy").iterdir())


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (TrainingError("no gold"), True),
        (AdapterError("NaN"), True),
        (SettingsError("no base"), True),
        (ValueError("a verifier's"), True),
        (ModelUnavailable("503"), False),
        (SetupError("disk full"), False),
        (OSError(28, "No space left on device"), False),
        (LeaseLost("taken over"), False),
    ],
)
def test_only_what_the_same_gold_would_do_again_waits_for_new_gold(error: Exception, again: bool) -> None:
    assert would_fail_again(error) == again


def test_a_trainer_asked_for_one_run_waits_for_the_one_at_work_and_says_so(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = untrained(settings)
    toy_gold(settings.gold)
    with lease(settings.adapters / "toy/lease", threading.Event()):
        thread = threading.Thread(target=once, args=(settings,))
        thread.start()
        wait_until(lambda: "another trainer is at work" in caplog.text)
        assert not (settings.state / "trainer/runs/toy").exists()
    thread.join(30)
    assert len(list_adapters(settings.adapters, "toy")) == 1


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
    assert (left / "run.json").exists()


def test_a_student_served_elsewhere_needs_a_base(settings: Settings, base: Path) -> None:
    remote = with_task(settings, student=Model(model="hosted_vllm/Qwen/Qwen3-8B"))
    with pytest.raises(SettingsError, match=r"tasks.toy.trainer.base is missing"):
        run_trainer(remote, stop=threading.Event())
    remote = with_task(remote, trainer=Trainer(base=str(base)))
    assert student_base(remote, "toy") == ("Qwen/Qwen3-8B", base)
    assert student_base(settings, "toy") == ("tiny", base)


def test_the_default_judge_is_the_tasks_own(settings: Settings) -> None:
    from trainer.gate import task_judge

    rubric = Rubric(verifier="test_trainer_failures:no_question_marks", rules=(Rule(id="exact", text="be exact"),))
    judge = task_judge(with_task(settings, rubric=rubric), "toy")

    async def passes(answer: str) -> bool:
        return (await judge([Message("user", "red")], answer)).passed

    assert not asyncio.run(passes("?"))
    assert asyncio.run(passes("stop"))


def no_question_marks(messages: Sequence[Message], answer: str) -> list[Violation]:
    return [Violation("exact", hinge="?")] if "?" in answer else []
