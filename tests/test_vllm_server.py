"""Claims about rollout on the real vLLM server, on the CPU; `make test-full` runs them, `make test` does not.

One server for all tests, which build on each other in the order they stand in. It serves the demo's student; both it
and the local engine compute in float32.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from real_vllm import Server, free_port
from rolling import InThread, ListRecords
from tiny import make_tiny_adapter, write_manifest
from waiting import wait_until

from agents.local import LocalEngine
from agents.models import Models
from agents.scribe.transcripts import make_transcript
from schemas.adapters import AdapterRecord, served_name
from schemas.case import Message
from schemas.errors import GoldstreamError, ModelTimeout
from schemas.settings import LocalModel, Model, Rollout, Rubric, Rule, Settings, Task, Trainer
from schemas.status import read_rollout_status as read_status
from streams.serving import Serving
from trainer.registry import promote
from trainer.servers import VllmServer, vllm_arguments
from trainer.sleep import servers_asleep

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parent.parent
STUDENT = ROOT / "agents" / "scribe" / "student"
SWITCH_S = 120.0
FIRST, SECOND, THIRD, LARGE, SICK = (f"v000{n}-abcdef0{n}" for n in range(1, 6))


class Announced(ListRecords):
    """gs.adapters as a list that a worker follows."""

    def __init__(self) -> None:
        super().__init__()
        self.serving = Serving()

    def append(self, record: AdapterRecord) -> None:
        super().append(record)
        self.serving.apply(record.task.encode(), msgspec.json.encode(record))


class World:
    """Settings, the server, and what rollout has announced so far."""

    def __init__(self, folder: Path, port: int) -> None:
        task = Task(
            topics=("log",),
            rubric=Rubric(rules=(Rule(id="exact", text="be exact"),)),
            student=Model(
                model="hosted_vllm/scribe", api_base=f"http://127.0.0.1:{port}/v1", max_tokens=48, timeout_s=60
            ),
            trainer=Trainer(base=str(STUDENT), rank=16, share_gpu=True),
            rollout=Rollout(canary_share=0.0, timeout_s=SWITCH_S),
        )
        local = {"scribe": LocalModel(path=str(STUDENT), threads=1)}
        self.settings = Settings(state_dir=str(folder / "state"), local=local, tasks={"scribe": task})
        plain = msgspec.structs.replace(task, trainer=Trainer(base=str(STUDENT), rank=16))
        self.server = Server(
            vllm_arguments(msgspec.structs.replace(self.settings, tasks={"scribe": plain}), "scribe"),
            port,
            folder / "vllm.log",
        )
        self.asked = VllmServer(task.student.api_base)
        self.records = Announced()

    def publish(self, version: str, seed: int, rank: int = 16) -> Path:
        """Publishes a random adapter, weak enough that it still writes notes: other ones for half of the prompts."""
        folder = make_tiny_adapter(self.settings.adapters / "scribe" / version, STUDENT, seed=seed, rank=rank)
        config = folder / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 3}))
        write_manifest(folder, STUDENT, version, task="scribe")
        return folder

    def promote(self, version: str) -> None:
        promote(self.settings.adapters, "scribe", version, by="hand", reason="a test")

    def wait_serving(self, version: str) -> None:
        wait_until(lambda: self.records.records and self.records.records[-1].version == version, SWITCH_S)

    def names(self) -> set[str]:
        return {name for name in self.asked.names() if name != "scribe"}

    def error(self) -> str:
        status = read_status(self.settings, "scribe")
        return status.errors.get("switch", "") if status else ""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("vllm"), free_port())
    try:
        world.server.start()
        world.server.wait_ready()
        yield world
    finally:
        world.server.kill(signal.SIGTERM)


def prompts(count: int, seed: int = 0) -> list[list[Message]]:
    dice = random.Random(seed)
    return [[Message("user", make_transcript(dice)[0])] for _ in range(count)]


def ask(world: World, asked: list[list[Message]], **student: Any) -> list[tuple[str, str]]:
    """Returns (adapter, answer) of each prompt, as a worker's student gets them."""
    task = world.settings.tasks["scribe"]
    task = msgspec.structs.replace(task, student=msgspec.structs.replace(task.student, **student))

    async def run() -> list[tuple[str, str]]:
        models = Models(
            msgspec.structs.replace(world.settings, tasks={"scribe": task}), serving=world.records.serving.versions
        )
        deadline = asyncio.get_running_loop().time() + SWITCH_S
        try:
            made = await asyncio.gather(*(models.complete("student", "scribe", p, deadline=deadline) for p in asked))
        finally:
            await models.close()
        return [(one.adapter, one.text) for one in made]

    return asyncio.run(run())


