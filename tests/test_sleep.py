"""Claims about servers that sleep while an adapter is trained on their GPU."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from rolling import InThread, ListRecords, on_vllm, publish_and_promote
from stub_vllm import StubVllm
from toys import OLD, a_manifest, with_task
from waiting import wait_until

from agents.models import Models, calling_for
from schemas.adapters import served_name
from schemas.case import Message
from schemas.errors import ModelError, SettingsError, SetupError
from schemas.settings import Settings, load_settings
from schemas.status import read_rollout_status as read_status
from trainer.lease import lease
from trainer.registry import publish
from trainer.sleep import servers_asleep, sleeping_servers

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


def test_a_trainer_killed_while_servers_fall_asleep_leaves_a_note_by_which_the_next_run_wakes_them(
    settings: Settings, base: Path, vllm: StubVllm, other: StubVllm
) -> None:
    settings = on_vllm(settings, base, vllm, other, share_gpu=True)
    script = (
        "import sys, msgspec; from schemas.settings import Settings; from trainer.sleep import servers_asleep;"
        "servers_asleep(msgspec.json.decode(sys.argv[1], type=Settings), 'toy').__enter__()"
    )
    arguments = [sys.executable, "-c", script, msgspec.json.encode(settings).decode()]
    environment = os.environ | {"GOLDSTREAM_CRASH_AT": "sleep.asleep"}
    killed = subprocess.run(arguments, env=environment, capture_output=True, timeout=100, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert (vllm.asleep, other.asleep) == (True, False), "killed between the first server and the second"
    assert set(sleeping_servers(settings, "toy") or ()) == {vllm.root, other.root}
    with servers_asleep(settings, "toy"):
        assert ("wake_up", "") in vllm.calls, "it sleeps for this run now"
    assert (vllm.asleep, other.asleep) == (False, False)
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
        # The first call of a process takes longer than a case here may.
        await patient.complete("student", "toy", [Message("user", "red")], deadline=loop.time() + 60)
        await patient.close()
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
