"""LLaMA-Factory's ShareGPT rows and the dataset_info.json that makes a folder a dataset_dir of it.

It wants speakers in turns: a user or a tool's result, then an assistant or a call. Prompts that are otherwise are left
out and counted, never bent. A strategy stands in the answer's think block.
"""

from __future__ import annotations

from typing import Any

import msgspec

from schemas.case import Message
from streams.export.chat import json_text, message_row, thought
from streams.export.pairs import LeftOut, Pair

INFO = "dataset_info.json"
_SYSTEM = ("system", "developer")
_ASKS, _ANSWERS = ("human", "observation"), ("gpt", "function_call")


def llama_factory(pair: Pair, *, tools: bool, thinking: bool) -> dict[str, Any]:
    """Returns one row; raises LeftOut for a conversation that the format cannot hold."""
    messages = list(pair.messages)
    system: list[str] = []
    while messages and messages[0].role in _SYSTEM:
        system.append(messages.pop(0).text())
    turns = _turns(messages)
    answer = _turn(Message("assistant", pair.answer, tool_calls=pair.calls))
    turns.append(answer | {"value": thought(pair.strategy) + answer["value"]})
    sides = [_ASKS, _ANSWERS]
    if len(turns) % 2 or any(turn["from"] not in sides[place % 2] for place, turn in enumerate(turns)):
        raise LeftOut("no_alternation")
    functions = [tool.get("function") or tool for tool in pair.tools]
    return {
        "conversations": turns,
        "system": "\n\n".join(system),
        "tools": json_text(functions) if functions else "",
        "case_id": pair.case_id,
        "pair": pair.pair,
    }


def dataset_info(names: dict[str, str]) -> dict[str, Any]:
    """Returns dataset_info.json of files by the names of their data sets."""
    columns = {"messages": "conversations", "system": "system", "tools": "tools"}
    return {
        name: {"file_name": file, "formatting": "sharegpt", "columns": columns} for name, file in sorted(names.items())
    }


def _turns(messages: list[Message]) -> list[dict[str, str]]:
    """Returns who says what; results of calls that were made at once are one turn."""
    turns: list[dict[str, str]] = []
    results: list[str] = []
    for message in [*messages, None]:
        if message is not None and message.role in ("tool", "function"):
            results.append(message.text())
            continue
        if results:
            turns.append({"from": "observation", "value": "\n</tool_response>\n<tool_response>\n".join(results)})
            results = []
        if message is not None:
            turns.append(_turn(message))
    return turns


def _turn(message: Message) -> dict[str, str]:
    if message.tool_calls:
        if message.text().strip():
            raise LeftOut("words_and_calls")
        calls = [call["function"] for call in message_row(message, tools=True)["tool_calls"]]
        return {"from": "function_call", "value": "[" + ", ".join(map(_call, calls)) + "]"}
    speaker = {"user": "human", "assistant": "gpt"}.get(message.role)
    if speaker is None:
        raise LeftOut("no_alternation")
    return {"from": speaker, "value": message.text()}


def _call(function: dict[str, str]) -> str:
    """Returns a call with its arguments as the object they are, where they are JSON."""
    try:
        arguments: Any = msgspec.json.decode(function["arguments"])
    except msgspec.DecodeError:
        arguments = function["arguments"]
    return json_text({"name": function["name"], "arguments": arguments})
