"""Claims about a stage on a stream and a broker that are lists: what is acknowledged, when, and where cases go."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    TopicAuthorizationFailedError,
)
from faust.exceptions import ProducerSendError

from schemas.case import Attempt, Case, Message, Source, Verdict, decode_case, encode_case
from schemas.errors import BadAnswer, ModelError, ModelRefused, ModelTimeout, ModelUnavailable, WriteRefused
from schemas.settings import Kafka, Role, Rubric, Rule, Settings, Task, Worker
from schemas.topics import ACCEPTED, ATTEMPTS, OUTCOMES, REFINE
from streams import stage as stage_module
from streams.stage import Stage, next_hop
from streams.worker import undelivered


class TP(NamedTuple):
    topic: str
    partition: int


class FakeMessage(NamedTuple):
    tp: TP
    offset: int
    generation_id: int


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
        self.acked: list[tuple[int, int, int]] = []
        self.produced: list[tuple[str, Case]] = []
        self.handled: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.refuse: Callable[[str, bytes], Exception | None] = lambda topic, value: None
        self.held = False
        self.outage: float | None = None
        self.grow = ""
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
            role, settings, self._handle, self._produce, "c", lambda: self.generation, lambda: self.held, self._outage
        )
        self._run = asyncio.create_task(self.stage.run(self._stream()))

    def send(self, name: str, partition: int = 0, offset: int | None = None, **fields: Any) -> None:
        """Puts a case on the stream; the next offset of its partition unless told otherwise."""
        self.send_raw(encode_case(case_named(name, **fields)), partition, offset)

    def send_raw(self, value: bytes | None, partition: int = 0, offset: int | None = None) -> None:
        at = self._offsets[partition] if offset is None else offset
        self._offsets[partition] = at + 1
        message = FakeMessage(TP("gs.prompts", partition), at, self.generation)
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
        await asyncio.sleep(0)
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


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "PRODUCE_RETRY_S", (0.01,))
    monkeypatch.setattr(stage_module, "REFUSED_RETRY_S", 0.01)
    monkeypatch.setattr(stage_module, "GATE_POLL_S", 0.005)


def test_events_that_end_out_of_order_are_acknowledged_in_order() -> None:
    async def test(bench: Bench) -> None:
        bench.hold("a", "c")
        for name in "abcd":
            bench.send(name)
        await bench.settle()
        assert [case.case_id for _, case in bench.produced] == ["b", "d"]
        assert bench.offsets == []
        bench.release("c")
        await bench.settle()
        assert bench.offsets == []
        bench.release("a")
        await bench.settle()
        assert bench.offsets == [0, 1, 2, 3]

    with_bench(test)


def test_partitions_do_not_wait_for_each_other() -> None:
    async def test(bench: Bench) -> None:
        bench.hold("a")
        bench.send("a", 0)
        bench.send("b", 1)
        await bench.settle()
        assert bench.acked == [(1, 0, 1)]

    with_bench(test)


def test_nothing_is_acknowledged_before_the_broker_confirms_its_successor() -> None:
    async def test(bench: Bench) -> None:
        bench.refuse = lambda topic, value: ConnectionError("broker away")
        bench.send("a")
        await bench.settle()
        assert bench.handled == ["a"]
        assert bench.acked == []
        bench.refuse = lambda topic, value: None
        await bench.settle()
        assert bench.offsets == [0]
        assert bench.handled == ["a"], "the model is not called again"

    with_bench(test)


def test_events_of_an_old_assignment_are_skipped() -> None:
    async def test(bench: Bench) -> None:
        bench.stage.paused = True
        bench.send("a")
        await bench.settle()
        bench.generation = 2
        bench.stage.paused = False
        await bench.settle()
        assert bench.handled == []
        assert bench.acked == []
        bench.send("a", offset=0)
        await bench.settle()
        assert bench.acked == [(0, 0, 2)]

    with_bench(test)


def test_a_re_read_event_joins_the_work_that_is_under_way() -> None:
    async def test(bench: Bench) -> None:
        bench.hold("a")
        bench.send("a")
        await bench.settle()
        bench.generation = 2
        bench.stage.assigned([TP("gs.prompts", 0)])
        bench.send("a", offset=0)
        await bench.settle()
        bench.release("a")
        await bench.settle()
        assert bench.handled == ["a"]
        assert bench.acked == [(0, 0, 2)]
        assert (bench.stage.counts["taken"], bench.stage.counts["rejoined"]) == (1, 1)

    with_bench(test)


def test_work_that_ends_after_a_rebalance_is_not_acknowledged_for_the_old_assignment() -> None:
    async def test(bench: Bench) -> None:
        bench.hold("a")
        for name in "ab":
            bench.send(name)
        await bench.settle()
        bench.generation = 2
        bench.release("a")
        await bench.settle()
        assert bench.acked == [], "whoever holds the partition now reads both again"
        bench.stage.assigned([TP("gs.prompts", 0)])
        bench.send("a", offset=0)
        bench.send("b", offset=1)
        await bench.settle()
        assert bench.acked == [(0, 0, 2), (0, 1, 2)]

    with_bench(test)


def test_work_on_lost_partitions_is_cancelled_and_frees_its_slots() -> None:
    async def test(bench: Bench) -> None:
        bench.hold("lost", "kept")
        bench.send("lost", 0)
        bench.send("kept", 1)
        await bench.settle()
        assert bench.stage.in_flight == 2
        bench.generation = 2
        bench.stage.assigned([TP("gs.prompts", 1)])
        await bench.settle()
        assert bench.stage.in_flight == 1
        bench.release("lost", "kept")
        await bench.settle()
        assert [case.case_id for _, case in bench.produced] == ["kept"]
        for number in range(20):
            bench.send(f"n{number}", 2)
        await bench.settle()
        assert bench.stage.in_flight == 0
        assert len(bench.acked) == 20

    with_bench(test, cases_in_flight=2)


def test_stopping_leaves_cases_in_flight_unacknowledged() -> None:
    async def test(bench: Bench) -> None:
        bench.hold("a")
        bench.send("a")
        bench.send("b")
        await bench.settle()
        await bench.stop()
        assert bench.acked == []
        assert [case.case_id for _, case in bench.produced] == ["b"]

    with_bench(test)


def test_stopping_with_time_to_drain_takes_nothing_more_and_acknowledges_what_ends() -> None:
    async def test(bench: Bench) -> None:
        bench.hold("a", "c")
        for name in ("a", "b", "c", "d"):
            bench.send(name)
        await bench.settle()
        assert bench.acked == []  # b is done, and behind a
        stopped = asyncio.create_task(bench.stage.stop(drain_s=0.5))
        await bench.settle()
        bench.send("late")
        bench.release("a")
        await stopped
        assert bench.offsets == [0, 1]
        assert "late" not in bench.handled
        assert bench.stage.in_flight == 0  # c was cut

    with_bench(test)


def test_what_is_no_case_becomes_a_dead_letter_that_says_where_it_lies() -> None:
    async def test(bench: Bench) -> None:
        for value in (None, b"", b"{", b'{"case_id": 7}', b"\xff"):
            bench.send_raw(value, 3)
        await bench.settle()
        assert [topic for topic, _ in bench.produced] == ["gs.outcomes"] * 5
        for offset, case in enumerate(case for _, case in sorted(bench.produced, key=lambda p: p[1].source.offset)):
            assert case.outcome is not None
            assert (case.outcome.kind, case.outcome.reason) == ("dead", "undecodable_case")
            assert (case.source.topic, case.source.partition, case.source.offset) == ("gs.prompts", 3, offset)
        assert bench.offsets == [0, 1, 2, 3, 4]

    with_bench(test)


def test_a_transient_error_waits_longer_each_time_and_ends_dead() -> None:
    async def test(bench: Bench) -> None:
        bench.errors["a"] = ModelUnavailable("500")
        trips = []
        case = case_named("a")
        for _ in range(3):
            began_ms = stage_module.now_ms()
            bench.send_raw(encode_case(case))
            await bench.settle()
            topic, case = bench.produced[-1]
            trips.append((topic, case.retries, case.retry_stage, round((case.not_before_ms - began_ms) / 1000)))
        assert trips[:2] == [("gs.retry.10s", 1, "student", 10), ("gs.retry.60s", 2, "student", 60)]
        assert trips[2][0] == "gs.outcomes"
        assert case.outcome is not None
        assert (case.outcome.kind, case.outcome.reason) == ("dead", "model_unavailable")
        assert bench.offsets == [0, 1, 2]

    with_bench(test)


def test_a_success_clears_the_marks_of_earlier_trips() -> None:
    async def test(bench: Bench) -> None:
        bench.send("a", retries=2, retry_stage="student")
        bench.send("b", retry_stage="student")
        await bench.settle()
        assert [(case.retries, case.retry_stage) for _, case in bench.produced] == [(0, "")] * 2

    with_bench(test)


def test_an_outage_sends_a_case_round_for_ever_without_a_mark_against_it() -> None:
    async def test(bench: Bench) -> None:
        bench.errors["a"] = ModelUnavailable("away")
        case = case_named("a", retries=1, retry_stage="student")
        for outage_s, topic in ((0.0, "retry.10s"), (9.0, "retry.10s"), (30.0, "retry.60s"), (500.0, "retry.60s")):
            bench.outage = outage_s
            bench.send_raw(encode_case(case))
            await bench.settle()
            assert bench.produced[-1][0] == f"gs.{topic}"
            case = bench.produced[-1][1]
            assert case.retries == 1
        assert bench.offsets == [0, 1, 2, 3]

    with_bench(test)


@pytest.mark.parametrize("error", [ModelRefused("400"), BadAnswer("?"), RuntimeError("a bug of ours"), KeyError("x")])
def test_what_cannot_pass_by_waiting_is_dead_at_once(error: Exception) -> None:
    async def test(bench: Bench) -> None:
        bench.errors["a"] = error
        bench.send("a")
        await bench.settle()
        [(topic, case)] = bench.produced
        assert topic == "gs.outcomes"
        assert case.outcome is not None
        assert (case.outcome.kind, case.outcome.reason) == ("dead", getattr(error, "reason", "agent_error"))
        assert bench.offsets == [0]

    with_bench(test)


def test_an_agent_that_never_ends_is_a_model_timeout() -> None:
    async def test(bench: Bench) -> None:
        bench.hold("hangs")
        bench.errors["own"] = ModelTimeout("its own deadline")
        bench.send("hangs", retries=2)
        bench.send("own", retries=2)
        await asyncio.sleep(1.2)
        assert len(bench.produced) == 2
        for topic, case in bench.produced:
            assert topic == "gs.outcomes"
            assert case.outcome is not None
            assert case.outcome.reason == "model_timeout"
        assert bench.offsets == [0, 1]

    with_bench(test, event_deadline_s=0.1)


def test_a_case_that_outgrew_the_limit_is_dead_as_it_was_before() -> None:
    async def test(bench: Bench) -> None:
        bench.grow = "x" * 30_000
        bench.send("a")
        await bench.settle()
        [(topic, case)] = bench.produced
        assert (topic, case.attempts) == ("gs.outcomes", ())
        assert case.outcome is not None
        assert (case.outcome.kind, case.outcome.reason) == ("dead", "too_large")

    with_bench(test)


def test_a_successor_the_topic_refuses_as_too_large_is_dead_without_its_last_attempt() -> None:
    async def test(bench: Bench) -> None:
        def refuse(topic: str, value: bytes) -> Exception | None:
            return WriteRefused("MessageSizeTooLargeError", too_large=True) if len(value) > 17_000 else None

        bench.refuse = refuse
        bench.grow = "x" * 18_000
        bench.send("a")
        await bench.settle()
        [(topic, case)] = bench.produced
        assert (topic, case.attempts) == ("gs.outcomes", ())
        assert case.outcome is not None
        assert case.outcome.reason == "too_large"
        assert "MessageSizeTooLargeError" in case.outcome.detail
        assert bench.offsets == [0]
        assert bench.stage.held_by == ()

    with_bench(test)


def test_a_refused_write_holds_the_stage_alarms_once_and_is_never_acknowledged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(bench: Bench) -> None:
        refusing = True
        bench.refuse = lambda topic, value: WriteRefused("TopicAuthorizationFailedError") if refusing else None
        bench.send("a")
        await bench.settle()
        for name in "bcd":
            bench.send(name)
        await bench.settle()
        assert bench.stage.held_by == ("refused",)
        assert bench.handled == ["a"]
        assert bench.acked == []
        refusing = False
        await bench.settle()
        assert bench.stage.held_by == ()
        assert bench.offsets == [0, 1, 2, 3]

    with_bench(test)
    alarms = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(alarms) == 1
    assert "let this client write to gs.attempts" in alarms[0]


def test_a_dead_letter_that_is_refused_too_holds_the_stage(caplog: pytest.LogCaptureFixture) -> None:
    async def test(bench: Bench) -> None:
        bench.refuse = lambda topic, value: WriteRefused("MessageSizeTooLargeError", too_large=True)
        bench.grow = "x" * 18_000
        bench.send("a")
        await bench.settle()
        assert bench.stage.held_by == ("refused",)
        assert bench.acked == []

    with_bench(test)
    assert "raise max.message.bytes of gs.outcomes above" in caplog.text


def test_a_small_successor_refused_as_too_large_is_not_dead_for_a_batch_it_was_in() -> None:
    async def test(bench: Bench) -> None:
        refusing = True
        error = WriteRefused("MessageSizeTooLargeError", too_large=True)
        bench.refuse = lambda topic, value: error if refusing else None
        bench.send("a")
        await bench.settle()
        assert bench.stage.held_by == ("refused",)
        refusing = False
        await bench.settle()
        assert [topic for topic, _ in bench.produced] == ["gs.attempts"]
        assert bench.offsets == [0]

    with_bench(test)


def test_what_the_broker_says_tells_refused_from_not_confirmed() -> None:
    for error in (KafkaConnectionError(), KafkaTimeoutError(), NotLeaderForPartitionError()):
        assert type(undelivered(error)) is ConnectionError
    denied, large = undelivered(TopicAuthorizationFailedError("gs.outcomes")), undelivered(MessageSizeTooLargeError())
    assert isinstance(denied, WriteRefused)
    assert isinstance(large, WriteRefused)
    assert (denied.too_large, large.too_large) == (False, True)
    wrapped = ProducerSendError("Error while sending")
    wrapped.__cause__ = MessageSizeTooLargeError()
    assert isinstance(undelivered(wrapped), WriteRefused)


def test_a_pause_and_held_models_stop_taking_independently_of_each_other() -> None:
    async def test(bench: Bench) -> None:
        bench.hold("a")
        bench.send("a")
        await bench.settle()
        bench.stage.paused = bench.held = True
        bench.send("b")
        await bench.settle()
        assert bench.stage.held_by == ("pause", "models")
        bench.release("a")
        await bench.settle()
        assert bench.offsets == [0], "what was in flight is finished"
        bench.held = False
        await bench.settle()
        assert bench.handled == ["a"], "still paused"
        bench.held, bench.stage.paused = True, False
        await bench.settle()
        assert bench.handled == ["a"], "still held"
        bench.held = False
        await bench.settle()
        assert bench.offsets == [0, 1]

    with_bench(test)


def test_an_event_that_waited_for_a_slot_is_not_taken_if_the_models_were_held_meanwhile() -> None:
    async def test(bench: Bench) -> None:
        bench.hold("a")
        bench.send("a")
        bench.send("b")
        await bench.settle()
        bench.held = True
        bench.release("a")
        await bench.settle()
        assert bench.handled == ["a"]

    with_bench(test, cases_in_flight=1)


def test_one_slow_event_does_not_let_finished_ones_pile_up_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "PENDING_PER_SLOT", 4)

    async def test(bench: Bench) -> None:
        bench.hold("slow")
        bench.send("slow")
        for number in range(100):
            bench.send(f"n{number}")
        await bench.settle()
        assert bench.stage.held_by == ("pending",)
        assert len(bench.handled) == 8
        bench.generation = 2  # a rebalance must not leave it held for ever
        bench.stage.assigned([TP("gs.prompts", 0)])
        await bench.settle()
        assert bench.stage.held_by == ()
        bench.release("slow")

    with_bench(test, cases_in_flight=2)


def test_an_error_of_the_stage_itself_stops_the_worker_and_acknowledges_nothing_more() -> None:
    async def test(bench: Bench) -> None:
        bench.refuse = lambda topic, value: ZeroDivisionError("not foreseen")
        bench.send("a")
        with pytest.raises(ZeroDivisionError):
            await bench.stage.failed()
        assert bench.acked == []

    with_bench(test)


def test_a_stage_takes_little_time_for_an_event() -> None:
    async def test(bench: Bench) -> None:
        for number in range(2000):
            bench.send(f"n{number}")
        began = time.process_time()
        while len(bench.acked) < 2000:
            await bench.settle()
        assert (time.process_time() - began) / 2000 < 0.001

    with_bench(test)


# Where a case goes next: every branch of the flow.


def judged(passed: bool | None, rounds: int = 0, split: Any = "train") -> Case:
    verdict = None if passed is None else Verdict(passed=passed, score=0, max_score=1, judge="j")
    attempt = Attempt(round=rounds, source="student", text="x", model="m", verdict=verdict)
    return msgspec.structs.replace(case_named("a"), attempts=(attempt,), split=split)


@pytest.mark.parametrize(
    ("role", "case", "topic", "outcome"),
    [
        ("student", judged(None), ATTEMPTS, None),
        ("refiner", judged(None, 1), ATTEMPTS, None),
        ("judge", judged(True), ACCEPTED, None),
        ("judge", judged(True, 2), ACCEPTED, None),
        ("judge", judged(False), REFINE, None),
        ("judge", judged(False, 1), REFINE, None),
        ("judge", judged(False, 2), OUTCOMES, "unresolved"),
        ("judge", judged(None), REFINE, None),
        ("judge", judged(True, 0, "holdout"), OUTCOMES, "holdout"),
        ("judge", judged(False, 0, "holdout"), OUTCOMES, "holdout"),
        ("strategist", judged(True, 1), OUTCOMES, "gold"),
    ],
)
def test_next_hop(role: Role, case: Case, topic: str, outcome: str | None) -> None:
    task = Task(topics=("t",), rubric=Rubric(rules=(Rule(id="kind", text="Be kind."),)), max_rounds=2)
    hop = next_hop(role, case, Settings(tasks={"toy": task}))
    assert hop.topic == topic
    assert (hop.case.outcome.kind if hop.case.outcome else None) == outcome
    assert hop.case.attempts == case.attempts
