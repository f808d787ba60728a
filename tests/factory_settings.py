"""What tests, benchmarks and fault runs write into a factory's settings alike, and how its processes are told of them.

What one factory has that others have not stands in the file that starts it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from schemas.settings import ROLES, Settings


def role_tables(task: str, roles: Iterable[str] = ROLES, **fields: str | float) -> str:
    """Returns a table of TOML for each of a task's roles, with these fields; "{role}" in a text is the role's name."""
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())
    return "".join(f"[tasks.{task}.{role}]\n" + lines.replace("{role}", role) for role in roles)


def config_options(config: Path, overrides: Iterable[str]) -> list[str]:
    """Returns the words that lead a command of ours to a file of settings and what overrides it."""
    return ["--config", str(config), *(word for one in overrides for word in ("--set", one))]


def process_options(settings: Settings, config: Path) -> list[str]:
    """Returns the words that lead a command of ours to the broker, topics and state of these settings.

    All else it reads from the file they come from.
    """
    kafka = settings.kafka
    own = config_options(config, [f"kafka.topic_prefix={kafka.topic_prefix}", f"state_dir={settings.state}"])
    return [*own, "--bootstrap-servers", kafka.bootstrap_servers]
