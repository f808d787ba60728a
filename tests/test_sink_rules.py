"""The sink's rules: which arrivals become which rows, and what a file's range covers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ended_cases import AT_MS, FakeRecord, ended, land, records, writer
from kafka import TopicPartition
from kafka.errors import KafkaConnectionError, NodeNotReadyError

from schemas.case import Case, Source, coordinates_id, encode_case
from schemas.errors import Fenced, GoldError
from schemas.gold import read_chain, read_outcomes
from schemas.settings import Sink as SinkSettings
from streams.landing import LandingChain
from streams.partition_writer import PartitionWriter
from streams.sink import Sink, resume_offset


def elsewhere(case: Case, offset: int, **changes: Any) -> Case:
    """Returns the case as read from another record of the product's log."""
    return msgspec.structs.replace(case, source=msgspec.structs.replace(case.source, offset=offset), **changes)


def landed(gold: Path, *names: str) -> list[tuple[object, ...]]:
    table = read_outcomes(gold, names)
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def test_a_repeated_hop_is_written_once(tmp_path: Path) -> None:
    land(tmp_path, [ended(1), ended(2), ended(1, "unresolved")])
    assert landed(tmp_path, "case_id", "outcome") == [("req-1", "gold"), ("req-2", "gold")]


def test_a_repeat_after_a_restart_is_skipped_and_its_range_written(tmp_path: Path) -> None:
    land(tmp_path, [ended(1)])
    assert land(tmp_path, [ended(1), ended(1)]) == 3
    assert len(read_outcomes(tmp_path)) == 1
    assert [(f.start, f.end) for f in read_chain(tmp_path, 0)] == [(0, 1), (1, 3)]


def test_a_higher_epoch_supersedes_and_a_lower_one_is_a_repeat(tmp_path: Path) -> None:
    land(tmp_path, [ended(1, "dead", reason="model_timeout"), ended(1, "gold", epoch=2)])
    land(tmp_path, [ended(1, "unresolved", epoch=1), ended(1, "dead"), ended(1, "dead", epoch=2)])
    assert landed(tmp_path, "case_id", "epoch", "outcome") == [("req-1", 2, "gold")]


def test_the_same_id_and_body_from_another_record_is_a_duplicate_without_text(tmp_path: Path) -> None:
    first = ended(1)
    second = elsewhere(first, 50)
    land(tmp_path, [first, second])
    rows = read_outcomes(tmp_path).to_pylist()
    assert [(r["case_id"], r["outcome"], r["reason"]) for r in rows] == [
        ("req-1", "gold", ""),
        (coordinates_id(second.source), "dropped", "duplicate"),
    ]
    dropped = rows[1]
    assert "req-1" in dropped["detail"]
    assert dropped["messages"] == dropped["attempts"] == []
    assert dropped["strategy_guardrail"] is None
    assert dropped["production_answer"] is dropped["case_json"] is None
    assert dropped["prompt"] == ""
    assert dropped["calls"] == 4  # what it cost stays known


def test_the_same_id_with_another_body_is_a_conflict_and_the_first_wins(tmp_path: Path) -> None:
    first = ended(1)
    land(tmp_path, [first])
    land(tmp_path, [elsewhere(first, 50, body_sha256="another")])
    assert [(o, r) for o, r in landed(tmp_path, "outcome", "reason")] == [("gold", ""), ("dropped", "id_conflict")]


def test_repeats_of_a_duplicate_are_skipped_across_restarts(tmp_path: Path) -> None:
    first = ended(1)
    second = elsewhere(first, 50)
    land(tmp_path, [first, second, second])
    land(tmp_path, [second, first, elsewhere(first, 51)])
    assert [outcome for (outcome,) in landed(tmp_path, "outcome")] == ["gold", "dropped", "dropped"]


