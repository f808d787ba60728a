"""Conversations as JSON lines: what TRL, axolotl and OpenAI's fine-tuning read.

Only the last answer is to be learned. What an assistant said earlier in a prompt is the product's, so each format marks
it so: TRL by completion, axolotl by "training", OpenAI by "weight".
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from schemas.case import Message
from schemas.tools import plain_call
from streams.export.pairs import Pair


def trl(pair: Pair, *, tools: bool, thinking: bool) -> dict[str, Any]:
    """Returns TRL's conversational prompt and completion; `chat_template_kwargs` makes A's prompt that of inference."""
    answer: dict[str, Any] = {"role": "assistant", "content": pair.answer}
    if tools:
        answer["tool_calls"] = calls_row(pair.calls)
    if thinking:
        answer["reasoning_content"] = pair.strategy or None
    row: dict[str, Any] = {"prompt": [message_row(m, tools=tools) for m in pair.messages]}
    row["completion"] = [answer]
    if tools:
        row["tools"] = json_text(pair.tools) if pair.tools else None
    row["chat_template_kwargs"] = {"enable_thinking": bool(pair.strategy)}
    return row | {"case_id": pair.case_id, "pair": pair.pair}


def axolotl(pair: Pair, *, tools: bool, thinking: bool) -> dict[str, Any]:
    """Returns axolotl's chat_template row; "training" is true of the answer alone."""
    messages = [message_row(m, tools=tools) | {"training": False} for m in pair.messages]
    answer = message_row(Message("assistant", pair.answer, tool_calls=pair.calls), tools=tools) | {"training": True}
    messages.append(answer)
    if thinking:
        for message in messages:
            message["reasoning_content"] = None
        answer["reasoning_content"] = pair.strategy or None
    row: dict[str, Any] = {"messages": messages}
    if tools:
        row["tools"] = [_plain_tool(tool) for tool in pair.tools] or None
    return row | {"case_id": pair.case_id, "pair": pair.pair}


def openai(pair: Pair, *, tools: bool, thinking: bool) -> dict[str, Any]:
    """Returns OpenAI's fine-tuning row, without any key it does not know; a strategy stands before the answer."""
    messages: list[dict[str, Any]] = []
    for message in pair.messages:
        plain = {name: value for name, value in message_row(message, tools=True).items() if value is not None}
        if plain["role"] == "assistant":
            plain["weight"] = 0
        messages.append(plain)
    said: dict[str, Any] = {"role": "assistant", "content": thought(pair.strategy) + pair.answer}
    messages.append(said | ({"tool_calls": calls_row(pair.calls)} if pair.calls else {}))
    row: dict[str, Any] = {"messages": messages}
    if pair.tools:
        row["tools"] = pair.tools
    return row


def message_row(message: Message, *, tools: bool) -> dict[str, Any]:
    """Returns a prompt message; with `tools` every key there is, so that all rows of a file have one shape.

    Text parts are joined. Arguments of calls are JSON text, as in chat completions.
    """
    row: dict[str, Any] = {"role": message.role, "content": message.text()}
    if tools:
        row["name"] = message.name
        row["tool_calls"] = calls_row(message.tool_calls)
        row["tool_call_id"] = message.tool_call_id
    return row


def thought(strategy: str) -> str:
    """Returns a strategy as the think block of a completion, for formats that hold it in the text."""
    return f"<think>\n{strategy}\n</think>\n\n" if strategy else ""


def json_text(value: Any) -> str:
    """Returns a value as JSON text."""
    return msgspec.json.encode(value).decode()


def calls_row(calls: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Returns calls of tools, None for none; their arguments as the JSON text that a chat template would make of them.

    Templates write a text as it stands, so that the prompt is the one of our own training and of serving.
    """
    return [_call(call) for call in calls] if calls else None


def _call(call: dict[str, Any]) -> dict[str, Any]:
    plain = plain_call(call)
    function = plain["function"]
    with contextlib.suppress(ValueError, RecursionError):  # no JSON: as the product logged it
        function["arguments"] = json.dumps(json.loads(function["arguments"] or "{}"), ensure_ascii=False)
    return plain


def _plain_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Returns a tool with its parameters as JSON text, which axolotl reads: as objects no two have one shape."""
    function = tool.get("function") or tool
    return {
        "type": "function",
        "function": {
            "name": str(function.get("name", "")),
            "description": str(function.get("description") or ""),
            "parameters": json_text(function.get("parameters") or {"type": "object", "properties": {}}),
        },
    }
