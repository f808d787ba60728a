"""Erasure on a real broker: gone from queries at once, never back by any way, and the books still balance."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka import KafkaProducer
from steps import Make, cases_on, command_line, put, running, sink_all, start, take_in, until

from schemas.case import Attempt, Case, Charge, Spend, Strategy, Verdict
from schemas.forgotten import Forgotten, read_forgotten
from schemas.gold import read_outcomes
from schemas.kafka import client_options
from schemas.settings import Settings
from streams.audit import audit
from streams.forgetting.forget import forget, key_of, read_topic, sync, withdraw
from streams.forgetting.reach import held
from streams.gold import query, stats
from streams.landing import LandingChain
from streams.sink import run_sink

NASTY = "o'Brien \"\n\0; DROP TABLE landed; --" + "x" * 10_000


def log(settings: Settings, topic: str, users: Iterable[str | None], first: int = 0) -> None:
    """Logs a call of each user, with ids and traces by number."""
    producer = KafkaProducer(**client_options(settings), acks="all")
    for number, user in enumerate(users, first):
        answer = {"id": f"req-{number}", "choices": [{"message": {"role": "assistant", "content": "secret answer"}}]}
        request = {"messages": [{"role": "user", "content": f"secret question {number}"}], "user": user}
        record = {"request": request, "response": answer, "trace_id": f"trace-{number}"}
        producer.send(topic, value=json.dumps(record).encode(), key=b"k").get(timeout=30)
    producer.close(timeout=5)


def ended(case: Case) -> Case:
    """Returns an admitted case as gold that cost something."""
    good = Verdict(passed=True, score=1, max_score=1, judge="test")
    bad = msgspec.structs.replace(good, passed=False, score=0)
    attempts = (
        Attempt(round=0, source="student", text="secret slip", model="m", verdict=bad),
        Attempt(round=1, source="refiner", text="secret gold", model="m", verdict=good),
    )
    strategy = Strategy("said secret", "do not", id=f"s-{case.user[:4]}")
    spend = Spend(calls=2, cost_usd=0.5)
    charge = Charge(role="student", model="m", calls=2, cost_usd=0.5)
    case = msgspec.structs.replace(case, attempts=attempts, strategy=strategy, spend=spend, charges=(charge,))
    return case.ended("gold", "strategist", case.created_ms + 5)


def factory(make_settings: Make, topic: str, users: Iterable[str | None]) -> Settings:
    """Returns settings with every user's call ended as gold, and landed."""
    settings = start(make_settings, topic, "intake.split_key=a key of this test")
    log(settings, topic, users)
    take_in(settings)
    put(settings, "outcomes", *map(ended, cases_on(settings, "prompts")))
    sink_all(settings)
    return settings


def told(settings: Settings, tmp_path: Path, *command: str) -> Any:
    """Runs a command with the key of these tests."""
    return command_line(settings, tmp_path, *command, "--set", f"intake.split_key={settings.intake.split_key}")


def everything_told(settings: Settings) -> str:
    """Returns what the views and the trainer's reader say, as one text."""
    columns, rows = query(settings.gold, "SELECT * FROM landed")
    pairs = query(settings.gold, "SELECT * FROM rgt_pairs")[1]
    return str((columns, rows, pairs, read_outcomes(settings.gold).to_pylist()))


def test_a_forgotten_user_is_gone_from_every_query_at_once(make_settings: Make, tmp_path: Path) -> None:
    settings = factory(make_settings, "erase1", ["ann", "bob", NASTY, "ann"])
    spent = query(settings.gold, "SELECT sum(cost_usd) FROM stored")[1]
    result = told(settings, tmp_path, "forget", "--user", "ann", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["rows"], report["cases"], report["by_outcome"]) == (2, ["req-0", "req-3"], {"gold": 2})
    assert '"ann"' not in result.stdout
    reword = [line for line in report["by_hand"] if "goldstream strategies reword" in line]
    assert [line.partition(" of ")[0] for line in reword] == [f"strategy s-{key_of(settings, 'user', 'ann')[:4]}"]
    everything = everything_told(settings)
    assert "req-1" in everything
    assert "req-0" not in everything
    assert "question 3" not in everything
    assert stats(settings.gold)["cases"] == 2
    assert sorted(read_outcomes(settings.gold, ["case_id"])["case_id"].to_pylist()) == ["req-1", "req-2"]
    # The second user's id is quotes, line ends, a null and 10 KB.
    forget(settings, "user", NASTY)
    assert query(settings.gold, "SELECT case_id FROM outcomes")[1] == [("req-1",)]
    found = audit(settings)
    assert found.balanced, found
    assert found.partitions[0].ended == {"dropped": 3, "gold": 1}
    assert query(settings.gold, "SELECT sum(cost_usd) FROM stored")[1] == spent
    # Only hashes are written anywhere.
    written = (settings.gold / "forgotten" / "keys.json").read_bytes()
    assert b"ann" not in written
    assert len(read_topic(settings).records) == 2
    case = told(settings, tmp_path, "case", "req-0").output
    assert "forgotten" in case
    assert "secret" not in case