def test_a_message_that_is_no_case_becomes_a_dead_row(tmp_path: Path) -> None:
    target = writer(tmp_path)
    unended = msgspec.structs.replace(ended(9), outcome=None)
    values = [b"{not json", None, b'{"case_id": 1}', encode_case(unended), encode_case(ended(1))]
    for offset, value in enumerate(values):
        target.add(FakeRecord(offset, value))
    target.flush()
    rows = read_outcomes(tmp_path).to_pylist()
    assert [(r["outcome"], r["reason"]) for r in rows] == [("dead", "undecodable_case")] * 4 + [("gold", "")]
    assert rows[0]["case_id"] == coordinates_id(Source(cluster="c", topic="gs.outcomes", partition=0, offset=0))
    assert (rows[0]["source_topic"], rows[0]["source_offset"], rows[0]["case_json"]) == ("gs.outcomes", 0, None)
    assert "req-9" in rows[3]["detail"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda case: case.ended("gold", "judge", 10**18),  # a date beyond the calendar
        lambda case: msgspec.structs.replace(case, source=msgspec.structs.replace(case.source, partition=2**40)),
        lambda case: msgspec.structs.replace(case, retries=0, created_ms=2**63 - 1, epoch=2**40),
    ],
)
def test_a_value_that_fits_no_column_does_not_stop_the_chain(tmp_path: Path, spoil: Callable[[Case], Case]) -> None:
    land(tmp_path, [ended(1), spoil(ended(2)), ended(3)])
    assert [o for (o,) in landed(tmp_path, "outcome")] == ["gold", "dead", "gold"]


def test_a_timestamp_beyond_the_calendar_does_not_stop_the_chain(tmp_path: Path) -> None:
    target = writer(tmp_path)
    target.add(FakeRecord(0, b"", timestamp=2**62))
    assert target.flush() == 1


def test_offsets_without_records_belong_to_the_range(tmp_path: Path) -> None:
    target = writer(tmp_path)
    target.add(FakeRecord(3, encode_case(ended(1))))
    target.reached(6)
    assert target.flush() == 6
    assert target.flush() is None
    target.reached(8)
    assert target.flush() == 8
    assert [(f.start, f.end) for f in read_chain(tmp_path, 0)] == [(0, 6), (6, 8)]


def test_an_offset_behind_the_range_halts(tmp_path: Path) -> None:
    target = writer(tmp_path)
    target.add(FakeRecord(3, encode_case(ended(1))))
    with pytest.raises(GoldError, match="went back from offset 4 to 3"):
        target.add(FakeRecord(3, encode_case(ended(1))))


def test_a_range_is_due_by_rows_bytes_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    settings = SinkSettings(rows_per_file=2, seconds_per_file=5.0)
    chain = LandingChain(tmp_path, 0)
    target = PartitionWriter(chain, start=0, cluster="c", topic="t", settings=settings, clock=lambda: now_s)
    one, two, three, four = records([ended(n) for n in range(4)])
    assert not target.due
    target.add(one)
    assert not target.due
    target.add(two)
    assert target.due  # rows
    target.flush()
    target.add(three)
    assert not target.due
    now_s = 5.0
    assert target.due  # time
    target.flush()
    monkeypatch.setattr("streams.partition_writer.BYTES_PER_FILE", 100)
    target.add(four)
    assert target.due  # bytes


def test_a_chain_behind_the_log_start_halts_and_says_what_to_do(tmp_path: Path) -> None:
    land(tmp_path, [ended(1)])
    with pytest.raises(GoldError, match=r"gs\.outcomes-0: .* Retention deleted 4 outcomes"):
        resume_offset(LandingChain(tmp_path, 0), "gs.outcomes", log_start=5, log_end=9)


def test_a_chain_ahead_of_the_topic_halts(tmp_path: Path) -> None:
    land(tmp_path, [ended(1), ended(2)])
    with pytest.raises(GoldError, match="made anew"):
        resume_offset(LandingChain(tmp_path, 0), "gs.outcomes", log_start=0, log_end=1)


def test_a_chain_begins_at_the_log_start(tmp_path: Path) -> None:
    assert resume_offset(LandingChain(tmp_path, 0), "gs.outcomes", log_start=5, log_end=9) == 5
    land(tmp_path, [ended(1)])
    assert resume_offset(LandingChain(tmp_path, 0), "gs.outcomes", log_start=0, log_end=1) == 1


P0 = TopicPartition("gs.outcomes", 0)


