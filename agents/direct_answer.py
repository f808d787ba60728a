"""Reads the body of a chat completion, as strictly as LiteLLM does: pure, agents.direct gives it the bytes.

Servers answer with anything: what is no chat completion raises ValueError, whose text quotes nothing of the answer.
"""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

import msgspec

from agents.completion import Answer
from schemas.tools import plain_call

UNPROCESSABLE = 422  # an error in an answer that says no number


class ErrorInAnswer(ValueError):
    """The server said 200, and an error in the body; `status` is the one it names there."""

    def __init__(self, message: str, status: object) -> None:
        super().__init__(message)
        self.status = status


class _Token(msgspec.Struct):
    logprob: float | str


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Call(msgspec.Struct):
    id: Any = None
    type: Any = "function"
    function: _Function | None = None


class _Said(msgspec.Struct):
    role: str | None
    content: str | None = None
    reasoning_content: str | msgspec.UnsetType | None = msgspec.UNSET
    reasoning: Any = msgspec.UNSET
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    message: _Said
    finish_reason: Any = None
    finish_details: Any = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None


class _Answered(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_Answered)
_WHOLE = re.compile(r"-?\d{1,18}")
_THOUGHT = re.compile(r"<(?:think|thinking|budget:thinking)>(.*?)</(?:think|thinking|budget:thinking)>(.*)", re.DOTALL)
# What vLLM and servers like it say, in the words of chat completions; whatever else they say is an end like others.
_FINISHED = {
    "length": "length", "max_tokens": "length", "MAX_TOKENS": "length", "compaction": "length",
    "tool_calls": "tool_calls", "tool_use": "tool_calls", "function_call": "function_call",
    "content_filter": "content_filter", "content_filtered": "content_filter", "refusal": "content_filter",
    "sensitive": "content_filter", "SAFETY": "content_filter",
}  # fmt: skip


def read_answer(body: bytes) -> Answer:
    """Reads an answer. Raises ValueError where it is none, ErrorInAnswer where it tells of an error."""
    try:
        found = _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = _read_slowly(body)
    if found.error is not None:
        _raise_error(found.error)
    prompt_tokens, completion_tokens = _usage(found.usage)
    if not found.choices:
        return Answer(has_choice=False, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
    choice = found.choices[0]
    said = choice.message
    calls = tuple(map(_plain_call, said.tool_calls)) if said.tool_calls else ()
    content, reasoning = said.content, None
    if said.reasoning_content is not msgspec.UNSET:
        reasoning = said.reasoning_content
    elif said.reasoning is not msgspec.UNSET:
        reasoning = said.reasoning
    elif content and (thought := _THOUGHT.match(content)):
        reasoning, content = thought[1], thought[2]
    if reasoning is not None and not isinstance(reasoning, str):
        raise ValueError("its reasoning is no text")
    listed = choice.logprobs.content if choice.logprobs else None
    return Answer(
        content=content or "",
        reasoning=reasoning or "",
        calls=calls,
        finish_reason=_finish_reason(choice, bool(calls)),
        logprob=sum(float(token.logprob) for token in listed) if listed else None,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )


def message_of(body: bytes) -> str:
    """Returns what an answer that is no success says of it: vLLM's message, else its text as it came."""
    text = body.decode("utf-8", "replace").strip()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    error = found.get("error", found) if isinstance(found, dict) else found
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else text


def _read_slowly(body: bytes) -> _Answered:
    """Reads what is not quite JSON, or not quite an answer: NaN, half an emoji, UTF-16, log-probabilities of old."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError(f"its {len(body)} bytes are no JSON") from None
    if not isinstance(found, dict):
        raise ValueError("its JSON is no object")
    if found.get("error") is not None:
        _raise_error(found["error"])
    for choice in found["choices"] if isinstance(found.get("choices"), list) else ():
        if isinstance(choice, dict) and not isinstance(choice.get("logprobs"), dict):
            choice["logprobs"] = None
    try:
        return msgspec.convert(found, _Answered)
    except msgspec.ValidationError as error:
        raise ValueError(f"it is no chat completion: {error}") from None


def _raise_error(told: object) -> None:
    """Raises what an answer tells of as an error; some servers send an empty one with every good answer."""
    if isinstance(told, dict):
        message, code = told.get("message", ""), told.get("code")
        if not message and code is None:
            return
        raise ErrorInAnswer(str(message), code if "code" in told else UNPROCESSABLE)
    if told != "":
        raise ErrorInAnswer("its body tells of an error", UNPROCESSABLE)


def _plain_call(call: _Call) -> dict[str, Any]:
    if call.function is None and call.type != "custom":
        raise ValueError("a call of a tool in it names no function")
    function = call.function or _Function()
    return plain_call(
        {
            "id": str(uuid.uuid4()) if call.id is None else call.id,
            "function": {"name": function.name, "arguments": "" if function.arguments is None else function.arguments},
        }
    )


def _finish_reason(choice: _Choice, calls: bool) -> str:
    told = choice.finish_reason
    if told is None:
        told = choice.finish_details or "stop"
    if told == "stop" and calls:
        return "tool_calls"
    if isinstance(told, (list, dict)):
        raise ValueError("its finish reason is no text")
    return _FINISHED.get(told, "stop")


def _usage(usage: _Usage | None) -> tuple[int, int]:
    if usage is None:
        return 0, 0
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if type(prompt) is int and type(completion) is int and type(usage.total_tokens) is int:
        return prompt, completion
    _whole(usage.total_tokens)
    return _whole(prompt), _whole(completion)


def _whole(value: object) -> int:
    """Returns a number of tokens, whatever it is written as."""
    if value is None:
        return 0
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    raise ValueError("its usage is not in whole tokens")