def test_compaction_takes_the_texts_out_of_the_files(make_settings: Make, tmp_path: Path) -> None:
    settings = factory(make_settings, "erase12", ["ann", "bob"])
    assert told(settings, tmp_path, "gold", "compact").exit_code == 0
    forget(settings, "user", "ann")  # whose row is in a compacted file already
    assert "1 forgotten rows erased" in told(settings, tmp_path, "gold", "compact").output
    texts = query(settings.gold, 'SELECT case_id, reason, prompt, "user", trace_id, session FROM stored ORDER BY 1')[1]
    assert texts[0] == ("req-0", "forgotten", "", "", "", "")
    assert texts[1][2] == "secret question 1"
    put(settings, "outcomes", *map(ended, cases_on(settings, "prompts")))  # the same hops once more
    sink_all(settings)
    assert query(settings.gold, "SELECT count(*) FROM stored")[1] == [(2,)]
    assert query(settings.gold, "SELECT case_id FROM outcomes")[1] == [("req-1",)]
    assert audit(settings).balanced


def test_what_is_logged_later_or_read_again_never_comes_back(make_settings: Make) -> None:
    settings = factory(make_settings, "erase2", ["ann", "bob"])
    forget(settings, "user", "ann")
    forget(settings, "trace", "trace-7")
    forget(settings, "case", "req-8")
    log(settings, "erase2", ["ann", "bob"])  # a producer sends both once more
    log(settings, "erase2", ["ann", "eve", "kim"], first=6)
    take_in(settings)
    waiting = [case.case_id for case in cases_on(settings, "prompts")]
    assert waiting == ["req-0", "req-1", "req-1"]  # the first is from before
    dropped = [case for case in cases_on(settings, "outcomes") if case.outcome and case.outcome.kind == "dropped"]
    assert {case.outcome.reason for case in dropped if case.outcome} == {"forgotten"}
    assert len(dropped) == 4
    assert not any(case.messages or case.user or case.trace_id or case.production_answer for case in dropped)
    # On their way since before: the sink writes nothing of them, however they arrive.
    again = [ended(case) for case in cases_on(settings, "prompts")]
    put(settings, "outcomes", *again, *(msgspec.structs.replace(case, epoch=1) for case in again))
    sink_all(settings)
    assert "secret question 0" not in str(query(settings.gold, "SELECT * FROM stored WHERE epoch = 1"))
    assert "req-0" not in everything_told(settings)
    assert audit(settings).balanced


def test_a_sink_that_begins_anew_from_the_topic_writes_nothing_of_the_forgotten(make_settings: Make) -> None:
    settings = factory(make_settings, "erase3", ["ann", "bob", "ann"])
    forget(settings, "user", "ann")
    shutil.rmtree(settings.gold)
    with running(lambda stop, ready: run_sink(settings, stop=stop, ready=ready)):
        until(lambda: query(settings.gold, "SELECT count(*) FROM stored")[1] == [(3,)])
    files = b"".join(path.read_bytes() for path in settings.gold.glob("landing/*/*.parquet"))
    (left,) = query(settings.gold, "SELECT list(prompt ORDER BY kafka_offset) FROM stored")[1]
    assert sorted(left[0]) == ["", "", "secret question 1"]
    assert files.count(key_of(settings, "user", "ann").encode()) == 0
    assert stats(settings.gold)["cases"] == 1
    assert audit(settings).balanced


def test_a_sink_at_work_hides_what_lands_before_it_has_heard(make_settings: Make) -> None:
    settings = factory(make_settings, "erase4", ["ann", "bob"])
    with running(lambda stop, ready: run_sink(settings, stop=stop, ready=ready)):
        sneaked = msgspec.structs.replace(ended(cases_on(settings, "prompts")[0]), epoch=3)
        record = forget(settings, "case", "req-0").record
        put(settings, "outcomes", sneaked)
        until(lambda: bool(query(settings.gold, "SELECT 1 FROM stored WHERE epoch = 3")[1]))
        until(lambda: "req-0" not in everything_told(settings))
    assert ("case", record.key) in read_forgotten(settings.gold).records


def test_withdrawn_lets_later_records_in_and_nothing_earlier(make_settings: Make, tmp_path: Path) -> None:
    settings = factory(make_settings, "erase5", ["ann", "bob"])
    forget(settings, "user", "ann")
    result = told(settings, tmp_path, "forget", "--user", "ann", "--withdraw")
    assert result.exit_code == 0
    assert "what was logged before stays forgotten" in result.output
    log(settings, "erase5", ["ann"], first=5)
    take_in(settings)
    assert [case.case_id for case in cases_on(settings, "prompts")] == ["req-0", "req-1", "req-5"]
    put(settings, "outcomes", *map(ended, cases_on(settings, "prompts")))
    sink_all(settings)
    assert query(settings.gold, "SELECT case_id FROM gold ORDER BY 1")[1] == [("req-1",), ("req-5",)]
    # Forgotten once more, everything up to now is.
    forget(settings, "user", "ann")
    assert query(settings.gold, "SELECT case_id FROM gold")[1] == [("req-1",)]
    with pytest.raises(ValueError, match="not forgotten"):
        withdraw(settings, "user", "nobody")