def test_a_promoted_adapter_answers_as_the_local_engine_does(world: World) -> None:
    asked = prompts(24)
    plain = ask(world, asked)
    folder = world.publish(FIRST, seed=1)
    with InThread(world.settings, world.records):
        world.promote(FIRST)
        world.wait_serving(FIRST)
    tuned = ask(world, asked)
    engine = LocalEngine(STUDENT, threads=1)
    try:
        engine.load_adapter(FIRST, folder)
        expected = {
            version: [
                made.text for made in engine.generate_batch(asked, adapter=version, temperature=0.0, max_tokens=48)
            ]
            for version in ("", FIRST)
        }
    finally:
        engine.close()
    assert world.records.records[-1].served_as == served_name("scribe", FIRST)
    for version, answers in (("", plain), (FIRST, tuned)):
        assert {adapter for adapter, _ in answers} == {version}
        same = sum(text == known for (_, text), known in zip(answers, expected[version], strict=True))
        assert same >= 0.8 * len(asked), f"{same} of {len(asked)} answers of {version or 'the base'} are the same"
    assert [text for _, text in plain] != [text for _, text in tuned]


def test_a_switch_fails_no_request_and_the_oldest_version_is_unloaded(world: World) -> None:
    world.publish(SECOND, seed=2)
    world.publish(THIRD, seed=3)
    answered: list[str] = []
    failed: list[GoldstreamError] = []
    stop = threading.Event()
    (asked,) = prompts(1)

    async def flow() -> None:
        models = Models(world.settings, serving=world.records.serving.versions)

        async def one() -> None:
            while not stop.is_set():
                deadline = asyncio.get_running_loop().time() + SWITCH_S
                try:
                    answered.append((await models.complete("student", "scribe", asked, deadline=deadline)).adapter)
                except GoldstreamError as error:
                    failed.append(error)

        await asyncio.gather(*(one() for _ in range(4)))
        await models.close()

    requests = threading.Thread(target=lambda: asyncio.run(flow()))
    requests.start()
    try:
        with InThread(world.settings, world.records):
            for version in (SECOND, THIRD):
                wait_until(lambda: len(answered) > 8, SWITCH_S)
                world.promote(version)
                world.wait_serving(version)
                answered.clear()
                wait_until(lambda version=version: answered[-4:] == [version] * 4, SWITCH_S)  # type: ignore[misc]
            wait_until(lambda: world.names() == {served_name("scribe", v) for v in (SECOND, THIRD)}, SWITCH_S)
    finally:
        stop.set()
        requests.join(SWITCH_S)
    assert failed == []


def test_a_rank_above_the_servers_is_refused_with_the_flag_to_set(world: World) -> None:
    world.publish(LARGE, seed=4, rank=32)
    with InThread(world.settings, world.records):
        world.promote(LARGE)
        wait_until(lambda: "--max-lora-rank 32" in world.error(), SWITCH_S)
        assert "its rank is 32" in world.error()
    assert world.records.records[-1].version == THIRD
    assert {adapter for adapter, _ in ask(world, prompts(2))} == {THIRD}


def test_an_adapter_that_fails_its_smoke_test_is_never_announced(world: World) -> None:
    folder = world.publish(SICK, seed=5)
    overflow(folder / "adapter_model.safetensors")  # finite weights whose product is not
    write_manifest(folder, STUDENT, SICK, task="scribe")
    with InThread(world.settings, world.records):
        world.promote(SICK)
        wait_until(lambda: "smoke test" in world.error(), SWITCH_S)
    assert world.records.records[-1].version == THIRD
    assert {adapter for adapter, _ in ask(world, prompts(2))} == {THIRD}


def test_an_adapter_the_server_lacks_is_answered_for_by_the_one_before(world: World) -> None:
    world.asked.unload(served_name("scribe", THIRD))
    assert {adapter for adapter, _ in ask(world, prompts(2))} == {SECOND}
    world.promote(THIRD)
    with InThread(world.settings, world.records):
        wait_until(lambda: served_name("scribe", THIRD) in world.names(), SWITCH_S)
    assert {adapter for adapter, _ in ask(world, prompts(2))} == {THIRD}


def test_calls_wait_while_the_server_sleeps_and_are_answered_when_it_is_awake(world: World) -> None:
    before = ask(world, prompts(2))
    with servers_asleep(world.settings, "scribe"):
        assert world.asked.is_asleep()
        with pytest.raises(ModelTimeout):
            ask(world, prompts(1), timeout_s=2, retries=0)
    assert not world.asked.is_asleep()
    assert ask(world, prompts(2)) == before


def test_a_server_that_was_killed_gets_its_adapters_back(world: World) -> None:
    records = len(world.records.records)
    with InThread(world.settings, world.records):
        world.server.kill()
        wait_until(lambda: (s := read_status(world.settings, "scribe")) and "down" in str(s.servers), SWITCH_S)
        world.server.start()
        world.server.wait_ready()
        wait_until(lambda: {served_name("scribe", THIRD)} <= world.names(), SWITCH_S)
    assert {adapter for adapter, _ in ask(world, prompts(2))} == {THIRD}
    assert len(world.records.records) == records, "nothing was switched"


def overflow(path: Path) -> None:
    """Overwrites every float32 weight of a safetensors file with 1e30."""
    data = bytearray(path.read_bytes())
    start = 8 + struct.unpack_from("<Q", data)[0]
    data[start:] = struct.pack("<f", 1e30) * ((len(data) - start) // 4)
    path.write_bytes(data)
