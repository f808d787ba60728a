"""Secrets and prompt text stay where they belong: in no log, header, dead letter's detail or error, at any log level.

Canaries are planted, the models' errors quote what they were asked, and everything written is searched.
"""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from pipeline import STUB_TASK, openai_record, outcomes, processes, produce, toy_answer, wait_for
from stub_models import Reply, StubModels

from schemas.errors import SettingsError
from schemas.kafka import client_options
from schemas.settings import Settings, load_settings
from streams.clients import make_consumer
from streams.topics import create_topics, ensure_source_topic

KEY, PASSWORD = "sk-canary-key-5d1c", "canary-password-88e2"
# Prompts that an error may quote in many ways: escaped, cut, among others, in a line shorter than any threshold.
PROMPTS = {
    "echo-400-plain": "my code is canary-plain-zqxv, keep it",
    "echo-400-quotes": 'they said "canary-quotes-zqxv" to \u00e9lodie \U0001f600\nand left',
    "echo-400-short": "cnr-zqxv",
    "echo-400-unicode": "caf\u00e9 canary-unicode-zqxv \u2603",
    "echo-400-words": "the code is canary-words-zqxv, keep it to yourself",
    "echo-400-cut": "canary-cut-zqxv " * 40,
    "echo-500-plain": "my code is canary-again-zqxv, keep it",
    "fine-plain": "canary-fine-zqxv",
}
CANARY = "zqxv"  # in every prompt, and in nothing else


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "GOLDSTREAM_TEST_KEY": KEY,
        "GOLDSTREAM_SASL_PASSWORD": PASSWORD,
        "GOLDSTREAM_LOG": "DEBUG",
        "GOLDSTREAM_LOG_LIBRARIES": "INFO",
    }.items():
        monkeypatch.setenv(name, value)


def quoting(request: dict[str, Any]) -> Reply:
    """Answers as a server whose errors quote the request and the key, whole or in part."""
    prompt = request["messages"][-1]["content"]
    name = next((name for name, text in PROMPTS.items() if text == prompt), "")
    if request["model"] != "student" or not name.startswith("echo"):
        return toy_answer(request)
    status, kind = int(name.split("-")[1]), name.split("-")[2]
    quoted = {"cut": prompt[:30], "short": prompt, "unicode": repr(prompt), "words": prompt.split()[3]}
    message = f"cannot process {quoted.get(kind, json.dumps(request))} with key {KEY}"
    body = {"error": {"message": message, "code": status}}
    return Reply(status=status, raw=json.dumps(body, ensure_ascii=kind == "plain").encode())


def with_keys(toml: str) -> str:
    return toml.replace("retries = 0", 'retries = 0\napi_key_env = "GOLDSTREAM_TEST_KEY"')


def start(settings: Settings, topic: str) -> None:
    create_topics(settings)
    ensure_source_topic(settings, topic, partitions=1)


def records_of(settings: Settings) -> Iterator[Any]:
    """Reads every record now on our own topics."""
    consumer = make_consumer(settings)
    try:
        mine = [t for t in consumer.topics() if t.startswith(settings.kafka.topic_prefix)]
        tps = [TopicPartition(t, p) for t in mine for p in consumer.partitions_for_topic(t)]
        consumer.assign(tps)
        consumer.seek_to_beginning(*tps)
        ends = consumer.end_offsets(tps)
        while any(consumer.position(tp) < ends[tp] for tp in tps):
            for records in consumer.poll(timeout_ms=500).values():
                yield from records
    finally:
        consumer.close()


def found_in(logs: Path, needles: tuple[str, ...]) -> list[str]:
    """Returns the log lines that hold any of the needles."""
    lines = [f"{path.name}: {line}" for path in logs.glob("*") for line in path.read_text(errors="replace").split("\n")]
    assert len(lines) > 20, "the processes logged something to search"
    return [line[:300] for line in lines if any(needle in line for needle in needles)]


@pytest.mark.usefixtures("planted")
def test_no_log_header_or_detail_holds_a_prompt_a_key_or_a_password(
    make_settings: Callable[..., Settings], models: StubModels, tmp_path: Path
) -> None:
    models.answer = quoting
    settings = make_settings(with_keys(STUB_TASK.format(topic="logs-secret", api_base=models.api_base)))
    start(settings, "logs-secret")
    values: list[bytes | None] = [openai_record(text, name) for name, text in PROMPTS.items()]
    values += [b'{"messages": "canary-wrong-type-zqxv"}', b'{"messages": [ canary-not-json-zqxv', b"canary\xff-zqxv"]
    produce(settings, "logs-secret", values)
    with processes(settings, tmp_path / "goldstream.toml", "intake", "worker", "retries", "sink") as supervisor:
        wait_for(lambda: len(outcomes(settings)) >= len(values), "all outcomes", supervisor)
    rows = outcomes(settings)
    by_id = {row["case_id"]: row for row in rows}
    assert by_id["fine-plain"]["outcome"] == "gold"
    assert {by_id[name]["outcome"] for name in PROMPTS if name.startswith("echo")} == {"dead"}
    needles = (CANARY, KEY, PASSWORD)
    assert found_in(settings.state / "logs", needles) == []
    assert [row["detail"] for row in rows if any(n in (row["detail"] or "") for n in needles)] == []
    for record in records_of(settings):
        assert not any(n.encode() in value for n in needles for _, value in record.headers)
        assert not any(n.encode() in (record.key or b"") for n in needles)
        assert not any(n.encode() in (record.value or b"") for n in (KEY, PASSWORD))


