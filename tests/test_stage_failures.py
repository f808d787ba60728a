"""Claims about what a stage does with a case that fails: later, dead, or held until the broker takes it."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    TopicAuthorizationFailedError,
)
from faust.exceptions import ProducerSendError
from stage_bench import Bench, case_named, with_bench

from schemas.case import encode_case
from schemas.errors import BadAnswer, ModelRefused, ModelTimeout, ModelUnavailable, WriteRefused
from streams import stage as stage_module
from streams.flow import now_ms
from streams.worker import undelivered


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "PRODUCE_RETRY_S", (0.01,))
    monkeypatch.setattr(stage_module, "REFUSED_RETRY_S", 0.01)
    monkeypatch.setattr(stage_module, "GATE_POLL_S", 0.005)


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
            began_ms = now_ms()
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
