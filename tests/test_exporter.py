"""Claims about the exporter's readings that need no Kafka: files in, series out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from scraped import series, total
from toys import a_report

from schemas.adapters import AdapterRecord, GateReport
from schemas.case import Attempt, Case, Source, Verdict, Violation
from schemas.errors import BrokerError
from schemas.metrics_server import scrape
from schemas.outcomes import outcome_row
from schemas.settings import Model, Rubric, Rule, Settings, Task
from schemas.status import RolloutStatus, TrainerStatus, rollout_status_path, trainer_status_path
from streams.backlog import Backlog
from streams.exporter import families as f
from streams.exporter.gold import NEWEST_VERSIONS, GoldReading
from streams.exporter.lag import show_backlog
from streams.exporter.service import Reading
from streams.exporter.training import Announced, TrainingReading
from streams.landing import LandingChain


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    task = Task(topics=("log",), rubric=Rubric(rules=(Rule(id="kind", text="Be kind."),)), judge=Model(model="m"))
    return Settings(state_dir=str(tmp_path), tasks={"toy": task})


def gold_case(case_id: str, adapter: str = "", rule: str = "kind") -> Case:
    verdict = Verdict(passed=False, score=0, max_score=1, judge="m", violations=(Violation(rule),))
    attempt = Attempt(round=0, source="student", text="wait", model="m", adapter=adapter, verdict=verdict)
    case = Case(
        case_id=case_id,
        task="toy",
        split="train",
        source=Source(cluster="c", topic="log", partition=0, offset=0),
        attempts=(attempt,),
    )
    return case.ended("gold", "strategist", 1000)


def land(settings: Settings, cases: Iterable[Case]) -> None:
    chain = LandingChain(settings.gold, 0)
    start = chain.tip or 0
    rows = [outcome_row(case, 0, start + number) for number, case in enumerate(cases)]
    chain.write(start, start + len(rows), rows)


def shown() -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return series(scrape(f.FAMILIES))


def backlog(partition: int, lag: int, oldest_s: float | None, member: str = "a") -> Backlog:
    return Backlog("judge", "gs.attempts", partition, 10, 10 - lag, lag, 0.5, oldest_s, member, 1)


def test_the_gold_set_is_read_only_where_something_has_landed(settings: Settings) -> None:
    reading = GoldReading(settings)
    reading.read()
    reading.read()
    assert reading.reads == 1
    land(settings, [gold_case("one"), gold_case("two")])
    reading.read()
    assert reading.reads == 2
    assert total(shown(), "goldstream_gold_rows", task="toy") == 2
    assert total(shown(), "goldstream_landing_files") == 1


def test_a_redriven_case_lowers_what_it_was_counted_as(settings: Settings) -> None:
    dead = msgspec.structs.replace(gold_case("one"), outcome=None).ended("dead", "judge", 1000, "bad_answer")
    land(settings, [dead])
    GoldReading(settings).read()
    assert total(shown(), "goldstream_dead_letters", reason="bad_answer") == 1
    land(settings, [msgspec.structs.replace(gold_case("one"), epoch=1)])
    GoldReading(settings).read()
    assert total(shown(), "goldstream_dead_letters") == 0
    assert total(shown(), "goldstream_cases", outcome="gold") == 1


def test_old_versions_and_rules_that_a_judge_made_up_share_a_series(settings: Settings) -> None:
    versions = [f"v{number:04d}-abcdef" for number in range(NEWEST_VERSIONS + 5)]
    land(settings, [gold_case(version, version, rule=f"made up {version}") for version in versions])
    GoldReading(settings).read()
    judged = "goldstream_attempts_judged"
    assert total(shown(), judged, adapter="older") == 5
    assert total(shown(), judged, adapter=versions[-1]) == 1
    assert total(shown(), "goldstream_violations", rule="other") == len(versions)


def test_a_partition_whose_age_is_unknown_hides_none_that_is_known() -> None:
    settings = Settings()
    show_backlog(settings, [backlog(0, 5, None), backlog(1, 2, 40.0), backlog(2, 0, None, member="")])
    age = "goldstream_stage_oldest_record_age_seconds"
    assert total(shown(), age, stage="judge") == 40
    assert total(shown(), "goldstream_stage_lag", stage="judge") == 7
    assert total(shown(), "goldstream_kafka_consumer_group_topic_assigned_partitions", group_id="gs.judge") == 2
    show_backlog(settings, [backlog(0, 5, None)])
    assert not any(name == age for name, _ in shown()), "no age is shown where none could be read"
    show_backlog(settings, [backlog(0, 0, None)])
    assert any(name == age for name, _ in shown()), "0 where nothing waits"


def test_training_is_told_from_the_files_of_trainer_rollout_and_gate(settings: Settings) -> None:
    for path, status in (
        (trainer_status_path(settings, "toy"), TrainerStatus(task="toy", state="training", step=3, steps=9, error="x")),
        (
            rollout_status_path(settings, "toy"),
            RolloutStatus(
                task="toy", wanted="v2", serving="v1", servers={"a": "serves", "b": "no answer from 10.0.0.7"}
            ),
        ),
    ):
        path.parent.mkdir(parents=True)
        path.write_bytes(msgspec.json.encode(status))
    report = GateReport(
        task="toy", version="v0001-abcdef", incumbent="", decision="refuse", reason="", cases=50, before=0.5, after=0.4,
        gained=1, lost=6, p_value=0.1, at_ms=2000,
    )  # fmt: skip
    folder = settings.adapters / "toy" / "v0001-abcdef"
    folder.mkdir(parents=True)
    (folder / "gate.json").write_bytes(msgspec.json.encode(report))
    (settings.adapters / "toy" / "v-notes").mkdir()
    (settings.adapters / "toy" / "v-notes" / "gate.json").write_text("half")
    TrainingReading(settings).read()
    found = shown()
    assert total(found, "goldstream_trainer_state", task="toy", state="training") == 1
    assert total(found, "goldstream_trainer_state") == 1
    assert total(found, "goldstream_trainer_failed") == 1
    assert total(found, "goldstream_rollout_pending") == 1
    assert total(found, "goldstream_rollout_servers", state="failing") == 1
    assert total(found, "goldstream_gate_decision", version="v0001-abcdef", decision="refuse") == 1
    assert total(found, "goldstream_gate_pass_rate", side="after") == pytest.approx(0.4)
    assert "10.0.0.7" not in scrape(f.FAMILIES)


def test_refusals_are_counted_in_a_row_and_a_pass_ends_the_row(settings: Settings) -> None:
    reading, seen = TrainingReading(settings), []
    for number, decision in enumerate(("refuse", "refuse", "undecided", "refuse", "promote", "refuse")):
        version = f"v{number:04d}-abcdef"
        folder = settings.adapters / "toy" / version
        folder.mkdir(parents=True)
        (folder / "gate.json").write_bytes(msgspec.json.encode(a_report(version, decision=decision)))
        reading.read()
        seen.append(total(shown(), "goldstream_gate_refused_in_a_row", task="toy"))
    assert seen == [1, 2, 2, 3, 0, 1]


def test_the_disk_is_shown_before_there_is_any_gold(settings: Settings) -> None:
    GoldReading(settings).read()
    found = shown()
    assert 0 < total(found, "goldstream_gold_disk_free_bytes") <= total(found, "goldstream_gold_disk_size_bytes")


def test_the_newest_adapter_record_is_shown_and_an_older_one_ignored(settings: Settings) -> None:
    announced = Announced(settings)
    for version, sequence in (("v2", 2), ("v1", 1)):
        record = AdapterRecord(task="toy", version=version, lease_epoch=1, sequence=sequence, at_ms=5000, previous="")
        announced.adapter(b"toy", msgspec.json.encode(record))
    announced.adapter(b"toy", b"no record")
    info = {labels for name, labels in shown() if name == "goldstream_adapter_info"}
    assert info == {frozenset({"task": "toy", "version": "v2", "previous": "base", "fallback": "base"}.items())}


def test_a_pause_shows_at_its_stage_and_no_other(settings: Settings) -> None:
    announced = Announced(settings)
    announced.command(b"judge", b'{"stage":"judge","paused":true,"at_ms":1}')
    assert total(shown(), "goldstream_stage_paused", stage="judge") == 1
    assert total(shown(), "goldstream_stage_paused") == 1
    assert any(dict(labels).get("stage") == "intake" for name, labels in shown() if name == "goldstream_stage_paused")


def test_a_reading_that_fails_is_shown_as_down_and_tried_again() -> None:
    broken = [True, True, False]

    def act() -> None:
        if broken.pop(0):
            raise BrokerError("no Kafka answers") if len(broken) > 1 else ZeroDivisionError("unforeseen")

    reading = Reading("try", 1.0, act)
    seen = []
    for _ in range(3):
        reading.read()
        seen.append(total(shown(), "goldstream_exporter_up", reading="try"))
    assert seen == [0, 0, 1]
