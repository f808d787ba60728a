"""What the types cannot say of where reading begins and which records a task takes."""

from __future__ import annotations

from pathlib import Path

import jmespath
from jmespath.exceptions import JMESPathError

from schemas.errors import SettingsError
from schemas.settings.root import Settings
from schemas.start import parse_start


def check_admission(settings: Settings, path: Path) -> None:
    """Raises SettingsError for a start that is no time, a predicate that is no JMESPath, a task no record can reach."""
    try:
        parse_start(settings.intake.start_at, now_ms=0)
    except ValueError:
        raise SettingsError(
            f"{path}: intake.start_at is {settings.intake.start_at!r}; expected latest, earliest, a time such as "
            '"2026-11-01T00:00" (UTC), or how far back: "7d", "12h", "30m".'
        ) from None
    greedy: dict[str, str] = {}  # topic -> the first task that takes all of it
    for name, task in settings.tasks.items():
        for topic in task.topics:
            if topic in greedy:
                raise SettingsError(
                    f"{path}: tasks.{name} would never get a record of {topic}: tasks.{greedy[topic]} stands before it "
                    "and takes them all. Give that one a rule (workloads, models, where), or move it below."
                )
            if not (task.workloads or task.models or task.where):
                greedy[topic] = name
        if task.where:
            try:
                jmespath.compile(task.where)
            except JMESPathError as error:
                raise SettingsError(
                    f"{path}: tasks.{name}.where is no JMESPath expression: {' '.join(str(error).split())}. Such as: "
                    "\"source == 'helpdesk'\""
                ) from None