class FakeConsumer:
    """A consumer of one partition's log; `script` runs before each poll and may rebalance, fail or stop."""

    def __init__(self, cases: list[Case], script: list[Callable[[], object]]) -> None:
        self.log = records(cases)
        self.script = script
        self.listener: Any = None
        self.offset = 0
        self.paused = False
        self.committed: list[int] = []

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0}

    def subscribe(self, topics: list[str], listener: Any) -> None:
        self.listener = listener

    def poll(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[FakeRecord]]:
        action = self.script.pop(0)
        result = action()
        if self.paused or isinstance(result, int):  # an int: at most so many records
            max_records = result if isinstance(result, int) else 0
        batch = [] if self.paused else self.log[self.offset : self.offset + max_records]
        self.offset += len(batch)
        return {P0: batch} if batch else {}

    def assign(self) -> None:
        self.listener.on_partitions_revoked([P0])
        self.paused = False
        self.listener.on_partitions_assigned([P0])

    def pause(self, *partitions: TopicPartition) -> None:
        self.paused = True

    def resume(self, *partitions: TopicPartition) -> None:
        self.paused = False

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.offset = offset

    def position(self, partition: TopicPartition, timeout_ms: int) -> int:
        return self.offset

    def beginning_offsets(self, partitions: list[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 0)

    def end_offsets(self, partitions: list[TopicPartition], timeout_ms: int) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, len(self.log))

    def commit(self, offsets: dict[TopicPartition, Any], timeout_ms: int) -> None:
        self.committed.append(offsets[P0].offset)


def run_script(
    gold: Path, script: Callable[[FakeConsumer, threading.Event], list[Callable[[], object]]]
) -> FakeConsumer:
    """Runs a sink over five outcomes until the script sets `stop`."""
    stop = threading.Event()
    consumer = FakeConsumer([ended(n) for n in range(5)], [])
    consumer.script = script(consumer, stop)
    settings = SinkSettings(rows_per_file=3, seconds_per_file=3600.0)
    sink = Sink(consumer, gold, topic="gs.outcomes", cluster="c", settings=settings)
    sink.run(stop)
    return consumer


def offsets(gold: Path) -> list[object]:
    return read_outcomes(gold, ["kafka_offset"])["kafka_offset"].to_pylist()


def nothing() -> None:
    return None


def test_the_sink_writes_full_files_then_the_rest_at_stop_and_commits_after_each(tmp_path: Path) -> None:
    ready: list[int] = []
    stop = threading.Event()
    consumer = FakeConsumer([ended(n) for n in range(5)], [])
    consumer.script = [consumer.assign, nothing, stop.set]
    settings = SinkSettings(rows_per_file=3, seconds_per_file=3600.0)
    Sink(consumer, tmp_path, topic="gs.outcomes", cluster="c", settings=settings).run(stop, lambda: ready.append(1))
    assert [(f.start, f.end) for f in read_chain(tmp_path, 0)] == [(0, 3), (3, 5)]
    assert consumer.committed == [3, 5]
    assert ready == [1]


def test_a_rebalance_drops_the_buffer_and_reads_it_again_from_the_tip(tmp_path: Path) -> None:
    run_script(tmp_path, lambda c, stop: [c.assign, lambda: 2, c.assign, nothing, stop.set])
    assert offsets(tmp_path) == [0, 1, 2, 3, 4]


def test_records_polled_while_the_partition_changed_hands_are_not_taken(tmp_path: Path) -> None:
    def changes_hands_midway(consumer: FakeConsumer) -> int:
        consumer.listener.on_partitions_revoked([P0])  # the note comes, and records of the old position with it
        consumer.listener.on_partitions_assigned([P0])
        consumer.paused, consumer.offset = False, 4
        return 1

    run_script(tmp_path, lambda c, stop: [c.assign, lambda: 2, lambda: changes_hands_midway(c), nothing, stop.set])
    assert offsets(tmp_path) == [0, 1, 2, 3, 4]


def test_a_sink_that_slept_through_its_replacement_is_fenced(tmp_path: Path) -> None:
    def another_sink_writes() -> int:
        land(tmp_path, [ended(n) for n in range(4)])
        return 2

    with pytest.raises(Fenced):
        run_script(tmp_path, lambda c, stop: [c.assign, lambda: 2, another_sink_writes, stop.set])
    assert offsets(tmp_path) == [0, 1, 2, 3]


def test_a_broker_outage_is_waited_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def outage(error: Exception) -> Callable[[], object]:
        def fail() -> object:
            raise error

        return fail

    monkeypatch.setattr("streams.sink._OUTAGE_WAIT_S", 0.0)
    run_script(
        tmp_path,
        lambda c, stop: [outage(NodeNotReadyError()), c.assign, outage(KafkaConnectionError()), nothing, stop.set],
    )
    assert offsets(tmp_path) == [0, 1, 2, 3, 4]


def test_row_time_is_the_time_the_case_ended(tmp_path: Path) -> None:
    land(tmp_path, [ended(1)])
    assert read_outcomes(tmp_path, ["ended_at"])["ended_at"][0].value == AT_MS
