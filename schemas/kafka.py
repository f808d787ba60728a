"""How a Kafka client of ours is built: addresses and security, the same for every process.

Plain data, no client is imported here: streams and trainer pass these options to kafka-python.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from schemas.errors import BrokerError, SettingsError
from schemas.settings import Settings

LOCAL = "local"


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


def client_options(settings: Settings) -> dict[str, Any]:
    """Returns the keyword arguments every kafka-python client takes: addresses and security.

    Raises SettingsError where SASL is on and the password's variable is empty.
    """
    kafka = settings.kafka
    options: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers(settings),
        "security_protocol": kafka.security_protocol,
    }
    if kafka.security_protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": sasl_password(settings),
        }
    if kafka.security_protocol.endswith("SSL") and kafka.ssl_cafile:
        options["ssl_cafile"] = kafka.ssl_cafile
    return options


def sasl_password(settings: Settings) -> str:
    """Returns the SASL password from the variable the settings name."""
    variable = settings.kafka.sasl_password_env
    password = os.environ.get(variable, "")
    if not password:
        raise SettingsError(f"kafka.security_protocol asks for SASL, but the variable {variable} is empty. Export it.")
    return password
