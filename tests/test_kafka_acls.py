"""Every process with a user of its own and no rights but those `goldstream topics acls` names, on a real authorizer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from dashboard_client import Dashboard
from judged_cases import FAILED, toy
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType
from kafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError
from pipeline import STUB_TASK, openai_record, outcomes, produce, toy_answer, wait_for
from steps import cases_on, put, sink_all
from stub_models import StubModels
from test_dashboard import on_any_port
from test_dlq import died
from test_kafka_security import PASSWORD, USER, VARIABLE, secure_listener

from agents.models import Models
from agents.outside import spending
from goldstream import cli
from schemas.case import Message
from schemas.kafka import client_options
from schemas.settings import Settings, load_settings
from streams.acls import PRINCIPALS, accesses, kafka_acls
from streams.broker import SecureListener, start_broker, stop_broker
from streams.clients import make_consumer
from streams.lag import LagReader
from streams.ledger import kept, read_ledger
from streams.supervisor import Supervisor
from streams.topics import create_topics, ensure_source_topic

PROCESSES = ("intake", "worker", "retries", "sink", "rollout", "exporter")
SOURCE = "acl-logs"

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:litellm.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pydantic.*"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SecureListener, str]]:
    """A real Kafka with an authorizer that knows a user for each process, none of whom may do anything yet."""
    folder = tmp_path_factory.mktemp("acl")
    secure = secure_listener(folder, **{f"goldstream-{process}": PASSWORD for process in PRINCIPALS})
    settings = load_settings(None, [f"state_dir={folder / 'state'}"], environ={})
    try:
        yield secure, start_broker(settings, secure=secure).bootstrap_servers
    finally:
        stop_broker(settings)


@pytest.fixture
def config(guarded: tuple[SecureListener, str], models: StubModels, tmp_path: Path) -> Path:
    """A settings file that all processes share; who they are stands in their environment."""
    secure, address = guarded
    path = tmp_path / "goldstream.toml"
    path.write_text(
        f'state_dir = "{tmp_path / "state"}"\n[kafka]\nbootstrap_servers = "{address}"\n'
        f'partitions = 1\nsecurity_protocol = "SASL_SSL"\nsasl_mechanism = "SCRAM-SHA-512"\n'
        f'sasl_password_env = "{VARIABLE}"\nssl_cafile = "{secure.authority}"\n'
        + STUB_TASK.format(topic=SOURCE, api_base=models.api_base)
    )
    return path


def settings_as(config: Path, user: str) -> Settings:
    return load_settings(config, [f"kafka.sasl_username={user}"], environ={})


def grant(settings: Settings, process: str) -> None:
    """Gives a process's user the rights it is said to need."""
    kinds = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP, "cluster": ResourceType.CLUSTER}
    names = {"Read": "READ", "Write": "WRITE", "Create": "CREATE", "Describe": "DESCRIBE"}
    names["DescribeConfigs"] = "DESCRIBE_CONFIGS"
    rights = [
        ACL(
            principal=f"User:goldstream-{process}",
            host="*",
            operation=ACLOperation[names[operation]],
            permission_type=ACLPermissionType.ALLOW,
            resource_pattern=ResourcePattern(kinds[access.resource], access.name),
        )
        for access in accesses(settings, process)
        for operation in access.operations
    ]
    admin = KafkaAdminClient(**client_options(settings))
    try:
        admin.create_acls(rights)
    finally:
        admin.close()


async def ask_as_a_gate(settings: Settings) -> None:
    models = Models(settings)
    try:
        async with kept(settings, models.budget), spending(settings, models, "gate"):
            deadline = asyncio.get_running_loop().time() + 30
            await models.complete("judge", "toy", [Message("user", "?")], deadline=deadline)
    finally:
        await models.close()


