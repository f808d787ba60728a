"""The daily quota: how many are taken, and that a record read again is decided as before."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping

import pytest

from schemas.case import Case, Source
from schemas.settings import Settings, Task
from streams.admission.quota import DAY_MS, Counts, Partition, Quotas, decode_counts, encode_counts

TODAY = 20_000
NOW = TODAY * DAY_MS + 5_000


def record(partition: int, offset: int, day: int = TODAY, at_ms: int | None = None) -> Case:
    stamp = day * DAY_MS + 1000 if at_ms is None else at_ms
    source = Source(cluster="c", topic="logs", partition=partition, offset=offset, timestamp_ms=stamp)
    return Case(case_id=f"{partition}-{offset}", task="toy", split="train", source=source)


class Kafka:
    """What Kafka keeps of a group: a position and its metadata for each partition; and the processes that read."""

    def __init__(self, partitions: int, per_day: int) -> None:
        self.settings = Settings(tasks={"toy": Task(topics=("logs",), per_day=per_day)})
        self.partitions = partitions
        self.positions = dict.fromkeys(range(partitions), 0)
        self.metadata = dict.fromkeys(range(partitions), "")
        self.refuses = False

    def process(self, assigned: Iterable[int], ends: Mapping[int, int] | None = None) -> Process:
        return Process(self, list(assigned), ends or {})


class Process:
    def __init__(self, kafka: Kafka, assigned: list[int], ends: Mapping[int, int]) -> None:
        self.kafka = kafka
        self.quotas = Quotas(kafka.settings, lambda topic: range(kafka.partitions), self.read, self.write)
        for number in assigned:
            counts = decode_counts(kafka.metadata[number])
            self.quotas.assign(Partition("logs", number), counts, ends.get(number, kafka.positions[number]))
            self.quotas.passed(Partition("logs", number), kafka.positions[number])

    def read(self, partitions: Collection[Partition]) -> dict[Partition, Counts]:
        return {one: decode_counts(self.kafka.metadata[one.partition]) for one in partitions}

    def write(self, partitions: Collection[Partition]) -> None:
        if self.kafka.refuses:
            raise ConnectionError
        for one in partitions:
            self.kafka.metadata[one.partition] = encode_counts(self.quotas.at_committed(one))

    def take(self, *cases: Case) -> list[str]:
        return [case.case_id for case in cases if self.quotas.take(case, NOW)]

    def commit(self, *cases: Case) -> None:
        for case in cases:
            number = case.source.partition
            self.kafka.positions[number] = case.source.offset + 1
            self.kafka.metadata[number] = encode_counts(self.quotas.at_position(Partition("logs", number)))
            self.quotas.passed(Partition("logs", number), case.source.offset + 1)


def test_one_process_takes_exactly_the_quota_however_uneven_the_partitions_are() -> None:
    for spread in ([100, 0, 0], [50, 50, 50], [1, 30, 100]):
        kafka = Kafka(3, per_day=40)
        process = kafka.process(range(3))
        cases = [record(p, n) for p, count in enumerate(spread) for n in range(count)]
        random.Random(4).shuffle(cases)
        cases.sort(key=lambda case: case.source.offset)
        assert len(process.take(*cases)) == 40


def test_each_day_of_a_backlog_has_its_own_quota_and_late_records_count_for_the_present_day() -> None:
    process = Kafka(1, per_day=3).process([0])
    taken = process.take(*(record(0, n, day=TODAY - 3 + n // 10) for n in range(40)))
    assert [int(name.split("-")[1]) // 10 for name in taken] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert process.take(record(0, 41, day=TODAY - 2)) == []


def test_a_record_from_the_future_or_without_a_time_counts_for_today() -> None:
    process = Kafka(1, per_day=2).process([0])
    assert process.take(record(0, 0, day=TODAY + 9000), record(0, 1, at_ms=0), record(0, 2)) == ["0-0", "0-1"]


@pytest.mark.parametrize("seed", range(30))
def test_what_was_admitted_before_a_crash_is_admitted_when_read_again_in_any_order(seed: int) -> None:
    """Partitions are read by one or two processes, which die between deciding and committing at random times."""
    dice = random.Random(seed)
    kafka = Kafka(3, per_day=dice.choice([5, 17, 60]))
    logs = {p: [record(p, n, day=TODAY - 1 + (n > 25)) for n in range(dice.randrange(5, 50))] for p in range(3)}
    ends = {p: len(log) for p, log in logs.items()}
    admitted: set[str] = set()
    for _ in range(200):
        if all(kafka.positions[p] == ends[p] for p in logs):
            break
        cut = dice.choice([0, 1, 3])
        order = dice.sample(range(3), 3)
        for mine in (order[:cut], order[cut:]):
            process = kafka.process(mine, ends)
            for _ in range(dice.randrange(1, 4)):
                batch = [
                    case
                    for p in dice.sample(mine, len(mine))
                    for case in logs[p][kafka.positions[p] : kafka.positions[p] + dice.randrange(0, 12)]
                ]
                before = {case.case_id for case in batch} & admitted
                taken = set(process.take(*batch))
                assert before <= taken
                admitted |= taken
                if dice.random() < 0.5:
                    break  # dies: decided, produced, not committed
                process.commit(*batch)
    for day in (TODAY - 1, TODAY):
        of_day = [c for log in logs.values() for c in log if c.source.timestamp_ms // DAY_MS == day]
        taken_of_day = sum(c.case_id in admitted for c in of_day)
        assert taken_of_day <= kafka.settings.tasks["toy"].per_day
        assert taken_of_day >= min(len(of_day), 1)


def test_a_grant_that_is_not_committed_is_not_used() -> None:
    kafka = Kafka(2, per_day=8)
    process = kafka.process([0, 1])
    kafka.refuses = True
    with pytest.raises(ConnectionError):
        process.take(record(0, 0))
    kafka.refuses = False
    assert len(kafka.process([0, 1]).take(*(record(n % 2, n) for n in range(30)))) == 8


def test_two_processes_together_stay_within_the_quota() -> None:
    kafka = Kafka(4, per_day=100)
    one, two = kafka.process([0, 1]), kafka.process([2, 3])
    taken = 0
    for n in range(200):
        taken += len(one.take(record(n % 2, n))) + len(two.take(record(2 + n % 2, n)))
    assert 100 - 4 * 6 <= taken <= 100


def test_a_task_without_a_quota_takes_everything() -> None:
    kafka = Kafka(1, per_day=0)
    process = kafka.process([0])
    assert not process.quotas
    assert len(process.take(*(record(0, n) for n in range(50)))) == 50
    assert kafka.metadata[0] == ""


def test_metadata_that_is_not_ours_counts_as_nothing_taken() -> None:
    assert decode_counts("") == decode_counts("{") == decode_counts('{"a": 3}') == decode_counts("x") == {}
