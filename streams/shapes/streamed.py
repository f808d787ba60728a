"""Answers that were logged as the pieces they were streamed in, put together again."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from schemas.errors import RecordError
from streams.shapes.values import kind

_EVENT = re.compile(r"^data:[ \t]*(?!\[DONE\][ \t]*$)(\S.*)$", re.MULTILINE)


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    tool_calls: None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: Any = None


class _Chunk(msgspec.Struct, gc=False):
    """A piece of a streamed text, as nearly all are; one that calls a tool is none."""

    object: Literal["chat.completion.chunk"]
    choices: list[_Choice] | None = None
    id: Any = None
    model: Any = None
    created: Any = None
    usage: Any = None


_decode_lines = msgspec.json.Decoder().decode_lines
_decode_chunks = msgspec.json.Decoder(_Chunk).decode_lines


def whole_response(response: Any) -> Any:
    """Returns a response as one object: chunks in an array or as text/event-stream are put together.

    Of anything else, what came in is returned.
    """
    if isinstance(response, str) and response.lstrip()[:5] == "data:":
        response = _from_events(response)
        if isinstance(response, dict):
            return response
    if isinstance(response, dict) and isinstance(response.get("chunks"), list):
        response = response["chunks"]
    elif isinstance(response, dict) and isinstance(response.get("streamed_data"), list | str):
        return whole_response(response["streamed_data"])
    if isinstance(response, list) and response and all(map(is_chunk, response)):
        return _joined(response)
    return response


def _from_events(stream: str) -> dict[str, Any] | list[Any]:
    """Returns the answer that a stream of texts makes up; of any other stream its events."""
    held = stream.strip()[5:].split("\ndata:")  # the empty lines between them are passed over
    if held[-1].strip() == "[DONE]":
        held.pop()
    try:
        if chunks := _decode_chunks("\n".join(held)):
            return _joined_texts(chunks)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass  # calls of tools, or lines of other kinds
    try:
        return _decode_lines("\n".join(_EVENT.findall(stream.replace("\r", "\n") if "\r" in stream else stream)))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise RecordError("not_json", "an event of the streamed answer is not JSON") from None


def _joined_texts(chunks: list[_Chunk]) -> dict[str, Any]:
    said: list[str] = []
    finish = None
    for chunk in chunks:
        for choice in chunk.choices or ():
            if choice.index == 0:
                finish = choice.finish_reason or finish
                if (delta := choice.delta) is not None and (content := delta.content):
                    said.append(content)
    whole: dict[str, Any] = {}
    last = chunks[-1]  # which nearly always has them all
    for name in ("id", "model", "created", "usage"):
        if value := getattr(last, name):
            whole[name] = value
            continue
        for chunk in reversed(chunks):
            if value := getattr(chunk, name):
                whole[name] = value
                break
    return _answer(whole, {"role": "assistant", "content": "".join(said)}, finish)


def is_chunk(body: Any) -> bool:
    """Whether an object is one piece of a streamed chat completion."""
    if not isinstance(body, dict):
        return False
    if body.get("object") == "chat.completion.chunk":
        return True
    choices = body.get("choices")
    return isinstance(choices, list) and any(isinstance(c, dict) and "delta" in c for c in choices)


def _joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the chat completion that chunks make up, its first choice."""
    said: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    message: dict[str, Any] = {"role": "assistant"}
    finish = None
    for name in ("id", "model", "created", "usage"):
        value = next((chunk[name] for chunk in reversed(chunks) if chunk.get(name)), None)
        if value is not None:
            whole[name] = value
    for chunk in chunks:
        for choice in _array(chunk, "choices"):
            if not isinstance(choice, dict) or choice.get("index", 0) != 0:
                continue
            finish = choice.get("finish_reason") or finish
            delta = choice.get("delta")
            if not isinstance(delta, dict):
                continue
            content = delta.get("content")
            if content is not None and not isinstance(content, str):
                raise RecordError("wrong_type", f"`delta.content` is {kind(content)}, expected text")
            if content:
                said.append(content)
            for piece in _array(delta, "tool_calls") if "tool_calls" in delta else ():
                _add_call(calls, piece)
    message["content"] = "".join(said) if said or not calls else None
    if calls:
        message["tool_calls"] = [calls[number] for number in sorted(calls)]
    return _answer(whole, message, finish)


def _answer(whole: dict[str, Any], message: dict[str, Any], finish: Any) -> dict[str, Any]:
    if finish is None:
        raise RecordError("truncated", "the streamed answer ends before its last chunk")
    return whole | {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}


def _array(held: dict[str, Any], name: str) -> list[Any]:
    value = held.get(name)
    if value is not None and not isinstance(value, list):
        raise RecordError("wrong_type", f"`{name}` of a chunk is {kind(value)}, expected an array")
    return value or []


def _add_call(calls: dict[int, dict[str, Any]], piece: Any) -> None:
    if not isinstance(piece, dict) or not isinstance(piece.get("function", {}), dict):
        raise RecordError("wrong_type", f"a tool call of a chunk is {kind(piece)}, expected an object")
    number = piece.get("index", 0)
    if not isinstance(number, int):
        raise RecordError("wrong_type", f"the index of a tool call is {kind(number)}, expected a number")
    call = calls.setdefault(number, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call["id"] = call["id"] or piece.get("id") or ""
    for name in ("name", "arguments"):
        more = piece.get("function", {}).get(name)
        if more is not None and not isinstance(more, str):
            raise RecordError("wrong_type", f"`function.{name}` of a chunk is {kind(more)}, expected text")
        call["function"][name] += more or ""
