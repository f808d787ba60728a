"""What OpenAI's and Anthropic's clients send and receive, in halves or as one object: which API it is."""

from __future__ import annotations

from typing import Any

from schemas.errors import RecordError
from streams.records import Record
from streams.shapes.chat import only_text
from streams.shapes.openai_chat import read_chat
from streams.shapes.openai_responses import is_responses, read_responses
from streams.shapes.values import keys, kind, parsed

# Where products put the two halves of a call.
HALVES = (("request", "response"), ("request_body", "response_body"))
_BARE = ("messages", "choices", "prompt", "instructions", "input")
_TELL_TALES = frozenset((*_BARE, *(left for left, _ in HALVES)))


def is_openai(body: dict[str, Any]) -> bool:
    """Whether an object looks like a call, or holds its two halves."""
    return not _TELL_TALES.isdisjoint(body) or _is_answer(body)


def read_openai(body: dict[str, Any]) -> Record:
    """Returns the record of an object that is a call, or holds its halves."""
    for left, right in HALVES:
        if left in body:
            return read_halves(body[left], body.get(right), body)
    return read_halves(body, body, body)


def read_halves(request: Any, response: Any, around: dict[str, Any], shape: str = "", ts_ms: int = 0) -> Record:
    """Returns the record of a request and its response; either may be JSON in a text.

    `ts_ms` is when the call was made, where `around` says that better than the response.
    """
    if request.__class__ is not dict:
        request = parsed(request)
        if not isinstance(request, dict):
            raise RecordError("wrong_type", f"the request is {kind(request)}, expected an object")
    if response.__class__ is str:
        response = parsed(response)
    if "messages" not in request:
        if is_responses(request, response):
            return read_responses(request, response, around, shape or "openai-responses", ts_ms)
        if request is response and _is_answer(request):
            raise RecordError("no_messages", f"an answer without its prompt; its keys are {keys(request)}")
    elif response.__class__ is dict and response.get("type") == "message":
        request, response = _from_anthropic(request, response)
    elif request.get("system"):
        request = _with_system(request)
    return read_chat(request, response, around, shape or "openai-chat", ts_ms)


def _is_answer(body: dict[str, Any]) -> bool:
    return body.get("object") == "response" and isinstance(body.get("output"), list)


def _from_anthropic(request: dict[str, Any], response: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a call of Anthropic's Messages API as a chat completion."""
    usage = response.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    content = response.get("content")
    if content.__class__ is list:
        content = only_text(content) or content
    choice = {"message": {"role": "assistant", "content": content}}
    counts = {"prompt_tokens": usage.get("input_tokens"), "completion_tokens": usage.get("output_tokens")}
    whole = {name: response.get(name) for name in ("id", "model")} | {"usage": counts}
    if isinstance(response.get("error"), dict):
        whole["error"] = response["error"]
        return _with_system(request), whole
    return _with_system(request), whole | {"choices": [choice | {"finish_reason": response.get("stop_reason")}]}


def _with_system(request: dict[str, Any]) -> dict[str, Any]:
    messages, system = parsed(request.get("messages")), request.get("system")
    if not system or not isinstance(messages, list) or not isinstance(system, str | list):
        return request
    return request | {"messages": [{"role": "system", "content": system}, *messages]}