def test_each_process_works_with_its_own_rights_and_no_others(
    config: Path, models: StubModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.answer = toy_answer
    monkeypatch.setenv(VARIABLE, PASSWORD)
    admin = settings_as(config, USER)
    with pytest.raises(Exception, match=r"(?i)authoriz"):
        create_topics(settings_as(config, "goldstream-topics"))  # nobody may anything yet
    for process in PRINCIPALS:
        grant(admin, process)
    create_topics(settings_as(config, "goldstream-topics"))
    ensure_source_topic(settings_as(config, "goldstream-topics"), SOURCE, partitions=1)
    produce(admin, SOURCE, [openai_record(f"question {n}", f"req-{n}") for n in range(10)])
    supervisor = Supervisor(admin, {name: [name, "--config", str(config)] for name in PROCESSES})
    for child in supervisor.children:
        child.environment = {"GOLDSTREAM_KAFKA__SASL_USERNAME": f"goldstream-{child.name}"}
    with supervisor:
        supervisor.wait_ready()
        wait_for(lambda: len(outcomes(admin)) >= 10, "all outcomes", supervisor)
        logs = {child.name: child.log_path.read_text() for child in supervisor.children}
    assert {row["outcome"] for row in outcomes(admin)} == {"gold"}
    for name, text in logs.items():
        assert "Authorization" not in text, f"{name}: {text}"
    with LagReader(settings_as(config, "goldstream-exporter")) as lag:
        assert {row.group for row in lag.read() if row.committed >= 0} >= {"intake", "student", "judge", "sink"}
    asyncio.run(ask_as_a_gate(settings_as(config, "goldstream-trainer")))
    charged = read_ledger(settings_as(config, "goldstream-operator"))
    assert [entry.role for entry in charged.entries.values() if "/" in entry.role] == ["judge/gate"]
    # What a process has no business with it cannot do.
    producer = KafkaProducer(**client_options(settings_as(config, "goldstream-rollout")))
    try:
        with pytest.raises(TopicAuthorizationFailedError):
            producer.send(admin.topic("outcomes"), value=b"{}").get(timeout=20)
    finally:
        producer.close(timeout=5)
    consumer = make_consumer(settings_as(config, "goldstream-intake"), "student")
    try:
        consumer.subscribe([admin.topic("prompts")])
        with pytest.raises((GroupAuthorizationFailedError, TopicAuthorizationFailedError)):
            consumer.poll(20_000)
    finally:
        consumer.close(autocommit=False)


def test_the_dashboard_and_who_types_commands_can_do_all_they_offer_with_their_own_rights(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, PASSWORD)
    admin = settings_as(config, USER)
    for process in PRINCIPALS:
        grant(admin, process)
    create_topics(settings_as(config, "goldstream-topics"))
    ensure_source_topic(settings_as(config, "goldstream-topics"), SOURCE, partitions=1)
    put(admin, "outcomes", *(died(n, "judge", "bad_answer") for n in (101, 102)), toy(103, FAILED), toy(104, FAILED))
    sink_all(admin)
    with Dashboard(on_any_port(settings_as(config, "goldstream-dashboard"))) as dashboard:
        assert dashboard.get("/api/cases").json
        assert dashboard.post("/api/dead/redrive", {"ids": ["req-101"]}).json["counts"] == {"redriven": 1}
        decided = dashboard.post("/api/review/req-103", {"decision": "reject", "by": "ann", "reason": "wrong dose"})
        assert (decided.status, decided.json["stands"]) == (200, True)
    for command in (
        ["pause", "judge"],
        ["resume", "judge"],
        ["dlq", "redrive", "--id", "req-102"],
        ["review", "reject", "req-104", "--by", "bob", "--reason", "wrong dose"],
        ["forget", "--case", "req-104"],
        ["forget", "--case", "req-104", "--withdraw"],
        ["lag"],
        ["audit"],
        ["cost"],
        ["case", "req-102"],
        ["estimate"],
        ["topics", "plan"],
    ):
        options = ["--config", str(config), "--set", "kafka.sasl_username=goldstream-operator"]
        done = CliRunner().invoke(cli, [*command, *options])
        assert done.exit_code == 0, (command, done.output)
        assert "uthoriz" not in done.output, (command, done.output)
    moved = {case.case_id: case.epoch for case in cases_on(admin, "attempts") if case.epoch}
    assert moved == {"req-101": 1, "req-102": 1}


def test_the_commands_name_every_right_once(config: Path) -> None:
    settings = settings_as(config, USER)
    lines = list(kafka_acls(settings, PRINCIPALS, "gs-{process}", "admin.properties"))
    assert len(lines) == len(set(lines)) == sum(len(accesses(settings, process)) for process in PRINCIPALS)
    sink = "--allow-principal User:gs-sink --operation Read --group gs.sink"
    assert [line for line in lines if line.endswith(sink)]
