"""LiteLLM's StandardLoggingPayload, as its callbacks produce it."""

from __future__ import annotations

from typing import Any

from schemas.errors import RecordError
from schemas.tracing.context import logged_parent
from streams.records import Record
from streams.shapes.chat import REDACTED
from streams.shapes.openai import read_halves
from streams.shapes.values import amount, first, number, obj, parsed, text, time_ms

_NO_CHAT = ("embedding", "image", "speech", "transcription", "rerank", "moderation", "batch", "file", "search", "ocr")


def is_litellm(body: dict[str, Any]) -> bool:
    """Whether an object is a StandardLoggingPayload."""
    return "litellm_call_id" in body or "model_map_information" in body


def read_litellm(body: dict[str, Any]) -> Record:
    """Returns the record of one payload; failed calls, cache hits and what is no chat are left out."""
    call_type = text(body.get("call_type"))
    if any(name in call_type for name in _NO_CHAT):
        raise RecordError("no_call", f"LiteLLM's call_type is {call_type[:40]}")
    status = body.get("status")
    if status is not None and status != "success":
        raise RecordError("failed_call", f"LiteLLM's status is {text(status)[:40] or type(status).__name__}")
    if body.get("cache_hit") is True or body.get("cache_hit") == "True":
        raise RecordError("cache_hit", "")
    response = parsed(body.get("response"))
    if isinstance(response, dict) and response.get("text") == REDACTED:
        raise RecordError("redacted", "the response is redacted by LiteLLM")
    given = obj(body.get("model_parameters"))
    messages = parsed(body.get("messages"))
    if isinstance(response, dict) and isinstance(response.get("output"), list):
        request = given | {"input": messages}
    else:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        elif isinstance(messages, dict):
            messages = messages.get("messages", [messages])
        request = given | {"messages": messages}
    record = read_halves(request, response or {}, {}, "litellm", time_ms(body.get("startTime")))
    metadata = obj(body.get("metadata"))
    theirs = obj(metadata.get("requester_metadata"))
    ours = obj(metadata.get("spend_logs_metadata"))
    return Record(
        messages=record.messages,
        completion=record.completion,
        event_id=first(record.event_id, body.get("id"), body.get("litellm_call_id")),
        ts_ms=record.ts_ms,
        source="litellm",
        trace_id=first(body.get("trace_id")),
        traceparent=logged_parent(metadata, theirs, ours),
        session_id=first(body.get("session_id"), theirs.get("session_id"), ours.get("session_id")),
        workload=first(theirs.get("workload"), ours.get("workload"), theirs.get("workload_id")),
        user=first(body.get("end_user"), metadata.get("user_api_key_end_user_id"), record.user),
        model=first(body.get("model"), record.model),
        tools=record.tools,
        params=record.params,
        prompt_tokens=number(body.get("prompt_tokens")) or record.prompt_tokens,
        completion_tokens=number(body.get("completion_tokens")) or record.completion_tokens,
        finish_reason=record.finish_reason,
        cost_usd=amount(body.get("response_cost")),
        shape=record.shape,
    )
