"""Answers that were logged as the pieces they were streamed in, put together again."""

from __future__ import annotations

from typing import Any

import msgspec

from schemas.errors import RecordError
from streams.shapes.values import kind

_decode_lines = msgspec.json.Decoder().decode_lines


def whole_response(response: Any) -> Any:
    """Returns a response as one object: chunks in an array or as text/event-stream are put together.

    Of anything else, what came in is returned.
    """
    if isinstance(response, str) and response.lstrip()[:5] == "data:":
        response = _events(response)
    if isinstance(response, dict) and isinstance(response.get("chunks"), list):
        response = response["chunks"]
    elif isinstance(response, dict) and isinstance(response.get("streamed_data"), list | str):
        return whole_response(response["streamed_data"])
    if isinstance(response, list) and response and all(is_chunk(piece) for piece in response):
        return _joined(response)
    return response


def is_chunk(body: Any) -> bool:
    """Whether an object is one piece of a streamed chat completion."""
    if not isinstance(body, dict):
        return False
    if body.get("object") == "chat.completion.chunk":
        return True
    choices = body.get("choices")
    return isinstance(choices, list) and any(isinstance(c, dict) and "delta" in c for c in choices)


def _events(stream: str) -> list[Any]:
    held = [line[5:].strip() for line in stream.splitlines() if line[:5] == "data:"]
    try:
        return _decode_lines("\n".join([data for data in held if data and data != "[DONE]"]))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise RecordError("not_json", "an event of the streamed answer is not JSON") from None


def _joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the chat completion that chunks make up, its first choice."""
    said: list[str] = []
    calls: dict[int, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    message: dict[str, Any] = {"role": "assistant"}
    finish = None
    for chunk in chunks:
        for name in ("id", "model", "created", "usage"):
            if chunk.get(name):
                whole[name] = chunk[name]
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
            said.append(content or "")
            for piece in _array(delta, "tool_calls"):
                _add_call(calls, piece)
    message["content"] = "".join(said) if any(said) or not calls else None
    if calls:
        message["tool_calls"] = [calls[number] for number in sorted(calls)]
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
