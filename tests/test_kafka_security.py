"""SASL_SSL with SCRAM-SHA-512 on a real broker: every client of ours gets in, and each mistake is named.

The broker's certificate comes from keytool, which every Java has.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from factory_settings import process_options
from pipeline import STUB_TASK, openai_record, outcomes, processes, produce, toy_answer, wait_for
from stub_models import StubModels

from agents.models import Models
from agents.student import attempt
from schemas.adapters import AdapterRecord
from schemas.errors import BrokerError, SettingsError
from schemas.kafka import client_options, tls_context
from schemas.settings import ROLES, Settings, load_settings
from streams.broker import SecureListener, broker_status, find_java, start_broker, stop_broker
from streams.clients import make_admin, make_consumer, make_producer
from streams.departures import Departures
from streams.supervisor import Supervisor
from streams.topics import create_topics, ensure_source_topic
from streams.worker import _build
from trainer.rollout import KafkaRecords

USER, PASSWORD, VARIABLE = "goldstream-test", "s3cret-canary-pw", "GOLDSTREAM_TEST_PASSWORD"


def secure_listener(folder: Path, **further: str) -> SecureListener:
    """Returns a listener for USER and `further` users, with a certificate made in `folder`."""

    def keytool(*words: str) -> None:
        program = Path(find_java()).resolve().with_name("keytool")
        subprocess.run([str(program), *words], check=True, capture_output=True)

    store, authority = folder / "broker.p12", folder / "authority.pem"
    opened = ["-keystore", str(store), "-storetype", "PKCS12", "-storepass", "only-for-tests", "-alias", "broker"]
    subject = ["-dname", "CN=localhost", "-ext", "SAN=ip:127.0.0.1", "-ext", "bc=ca:true", "-validity", "30"]
    keytool("-genkeypair", *opened, *subject, "-keyalg", "RSA", "-keysize", "2048")
    keytool("-exportcert", "-rfc", *opened, "-file", str(authority))
    return SecureListener(store, "only-for-tests", authority, USER, PASSWORD, further)


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> SecureListener:
    return secure_listener(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def address(secure: SecureListener, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Kafka that lets in nobody but USER, over TLS; gives its address."""
    settings = load_settings(None, [f"state_dir={tmp_path_factory.mktemp('secure')}"], environ={})
    try:
        yield start_broker(settings, secure=secure).bootstrap_servers
    finally:
        stop_broker(settings)
        assert not broker_status(settings).running


