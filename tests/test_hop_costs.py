"""What makes a hop cheap keeps what it replaces: handing on, leaving together, one timer for all deadlines."""

from __future__ import annotations

import asyncio

import mode
import pytest
from aiokafka.partitioner import DefaultPartitioner
from kafka.partitioner.default import murmur2 as hash_of

from agents.overdue import Overdue
from streams.departures import Departures
from streams.draining import HandsOn
from streams.partitioning import partition_of


class Plain(HandsOn, mode.Service):  # type: ignore[misc]
    """A service that hands on as a worker's consumer does."""


# Handing on


def test_a_message_that_finds_room_is_handed_on_without_a_task() -> None:
    async def test() -> None:
        before, handed = asyncio.all_tasks(), []

        async def hand_on() -> str:
            handed.append(asyncio.all_tasks() - before)
            return "done"

        found = await Plain().wait_first(hand_on(), asyncio.Event().wait())
        assert (handed, found.results, found.stopped) == ([set()], ["done"], False)

    asyncio.run(test())


def test_a_message_that_waits_for_room_goes_on_once_there_is_some() -> None:
    async def test() -> None:
        room, steps = asyncio.Event(), list[str]()

        async def hand_on() -> str:
            steps.append("begun")
            await room.wait()
            await asyncio.sleep(0)
            steps.append("handed on")
            return "done"

        waiting = asyncio.create_task(Plain().wait_first(hand_on(), asyncio.Event().wait()))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        room.set()
        assert (await waiting).results == ["done"]
        assert steps == ["begun", "handed on"]

    asyncio.run(test())


def test_a_rebalance_interrupts_a_message_that_waits_for_room() -> None:
    async def test() -> None:
        suspended, interrupted = asyncio.Event(), asyncio.Event()

        async def hand_on() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                interrupted.set()
                raise

        waiting = asyncio.create_task(Plain().wait_first(hand_on(), suspended.wait()))
        await asyncio.sleep(0.01)
        suspended.set()
        await asyncio.wait_for(waiting, 5)
        await asyncio.wait_for(interrupted.wait(), 5)

    asyncio.run(test())


def test_an_error_of_a_message_handed_on_is_raised() -> None:
    async def hand_on() -> None:
        raise ValueError("no room")

    async def late() -> None:
        await asyncio.sleep(0)
        raise ValueError("no room")

    async def test() -> None:
        for broken in (hand_on, late):
            with pytest.raises(ValueError, match="no room"):
                await Plain().wait_first(broken(), asyncio.Event().wait())

    asyncio.run(test())


# Leaving together


def test_messages_of_one_departure_leave_in_one_turn_of_the_loop() -> None:
    async def test() -> None:
        departures, left = Departures(0.02), list[str]()

        async def leave(name: str) -> None:
            await departures.next()
            asyncio.get_running_loop().call_soon(left.append, "turn")
            left.append(name)

        others = [asyncio.create_task(leave(name)) for name in ("a", "b")]
        cancelled = asyncio.create_task(leave("cancelled"))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(*others)
        await asyncio.sleep(0)
        assert left == ["a", "b", "turn", "turn"]
        await asyncio.wait_for(leave("the next"), 5)

    asyncio.run(test())


# One timer


def test_what_takes_too_long_ends_and_the_others_go_on() -> None:
    async def test() -> None:
        overdue, ended = Overdue(), asyncio.Event()

        async def stuck() -> None:
            with pytest.raises(TimeoutError):
                await overdue.within(asyncio.Event().wait(), 0.05)
            await asyncio.sleep(0)  # nothing of the cancellation is left
            ended.set()

        tasks = [asyncio.create_task(stuck())]
        await asyncio.sleep(0.03)
        tasks.append(asyncio.create_task(stuck()))
        await asyncio.wait_for(ended.wait(), 5)
        assert not tasks[1].done()
        assert await overdue.within(asyncio.sleep(0.01, "in time"), 60) == "in time"
        await asyncio.wait_for(tasks[1], 5)

    asyncio.run(test())


def test_the_shorter_of_two_limits_ends_first_and_each_ends_its_own() -> None:
    async def test() -> None:
        overdue, ended = Overdue(), []

        async def stuck(name: str, limit_s: float) -> None:
            with pytest.raises(TimeoutError):
                await overdue.within(asyncio.Event().wait(), limit_s)
            ended.append(name)

        async def nested() -> None:
            await overdue.within(stuck("within a longer one", 0.05), 60)
            ended.append("which goes on")

        await asyncio.wait_for(asyncio.gather(stuck("long", 0.2), stuck("short", 0.01), nested()), 5)
        assert ended == ["short", "within a longer one", "which goes on", "long"]

    asyncio.run(test())


def test_a_deadline_holds_on_the_next_event_loop_too() -> None:
    overdue = Overdue()

    async def test() -> None:
        with pytest.raises(TimeoutError):
            await overdue.within(asyncio.Event().wait(), 0.01)
        kept = asyncio.create_task(overdue.within(asyncio.Event().wait(), 60))
        await asyncio.sleep(0)
        kept.cancel()

    for _ in range(2):
        asyncio.run(test())


def test_who_is_cancelled_by_others_stays_cancelled() -> None:
    async def test() -> None:
        overdue = Overdue()
        task = asyncio.create_task(overdue.within(asyncio.Event().wait(), 60))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(test())


# Partitions


@pytest.mark.parametrize("partitions", [[0], [0, 1, 2, 3], list(range(12))])
def test_a_case_goes_to_the_partition_that_other_clients_choose(partitions: list[int]) -> None:
    keys = [f"case-{number}".encode() for number in range(300)] * 2  # again: hashes are kept
    chosen = [partition_of(key, partitions, partitions) for key in keys]
    assert chosen == [DefaultPartitioner()(key, partitions, partitions) for key in keys]
    assert chosen == [partitions[(hash_of(key) & 0x7FFFFFFF) % len(partitions)] for key in keys]
    assert set(chosen) == set(partitions)
