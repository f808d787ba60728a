"""How a Kafka client of ours is built: addresses and security, the same for every process.

No client is made here: streams and trainer hand theirs to `connect`. Faust takes the same addresses, password and
TLS context (streams.worker).
"""

from __future__ import annotations

import json
import os
import socket
import ssl
from functools import cache
from pathlib import Path
from typing import Any

from schemas.errors import BrokerError, SettingsError
from schemas.settings import Settings

LOCAL = "local"
BOOTSTRAP_TIMEOUT_MS = 8_000
RECONNECT_MS = 2_000  # a broker that is back is found that soon; the clients' own 30 s would prolong every outage


def bootstrap_servers(settings: Settings) -> list[str]:
    """Returns host:port addresses; those of the running local broker where the settings say "local".

    Raises BrokerError where the local broker was never started.
    """
    configured = settings.kafka.bootstrap_servers
    if configured != LOCAL:
        return [address.strip() for address in configured.split(",") if address.strip()]
    record = broker_record(settings)
    try:
        return [f"127.0.0.1:{json.loads(record.read_text())['port']}"]
    except (OSError, ValueError, KeyError) as error:
        raise BrokerError(
            "no local Kafka has been started here. Run `goldstream broker start`, or point at a running Kafka with "
            "--bootstrap-servers HOST:PORT or kafka.bootstrap_servers in goldstream.toml."
        ) from error


def broker_record(settings: Settings) -> Path:
    """Returns the file in which the local broker notes its port and process id."""
    return settings.state / "kafka" / "broker.json"


def connect(make: Any, settings: Settings, **options: Any) -> Any:
    """Returns a kafka-python client, the class `make`, connected to the brokers.

    Raises BrokerError where no Kafka answers within BOOTSTRAP_TIMEOUT_MS or lets us in, SettingsError as
    `client_options` does.
    """
    try:
        return construct(make, **({"bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS} | client_options(settings) | options))
    except Exception as error:
        if type(error).__module__.startswith("kafka."):
            raise unreachable(settings, error) from error
        raise


def construct(make: Any, **options: Any) -> Any:
    """Returns a kafka-python client, the class `make`; one that fails leaves no thread and no socket behind."""
    close_failed_sockets()
    begun: list[Any] = []

    def begin(*arguments: Any, **config: Any) -> Any:
        begun.append(make.DEFAULT_CONFIG["kafka_client"](*arguments, **config))
        return begun[-1]

    try:
        return make(**({"kafka_client": begin} | options))
    except Exception:
        for client in begun:  # a constructor that fails does not do it itself
            client.close()
        raise


def client_options(settings: Settings) -> dict[str, Any]:
    """Returns the keyword arguments every kafka-python client takes: addresses and security.

    Raises SettingsError where SASL is on and the user name or the password's variable is empty, or the authority's
    certificate cannot be read.
    """
    close_failed_sockets()
    kafka = settings.kafka
    options: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers(settings),
        "security_protocol": kafka.security_protocol,
        "reconnect_backoff_max_ms": RECONNECT_MS,
    }
    if kafka.security_protocol.startswith("SASL"):
        if not kafka.sasl_username:
            raise SettingsError("kafka.security_protocol asks for SASL, but kafka.sasl_username is empty. Set it.")
        options |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": sasl_password(settings),
        }
    if kafka.security_protocol.endswith("SSL"):
        options["ssl_context"] = tls_context(settings)
    return options


@cache
def close_failed_sockets() -> None:
    """Has kafka-python close the socket of a connection or handshake that fails, or that a closing client gives up.

    kafka-python 3.0.12 leaves it to the garbage collector.
    """
    from kafka.net.inet import KafkaNetSocket
    from kafka.net.transport import KafkaSSLTransport

    connect_socket, shake_hands = KafkaNetSocket.sock_connect, KafkaSSLTransport.handshake

    async def sock_connect(self: Any, net: Any, sock: socket.socket, *arguments: Any, **options: Any) -> Any:
        try:
            return await connect_socket(self, net, sock, *arguments, **options)
        except BaseException:  # an attempt that is given up ends with GeneratorExit
            sock.close()
            raise

    async def handshake(self: Any) -> None:
        try:
            await shake_hands(self)
        except BaseException:
            if self._sock is not None:
                self._sock.close()
            raise

    KafkaNetSocket.sock_connect, KafkaSSLTransport.handshake = sock_connect, handshake


def sasl_password(settings: Settings) -> str:
    """Returns the SASL password from the variable the settings name; its repr does not show it."""
    variable = settings.kafka.sasl_password_env
    password = os.environ.get(variable, "")
    if not password:
        raise SettingsError(
            f"kafka.security_protocol asks for SASL, but the variable {variable or '(none named)'} is empty. Export "
            "the password in it; kafka.sasl_password_env names the variable."
        )
    return _Secret(password)


def tls_context(settings: Settings) -> ssl.SSLContext:
    """Returns what a client verifies brokers by; raises SettingsError where kafka.ssl_cafile cannot be read."""
    path = settings.kafka.ssl_cafile
    try:
        return ssl.create_default_context(cafile=path or None)
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(
            f"kafka.ssl_cafile: {path} cannot be read as PEM certificates ({error.strerror or type(error).__name__}). "
            "Expected the certificate of the authority that signed the brokers'."
        ) from error


def unreachable(settings: Settings, error: Exception) -> BrokerError:
    """Returns an error that says why no Kafka can be used and what to do.

    Clients report a timeout whatever the cause, so the first address that accepts a connection is looked at here.
    """
    kafka, servers = settings.kafka, bootstrap_servers(settings)
    connection = _first_connection(servers)
    if connection is None:
        return BrokerError(
            f"no Kafka answers at {','.join(servers)} ({type(error).__name__}). Start it, or correct the address; "
            "`goldstream doctor` tells what is there."
        )
    address, plain = connection
    with plain:
        if kafka.security_protocol.endswith("SSL"):
            try:
                tls_context(settings).wrap_socket(plain, server_hostname=address.rpartition(":")[0]).close()
            except ssl.SSLCertVerificationError as refused:
                return BrokerError(
                    f"the certificate of the Kafka at {address} is not accepted: {refused.verify_message}. Set "
                    "kafka.ssl_cafile to the PEM certificate of the authority that signed it."
                )
            except OSError as failed:
                return BrokerError(
                    f"what answers at {address} does not speak TLS ({type(failed).__name__}), and "
                    f"kafka.security_protocol is {kafka.security_protocol}. Correct one of them."
                )
    if kafka.security_protocol.startswith("SASL"):
        return BrokerError(
            f"the Kafka at {address} lets {kafka.sasl_username!r} not in with {kafka.sasl_mechanism} "
            f"({type(error).__name__}). Check kafka.sasl_username, kafka.sasl_mechanism and the password in the "
            f"variable {kafka.sasl_password_env}."
        )
    return BrokerError(
        f"what answers at {address} does not speak Kafka as {kafka.security_protocol} ({type(error).__name__}). It may "
        "still be starting; else correct the address or kafka.security_protocol."
    )


def _first_connection(servers: list[str]) -> tuple[str, socket.socket] | None:
    for address in servers:
        host, _, port = address.rpartition(":")
        try:
            return address, socket.create_connection((host.strip("[]"), int(port)), timeout=2)
        except (OSError, ValueError):
            continue
    return None


class _Secret(str):
    """A password whose repr says nothing: kafka-python's admin client logs its options at debug level."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'[secret]'"