def test_an_unknown_user_is_recorded_and_a_second_time_is_told(make_settings: Make, tmp_path: Path) -> None:
    settings = start(make_settings, "erase6", "intake.split_key=a key of this test")
    first = told(settings, tmp_path, "forget", "--user", "never seen")
    assert first.exit_code == 0, first.output
    assert "nothing on disk matches" in first.output
    again = told(settings, tmp_path, "forget", "--user", "never seen")
    assert "was forgotten already" in again.output
    assert len(read_topic(settings).records) == 1
    for wrong in (["--user", ""], [], ["--user", "a", "--trace", "b"], ["--sync", "--case", "c"]):
        refused = told(settings, tmp_path, "forget", *wrong)
        assert refused.exit_code != 0
        assert isinstance(refused.exception, ValueError)


def test_a_dry_run_writes_nothing(make_settings: Make, tmp_path: Path) -> None:
    settings = factory(make_settings, "erase7", ["ann", "bob"])
    result = told(settings, tmp_path, "forget", "--case", "req-0", "--dry-run")
    assert "1 rows of 1 cases" in result.output, result.output
    assert not read_topic(settings)
    assert stats(settings.gold)["cases"] == 2


def test_what_topics_still_hold_is_told(make_settings: Make) -> None:
    settings = factory(make_settings, "erase8", ["ann", "bob"])
    done = forget(settings, "trace", "trace-0")
    found = {one.topic: one for one in held(settings, done.record, done.rows)}
    assert set(found) == {"erase8", settings.topic("prompts"), settings.topic("outcomes")}
    assert {one.records for one in found.values()} == {1}
    outcomes = found[settings.topic("outcomes")]
    assert outcomes.retention_ms == 4 * settings.kafka.retention_hours * 3_600_000
    assert outcomes.gone_from_ms == outcomes.newest_ms + outcomes.retention_ms


FORGET = """
import sys
from schemas.settings import load_settings
from streams.forgetting.forget import forget
forget(load_settings(None, sys.argv[2:]), "user", sys.argv[1])
"""


def forget_and_die(settings: Settings, user: str, at: str) -> None:
    """Runs `forget` in a process that is killed at a crash point."""
    kafka = settings.kafka
    overrides = [f"kafka.bootstrap_servers={kafka.bootstrap_servers}", f"kafka.topic_prefix={kafka.topic_prefix}"]
    overrides += [f"state_dir={settings.state}", f"intake.split_key={settings.intake.split_key}"]
    command = [sys.executable, "-c", FORGET, user, *overrides]
    died = subprocess.run(command, env=os.environ | {"GOLDSTREAM_CRASH_AT": at}, capture_output=True, check=False)
    assert died.returncode == -9, died.stderr


@pytest.mark.parametrize("at", ["forget.after_topic", "forget.before_replace"])
@pytest.mark.parametrize("mend", [sink_all, sync])
def test_killed_between_topic_and_file_the_next_start_finishes_it(
    make_settings: Make, at: str, mend: Callable[[Settings], Any]
) -> None:
    settings = factory(make_settings, f"erase9-{at[7:].replace('_', '')}-{mend.__name__.replace('_', '')}", ["ann"])
    forget_and_die(settings, "ann", at)
    assert stats(settings.gold)["cases"] == 1
    put(settings, "outcomes", *(ended(case) for case in cases_on(settings, "prompts")))  # something for a sink to do
    mend(settings)
    assert stats(settings.gold)["cases"] == 0
    assert read_forgotten(settings.gold).records == read_topic(settings).records


def test_a_topic_that_was_lost_is_written_anew_from_the_file(make_settings: Make) -> None:
    settings = factory(make_settings, "erase10", ["ann"])
    forget(settings, "user", "ann")
    other = make_settings("", "kafka.topic_prefix=other10.", "intake.split_key=a key of this test")
    start(make_settings, "erase10", "kafka.topic_prefix=other10.")
    assert not read_topic(other)
    sync(other)
    assert read_topic(other).records == read_forgotten(settings.gold).records


def test_rows_from_before_there_was_a_hash_of_the_trace_are_found(make_settings: Make) -> None:
    settings = factory(make_settings, "erase11", ["ann", "bob"])
    old = [msgspec.structs.replace(ended(case), trace_key="", case_id=f"old-{case.case_id}",
           source=msgspec.structs.replace(case.source, offset=case.source.offset + 100))
           for case in cases_on(settings, "prompts")]  # fmt: skip
    put(settings, "outcomes", *old)
    sink_all(settings)
    assert len(forget(settings, "trace", "trace-1").rows) == 2
    assert query(settings.gold, "SELECT case_id FROM outcomes ORDER BY 1")[1] == [("old-req-0",), ("req-0",)]


def test_a_damaged_file_stops_readers_rather_than_showing_what_is_forgotten(tmp_path: Path) -> None:
    LandingChain(tmp_path, 0).write(0, 1, [])
    assert read_forgotten(tmp_path) == Forgotten()
    path = tmp_path / "forgotten" / "keys.json"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(RuntimeError, match="forget --sync"):
        read_outcomes(tmp_path)