@pytest.mark.usefixtures("planted")
def test_a_verifier_whose_error_quotes_the_answer_leaves_no_trace_of_it(
    make_settings: Callable[..., Settings], models: StubModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "def verify(messages, answer):\n    raise ValueError(f'cannot judge {answer} of {messages}')\n"
    (tmp_path / "quoting_verifier.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    models.answer = lambda request: Reply("the canary-answer-zqxv")
    toml = STUB_TASK.format(topic="logs-verifier", api_base=models.api_base)
    toml = toml.replace("[tasks.toy.rubric]", '[tasks.toy.rubric]\nverifier = "quoting_verifier:verify"')
    settings = make_settings(toml)
    start(settings, "logs-verifier")
    produce(settings, "logs-verifier", [openai_record("canary-prompt-zqxv", "req-0")])
    with processes(settings, tmp_path / "goldstream.toml", "intake", "worker", "sink") as supervisor:
        wait_for(lambda: len(outcomes(settings)) >= 1, "the outcome", supervisor)
    (row,) = outcomes(settings)
    assert (row["outcome"], row["reason"]) == ("dead", "agent_error")
    assert "ValueError" in row["detail"], "the kind of error is told"
    assert CANARY not in row["detail"]
    assert found_in(settings.state / "logs", (CANARY,)) == []


STUDENT = 'student = { model = "openai/x", api_key_env = "GOLDSTREAM_TEST_KEY" }'
TASK = f"""
[tasks.toy]
topics = ["logs"]
{STUDENT}
refiner.model = "openai/x"
strategist.model = "openai/x"
judge.model = "openai/x"
rubric.rules = [{{ id = "a", text = "A." }}]
"""


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('student.api_base = "http://user:CANARY@host/v1"', "api_base holds a user name"),
        ('student.api_base = "http://CANARY@host/v1"', "api_base holds a user name"),
        ('student.api_base = "http://host/v1?token=CANARY"', "Secrets are never allowed in URLs"),
        ('student.api_base = "http://host/v1#CANARY"', "Secrets are never allowed in URLs"),
        ('student.extra = { api_key = "CANARY" }', r"extra\.api_key would be a secret"),
        ('student.extra = { extra_headers = { Authorization = "CANARY" } }', r"extra\.Authorization"),
        ('student.extra = { aws_secret = "CANARY" }', r"extra\.aws_secret"),
        ('student.api_key_env = "sk-CANARY"', r"student\.api_key_env: expected the name of a variable"),
        ('kafka.sasl_password_env = "CANARY-password"', r"kafka\.sasl_password_env"),
        ('kafka.bootstrap_servers = "user:CANARY@host:9092"', "expected HOST:PORT"),
        ('kafka.sasl_password = "CANARY"', r"unknown key kafka\.sasl_password"),
        ('kafka = "CANARY', "not valid TOML"),
    ],
)
def test_a_secret_in_the_settings_is_refused_and_not_repeated(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "goldstream.toml"
    if line.startswith("student."):
        text = TASK.replace(STUDENT, f'student.model = "openai/x"\n{line}')
    else:
        text = f"{line}\n{TASK}"
    path.write_text(text)
    with pytest.raises(SettingsError, match=says) as caught:
        load_settings(path, (), {})
    assert "CANARY" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("extra", ["{ max_tokens = 5 }", "{ top_k = 3 }", "{ extra_body = { stop_token_ids = [1] } }"])
def test_other_options_of_a_model_are_free(tmp_path: Path, extra: str) -> None:
    path = tmp_path / "goldstream.toml"
    path.write_text(TASK.replace('"GOLDSTREAM_TEST_KEY"', f'"GOLDSTREAM_TEST_KEY", extra = {extra}'))
    assert load_settings(path, (), {}).tasks["toy"].student.extra


@pytest.mark.usefixtures("planted")
def test_commands_and_errors_print_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "goldstream.toml"
    path.write_text('[kafka]\nsecurity_protocol = "SASL_SSL"\nsasl_username = "u"\n' + TASK)
    options = ["--config", str(path), "--bootstrap-servers", "127.0.0.1:9", "--set", f"state_dir={tmp_path / 'state'}"]
    commands = [["doctor"], ["doctor", "--json"], ["case", "some-id"], ["topics", "create"], ["intake"]]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "goldstream", *command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for command in commands
    ]
    texts = [process.communicate(timeout=120)[0].decode() for process in running]
    assert all(process.returncode != 0 for process in running), "no Kafka is there"
    settings = load_settings(path, [f"state_dir={tmp_path}", "kafka.bootstrap_servers=127.0.0.1:9"], {})
    texts += [repr(settings), repr(client_options(settings))]
    assert not any(KEY in text or PASSWORD in text for text in texts)
    assert all("127.0.0.1:9" in text for text in texts), "but they say what is missing"
