"""What is forgotten on its way: in a stage, on a retry topic, as a dead letter; and by two commands at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
from factory_settings import process_options
from kafka import KafkaProducer
from stage_bench import Bench, with_bench
from steps import Make, cases_on, put, running, sink_all, start, take_in, until
from test_forget import factory, log

from schemas.case import Attempt, Case, Message, Source
from schemas.errors import ModelUnavailable
from schemas.kafka import client_options
from schemas.topics import OUTCOMES, retry_topic
from streams.dlq import list_letters, redrive
from streams.forgetting.forget import forget, key_of, read_topic
from streams.gold import query, stats
from streams.retries import run_retries


def assert_bare(case: Case) -> None:
    """Nothing of a case is left but that it was, where it came from and what it cost."""
    assert case.outcome is not None
    assert (case.outcome.kind, case.outcome.reason) == ("dropped", "forgotten")
    assert not any((case.messages, case.attempts, case.user, case.trace_id, case.session, case.strategy))


def test_a_stage_does_not_work_on_what_is_forgotten_and_drops_what_is_forgotten_meanwhile() -> None:
    async def test(bench: Bench) -> None:
        bench.forgotten.add("hash of before")
        bench.hold("meanwhile")
        bench.forgotten.add("by its id")
        for name in ("before", "by its id", "meanwhile", "kept"):
            bench.send(name, user=f"hash of {name}")
        await bench.settle()
        bench.forgotten.add("hash of meanwhile")
        bench.release("meanwhile")
        await bench.settle()
        assert bench.handled == ["meanwhile", "kept"]
        ended = {case.case_id: (topic, case) for topic, case in bench.produced}
        for name in ("before", "by its id", "meanwhile"):
            topic, case = ended[name]
            assert topic == bench.stage.settings.topic(OUTCOMES)
            assert_bare(case)
        assert ended["kept"][1].messages
        assert (bench.offsets, bench.stage.counts["forgotten"]) == ([0, 1, 2, 3], 3)

    with_bench(test)


def test_a_case_forgotten_while_its_model_fails_does_not_go_on_to_a_retry_topic() -> None:
    async def test(bench: Bench) -> None:
        bench.hold("a")
        bench.errors["a"] = ModelUnavailable("down")
        bench.send("a", user="hash")
        await bench.settle()
        bench.forgotten.add("hash")
        bench.release("a")
        await bench.settle()
        ((topic, case),) = bench.produced
        assert topic == bench.stage.settings.topic(OUTCOMES)
        assert_bare(case)

    with_bench(test)


def test_a_case_forgotten_while_it_waits_for_a_retry_ends_without_its_text(make_settings: Make) -> None:
    settings = start(make_settings, "moving1", "intake.split_key=a key of this test")

    def waiting(number: int, user: str) -> Case:
        return Case(
            case_id=f"req-{number}",
            task="toy",
            split="train",
            source=Source(cluster="c", topic="moving1", partition=0, offset=number),
            created_ms=number,
            messages=(Message("user", "secret question"),),
            attempts=(Attempt(round=0, source="student", text="secret", model="m"),),
            user=key_of(settings, "user", user),
            retry_stage="judge",
        )

    put(settings, retry_topic(1), waiting(0, "ann"), waiting(1, "bob"))
    forget(settings, "user", "ann")
    with running(lambda stop, ready: run_retries(settings, stop, ready)):
        until(lambda: len(cases_on(settings, "attempts")) + len(cases_on(settings, "outcomes")) == 2)
    (dropped,) = cases_on(settings, "outcomes")
    assert dropped.case_id == "req-0"
    assert_bare(dropped)
    assert [case.case_id for case in cases_on(settings, "attempts")] == ["req-1"]


def test_a_dead_letter_whose_record_is_of_somebody_forgotten_is_not_redriven(make_settings: Make) -> None:
    settings = start(make_settings, "moving2", "intake.split_key=a key of this test", "intake.max_record_bytes=500")
    producer = KafkaProducer(**client_options(settings), acks="all")
    for user in ("ann", "bob"):  # refused unread: the letters do not say whose they are
        request = {"messages": [{"role": "user", "content": f"{user}: " + "secret " * 100}], "user": user}
        response = {"id": f"req-{user}", "choices": [{"message": {"role": "assistant", "content": "no"}}]}
        record = json.dumps({"request": request, "response": response}).encode()
        producer.send("moving2", value=record, key=b"k").get(timeout=30)
    producer.close(timeout=5)
    take_in(settings)
    sink_all(settings)
    forget(settings, "user", "ann")
    assert len(list_letters(settings, reason="too_large")) == 2
    wider = msgspec.structs.replace(settings, intake=msgspec.structs.replace(settings.intake, max_record_bytes=10_000))
    results = sorted((one.result, one.detail) for one in redrive(wider, reason="too_large", stage="intake"))
    assert [result for result, _ in results] == ["redriven", "refused again"]
    assert results[1][1].startswith("forgotten")
    (sent,) = cases_on(settings, "prompts")
    assert sent.prompt().startswith("bob")


def test_the_dead_letters_of_somebody_forgotten_are_none_any_more(make_settings: Make) -> None:
    settings = start(make_settings, "moving3", "intake.split_key=a key of this test")
    log(settings, "moving3", ["ann", "bob"])
    take_in(settings)
    dead = [case.ended("dead", "judge", case.created_ms + 1, "bad_answer") for case in cases_on(settings, "prompts")]
    put(settings, "outcomes", *dead)
    sink_all(settings)
    forget(settings, "user", "ann")
    assert [one.case_id for one in redrive(settings, reason="bad_answer", stage="judge")] == ["req-1"]
    assert list(redrive(settings, case_id="req-0")) == []
    assert [case.case_id for case in cases_on(settings, "attempts")] == ["req-1"]


def test_two_forget_commands_at_once_both_do_theirs_and_report_it(make_settings: Make, tmp_path: Path) -> None:
    settings = factory(make_settings, "moving4", ["ann", "bob", "ann", "eve"])
    options = process_options(settings, tmp_path / "goldstream.toml")
    options += ["--set", f"intake.split_key={settings.intake.split_key}"]
    commands = {
        user: subprocess.Popen(
            [sys.executable, "-m", "goldstream", "forget", "--user", user, "--json", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for user in ("ann", "bob")
    }  # fmt: skip
    reports: dict[str, Any] = {}
    try:
        for user, command in commands.items():
            out, err = command.communicate(timeout=120)
            assert command.returncode == 0, err
            reports[user] = json.loads(out)
    finally:
        for command in commands.values():
            command.kill()
            command.wait()
    assert {user: report["cases"] for user, report in reports.items()} == {"ann": ["req-0", "req-2"], "bob": ["req-1"]}
    assert not any(report["already"] for report in reports.values())
    assert query(settings.gold, "SELECT case_id FROM outcomes")[1] == [("req-3",)]
    assert len(read_topic(settings).records) == 2
    assert stats(settings.gold)["cases"] == 1
