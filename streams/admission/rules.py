"""Which task takes a record: by topic, workload, model, or a JMESPath predicate; the first that fits, in order."""

from __future__ import annotations

import fnmatch
import logging
import re
from typing import Any

import jmespath
import msgspec
from jmespath.exceptions import JMESPathError

from schemas.settings import Settings, Task
from streams.records import Record

log = logging.getLogger(__name__)


class Rules:
    """The tasks' rules, made once."""

    def __init__(self, settings: Settings) -> None:
        self._by_topic: dict[str, list[_Rule]] = {}
        for name, task in settings.tasks.items():
            for topic in task.topics:
                self._by_topic.setdefault(topic, []).append(_Rule(name, task))

    def task_of(self, topic: str, record: Record) -> str | None:
        """Returns the task that takes a record, None where no rule of the topic's tasks does."""
        view: dict[str, Any] = {}
        return next((rule.task for rule in self._by_topic.get(topic, ()) if rule.takes(record, view)), None)


class _Rule:
    def __init__(self, name: str, task: Task) -> None:
        self.task = name
        self._workloads = _pattern(task.workloads)
        self._models = _pattern(task.models)
        self._where = jmespath.compile(task.where) if task.where else None
        self._warned = False

    def takes(self, record: Record, view: dict[str, Any]) -> bool:
        if self._workloads and not self._workloads.fullmatch(record.workload):
            return False
        if self._models and not self._models.fullmatch(record.model):
            return False
        if self._where is None:
            return True
        if not view:
            view |= canonical(record)
        try:
            found = self._where.search(view)
        except JMESPathError as error:  # such as a comparison with what this record lacks: then it is not true of it
            if not self._warned:
                self._warned = True
                log.warning(
                    "tasks.%s.where fails on a record, which is therefore not taken: %s", self.task, _line(error)
                )
            return False
        return bool(found) or (found == 0 and not isinstance(found, bool) and found is not None)


def canonical(record: Record) -> dict[str, Any]:
    """Returns a record as predicates see it, by the names of the canonical prompt record; what is absent is null."""
    return {
        "event_id": record.event_id or None,
        "ts": record.ts_ms / 1000 if record.ts_ms else None,  # s since the epoch
        "source": record.source or None,
        "trace_id": record.trace_id or None,
        "session_id": record.session_id or None,
        "workload": record.workload or None,
        "user": record.user or None,
        "model": record.model or None,
        "messages": msgspec.to_builtins(list(record.messages)),
        "completion": msgspec.to_builtins(list(record.completion)),
        "tools": list(record.tools),
        "params": record.params,
        "usage": {"prompt_tokens": record.prompt_tokens, "completion_tokens": record.completion_tokens},
        "finish_reason": record.finish_reason or None,
        "status": record.status,
        "cost": record.cost_usd,
        "feedback": record.feedback,
        "shape": record.shape,
    }


def _pattern(globs: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs)) if globs else None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