@pytest.fixture
def make_secure(
    address: str, secure: SecureListener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Settings]:
    """Gives settings that get in, unless overridden."""
    monkeypatch.setenv(VARIABLE, PASSWORD)

    def make(toml: str = "", *overrides: str) -> Settings:
        lines = [
            "[kafka]",
            'security_protocol = "SASL_SSL"',
            'sasl_mechanism = "SCRAM-SHA-512"',
            f'sasl_username = "{USER}"',
            f'sasl_password_env = "{VARIABLE}"',
            f'ssl_cafile = "{secure.authority}"',
        ]
        path = tmp_path / "goldstream.toml"
        path.write_text("\n".join(lines) + "\n" + toml)
        base = [f"kafka.bootstrap_servers={address}", "kafka.topic_prefix=sec.", f"state_dir={tmp_path / 'state'}"]
        return load_settings(path, [*base, *overrides], environ={})

    return make


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that never get in need not try for long."""
    monkeypatch.setattr("schemas.kafka.BOOTSTRAP_TIMEOUT_MS", 2_000)


def test_twenty_cases_pass_every_stage_over_sasl_ssl(
    make_secure: Callable[..., Settings], models: StubModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOLDSTREAM_LOG", "DEBUG")
    monkeypatch.setenv("GOLDSTREAM_LOG_LIBRARIES", "DEBUG")  # the password is in no client's log even so
    models.answer = toy_answer
    task = STUB_TASK.format(topic="secure-logs", api_base=models.api_base)
    settings = make_secure('[metrics]\nport = "off"\n' + task)  # in the file, which the processes read
    create_topics(settings)
    ensure_source_topic(settings, "secure-logs", partitions=1)
    produce(settings, "secure-logs", [openai_record(f"question {n}", f"req-{n}") for n in range(20)])
    with processes(settings, tmp_path / "goldstream.toml", "intake", "worker", "retries", "sink") as supervisor:
        wait_for(lambda: len(outcomes(settings)) >= 20, "all outcomes", supervisor)
        listening = [c for pid in pids_of(supervisor) for c in psutil.Process(pid).net_connections() if is_open(c)]
        logs = "".join(child.log_path.read_text() for child in supervisor.children)
    rows = outcomes(settings)
    assert Counter(row["outcome"] for row in rows) == {"gold": 20}
    assert {row["case_id"] for row in rows} == {f"req-{n}" for n in range(20)}
    assert "DEBUG kafka" in logs
    assert PASSWORD not in logs
    assert listening == [], "no process of ours opens a port"
    # Rollout's own client writes and reads the adapter records.
    record = AdapterRecord(task="toy", version="v0001-abcdef12", lease_epoch=1, sequence=1, at_ms=1)
    KafkaRecords(settings).append(record)
    assert KafkaRecords(settings).read() == [record]


def pids_of(supervisor: Supervisor) -> list[int]:
    return [child.process.pid for child in supervisor.children if child.process is not None]


def is_open(connection: Any) -> bool:
    """Tells whether a socket waits for others."""
    return bool(connection.status == psutil.CONN_LISTEN)


def test_faust_opens_no_web_server(make_secure: Callable[..., Settings], models: StubModels) -> None:
    settings = make_secure(STUB_TASK.format(topic="secure-logs", api_base=models.api_base))

    async def built() -> list[Any]:
        made = Models(settings), "cluster", attempt, lambda case: False, Departures(0.0), lambda: None
        return [_build(role, settings, *made)[0] for role in ROLES]

    for app in asyncio.run(built()):
        assert app.conf.web_enabled is False
        credentials = app.conf.broker_credentials
        assert (credentials.protocol.value, credentials.mechanism.value) == ("SASL_SSL", "SCRAM-SHA-512")
        assert PASSWORD not in repr(credentials)


@pytest.mark.usefixtures("refused")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(
    "make",
    [lambda s: make_admin(s, 2), make_consumer, lambda s: make_producer(s, "test")],
    ids=["admin", "consumer", "producer"],
)
def test_a_wrong_password_is_named_but_not_told(
    make_secure: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, make: Callable[[Settings], object]
) -> None:
    settings = make_secure()
    monkeypatch.setenv(VARIABLE, "wrong-" + PASSWORD)
    with pytest.raises(BrokerError) as caught:
        make(settings)
    text = str(caught.value)
    assert f"lets '{USER}' not in with SCRAM-SHA-512" in text
    assert VARIABLE in text
    assert PASSWORD not in text + repr(caught.value.__cause__)


@pytest.mark.usefixtures("refused")
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["kafka.ssl_cafile="], r"certificate of the Kafka at 127\.0\.0\.1:\d+ is not accepted.*kafka\.ssl_cafile"),
        (["kafka.security_protocol=PLAINTEXT"], r"does not speak Kafka as PLAINTEXT.*kafka\.security_protocol"),
        (["kafka.sasl_username=somebody"], "lets 'somebody' not in"),
        (["kafka.sasl_mechanism=SCRAM-SHA-256"], r"not in with SCRAM-SHA-256.*kafka\.sasl_mechanism"),
    ],
    ids=["unknown authority", "no security", "unknown user", "other mechanism"],
)
def test_each_mistake_is_named(make_secure: Callable[..., Settings], overrides: list[str], says: str) -> None:
    with pytest.raises(BrokerError, match=says):
        make_admin(make_secure("", *overrides), timeout_s=2)


def test_processes_with_a_wrong_or_empty_password_end_and_say_so(
    make_secure: Callable[..., Settings], models: StubModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_secure(STUB_TASK.format(topic="secure-logs", api_base=models.api_base))
    options = process_options(settings, tmp_path / "goldstream.toml")
    for password, says in (("wrong-" + PASSWORD, f"lets '{USER}' not in"), ("", f"variable {VARIABLE} is empty")):
        monkeypatch.setenv(VARIABLE, password)
        running = {
            name: subprocess.Popen(
                [sys.executable, "-m", "goldstream", name, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            for name in ("intake", "worker", "retries", "sink")
        }
        texts = {name: process.communicate(timeout=120)[0].decode() for name, process in running.items()}
        for name, text in texts.items():
            assert running[name].returncode == 1, name
            assert says in text.strip().splitlines()[-1], f"{name}: {text}"
            assert PASSWORD not in text


def test_an_empty_password_variable_a_missing_user_and_a_bad_file_are_settings_errors(
    make_secure: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "no.pem").write_text("this is no certificate")
    for path in ("no.pem", "missing.pem"):
        with pytest.raises(SettingsError, match=r"kafka\.ssl_cafile: .* cannot be read as PEM certificates"):
            make_producer(make_secure("", f"kafka.ssl_cafile={tmp_path / path}"), "test")
    with pytest.raises(SettingsError, match=r"kafka\.sasl_username is empty"):
        make_producer(make_secure("", "kafka.sasl_username="), "test")
    monkeypatch.setenv(VARIABLE, "")
    with pytest.raises(SettingsError, match=f"the variable {VARIABLE} is empty"):
        make_producer(make_secure(), "test")


def test_clients_verify_certificate_and_host_name(make_secure: Callable[..., Settings]) -> None:
    context = tls_context(make_secure())
    assert context.check_hostname
    assert context.verify_mode.name == "CERT_REQUIRED"


def test_the_password_does_not_show_where_client_options_are_printed(make_secure: Callable[..., Settings]) -> None:
    options = client_options(make_secure())
    assert options["sasl_plain_password"] == PASSWORD
    assert PASSWORD not in repr(options)
