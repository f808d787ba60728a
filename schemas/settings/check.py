"""What the types of the settings cannot say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from schemas.errors import SettingsError
from schemas.settings.check_admission import check_admission
from schemas.settings.check_budget import check_budget
from schemas.settings.check_mapping import check_mappings
from schemas.settings.check_rubric import check_panel, check_rubric
from schemas.settings.check_tracing import check_tracing
from schemas.settings.models import Model
from schemas.settings.root import Settings, Task
from schemas.settings.section import ROLES, TASK_NAME

_SECRET_KEY = re.compile(r"(?i)(^|[_-])(api[_-]?key|secret|password|authorization|(access|auth|bearer)[_-]token)$")


def check(settings: Settings, path: Path) -> None:
    """Raises SettingsError for the first mistake, with its key, what was found and what is expected."""
    if re.search(r"[@/?]", settings.kafka.bootstrap_servers):  # its text is in errors and process lists
        raise SettingsError(
            f"{path}: kafka.bootstrap_servers: expected HOST:PORT,... and nothing else. A user name goes to "
            "kafka.sasl_username, its password into the variable that kafka.sasl_password_env names."
        )
    check_admission(settings, path)
    check_mappings(settings, path)
    check_tracing(settings.tracing, path)
    for name, task in settings.tasks.items():
        if not re.fullmatch(TASK_NAME, name):
            raise SettingsError(
                f"{path}: task name {name!r} cannot be used: it becomes a folder name. Use lower-case letters, "
                "digits, - and _, beginning with a letter or digit."
            )
        if not task.topics:
            raise SettingsError(f"{path}: tasks.{name}.topics is empty; name at least one log topic to read.")
        for topic in task.topics:
            if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", topic):
                raise SettingsError(f"{path}: tasks.{name}.topics: {topic!r} is no Kafka topic name.")
            if settings.kafka.topic_prefix and topic.startswith(settings.kafka.topic_prefix):
                raise SettingsError(f"{path}: tasks.{name}.topics: {topic!r} has our own prefix; read the product's.")
        check_rubric(task.rubric, f"{path}: tasks.{name}.rubric")
        check_panel(task.panel, task.judge.temperature, f"{path}: tasks.{name}")
        for judge in (*task.panel.judges, task.panel.tie_break):
            for one in (judge, *judge.fallbacks):
                _check_secrets(one, f"{path}: tasks.{name}.panel")
            if judge.model.startswith("local/") and judge.model.removeprefix("local/") not in settings.local:
                table = judge.model.replace("/", ".")
                raise SettingsError(f"{path}: tasks.{name}.panel names {judge.model!r}, but there is no [{table}].")
        if task.rubric.needs_model and not task.judge.model:
            raise SettingsError(
                f"{path}: tasks.{name} has no judge: set judge.model, or rubric.verifier, or a check for every rule."
            )
        _check_servers(task, f"{path}: tasks.{name}")
        _check_chain(task, f"{path}: tasks.{name}")
        check_budget(task, f"{path}: tasks.{name}")
        for role in ROLES:
            for one in (task.model(role), *task.model(role).fallbacks):
                _check_secrets(one, f"{path}: tasks.{name}.{role}")
            model = task.model(role).model
            unused = role == "refiner" and all(step.by != "teacher" for step in task.refining.chain)
            if not model and role != "judge" and not unused:
                raise SettingsError(f"{path}: tasks.{name}.{role}.model is missing; set a LiteLLM model string.")
            if model.startswith("local/") and model.removeprefix("local/") not in settings.local:
                table = model.replace("/", ".")
                raise SettingsError(f"{path}: tasks.{name}.{role}.model is {model!r}, but there is no [{table}].")


def _check_servers(task: Task, where: str) -> None:
    """Checks the addresses that rollout speaks to; a secret in one is not repeated."""
    for server in task.rollout.servers:
        if "@" in server or "?" in server or not re.match(r"https?://[^/]", server):
            raise SettingsError(
                f"{where}.rollout.servers: expected plain addresses such as http://10.0.0.7:8000/v1, without user "
                "name, password or query; the key comes from the variable that student.api_key_env names."
            )
    if not task.student.model.startswith("hosted_vllm/"):
        wrong = "rollout.servers" if task.rollout.servers else "trainer.share_gpu" if task.trainer.share_gpu else ""
        if wrong:
            raise SettingsError(
                f"{where}.{wrong} is about vLLM, but the student is {task.student.model!r}. Serve it as "
                "hosted_vllm/NAME, or remove the setting."
            )


def _check_chain(task: Task, where: str) -> None:
    """Refuses a chain of refiners whose later ones could never have their turn."""
    refining, before = task.refining, 0.0
    for number, step in enumerate(refining.chain):
        if number and task.max_rounds and before >= task.max_rounds:
            raise SettingsError(
                f"{where}.refining.chain: refiner {number + 1} ({step.by!r}) would never be asked: those before it may "
                f"use all {task.max_rounds} rounds. Give them fewer `rounds`, set refining.patience below max_rounds, "
                "or raise max_rounds."
            )
        before += min(step.rounds or float("inf"), refining.patience or float("inf"))


def _check_secrets(model: Model, where: str) -> None:
    """Refuses secrets in a model's URL or options, without repeating them."""
    if "@" in model.api_base or "?" in model.api_base or "#" in model.api_base:
        raise SettingsError(
            f"{where}.api_base holds a user name, password or query. Secrets are never allowed in URLs: write the "
            "plain address, and name the variable that holds the key in api_key_env."
        )
    secret = next((key for key in _keys(model.extra) if _SECRET_KEY.search(key)), None)
    if secret is not None:
        raise SettingsError(
            f"{where}.extra.{secret} would be a secret in the settings. Put it into a variable and name that in "
            "api_key_env."
        )


def _keys(table: Mapping[str, Any]) -> Iterable[str]:
    for key, value in table.items():
        yield key
        if isinstance(value, Mapping):
            yield from _keys(value)
