"""Where spans keep prompt and answer: in attributes, in numbered attributes, or in events.

In the order tried: GenAI messages as JSON or as structured values; numbered `gen_ai.prompt.0.content`; OpenInference's
numbered `llm.input_messages`; `input.value`; and the events that the GenAI conventions had before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas.case import Message
from schemas.errors import RecordError
from streams.shapes.chat import read_completion, read_messages
from streams.shapes.otlp_layout import Attributes, Groups
from streams.shapes.values import first, parsed, tools

Events = Sequence[tuple[str, Attributes]]  # of a span, in their order

_MAY_BE_JSON = ("{", "[", '"', " ", "\n", "")
_PLAIN = frozenset(("role", "content", "finish_reason"))
_DETAILS = "gen_ai.client.inference.operation.details"
_ROLE_EVENTS = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}


def asked_of(attributes: Attributes, events: Events, groups: Groups) -> tuple[Message, ...]:
    """Returns the prompt of a call; raises RecordError where the span holds none."""
    for held in _first_and(attributes, events, _DETAILS):
        raw = parsed(held.get("gen_ai.input.messages"))
        if raw is not None:
            if isinstance(raw, list):
                raw = [*_instructions(held), *raw]
            return read_messages(raw, "gen_ai.input.messages")
    for prefix in ("gen_ai.prompt.", "llm.input_messages."):
        numbered = groups.get(prefix)
        if numbered:
            return read_messages([_flat(one) for one in numbered], prefix.rstrip("."))
    if events and (by_event := _by_event(events)):
        return read_messages(by_event, "events")
    for held in (*_named(events, "gen_ai.content.prompt"), attributes):
        value = parsed(next((held[name] for name in ("gen_ai.prompt", "input.value") if held.get(name)), None))
        if isinstance(value, dict):
            value = value.get("messages", value.get("input"))
        if value:
            said = [{"role": "user", "content": value}] if isinstance(value, str) else value
            return read_messages(said, "input.value")
    raise RecordError(
        "no_messages", "the span of a model call without its messages; let the instrumentation capture message content"
    )


def answered_by(attributes: Attributes, events: Events, groups: Groups) -> tuple[tuple[Message, ...], str]:
    """Returns (answer, finish reason) of a call; nothing where the span holds none."""
    for held in _first_and(attributes, events, _DETAILS):
        raw = parsed(held.get("gen_ai.output.messages"))
        if raw:
            one = raw[:1] if isinstance(raw, list) else raw  # more would be other choices
            finish = raw[0].get("finish_reason") if isinstance(raw, list) and isinstance(raw[0], dict) else ""
            return read_completion(one, "gen_ai.output.messages"), first(finish)
    for prefix in ("gen_ai.completion.", "llm.output_messages."):
        numbered = groups.get(prefix)
        if numbered:
            return read_completion(_flat(numbered[0]), prefix.rstrip(".")), first(numbered[0].get("finish_reason"))
    for choice in _named(events, "gen_ai.choice"):
        message = parsed(choice.get("message"))
        if not isinstance(message, dict):
            message = {"content": message if isinstance(message, str) else choice.get("content")}
            message["tool_calls"] = parsed(choice.get("tool_calls"))
        return read_completion(message, "gen_ai.choice"), first(choice.get("finish_reason"))
    for held in (*_named(events, "gen_ai.content.completion"), attributes):
        value = parsed(next((held[name] for name in ("gen_ai.completion", "output.value") if held.get(name)), None))
        if isinstance(value, dict) and isinstance(value.get("choices"), list) and value["choices"]:
            choice = value["choices"][0]
            value = choice.get("message") if isinstance(choice, dict) else None
        if value:
            return read_completion(value[:1] if isinstance(value, list) else value, "output.value"), ""
    return (), ""


def offered_to(attributes: Attributes, groups: Groups) -> tuple[dict[str, Any], ...]:
    """Returns the tools that the call offered."""
    raw = attributes.get("gen_ai.tool.definitions")
    if raw is None:
        numbered = groups.get("llm.tools.") or groups.get("llm.request.functions.") or []
        raw = [parsed(_inner(one, "tool").get("json_schema", one)) for one in numbered]
    return tools(raw)


def _instructions(attributes: Attributes) -> list[dict[str, Any]]:
    raw = parsed(attributes.get("gen_ai.system_instructions"))
    if not raw:
        return []
    if isinstance(raw, str):
        return [{"role": "system", "content": raw}]
    return [{"role": "system", "parts": raw if isinstance(raw, list) else [raw]}]


def _flat(numbered: dict[str, Any]) -> dict[str, Any]:
    """Returns one numbered message as a chat message."""
    said = numbered.get("content")
    if said.__class__ is str and said[:1] not in _MAY_BE_JSON and "role" in numbered and numbered.keys() <= _PLAIN:
        return numbered if len(numbered) == 2 else {"role": numbered["role"], "content": said}
    message = _inner(numbered, "message")
    found: dict[str, Any] = {}
    for name in ("role", "content", "name", "tool_call_id"):
        if name in message:
            found[name] = message[name]
    if "contents" in message and "content" not in message:
        parts = [_inner(one, "message_content") for one in _in_order(message["contents"])]
        found["content"] = [{"type": part.get("type", "text"), "text": part.get("text")} for part in parts]
    elif "content" in found:
        content = parsed(found["content"])
        if isinstance(content, list) and content and all(isinstance(one, dict) and "type" in one for one in content):
            found["content"] = content
    calls = []
    for one in _in_order(message.get("tool_calls")):
        call = _inner(one, "tool_call")
        function = _inner(call, "function")
        made = {"name": first(function.get("name")), "arguments": first(function.get("arguments")) or "{}"}
        calls.append({"id": first(call.get("id")), "type": "function", "function": made})
    if calls:
        found["tool_calls"] = calls
    return found


def _inner(table: dict[str, Any], name: str) -> dict[str, Any]:
    inner = table.get(name)
    return inner if inner.__class__ is dict else table


def _in_order(numbered: Any) -> list[dict[str, Any]]:
    if isinstance(numbered, dict):
        numbered = [numbered[number] for number in sorted(numbered, key=lambda n: (len(n), n))]
    return [one for one in numbered if isinstance(one, dict)] if isinstance(numbered, list) else []


def _named(events: Events, name: str) -> list[Attributes]:
    return [attributes for given, attributes in events if given == name] if events else []


def _first_and(attributes: Attributes, events: Events, name: str) -> list[Attributes]:
    return [attributes, *_named(events, name)] if events else [attributes]


def _by_event(events: Events) -> list[dict[str, Any]]:
    """Returns the messages that older instrumentations add as one event each."""
    messages = []
    for name, held in events:
        role = _ROLE_EVENTS.get(name)
        if role is None:
            continue
        message = {"role": first(held.get("role")) or role, "content": parsed(held.get("content"))}
        if held.get("tool_calls"):
            message["tool_calls"] = parsed(held["tool_calls"])
        if role == "tool":
            message["tool_call_id"] = first(held.get("id"))
        messages.append(message)
    return messages
