"""Claims about a stage on a stream and a broker that are lists: what is acknowledged, when, and where cases go."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest
from stage_bench import TP, Bench, case_named, with_bench

from schemas.case import Attempt, Case, Verdict
from schemas.settings import Role, Rubric, Rule, Settings, Task
from schemas.topics import ACCEPTED, ATTEMPTS, OUTCOMES, REFINE
from streams import stage as stage_module
from streams.flow import next_hop


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


def test_no_model_waits_for_the_broker_until_as_many_cases_wait_for_it_as_may_be_in_flight() -> None:
    async def test(bench: Bench) -> None:
        answers = asyncio.Event()
        bench.confirmed = answers.wait
        for number in range(10):
            bench.send(f"n{number}")
        await bench.settle()
        assert bench.handled == ["n0", "n1", "n2", "n3"], "two wait for the broker, two for these"
        assert bench.acked == []
        answers.set()
        await bench.settle()
        assert bench.offsets == list(range(10))

    with_bench(test, cases_in_flight=2)


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
        assert bench.handled == ["a", "b"]

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
