"""A user's mapping: JMESPath expressions that say where in a record of an unknown shape the prompt and the rest are.

streams.reader tries it on each record after its envelopes are off.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError

from schemas.case import Message
from schemas.errors import RecordError
from schemas.settings import Mapping
from streams.records import Record, set_field
from streams.shapes.chat import asked_and_answered, read_completion, read_messages
from streams.shapes.values import amount, first, keys, kind, number, obj, params, parsed, time_ms, tools

_WELL = ("", "success", "succeeded", "ok", "completed", "complete", "200", "201", "true", "stop")
_NAMES = ("event_id", "source", "trace_id", "session_id", "workload", "user", "model", "finish_reason")


class CompiledMapping:
    """A mapping whose expressions have been compiled once."""

    def __init__(self, mapping: Mapping) -> None:
        self._expressions = {field: compiled(text) for field, text in mapping.expressions().items()}
        self.reads_prompts = bool(mapping.messages or mapping.prompt)
        self.batched = "items" in self._expressions
        self._overlays = [name for name in self._expressions if name not in ("items", "messages", "prompt", "system")]

    def items(self, body: Any) -> list[Any]:
        """Returns the calls in a record, as `items` says."""
        found = self._find("items", body)
        if found is None:
            return []
        return found if isinstance(found, list) else [found]

    def found_nothing(self, body: dict[str, Any]) -> RecordError:
        """Returns why the mapping has no prompt for a record: which expression, and what the record has instead."""
        field = "messages" if "messages" in self._expressions else "prompt"
        text = self._expressions[field].expression
        return RecordError(
            "no_mapping_match", f"map.{field} {text!r} finds nothing; the record's keys are {keys(body)}"
        )

    def read(self, body: Any) -> Record | None:
        """Returns the record that the expressions find, None where they find no prompt. Raises RecordError."""
        raw = parsed(self._find("messages", body))
        prompt = self._find("prompt", body)
        if raw is None and isinstance(prompt, list) and all(isinstance(one, str) for one in prompt):
            prompt = "\n".join(prompt)
        if raw is None and prompt is not None:
            if not isinstance(prompt, str):
                raise RecordError("wrong_type", f"map.prompt finds {kind(prompt)}, expected text")
            raw = [{"role": "user", "content": prompt}]
        if raw is None or raw == "":
            return None
        if isinstance(raw, str):
            raw = [{"role": "user", "content": raw}]
        system = self._find("system", body)
        if system is not None and isinstance(raw, list):
            if not isinstance(system, str | list):
                raise RecordError("wrong_type", f"map.system finds {kind(system)}, expected text")
            raw = [{"role": "system", "content": system}, *raw]
        messages = read_messages(raw, "map.messages")
        completion: tuple[Message, ...] = ()
        if "completion" not in self._expressions and messages[-1].role == "assistant":
            messages, completion = asked_and_answered(messages)
        return self.overlaid(Record(messages=messages, completion=completion, shape="mapped"), body)

    def overlaid(self, record: Record, body: Any) -> Record:
        """Returns a record that nobody else has yet, with the fields that expressions find in its body.

        Raises RecordError.
        """
        changes: dict[str, Any] = {}
        for field in self._overlays:
            value = self._find(field, body)
            if value is None:
                continue
            if field in _NAMES:
                changes[field] = first(value)
            elif field == "ts":
                changes["ts_ms"] = time_ms(value)
            elif field == "completion":
                changes[field] = read_completion(parsed(value), "map.completion")
            elif field == "tools":
                changes[field] = tools(value)
            elif field == "params":
                changes[field] = params(obj(value))
            elif field == "usage":
                changes |= _usage(obj(value))
            elif field == "cost":
                changes["cost_usd"] = amount(value)
            elif field == "feedback":
                changes[field] = value if isinstance(value, dict) else {"value": value}
            elif field == "status":
                _check_status(value)
        for name, value in changes.items():
            if value:
                set_field(record, name, value)
        return record

    def _find(self, field: str, body: Any) -> Any:
        expression = self._expressions.get(field)
        if expression is None:
            return None
        try:
            return expression.search(body)
        except JMESPathError as error:  # a function given another type than it takes
            raise RecordError("wrong_type", f"map.{field}: {str(error).splitlines()[0][:120]}") from None
        except (TypeError, ValueError, AttributeError, KeyError, RecursionError, ArithmeticError) as error:
            raise RecordError("wrong_type", f"map.{field}: {type(error).__name__} in its expression") from None


class _Path:
    """An expression that is only names with dots between, looked up directly: most are."""

    def __init__(self, expression: str) -> None:
        self.expression = expression
        self._names = expression.split(".")

    def search(self, body: Any) -> Any:
        try:
            for name in self._names:
                body = body[name]
        except (KeyError, TypeError):  # not there, or inside what is no object
            return None
        return body


@cache
def compiled(text: str) -> Any:
    """Returns a compiled expression: its `search` finds, its `expression` is the text."""
    names = text.strip().split(".")
    if all(name.isidentifier() and name.isascii() for name in names):
        return _Path(text.strip())
    return jmespath.compile(text)


def _usage(counts: dict[str, Any]) -> dict[str, int]:
    asked = next((counts[n] for n in ("prompt_tokens", "input_tokens", "input", "prompt", "in") if n in counts), 0)
    said = next(
        (counts[n] for n in ("completion_tokens", "output_tokens", "output", "completion", "out") if n in counts), 0
    )
    return {"prompt_tokens": number(asked), "completion_tokens": number(said)}


def _check_status(value: Any) -> None:
    said = str(value).strip().lower() if isinstance(value, str | int | bool) else kind(value)
    if said not in _WELL:
        raise RecordError("failed_call", f"map.status finds {said[:40]!r}")
