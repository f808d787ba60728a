"""Answers that call tools, as one text: what judges, refiners and people read, and what can be read back.

An answer's text is its words, then each call as a block, the form that Qwen, Hermes and their kin write themselves:

    <tool_call>
    {"name": "look_up", "arguments": {"id": 7}}
    </tool_call>

The calls besides, as chat completions write them, are kept in schemas.case.Attempt.tool_calls. `template_tools` and
`template_messages` are what a chat template is given, here and at a server, so that both make the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from schemas.case import Message

OPEN, CLOSE = "<tool_call>", "</tool_call>"
Calls = tuple[dict[str, Any], ...]


def answer_text(words: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """Returns an answer as one text."""
    return "\n".join([*([words] if words else []), *map(_block, calls)])


def answer_words(text: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """Returns the words of an answer's text, without the blocks of its calls."""
    return text.removesuffix(answer_text("", calls)).removesuffix("\n") if calls else text


def read_answer(text: str) -> tuple[str, Calls]:
    """Returns (text, calls) of what a model wrote; the blocks stand last in the text, each as `answer_text` writes it.

    A text in which one block is no JSON object with a name has no calls and stays as it is: it is for the judge to see.
    """
    words: list[str] = []
    calls: list[dict[str, Any]] = []
    past = 0
    while (start := text.find(OPEN, past)) >= 0:
        end = text.find(CLOSE, start)
        call = None if end < 0 else _read_call(text[start + len(OPEN) : end], len(calls) + 1)
        if call is None:
            return text, ()
        words.append(text[past:start].strip())
        calls.append(call)
        past = end + len(CLOSE)
    if not calls:
        return text, ()
    words.append(text[past:].strip())
    return answer_text("\n".join(word for word in words if word), calls), tuple(calls)


def plain_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a call of chat completions with nothing in it but id, type, name, and arguments as JSON text."""
    function = call.get("function") or {}
    arguments = function.get("arguments", "")
    if not isinstance(arguments, str):
        arguments = _json(arguments)
    named = {"name": str(function.get("name") or ""), "arguments": arguments}
    return {"id": str(call.get("id") or ""), "type": "function", "function": named}


def template_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns what a prompt offered in one form, whatever the log wrote: its text is part of the prompt.

    vLLM fills in a description that is missing and puts the keys in this order; in this form it changes nothing.
    Tools that are no functions are left out.
    """
    found = []
    for tool in tools:
        function = tool.get("function") if isinstance(tool.get("function"), Mapping) else tool
        assert isinstance(function, Mapping)
        if not isinstance(name := function.get("name"), str) or tool.get("type", "function") != "function":
            continue
        parameters = function.get("parameters")
        if not isinstance(parameters, Mapping):
            parameters = {"type": "object", "properties": {}}
        described = {"name": name, "description": str(function.get("description") or ""), "parameters": parameters}
        found.append({"type": "function", "function": described})
    return found


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Returns messages as a chat template takes them: arguments of calls are objects, as servers hand them over."""
    plain: list[dict[str, Any]] = [msgspec.to_builtins(message) for message in messages]
    for message in plain:
        if message.get("tool_calls"):
            message["content"] = message.get("content") or ""
            message["tool_calls"] = [_with_object(call) for call in message["tool_calls"]]
    return plain


def _with_object(call: Mapping[str, Any]) -> dict[str, Any]:
    plain = plain_call(call)
    plain["function"]["arguments"] = _arguments(plain["function"]["arguments"])
    return plain


def _block(call: Mapping[str, Any]) -> str:
    function = plain_call(call)["function"]
    written = _json({"name": function["name"], "arguments": _arguments(function["arguments"])})
    return f"{OPEN}\n{written.replace(CLOSE, '<' + chr(92) + '/tool_call>')}\n{CLOSE}"


def _arguments(text: str) -> Any:
    """Returns arguments as the object they are; the text itself where they are none, {} for nothing."""
    if not text.strip():
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text


def _read_call(block: str, number: int) -> dict[str, Any] | None:
    try:
        found = json.loads(block)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", found.get("parameters", {}))
    return plain_call({"id": f"call_{number}", "function": {"name": found["name"], "arguments": arguments}})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()  # half an emoji fits no message
