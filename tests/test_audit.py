"""The audit against a real broker: it finds every case wherever it is, and says what is nowhere."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from ended_cases import ended, land
from kafka import KafkaProducer, TopicPartition
from pipeline import STUB_TASK, openai_record, processes, produce, toy_answer, wait_for
from steps import Make, cases_on, command_line, commit_to_the_end, put, running, sink_all, start, take_in, until
from stub_models import StubModels

from schemas.case import Attempt, Verdict
from schemas.kafka import client_options
from streams.audit import Audit, PartitionBalance, audit, gaps
from streams.intake import run_intake
from streams.lag import LagReader
from streams.lookup import make_reader, read_records
from streams.topics import connect_admin, create_topics, ensure_source_topic


def one_partition(found: Audit) -> PartitionBalance:
    (balance,) = found.partitions
    return balance


def test_every_case_is_counted_once_at_its_furthest(make_settings: Make, tmp_path: Path) -> None:
    settings = start(make_settings, "logs-where")
    produce(settings, "logs-where", [*(openai_record(f"q {n}", f"req-{n}") for n in range(10)), None, b"no JSON"])
    take_in(settings)
    found = audit(settings)
    balance = one_partition(found)
    assert (balance.records, balance.in_flight, balance.not_landed, balance.ended) == (12, 10, 2, {})
    assert [tuple(w) for w in found.waiting] == [("logs-where", settings.topic("prompts"), 10)]
    # Copies lie on several topics, as they do before a stage commits; each case counts where it is furthest.
    first = Attempt(round=0, source="student", text="a", model="m")
    failed = Verdict(passed=False, score=0, max_score=1, judge="m")
    attempted = [msgspec.structs.replace(case, attempts=(first,)) for case in cases_on(settings, "prompts")]
    judged = [msgspec.structs.replace(c, attempts=(msgspec.structs.replace(first, verdict=failed),)) for c in attempted]
    put(settings, "retry.1s", msgspec.structs.replace(attempted[0], retries=1))
    put(settings, "attempts", *attempted[0:6], msgspec.structs.replace(attempted[1], retries=1))
    put(settings, "refine", *judged[1:3])
    put(settings, "accepted", judged[3])
    put(settings, "outcomes", judged[4].ended("gold", "strategist", 1), judged[5].ended("unresolved", "judge", 1))
    sink_all(settings)
    put(settings, "outcomes", judged[6].ended("gold", "strategist", 1))
    produce(settings, "logs-where", [openai_record("later")])
    found = audit(settings)
    balance = one_partition(found)
    assert (balance.records, balance.in_flight, balance.not_landed, balance.unread) == (12, 7, 1, 1)
    assert balance.ended == {"dead": 1, "dropped": 1, "gold": 1, "unresolved": 1}
    assert {w.topic.removeprefix(settings.kafka.topic_prefix): w.cases for w in found.waiting} == {
        "prompts": 3,
        "retry.1s": 1,
        "refine": 2,
        "accepted": 1,
    }
    assert found.balanced
    result = command_line(settings, tmp_path, "audit")
    assert result.exit_code == 0, result.output
    assert "balanced: 12 records = 4 ended + 7 in flight + 1 not landed + 0 missing; 0 double" in result.output
    # A redriven case is on its way again, though its dead row has landed.
    dead = next(case for case in cases_on(settings, "outcomes") if case.outcome and case.outcome.kind == "dead")
    put(settings, "prompts", msgspec.structs.replace(dead, epoch=1, outcome=None))
    balance = one_partition(audit(settings, "toy"))
    assert (balance.records, balance.in_flight, balance.ended) == (12, 8, {"dropped": 1, "gold": 1, "unresolved": 1})


def test_a_case_a_stage_swallowed_is_missing_until_it_turns_up(make_settings: Make, tmp_path: Path) -> None:
    settings = start(make_settings, "logs-lost")
    produce(settings, "logs-lost", [openai_record(f"q {n}", f"req-{n}") for n in range(6)])
    take_in(settings)
    cases = cases_on(settings, "prompts")
    commit_to_the_end(settings, "student", "prompts")
    put(settings, "attempts", *cases[:2], *cases[3:])
    found = audit(settings, again_after_s=0.0)
    assert not found.balanced
    assert [tuple(place) for place in found.missing] == [("logs-lost", 0, 2)]
    assert (one_partition(found).records, one_partition(found).missing) == (6, 1)
    result = command_line(settings, tmp_path, "audit", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["missing"] == [["logs-lost", 0, 2]]
    put(settings, "attempts", cases[2])
    assert audit(settings, again_after_s=0.0).balanced


def test_each_call_of_a_batched_record_is_counted_and_missed_by_itself(make_settings: Make, tmp_path: Path) -> None:
    settings = start(make_settings, "logs-batched")
    batch = [json.loads(openai_record(f"q {n}", f"req-{n}")) for n in range(4)]
    produce(settings, "logs-batched", [json.dumps([*batch, {"x": 1}]).encode(), openai_record("single", "req-9")])
    take_in(settings)
    sink_all(settings)
    balance = one_partition(found := audit(settings))
    assert found.balanced
    assert (balance.records, balance.in_flight, balance.ended) == (6, 5, {"dead": 1})
    cases = cases_on(settings, "prompts")
    commit_to_the_end(settings, "student", "prompts")
    put(settings, "attempts", *(case for case in cases if case.case_id not in ("req-1", "req-2")))
    found = audit(settings, again_after_s=0.0)
    assert [tuple(place) for place in found.missing] == [("logs-batched", 0, 0)] * 2
    assert (found.balanced, one_partition(found).records) == (False, 6)
    put(settings, "attempts", *(case for case in cases if case.case_id in ("req-1", "req-2")))
    assert audit(settings, again_after_s=0.0).balanced


def test_offsets_without_a_record_are_not_missing(make_settings: Make) -> None:
    settings = start(make_settings, "logs-transactions")
    producer = KafkaProducer(**client_options(settings), transactional_id=f"{settings.kafka.topic_prefix}tx")
    producer.init_transactions()
    for number in range(6):
        producer.begin_transaction()
        producer.send("logs-transactions", value=openai_record(f"q {number}", f"req-{number}"), key=b"k")
        producer.flush()
        if number == 3:
            producer.abort_transaction()
        else:
            producer.commit_transaction()
    producer.close(timeout=5)
    take_in(settings)
    found = audit(settings, again_after_s=0.0)
    assert found.balanced
    assert (one_partition(found).records, one_partition(found).committed) == (5, 12)
    commit_to_the_end(settings, "student", "prompts")
    found = audit(settings, again_after_s=0.0)
    assert [place.offset for place in found.missing] == [0, 2, 4, 8, 10]


def test_what_retention_deleted_is_not_compared_and_said(make_settings: Make) -> None:
    settings = start(make_settings, "logs-retention")
    produce(settings, "logs-retention", [openai_record(f"q {n}", f"req-{n}") for n in range(10)])
    take_in(settings)
    cases = cases_on(settings, "prompts")
    commit_to_the_end(settings, "student", "prompts")
    put(settings, "attempts", cases[0], cases[3], *cases[5:9])  # 1, 2, 4 and 9 are lost
    admin = connect_admin(settings)
    admin.delete_records({TopicPartition("logs-retention", 0): 5})
    balance = one_partition(found := audit(settings, again_after_s=0.0))
    assert (balance.uncomparable, balance.deleted_unread) == (3, 0)
    assert [place.offset for place in found.missing] == [9]
    produce(settings, "logs-retention", [openai_record(f"q {n}", f"req-{n}") for n in range(10, 14)])
    admin.delete_records({TopicPartition("logs-retention", 0): 12})
    admin.close()
    balance = one_partition(found := audit(settings, again_after_s=0.0))
    assert (balance.uncomparable, balance.deleted_unread, balance.unread) == (4, 2, 2)
    assert found.balanced


def test_records_from_before_intake_began_are_not_missing(make_settings: Make) -> None:
    settings = start(make_settings, "logs-latest", "intake.start_at=latest")
    produce(settings, "logs-latest", [openai_record(f"before {n}") for n in range(3)])
    ahead = int(time.time() * 1000) + 30_000
    producer = KafkaProducer(**client_options(settings), acks="all")
    # Logged before intake begins, by a machine whose clock is ahead of intake's.
    producer.send("logs-latest", value=openai_record("ahead"), key=b"k", timestamp_ms=ahead).get(timeout=30)
    producer.close(timeout=5)
    with running(lambda stop, ready: run_intake(settings, stop, ready)), LagReader(settings) as lag:
        produce(settings, "logs-latest", [openai_record("after", "req-1")])
        until(lambda: all(row.committed == 5 for row in lag.read() if row.group == "intake"))
    balance = one_partition(found := audit(settings, again_after_s=0.0))
    assert (balance.records, balance.in_flight, balance.missing) == (1, 1, 0)
    assert found.balanced


def test_double_rows_are_found(make_settings: Make, tmp_path: Path) -> None:
    settings = start(make_settings, "logs-double")
    land(settings.gold, [ended(1), ended(2), ended(2, "dead", epoch=1)], partition=0)
    assert audit(settings).balanced
    same_record = msgspec.structs.replace(ended(1), case_id="at-other")
    land(settings.gold, [ended(2), same_record], partition=1)
    found = audit(settings)
    assert (found.balanced, found.double_rows) == (False, 2)
    assert [one.get("case_id") or one["case_ids"] for one in found.double] == ["req-2", ["at-other", "req-1"]]
    result = command_line(settings, tmp_path, "audit")
    assert result.exit_code == 1
    assert "NOT BALANCED" in result.output


def test_a_record_is_read_again_by_its_coordinates(make_settings: Make) -> None:
    settings = start(make_settings, "logs-again")
    produce(settings, "logs-again", [b"zero", None, *(b"%d" % n for n in range(2, 3000))])
    reader = make_reader(settings)
    try:
        places = [("logs-again", 0, n) for n in (2999, 0, 1, 1500, 3000)] + [("logs-again", 7, 0), ("nowhere", 0, 0)]
        found = read_records(reader, places)
    finally:
        reader.close()
    assert {place[2]: record.value for place, record in found.items()} == {
        0: b"zero",
        1: None,
        1500: b"1500",
        2999: b"2999",
    }


@pytest.mark.parametrize("seed", range(20))
def test_gaps_and_known_offsets_together_are_the_whole_range(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = np.unique(rng.integers(0, 60, rng.integers(0, 50)))
    start, end = sorted(int(n) for n in rng.integers(0, 60, 2))
    missing = [offset for first, after in gaps(known, start, end) for offset in range(first, after)]
    assert missing == [offset for offset in range(start, end) if offset not in known]


def test_nothing_is_missing_at_any_moment_while_everything_moves(
    make_settings: Make, models: StubModels, tmp_path: Path
) -> None:
    models.answer = toy_answer
    settings = make_settings(STUB_TASK.format(topic="logs-moving", api_base=models.api_base))
    create_topics(settings)
    ensure_source_topic(settings, "logs-moving", partitions=2)
    produce(settings, "logs-moving", [openai_record(f"question {n}", f"req-{n}") for n in range(60)])
    balances: list[Audit] = []

    def balanced_and_done() -> bool:
        balances.append(audit(settings, again_after_s=0.0))
        assert balances[-1].balanced, balances[-1]
        return sum(sum(b.ended.values()) for b in balances[-1].partitions) == 60

    with processes(settings, tmp_path / "goldstream.toml", "intake", "worker", "sink") as supervisor:
        wait_for(balanced_and_done, "all cases ended", supervisor)
    assert any(b.waiting for b in balances)
    assert not balances[-1].waiting
