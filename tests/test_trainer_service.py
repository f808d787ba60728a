"""Claims about the service around a run: one at a time, what a kill or an error leaves, who is promoted."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tiny import make_tiny_model
from toys import (
    OLD,
    STRATEGY,
    TOY,
    Service,
    ToyEngine,
    a_case,
    a_manifest,
    add_gold,
    toy_gold,
    toy_judge,
    with_task,
)
from waiting import wait_until

from schemas.adapters import GateReport, base_fingerprint, verify_adapter
from schemas.settings import Gate, LocalModel, Settings
from schemas.status import read_trainer_status as read_status
from trainer.pinned import Pinned
from trainer.registry import incumbent, list_adapters, promote, publish, read_gate
from trainer.service import run_trainer
from trainer.trigger import HOUR_MS


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
    kept = {"adapter_config.json", "adapter_model.safetensors", "steps.jsonl", "trained_on.parquet"}
    assert set(manifest.files) == kept
    report = read_gate(registry, "toy", manifest.version)
    assert report is not None
    assert (report.decision, report.before, report.after) == ("promote", 0.0, 1.0)
    assert incumbent(registry, "toy") == manifest.version
    verify_adapter(registry / "toy" / manifest.version)
    status = read_status(settings, "toy")
    assert status is not None
    assert (status.state, status.step, status.error) == ("idle", 30, "")
    assert "red" not in caplog.text  # no prompt text in logs


def untrained(settings: Settings, **trainer: Any) -> Settings:
    """Settings of a run that takes no time; what it learns does not matter."""
    quick = {"epochs": 1, "rank": 4} | trainer
    return with_task(settings, trainer=msgspec.structs.replace(settings.tasks["toy"].trainer, **quick))


class Perfect(ToyEngine):
    """The base knows nothing, every adapter everything."""

    def __init__(self, base_sha256: str = "0" * 64, on_ask: Any = None) -> None:
        super().__init__({"": dict.fromkeys(TOY, "?")})
        self.base_sha256, self.on_ask = base_sha256, on_ask

    def load_adapter(self, name: str, folder: Path) -> None:
        self.answers[name] = TOY
        if self.on_ask:
            self.on_ask()


def once(settings: Settings, engine: ToyEngine | None = None, **options: Any) -> GateReport | None:
    made = engine or Perfect()
    options = {"stop": threading.Event(), "judge": toy_judge, "make_engine": lambda settings, task: made} | options
    return run_trainer(settings, once="toy", **options)


def test_a_run_asked_for_ignores_the_trigger_and_manual_promotion_waits(settings: Settings) -> None:
    settings = with_task(untrained(settings, min_corrected_rows=1000), gate=Gate(min_holdout=4, promotion="manual"))
    toy_gold(settings.gold)
    report = once(settings)
    assert report is not None
    assert (report.decision, incumbent(settings.adapters, "toy")) == ("promote", "")


def test_the_clock_starts_a_run_in_the_service_and_a_restart_does_not_reset_it(settings: Settings) -> None:
    settings = untrained(settings, min_corrected_rows=1000, every_hours=1.0)
    toy_gold(settings.gold)
    with Service(settings, make_engine=lambda settings, task: Perfect()):
        wait_until(lambda: read_status(settings, "toy"))
        time.sleep(0.2)
    status = read_status(settings, "toy")
    assert status is not None
    assert (status.corrected, status.last_run_ms, list_adapters(settings.adapters, "toy")) == (4, 0, [])
    hour_ago = msgspec.structs.replace(status, since_ms=status.since_ms - HOUR_MS)
    (settings.state / "trainer/toy.json").write_bytes(msgspec.json.encode(hour_ago))
    with Service(settings, make_engine=lambda settings, task: Perfect()):
        wait_until(lambda: incumbent(settings.adapters, "toy"))
        time.sleep(0.2)
    assert len(list_adapters(settings.adapters, "toy")) == 1
    status = read_status(settings, "toy")
    assert status is not None
    assert status.last_run_ms > status.since_ms + HOUR_MS


def test_gold_that_arrives_in_the_middle_of_a_run_waits_for_the_next(settings: Settings) -> None:
    settings = untrained(settings)
    more = [
        [a_case(f"{wave}-{color}", color, answer, strategy=STRATEGY) for color, answer in TOY.items()]
        for wave in (1, 2)
    ]

    def arrive() -> None:
        if more:
            add_gold(settings.gold, more.pop())

    toy_gold(settings.gold)
    with Service(settings, make_engine=lambda settings, task: Perfect(on_ask=arrive)):
        wait_until(lambda: len(list_adapters(settings.adapters, "toy")) == 3, 40)
        time.sleep(0.2)
    found = list_adapters(settings.adapters, "toy")
    assert [(manifest.watermark, manifest.rows) for manifest in found] == [({0: 8}, 4), ({0: 12}, 8), ({0: 16}, 12)]


class StopAfter(threading.Event):
    """A stop that is asked for after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_a_run_that_was_stopped_goes_on_with_its_own_gold_under_its_own_name(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = msgspec.structs.replace(settings.tasks["toy"].trainer, checkpoint_every_s=1e-6)
    settings = with_task(settings, trainer=trainer)
    toy_gold(settings.gold)
    assert once(settings, stop=StopAfter(10)) is None
    (left,) = (settings.state / "trainer/runs/toy").iterdir()
    add_gold(settings.gold, [a_case("later", "red", "stop", strategy=STRATEGY)])
    caplog.set_level(logging.INFO, "goldstream.trainer")
    report = once(settings)
    assert report is not None
    (manifest,) = list_adapters(settings.adapters, "toy")
    assert (report.version, manifest.version, manifest.watermark) == (left.name, left.name, {0: 8})
    assert (manifest.training["steps"], manifest.training["resumed_at"]) == (30, 11)  # the eleventh was done
    assert "goes on; newer gold waits" in caplog.text
    assert list((settings.state / "trainer/runs/toy").iterdir()) == []


def interrupted(settings: Settings, **changes: Any) -> Path:
    """Leaves a run that was stopped before its first step, with its run.json changed."""
    assert once(settings, stop=StopAfter(0)) is None
    (left,) = (settings.state / "trainer/runs/toy").iterdir()
    pinned = msgspec.json.decode((left / "run.json").read_bytes(), type=Pinned)
    (left / "run.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(pinned, **changes)))
    return left


def test_a_run_on_another_base_is_dropped_and_a_new_one_begun(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings = untrained(settings)
    toy_gold(settings.gold)
    caplog.set_level(logging.INFO, "goldstream.trainer")
    left = interrupted(settings, base_sha256="f" * 64)
    report = once(settings)
    assert report is not None
    assert report.version != left.name
    assert "the base has changed" in caplog.text


def test_a_run_that_is_killed_again_and_again_is_given_up_until_new_gold_comes(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.service.FIRST_RETRY_S", 0.1)
    settings = untrained(settings)
    toy_gold(settings.gold)
    interrupted(settings, tries=5, furthest=3)
    with Service(settings, make_engine=lambda settings, task: Perfect()):
        wait_until(lambda: "killed 5 times without getting further than step 3" in caplog.text)
        time.sleep(0.4)
        assert not (settings.adapters / "toy/promotions").exists()
        add_gold(settings.gold, [a_case("later", "red", "stop", strategy=STRATEGY)])
        wait_until(lambda: incumbent(settings.adapters, "toy"), 40)
    assert len(list_adapters(settings.adapters, "toy")) == 1


@pytest.mark.parametrize("point", ["trainer.after_publish", "registry.after_report"])
def test_a_trainer_that_is_killed_anywhere_leaves_one_version_promoted_in_the_end(
    settings: Settings, point: str
) -> None:
    settings = untrained(settings)
    toy_gold(settings.gold)
    script = (
        "import sys, msgspec, test_trainer_service; from schemas.settings import Settings;"
        "test_trainer_service.once(msgspec.json.decode(sys.argv[1], type=Settings))"
    )
    environment = os.environ | {"GOLDSTREAM_CRASH_AT": point, "PYTHONPATH": str(Path(__file__).parent)}
    arguments = [sys.executable, "-c", script, msgspec.json.encode(settings).decode()]
    killed = subprocess.run(arguments, env=environment, capture_output=True, timeout=200, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert incumbent(settings.adapters, "toy") == ""
    assert once(settings) is not None
    (manifest,) = list_adapters(settings.adapters, "toy")
    assert incumbent(settings.adapters, "toy") == manifest.version
    verify_adapter(settings.adapters / "toy" / manifest.version)
    assert (settings.adapters / "toy" / manifest.version / "gate.html").exists()


def test_shadow_promotion_judges_and_publishes_and_never_switches(settings: Settings) -> None:
    settings = with_task(untrained(settings), gate=Gate(min_holdout=4, promotion="shadow"))
    toy_gold(settings.gold)
    report = once(settings)
    assert report is not None
    assert (report.decision, report.promotion) == ("promote", "shadow")
    assert once(settings) is not None  # nor when the next run, or the next start, looks at it again
    assert incumbent(settings.adapters, "toy") == ""
    page = (settings.adapters / "toy" / report.version / "gate.html").read_text()
    assert "it would have been promoted" in page


def test_a_new_base_starts_a_line_of_its_own_that_meets_the_base_itself(
    settings: Settings, base: Path, run_folder: Path, tmp_path: Path
) -> None:
    publish(settings.adapters, run_folder, a_manifest(base, OLD, watermark={0: 8}))
    promote(settings.adapters, "toy", OLD, by="gate")
    toy_gold(settings.gold)
    other = make_tiny_model(tmp_path / "other", seed=7)
    moved = msgspec.structs.replace(untrained(settings), local={"tiny": LocalModel(path=str(other))})
    asked: list[ToyEngine] = []

    def make_engine(settings: Settings, task: str) -> ToyEngine:
        asked.append(Perfect(base_fingerprint(Path(settings.local["tiny"].path))))
        return asked[-1]

    with Service(moved, make_engine=make_engine):  # all gold is new to the new base: the trigger fires
        wait_until(lambda: incumbent(settings.adapters, "toy") != OLD)
    old, new = list_adapters(settings.adapters, "toy")
    assert (old.version, new.version.partition("-")[0]) == (OLD, "v0002")
    assert new.base_sha256 == base_fingerprint(other) != old.base_sha256
    report = read_gate(settings.adapters, "toy", new.version)
    assert report is not None
    assert (report.incumbent, report.decision) == ("", "promote")
    assert asked[0].asked == ["", new.version]  # the version of the other base was never asked
