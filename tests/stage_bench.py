"""A stage on a stream and a broker that are lists, for tests of what it acknowledges and where cases go."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from schemas.case import Attempt, Case, Message, Source, decode_case, encode_case
from schemas.errors import ModelError
from schemas.settings import Kafka, Role, Rubric, Rule, Settings, Task, Worker
from streams.stage import Stage


class TP(NamedTuple):
    topic: str
    partition: int


class FakeMessage(NamedTuple):
    tp: TP
    offset: int
    generation_id: int
    timestamp: float


class FakeEvent:
    """A Faust event whose acknowledgement goes to a list."""

    def __init__(self, acked: list[tuple[int, int, int]], message: FakeMessage, value: bytes | None) -> None:
        self.message, self.value, self._acked = message, value, acked

    def ack(self) -> None:
        self._acked.append((self.message.tp.partition, self.message.offset, self.message.generation_id))


class Bench:
    """A stage between a stream and a broker that the test controls.

    Cases are named; handling `name` waits for `release(name)` where `hold(name)` was called, and raises `errors[name]`.
    """

    def __init__(self, role: Role = "student", **worker: Any) -> None:
        self.generation = 1
        self.timestamp = 1.0  # of what is sent
        self.acked: list[tuple[int, int, int]] = []
        self.produced: list[tuple[str, Case]] = []
        self.handled: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.refuse: Callable[[str, bytes], Exception | None] = lambda topic, value: None
        self.confirmed: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)  # the broker's answer
        self.held = False
        self.outage: float | None = None
        self.grow = ""
        self.forgotten: set[str] = set()  # users and cases
        self._gates: dict[str, asyncio.Event] = {}
        self._events: asyncio.Queue[FakeEvent] = asyncio.Queue()
        self._offsets: dict[int, int] = defaultdict(int)
        rubric = Rubric(rules=(Rule(id="kind", text="Be kind."),))
        task = Task(topics=("t",), rubric=rubric, max_rounds=2)
        options: dict[str, Any] = {"cases_in_flight": 8, "retry_delays_s": (10, 60), "event_deadline_s": 5.0}
        settings = Settings(
            tasks={"toy": task}, worker=Worker(**options | worker), kafka=Kafka(max_message_bytes=20_000)
        )
        self.stage = Stage(
            role, settings, self._handle, self._produce, "c", lambda: self.generation, lambda: self.held, self._outage,
            forgets=lambda case: not self.forgotten.isdisjoint((case.user, case.case_id)),
        )  # fmt: skip
        self._run = asyncio.create_task(self.stage.run(self._stream()))

    def send(self, name: str, partition: int = 0, offset: int | None = None, **fields: Any) -> None:
        """Puts a case on the stream; the next offset of its partition unless told otherwise."""
        self.send_raw(encode_case(case_named(name, **fields)), partition, offset)

    def send_raw(self, value: bytes | None, partition: int = 0, offset: int | None = None) -> None:
        at = self._offsets[partition] if offset is None else offset
        self._offsets[partition] = at + 1
        message = FakeMessage(TP("gs.prompts", partition), at, self.generation, self.timestamp)
        self._events.put_nowait(FakeEvent(self.acked, message, value))

    def hold(self, *names: str) -> None:
        for name in names:
            self._gates[name] = asyncio.Event()

    def release(self, *names: str) -> None:
        for name in names:
            self._gates[name].set()

    async def settle(self) -> None:
        """Lets everything happen that can happen now."""
        await asyncio.sleep(0.05)

    async def stop(self) -> None:
        self._run.cancel()
        await self.stage.stop()

    @property
    def offsets(self) -> list[int]:
        return [offset for _, offset, _ in self.acked]

    async def _stream(self) -> AsyncIterator[FakeEvent]:
        while True:
            yield await self._events.get()

    async def _handle(self, case: Case, deadline: float) -> Case:
        self.handled.append(case.case_id)
        if case.case_id in self._gates:
            await self._gates[case.case_id].wait()
        if case.case_id in self.errors:
            raise self.errors[case.case_id]
        attempt = Attempt(round=0, source="student", text="answer" + self.grow, model="m")
        return msgspec.structs.replace(case, attempts=(*case.attempts, attempt))

    async def _produce(self, topic: str, key: bytes, value: bytes) -> None:
        await self.confirmed()
        if error := self.refuse(topic, value):
            raise error
        self.produced.append((topic, decode_case(value)))

    async def _outage(self, case: Case, error: ModelError) -> float | None:
        return self.outage


def case_named(name: str, **fields: Any) -> Case:
    source = Source(cluster="c", topic="logs", partition=0, offset=0)
    messages = (Message("user", "hello"),)
    return Case(case_id=name, task="toy", split="train", source=source, messages=messages, **fields)


def with_bench(test: Callable[[Bench], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        bench = Bench(**options)
        try:
            async with asyncio.timeout(10):
                await test(bench)
        finally:
            await bench.stop()

    asyncio.run(run())
