"""Admission on a real broker: which task takes a record, what is left out and why, and that a crash changes nothing."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from ended_cases import ended, land
from pipeline import STUB_TASK, processes, produce
from steps import Make, cases_on, command_line, sink_all, start, take_in, until

from schemas.case import Source, encode_case
from schemas.errors import SettingsError
from schemas.settings import Settings, load_settings
from schemas.start import parse_start
from streams.admission.admit import Admission
from streams.audit import audit
from streams.gold import query, stats
from streams.topics import create_topics, ensure_source_topic

HERE = Source(cluster="c", topic="logs", partition=1, offset=7, timestamp_ms=1_790_000_000_000)
MODELS = "".join(
    f'[tasks.{{name}}.{role}]\nmodel = "openai/x"\n' for role in ("student", "judge", "refiner", "strategist")
)
RUBRIC = '[tasks.{name}.rubric]\nrules = [{{ id = "polite", text = "It says please." }}]\n'


def tasks(**rules: str) -> str:
    return "".join(
        f'[tasks.{name}]\ntopics = ["logs"]\n{rule}\n' + (MODELS + RUBRIC).format(name=name)
        for name, rule in rules.items()
    )


def loaded(tmp_path: Path, toml: str) -> Settings:
    path = tmp_path / "goldstream.toml"
    path.write_text(toml)
    return load_settings(path, environ={})


def record(text: str = "hello", request_id: str | None = None, **request: Any) -> bytes:
    body: dict[str, Any] = {"request": {"messages": [{"role": "user", "content": text}], **request}}
    body["response"] = {"choices": [{"message": {"role": "assistant", "content": f"about {text}"}}]}
    if request_id:
        body["response"]["id"] = request_id
    return json.dumps(body).encode()


def taken(settings: Settings, value: bytes) -> tuple[str, str]:
    """Returns (task, reason) of the one case a record becomes."""
    (case,) = Admission(settings).admit(value, (), HERE)
    return case.task, case.outcome.reason if case.outcome else ""


def test_the_first_task_whose_rules_fit_takes_a_record(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        tasks(
            long='where = "length(messages[0].content) > `20`"',
            mini='models = ["gpt-*-mini", "tiny"]',
            refunds='workloads = ["refund*"]',
            broken="where = \"contains(session_id, 'x')\"",
        ),
    )
    assert taken(settings, record("a question of more than twenty characters", model="tiny")) == ("long", "")
    assert taken(settings, record(model="gpt-5-mini")) == ("mini", "")
    assert taken(settings, record(model="gpt-5", metadata={"workload": "refunds-eu"})) == ("refunds", "")
    assert taken(settings, record(model="gpt-5")) == ("", "no_match")
    assert taken(settings, record(model="gpt-5", metadata={"session_id": "ax"})) == ("broken", "")


@pytest.mark.parametrize("levels", [400, 600, 900])
def test_a_tool_nested_hundreds_of_levels_deep_is_a_dead_letter_and_no_crash(tmp_path: Path, levels: int) -> None:
    schema = json.loads('{"a":' * levels + '"jo@x.example"' + "}" * levels)
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    settings = loaded(tmp_path, tasks(a='where = "tools"'))
    task, reason = taken(settings, record(tools=[tool]))
    assert (task, reason) in {("a", ""), ("a", "too_deep")}
    assert levels < 500 or reason == "too_deep"


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        (tasks(all="", never='models = ["x"]'), "tasks.never would never get a record of logs: tasks.all"),
        (tasks(wrong='where = "messages[?"'), "tasks.wrong.where is no JMESPath expression"),
        ('[intake]\nstart_at = "yesterday"', "intake.start_at is 'yesterday'; expected latest, earliest"),
        ('[intake]\nstart_at = "2026-13-45"', "intake.start_at"),
        (tasks(a='redact = { kinds = ["mail"] }'), "tasks[...].redact.kinds"),
        (tasks(a="near_duplicates = { threshold = 85 }"), "tasks[...].near_duplicates.threshold"),
        (tasks(a="per_day = -1"), "tasks[...].per_day"),
    ],
)
def test_each_mistake_in_the_settings_is_named(tmp_path: Path, toml: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, toml)
    assert says in str(caught.value)


def test_a_start_is_latest_earliest_a_time_or_how_far_back() -> None:
    assert [parse_start(text, 10**12) for text in ("latest", "earliest", "2d", "90m")] == [
        "latest",
        "earliest",
        10**12 - 2 * 86_400_000,
        10**12 - 90 * 60_000,
    ]
    assert parse_start("2026-11-01", 0) == parse_start("2026-11-01T02:00+02:00", 0) == 1_793_491_200_000


def test_personal_values_reach_no_topic_of_ours_while_split_and_session_are_those_of_the_text(tmp_path: Path) -> None:
    value = record("I am jane@x.example, 4111 1111 1111 1111", "mail-jane@x.example")
    open_case, closed_case = (
        Admission(loaded(tmp_path, tasks(a=f"redact = {{ kinds = {kinds} }}"))).admit(value, (), HERE)[0]
        for kinds in ("[]", '["email", "card"]')
    )
    assert open_case.prompt() == "I am jane@x.example, 4111 1111 1111 1111"
    assert closed_case.prompt() == "I am <EMAIL_1>, <CARD_1>"
    assert closed_case.production_answer == "about I am <EMAIL_1>, <CARD_1>"
    assert b"jane" not in encode_case(closed_case)
    assert (open_case.split, open_case.session, open_case.body_sha256) == (
        closed_case.split,
        closed_case.session,
        closed_case.body_sha256,
    )


def test_cases_with_values_taken_out_are_counted_by_kind(tmp_path: Path) -> None:
    land(
        tmp_path,
        [ended(1, placeholders=("EMAIL_1", "EMAIL_2", "PHONE_1")), ended(2, placeholders=("EMAIL_1",)), ended(3)],
    )
    assert stats(tmp_path)["redacted"] == {"email": 2, "phone": 1}


WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "st", "rk")]


def sentence(number: int) -> str:
    return " ".join(random.Random(number).choices(WORDS, k=30))


def test_each_decision_is_counted_by_its_reason_and_the_books_balance(make_settings: Make, tmp_path: Path) -> None:
    settings = start(
        make_settings,
        "logs-admission",
        "tasks.toy.per_day=4",
        "tasks.toy.near_duplicates.threshold=0.8",
        'tasks.toy.models=["big"]',
    )
    values = [record(sentence(n), f"r{n}", model="big") for n in range(6)]
    values += [record(sentence(0) + " again", "copy", model="big"), record("hello", "r9", model="small"), b"{"]
    produce(settings, "logs-admission", [*values[:1], values[6], *values[1:6], *values[7:]])
    take_in(settings)
    assert [case.case_id for case in cases_on(settings, "prompts")] == ["r0", "r1", "r2", "r3"]
    sink_all(settings)
    found = stats(settings.gold)
    assert found["dropped"] == {"over_quota": 2, "near_duplicate": 1, "no_match": 1}
    assert found["dead"] == {"not_json": 1}
    balance = audit(settings, again_after_s=0.0)
    assert balance.balanced
    assert sum(p.records for p in balance.partitions) == 9
    assert "over_quota" in command_line(settings, tmp_path, "gold", "stats").output
    _, texts = query(settings.gold, "SELECT count(*) FROM landed WHERE prompt <> '' OR production_answer IS NOT NULL")
    assert texts == [(0,)]


def test_the_quota_of_a_day_goes_on_where_it_was_after_a_restart(make_settings: Make) -> None:
    settings = start(make_settings, "logs-quota", "tasks.toy.per_day=5")
    for part in range(3):
        produce(settings, "logs-quota", [record(f"q {part} {n}", f"r{part}-{n}") for n in range(3)])
        take_in(settings)
    assert [case.case_id for case in cases_on(settings, "prompts")] == ["r0-0", "r0-1", "r0-2", "r1-0", "r1-1"]
    assert audit(settings, again_after_s=0.0).balanced


@pytest.mark.parametrize("point", ["intake.after_decide", "intake.after_produce", "intake.before_commit"])
def test_kill_9_between_deciding_and_committing_changes_no_decision(
    make_settings: Make, tmp_path: Path, point: str
) -> None:
    """The same records, once without and once with a kill: the same are admitted, each ends once."""
    topic = f"logs-kill-{point.split('_')[1]}"
    toml = (
        STUB_TASK.format(topic=topic, api_base="http://127.0.0.1:9") + "[tasks.toy.near_duplicates]\nthreshold = 0.8\n"
    )
    toml = toml.replace("max_rounds = 2", "max_rounds = 2\nper_day = 9")
    settings = make_settings(toml)
    create_topics(settings)
    ensure_source_topic(settings, topic, partitions=2)
    values = [record(sentence(n // 2) + f" {n}", f"r{n}") for n in range(30)]
    produce(settings, topic, values)
    supervisor = processes(settings, tmp_path / "goldstream.toml", "intake")
    (child,) = supervisor.children
    child.environment["GOLDSTREAM_CRASH_AT"] = point
    with supervisor:
        until(lambda: child.process is not None and child.process.poll() == -signal.SIGKILL)
    take_in(settings)
    sink_all(settings)
    admitted = {case.case_id for case in cases_on(settings, "prompts")}
    dropped = {case_id for (case_id,) in query(settings.gold, "SELECT case_id FROM outcomes")[1]}
    assert admitted == {f"r{2 * n}" for n in range(9)}
    assert dropped == {f"r{n}" for n in range(30)} - admitted
    found = audit(settings, again_after_s=0.0)
    assert found.balanced
    assert (sum(p.records for p in found.partitions), found.double_rows) == (30, 0)
    assert stats(settings.gold)["dropped"] == {"near_duplicate": 9, "over_quota": 12}
