"""OpenAI chat completions, bare or with request and response side by side."""

from __future__ import annotations

from typing import Any

import msgspec

from schemas.case import Message
from schemas.errors import RecordError
from streams.records import Record

# Where products put the two halves of a call.
_HALVES = (("request", "response"), ("request_body", "response_body"))


def read_openai_chat(body: dict[str, Any]) -> Record:
    """Returns the record of one chat completion."""
    request, response = _halves(body)
    raw = request.get("messages")
    if raw is None:
        raise RecordError("no_messages", f"no `messages` in the record; its keys are {_keys(body)}")
    messages = _messages(raw)
    choices = response.get("choices")
    if response.get("error") and not choices:
        raise RecordError("failed_call", "the record holds an error in place of an answer")
    metadata = request.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    return Record(
        messages=messages,
        completion=_completion(choices) if choices is not None else (),
        event_id=_text(response.get("id")) or _text(body.get("request_id")) or _text(request.get("id")),
        model=_text(response.get("model")) or _text(request.get("model")),
        session_id=_text(body.get("session_id")) or _text(metadata.get("session_id")),
        user=_text(request.get("user")),
        trace_id=_text(body.get("trace_id")) or _text(metadata.get("trace_id")),
        workload=_text(body.get("workload_id")) or _text(metadata.get("workload")),
        shape="openai-chat",
    )


def _halves(body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (request, response); both are the body itself where they are not told apart."""
    for left, right in _HALVES:
        if left in body:
            request, response = body[left], body.get(right) or {}
            for name, half in ((left, request), (right, response)):
                if not isinstance(half, dict):
                    raise RecordError("wrong_type", f"`{name}` is {type(half).__name__}, expected an object")
            return request, response
    return body, body


def _messages(raw: Any) -> tuple[Message, ...]:
    if not isinstance(raw, list):
        raise RecordError("wrong_type", f"`messages` is {type(raw).__name__}, expected an array")
    if not raw:
        raise RecordError("no_messages", "`messages` is empty")
    try:
        messages = msgspec.convert(raw, tuple[Message, ...])
    except msgspec.ValidationError as error:
        raise RecordError("wrong_type", f"messages: {error}") from None
    if not any(message.text().strip() for message in messages if message.role == "user"):
        raise RecordError("no_messages", "no message of the user holds any text")
    return messages


def _completion(choices: Any) -> tuple[Message, ...]:
    """Returns the first choice's message; nothing where there is none."""
    if not isinstance(choices, list):
        raise RecordError("wrong_type", f"`choices` is {type(choices).__name__}, expected an array")
    if not choices:
        return ()
    message = choices[0].get("message") if isinstance(choices[0], dict) else None
    if not isinstance(message, dict):
        raise RecordError("wrong_type", "`choices[0].message` is missing or no object")
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        raise RecordError("wrong_type", f"`choices[0].message.content` is {type(content).__name__}, expected text")
    return (Message("assistant", content),)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, int) else ""


def _keys(body: dict[str, Any]) -> str:
    return ", ".join(sorted(key[:40] for key in body)[:12]) or "none"
