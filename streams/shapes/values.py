"""Reading single values of a log record, whatever type its logger gave them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec

from schemas.errors import RecordError

_decode = msgspec.json.Decoder().decode
_encode = json.JSONEncoder(ensure_ascii=False).encode

# What of a product's call is worth keeping to repeat it. A list, so that no key or header of theirs slips in.
_PARAMS = frozenset(
    (
        "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "max_output_tokens", "stop",
        "seed", "n", "presence_penalty", "frequency_penalty", "repetition_penalty", "response_format", "tool_choice",
        "parallel_tool_calls", "reasoning_effort", "logprobs", "top_logprobs", "verbosity",
    )
)  # fmt: skip
_YEAR_3000_S = 32_503_680_000
_YEAR_3000_MS, _YEAR_3000_US, _YEAR_3000_NS = (_YEAR_3000_S * unit for unit in (10**3, 10**6, 10**9))


def text(value: Any) -> str:
    """Returns a value as an id or a name; "" for what cannot be one."""
    if value.__class__ is str:
        return value
    return str(value) if value.__class__ is int else ""


def first(*values: Any) -> str:
    """Returns the first value that is an id or a name."""
    for value in values:
        if value:
            if value.__class__ is str:
                return value
            if value.__class__ is int:
                return str(value)
    return ""


def obj(value: Any) -> dict[str, Any]:
    """Returns an object, also one that is JSON in a text; {} for anything else."""
    value = parsed(value)
    return value if isinstance(value, dict) else {}


def parsed(value: Any) -> Any:
    """Returns what a text of JSON holds; any other value as it is."""
    if isinstance(value, str) and value[:1] in ("{", "[", '"', " ", "\n"):
        try:
            return _decode(value)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return value
    return value


def number(value: Any) -> int:
    """Returns a count, 0 for what is none; OTLP writes them as texts."""
    if value.__class__ is int:
        return value if 0 <= value < 2**53 else 0
    if isinstance(value, float) and 0 <= value < 2**53:
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    return 0


def amount(value: Any) -> float | None:
    """Returns an amount of money; None for what is none."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        return None
    return float(value)


def time_ms(value: Any) -> int:
    """Returns a time as ms since 1970, from s, ms, us or ns since then or ISO 8601; 0 for what is none."""
    if value.__class__ is str:
        value = _moment(value)
    if value.__class__ is int and 0 < value < _YEAR_3000_NS:
        if value < _YEAR_3000_S:
            return value * 1000
        if value < _YEAR_3000_MS:
            return value
        return value // (10**3 if value < _YEAR_3000_US else 10**6)
    if value.__class__ is float and 0 < value < _YEAR_3000_S:
        return int(value * 1000)
    if isinstance(value, datetime):  # Avro's too
        ms = int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1000)
        return ms if ms > 0 else 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        return 0
    milliseconds = value * 1000
    while milliseconds > _YEAR_3000_MS:  # it was in a smaller unit
        milliseconds /= 1000
    return int(milliseconds)


def _moment(said: str) -> datetime | int | float:
    """Returns what a text says of a time: a count since 1970, or a moment; 0 where it says none."""
    if not said or len(said) > 40:
        return 0
    if said[4:5] != "-" and said.isascii():
        if said.isdigit():
            return int(said)
        if said.replace(".", "", 1).isdigit():
            return float(said)
    try:
        return datetime.fromisoformat(said)
    except ValueError:
        return 0


def params(source: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a call that are worth keeping."""
    kept = {}
    for name in source:  # a comprehension takes half as long again for so few
        if name in _PARAMS and source[name] is not None:
            kept[name] = source[name]
    return kept


def tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Returns the tools offered to the model, as chat completions take them; raises RecordError for other types."""
    value = parsed(value)
    if not value:
        return ()
    if not isinstance(value, list):
        raise RecordError("wrong_type", f"`tools` is {type(value).__name__}, expected an array")
    found = []
    for tool in value:
        if not isinstance(tool, dict):
            raise RecordError("wrong_type", f"one of `tools` is {type(tool).__name__}, expected an object")
        found.append(tool if "function" in tool else _function_tool(tool))
    return tuple(found)


def _function_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Returns a tool of the flat shapes (Responses API, Anthropic, OTLP) as chat completions write it."""
    if tool.get("type", "function") not in ("function", "custom") or "name" not in tool:
        return tool  # of the vendor's own: web search and the like
    function = {"name": tool["name"]}
    if tool.get("description"):
        function["description"] = tool["description"]
    schema = tool.get("parameters") or tool.get("input_schema")
    if schema:
        function["parameters"] = schema
    return {"type": "function", "function": function}


def arguments(value: Any) -> str:
    """Returns the arguments of a tool call as the text that chat completions carry."""
    if isinstance(value, str):
        return value
    return "{}" if value is None else _encode(value)


def keys(body: dict[str, Any]) -> str:
    """Returns the names of an object's keys for an error: names, never values."""
    return ", ".join(sorted(str(key)[:40] for key in body)[:12]) or "none"


def kind(value: Any) -> str:
    """Returns the name of a value's JSON type."""
    names = {dict: "an object", list: "an array", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
