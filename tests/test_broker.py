"""The local broker: it starts, is found, survives a kill, stays on loopback, and says what it lacks."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from kafka import TopicPartition

from schemas.errors import BrokerError, SetupError
from schemas.settings import Settings, load_settings
from streams import broker
from streams.broker import broker_status, find_java, kafka_jars, kill_broker, start_broker, stop_broker
from streams.clients import make_admin, make_consumer, make_producer
from streams.topics import ensure_source_topic


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """Settings with a state folder of their own, whose broker is stopped in the end."""
    made = load_settings(None, [f"state_dir={tmp_path / 'state'}"], environ={})
    try:
        yield made
    finally:
        stop_broker(made)


def test_a_second_start_finds_the_first_and_stop_ends_it(settings: Settings) -> None:
    assert not stop_broker(settings), "nothing runs yet"
    assert not broker_status(settings).running
    with pytest.raises(BrokerError, match="goldstream broker start"):
        make_producer(settings, "test")
    first, second = start_broker(settings), start_broker(settings)
    assert first == second == broker_status(settings)
    assert psutil.pid_exists(first.pid)
    assert stop_broker(settings)
    assert not psutil.pid_exists(first.pid)
    assert broker_status(settings) == (False, 0, "", first.folder)
    assert not stop_broker(settings)


def test_kill_and_restart_keep_topics_records_and_address(settings: Settings) -> None:
    before = start_broker(settings)
    ensure_source_topic(settings, "kept", partitions=1)
    producer = make_producer(settings, "test")
    for number in range(100):
        producer.send("kept", value=str(number).encode())
    producer.flush()
    producer.close()
    kill_broker(settings)
    assert not broker_status(settings).running
    after = start_broker(settings)
    assert after.pid != before.pid
    assert after.bootstrap_servers == before.bootstrap_servers
    consumer = make_consumer(settings)
    try:
        partition = TopicPartition("kept", 0)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        read: list[bytes] = []
        deadline = time.monotonic() + 30
        while len(read) < 100 and time.monotonic() < deadline:
            read += [r.value for records in consumer.poll(timeout_ms=500).values() for r in records]
    finally:
        consumer.close()
    assert read == [str(number).encode() for number in range(100)]


def test_it_listens_on_loopback_only_and_its_settings_are_private(settings: Settings) -> None:
    status = start_broker(settings)
    connections = psutil.Process(status.pid).net_connections("inet")
    listening = {c.laddr.ip.removeprefix("::ffff:") for c in connections if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    assert (status.folder / "server.properties").stat().st_mode & 0o077 == 0


def test_a_process_id_that_belongs_to_another_program_is_neither_found_nor_stopped(settings: Settings) -> None:
    record = settings.state / "kafka" / "broker.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"port": 9, "pid": os.getpid()}))
    assert not broker_status(settings).running
    assert not stop_broker(settings)


def test_missing_java_says_what_to_install_and_the_way_around(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(SetupError, match=r"Java is missing.*openjdk-17-jre-headless.*--bootstrap-servers"):
        find_java()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(SetupError, match="Java is missing"):
        start_broker(settings)
    assert not broker_status(settings).running


def test_old_java_is_named_with_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_402\"' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(SetupError, match="is Java 8; Kafka needs 17 or newer"):
        find_java()


def test_missing_maven_says_what_to_install_unless_the_jars_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kafka_jars().name == "libs", "the jars are there: Maven is not asked for"
    monkeypatch.setattr(broker, "DEPLOY", tmp_path)
    with pytest.raises(SetupError, match=r"Maven is missing.*apt-get install maven.*--bootstrap-servers"):
        kafka_jars()


def test_a_failing_maven_tells_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mvn"
    program.write_text("#!/bin/sh\necho '[ERROR] could not resolve org.apache.kafka'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(broker, "DEPLOY", tmp_path)
    with pytest.raises(SetupError, match=r"could not resolve org\.apache\.kafka"):
        kafka_jars()
    assert not (tmp_path / "libs" / ".complete").exists()


@pytest.mark.parametrize(
    "connect",
    [lambda s: make_producer(s, "test"), make_consumer, make_admin],
    ids=["producer", "consumer", "admin"],
)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_broker_that_is_not_there_is_named_within_seconds(connect: Callable[[Settings], object]) -> None:
    threads = threading.active_count()
    address = f"127.0.0.1:{broker.free_port()}"
    gone = load_settings(None, [f"kafka.bootstrap_servers={address}"], environ={})
    started = time.monotonic()
    with pytest.raises(BrokerError, match=address):
        connect(gone)
    assert time.monotonic() - started < 12
    assert threading.active_count() == threads, "a client that could not be made leaves nothing running"


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_an_address_that_is_no_kafka_is_told_from_one_that_is_silent(kafka: str) -> None:
    overrides = [f"kafka.bootstrap_servers={kafka}", "kafka.security_protocol=SSL"]
    wrong = load_settings(None, overrides, environ={})
    with pytest.raises(BrokerError, match=r"does not speak TLS.*kafka\.security_protocol is SSL"):
        make_producer(wrong, "test")
