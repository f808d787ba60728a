"""Claims about what a stage reads again after a rebalance: what is done is not done again, and nothing is lost."""

from __future__ import annotations

import pytest
from stage_bench import TP, Bench, with_bench

from streams import pending

MINE = TP("gs.prompts", 0)


async def _rebalanced(bench: Bench, *partitions: TP) -> None:
    bench.generation += 1
    bench.stage.assigned(partitions)
    await bench.settle()


async def _read_again(bench: Bench, names: str, offset: int = 0) -> None:
    for number, name in enumerate(names):
        bench.send(name, offset=offset + number)
    await bench.settle()


def test_what_was_acknowledged_and_not_committed_is_acknowledged_again_without_a_call() -> None:
    async def test(bench: Bench) -> None:
        await _read_again(bench, "abc")
        assert bench.offsets == [0, 1, 2]
        for generation in (2, 3):  # the commit may fail more than once
            await _rebalanced(bench, MINE)
            await _read_again(bench, "bc", offset=1)
            assert bench.acked[-2:] == [(0, 1, generation), (0, 2, generation)]
        assert bench.handled == ["a", "b", "c"]
        assert [case.case_id for _, case in bench.produced] == ["a", "b", "c"]
        assert (bench.stage.counts["taken"], bench.stage.counts["rejoined"]) == (3, 4)

    with_bench(test)


def test_what_was_done_behind_an_unfinished_event_waits_for_it_again_without_a_call() -> None:
    async def test(bench: Bench) -> None:
        bench.hold("a")
        await _read_again(bench, "abc")
        await _rebalanced(bench, MINE)
        await _read_again(bench, "abcd")
        assert bench.acked == []
        assert bench.handled == ["a", "b", "c", "d"]
        bench.release("a")
        await bench.settle()
        assert bench.acked == [(0, 0, 2), (0, 1, 2), (0, 2, 2), (0, 3, 2)]
        assert bench.stage.held_by == ()

    with_bench(test)


@pytest.mark.parametrize("offset", [0, 1])
def test_what_ends_between_a_rebalance_and_its_being_read_again_is_not_called_again(offset: int) -> None:
    async def test(bench: Bench) -> None:
        bench.hold("b")
        await _read_again(bench, "ab")
        await _rebalanced(bench, MINE)
        await _read_again(bench, "ab"[:offset])
        bench.release("b")
        await bench.settle()
        await _read_again(bench, "ab"[offset:], offset)
        assert bench.handled == ["a", "b"]
        assert bench.acked == [(0, 0, 1), (0, 0, 2), (0, 1, 2)]

    with_bench(test)


def test_a_successor_that_the_broker_never_confirmed_is_made_again() -> None:
    async def test(bench: Bench) -> None:
        bench.refuse = lambda topic, value: ConnectionError("broker away")
        await _read_again(bench, "a")
        await _rebalanced(bench, TP("gs.prompts", 1))
        bench.refuse = lambda topic, value: None
        await _rebalanced(bench, MINE)
        await _read_again(bench, "a")
        assert bench.handled == ["a", "a"]
        assert bench.acked == [(0, 0, 3)]

    with_bench(test)


def test_other_records_at_the_same_offsets_are_called() -> None:
    async def test(bench: Bench) -> None:
        await _read_again(bench, "ab")
        await _rebalanced(bench, MINE)
        bench.timestamp = 2.0  # the topic was deleted and made anew; the same cases may come again
        await _read_again(bench, "ac")
        assert bench.handled == ["a", "b", "a", "c"]
        assert bench.acked[2:] == [(0, 0, 2), (0, 1, 2)]

    with_bench(test)


def test_what_another_owned_meanwhile_is_called() -> None:
    async def test(bench: Bench) -> None:
        await _read_again(bench, "a")
        await _rebalanced(bench)
        await _rebalanced(bench, MINE)
        await _read_again(bench, "a")
        assert bench.handled == ["a", "a"]
        assert bench.acked == [(0, 0, 1), (0, 0, 3)]

    with_bench(test)


def test_what_is_known_to_be_done_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "REMEMBERED", 4)

    async def test(bench: Bench) -> None:
        await _rebalanced(bench, MINE)
        await _read_again(bench, "abcdefghijkl")
        await _rebalanced(bench, MINE)
        await _read_again(bench, "abcdefghijkl")
        assert bench.acked[12:] == [(0, offset, 3) for offset in range(12)]
        again = bench.handled[12:]
        assert again == list("abcdefghijkl")[: len(again)], "the oldest"
        assert 12 - 2 * 5 <= len(again) <= 12 - 4

    with_bench(test)
