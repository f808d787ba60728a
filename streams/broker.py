"""The local broker: a real one-node Apache Kafka in KRaft mode, on loopback, for laptops and tests.

`goldstream broker start|stop|status`, `goldstream up` and the tests call it. Its data lives in
<state>/kafka and survives kill -9; production points at its own cluster instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

from schemas.errors import BrokerError, SetupError
from schemas.kafka import broker_record
from schemas.settings import Settings

DEPLOY = Path(__file__).resolve().parent.parent / "deploy" / "kafka"
START_TIMEOUT_S = 60.0
_started: dict[int, subprocess.Popen[bytes]] = {}  # brokers this process started, so that it can reap them
ELSEWHERE = "or point at a running Kafka with --bootstrap-servers HOST:PORT"


class BrokerStatus(NamedTuple):
    """What `goldstream broker status` prints. `pid` is 0 where no broker runs."""

    running: bool
    pid: int
    bootstrap_servers: str
    folder: Path


class SecureListener(NamedTuple):
    """What a broker needs to speak SASL_SSL with SCRAM-SHA-512 in place of PLAINTEXT; for tests of our clients.

    The user is made when the data folder is, so a secure broker begins in a fresh state folder.
    """

    keystore: Path  # PKCS12 with the broker's key and certificate; `store_password` opens it
    store_password: str
    authority: Path  # PEM certificate that clients trust
    username: str
    password: str
    users: Mapping[str, str] = {}  # further ones with their passwords: they may do nothing until an ACL lets them


def start_broker(settings: Settings, port: int = 0, secure: SecureListener | None = None) -> BrokerStatus:
    """Starts the local broker, or finds it running; returns once it accepts connections.

    `port` 0 keeps the port of last time, or chooses a free one. Raises SetupError where Java or the jars are
    missing and BrokerError where Kafka does not come up.
    """
    folder = broker_record(settings).parent.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder / "start.lock"):
        status = broker_status(settings)
        if status.running:
            return status
        classpath = f"{kafka_jars()}/*"
        java = find_java()
        properties = _configure(folder, port, secure)
        if not (folder / "data" / "meta.properties").exists():
            _format(java, classpath, properties, secure)
        log = folder / "broker.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [
                    java,
                    "-Xms128m",
                    "-Xmx384m",
                    "-XX:+UseSerialGC",
                    "-XX:TieredStopAtLevel=1",
                    f"-Dlog4j2.configurationFile={DEPLOY / 'log4j2.properties'}",
                    "-cp",
                    classpath,
                    "kafka.Kafka",
                    str(properties),
                ],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal stops our processes first, the broker last
            )
        _started[process.pid] = process
        chosen = _port_of(properties)
        _write_json(broker_record(settings), {"port": chosen, "pid": process.pid})
        try:
            _wait_accepting(process, chosen, log)
        except BaseException:  # Ctrl-C too: nobody would know of this broker
            stop_broker(settings)
            raise
        return broker_status(settings)


def _wait_accepting(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _accepts(port):
        if process.poll() is not None:
            tail = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise BrokerError(
                f"Kafka stopped while starting (exit code {process.returncode}). The end of {log}:\n" + "\n".join(tail)
            )
        if time.monotonic() > deadline:
            raise BrokerError(f"Kafka did not accept connections within {START_TIMEOUT_S:.0f} s; see {log}.")
        time.sleep(0.1)


def stop_broker(settings: Settings, timeout_s: float = 30.0) -> bool:
    """Stops the local broker in order, by its own process id; kills it after `timeout_s`. Returns whether one ran."""
    process = _process(settings)
    if process is None:
        return False
    process.terminate()
    try:
        process.wait(timeout_s)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait(10)
    _reap(process.pid)
    return True


def kill_broker(settings: Settings) -> None:
    """Kills the local broker at once, as a crash would; for fault tests."""
    process = _process(settings)
    if process is not None:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        _reap(process.pid)


def broker_status(settings: Settings) -> BrokerStatus:
    """Returns whether the local broker of this state folder runs and where."""
    record = broker_record(settings)
    process = _process(settings)
    if process is None:
        return BrokerStatus(False, 0, "", record.parent)
    port = int(json.loads(record.read_text())["port"])
    return BrokerStatus(_accepts(port), process.pid, f"127.0.0.1:{port}", record.parent)


def find_java() -> str:
    """Returns the java program; raises SetupError where none of version 17 or newer is found."""
    home = os.environ.get("JAVA_HOME")
    candidates = [str(Path(home) / "bin" / "java")] if home else []
    java = next((c for c in [*candidates, shutil.which("java") or ""] if c and Path(c).exists()), None)
    if java is None:
        raise SetupError(
            "Java is missing, and the local Kafka needs it. Install Java 17 or newer (Debian: apt-get install "
            f"openjdk-17-jre-headless; macOS: brew install openjdk@17), {ELSEWHERE}."
        )
    version = java_version(java)
    if version < 17:
        raise SetupError(f"{java} is Java {version}; Kafka needs 17 or newer. Install it, set JAVA_HOME, {ELSEWHERE}.")
    return java


def java_version(java: str) -> int:
    """Returns the major version of a java program, 0 where it does not say."""
    try:
        text = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20).stderr
        quoted = text.split('"')[1].split(".")
        return int(quoted[1] if quoted[0] == "1" else quoted[0])
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return 0


def kafka_jars() -> Path:
    """Returns the folder of Kafka's jars, copying them with Maven on first use."""
    libs = DEPLOY / "libs"
    if (libs / ".complete").exists():
        return libs
    maven = shutil.which("mvn")
    if maven is None:
        raise SetupError(
            "Maven is missing, and the local Kafka's jars come through it. Install it (Debian: apt-get install maven; "
            f"macOS: brew install maven), {ELSEWHERE}."
        )
    result = subprocess.run(
        [maven, "-q", "-B", "-f", str(DEPLOY / "pom.xml"), "dependency:copy-dependencies"],
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        lines = [line for line in result.stdout.splitlines() if "ERROR" in line][:2]
        raise SetupError("Maven could not fetch Kafka's jars:\n" + "\n".join(lines) + "\nCheck the network and repeat.")
    (libs / ".complete").touch()
    return libs


def free_port() -> int:
    """Returns a port that is free on loopback now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _configure(folder: Path, port: int, secure: SecureListener | None) -> Path:
    """Writes server.properties, keeping the ports of last time unless they are taken or others are asked for."""
    properties = folder / "server.properties"
    ports = [_port_of(properties), _port_of(properties, "controller.quorum.voters")] if properties.exists() else [0, 0]
    client = port or (ports[0] if ports[0] and not _accepts(ports[0]) else free_port())
    controller = ports[1] if ports[1] and not _accepts(ports[1]) else free_port()
    protocol = "SASL_SSL" if secure else "PLAINTEXT"
    lines = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"{protocol}://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"{protocol}://127.0.0.1:{client}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,{protocol}:{protocol}",
        "log.dirs": str((folder / "data").resolve()),
        "num.partitions": "1",
        "offsets.topic.num.partitions": "4",
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        "auto.create.topics.enable": "false",
        "log.cleaner.dedupe.buffer.size": "8388608",
    }
    if secure:
        lines |= _security(secure)
    properties.touch(mode=0o600)
    properties.chmod(0o600)  # it may hold a password
    properties.write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    return properties


def _security(secure: SecureListener) -> dict[str, str]:
    login = "org.apache.kafka.common.security.scram.ScramLoginModule required"
    authorizer = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:{secure.username};User:ANONYMOUS",  # the latter: its own controller, over loopback
    }
    return (authorizer if secure.users else {}) | {
        "inter.broker.listener.name": "SASL_SSL",
        "ssl.keystore.type": "PKCS12",
        "ssl.keystore.location": str(secure.keystore.resolve()),
        "ssl.keystore.password": secure.store_password,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(secure.authority.resolve()),
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
            f'{login} username="{secure.username}" password="{secure.password}";'
        ),
    }


def _format(java: str, classpath: str, properties: Path, secure: SecureListener | None) -> None:
    tool = [java, "-cp", classpath, "kafka.tools.StorageTool"]
    cluster = subprocess.run([*tool, "random-uuid"], capture_output=True, text=True).stdout.strip().splitlines()[-1]
    words = [*tool, "format", "-t", cluster, "-c", str(properties), "--ignore-formatted"]
    if secure:
        for name, password in {secure.username: secure.password, **secure.users}.items():
            words += ["--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]"]
    result = subprocess.run(words, capture_output=True, text=True)
    if result.returncode != 0:
        raise BrokerError(f"Kafka's storage could not be formatted: {(result.stderr or result.stdout).strip()[-500:]}")


def _port_of(properties: Path, key: str = "advertised.listeners") -> int:
    for line in properties.read_text().splitlines():
        name, _, value = line.partition("=")
        if name == key:
            return int(value.rsplit(":", 1)[1])
    return 0


def _process(settings: Settings) -> psutil.Process | None:
    """Returns the running broker; a process id that now belongs to another program does not count."""
    try:
        process = psutil.Process(int(json.loads(broker_record(settings).read_text())["pid"]))
        folder = str(broker_record(settings).parent.resolve())
        ours = any(folder in word and word.endswith("server.properties") for word in process.cmdline())
        return process if ours and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, KeyError, psutil.Error):
        return None


def _reap(pid: int) -> None:
    started = _started.pop(pid, None)
    if started is not None:
        started.wait(10)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _write_json(path: Path, value: dict[str, int]) -> None:
    temp = path.with_suffix(".tmp")
    temp.write_text(json.dumps(value))
    temp.replace(path)


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
