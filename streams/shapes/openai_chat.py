"""OpenAI chat completions: a request and its response, as one object or as two halves."""

from __future__ import annotations

from typing import Any

from schemas.case import Message
from schemas.errors import RecordError
from schemas.tracing.context import logged_parent
from streams.records import TOLD, Record, complete
from streams.shapes.chat import asked_and_answered, read_completion, read_messages
from streams.shapes.streamed import is_chunk, whole_response
from streams.shapes.values import amount, first, keys, kind, number, obj, params, parsed, text, time_ms, tools


def read_chat(request: dict[str, Any], response: Any, around: dict[str, Any], shape: str, ts_ms: int) -> Record:
    """Returns the record of one chat completion; `around` is the object that holds both halves."""
    if response.__class__ is not dict or "chunks" in response or "streamed_data" in response:
        response = _whole(response)
    choices = response.get("choices")
    if not choices and response.get("error"):
        raise RecordError("failed_call", "the record holds an error in place of an answer")
    raw = request.get("messages")
    if raw.__class__ is not list:
        raw = parsed(raw)
        if raw is None:
            if is_chunk(response):
                raise RecordError("stream_chunk", "log the whole answer, with its prompt")
            raw = _legacy_prompt(request)
    messages = read_messages(raw)
    if choices is not None:
        finish, completion = _first_choice(choices)
    elif messages[-1].role == "assistant":
        finish, (messages, completion) = "", asked_and_answered(messages)
    else:
        finish, completion = "", ()
    usage = response.get("usage")
    usage = usage if usage.__class__ is dict else {}
    offered = request.get("tools")
    if not offered and "functions" in request:
        offered = _legacy_functions(request["functions"])
    event_id, model, user = response.get("id"), response.get("model"), request.get("user")
    if event_id.__class__ is not str or not event_id:
        event_id = first(event_id, around.get("request_id"), around.get("id"), request.get("id"))
    record = Record(
        messages=messages,
        completion=completion,
        event_id=event_id,
        ts_ms=ts_ms or time_ms(response.get("created") or around.get("timestamp") or around.get("created_at")),
        user=user if user.__class__ is str else first(user),
        model=model if model.__class__ is str and model else text(model) or text(request.get("model")),
        tools=tools(offered) if offered else (),
        params=params(request),
        prompt_tokens=number(usage.get("prompt_tokens")),
        completion_tokens=number(usage.get("completion_tokens")),
        finish_reason=finish,
        cost_usd=amount(around["cost"]) if "cost" in around else None,
        shape=shape,
    )
    metadata = request.get("metadata")
    if metadata or "safety_identifier" in request or (around and not TOLD.isdisjoint(around)):
        complete(record, _told(request, around, metadata if metadata.__class__ is dict else {}))
    return record


def _whole(response: Any) -> dict[str, Any]:
    """Returns a response as one object, also one that was streamed, is missing, or is the answer's text alone."""
    response = whole_response(response)
    if response is None:
        return {}
    if isinstance(response, str):
        return {"choices": [{"message": {"content": response}}]}
    if not isinstance(response, dict):
        raise RecordError("wrong_type", f"the response is {kind(response)}, expected an object")
    return response


def _told(request: dict[str, Any], around: dict[str, Any], metadata: dict[str, Any]) -> dict[str, Any]:
    """Returns what is told of a call beside its two halves, as fields of a record."""
    get = around.get
    return {
        "trace_id": first(get("trace_id"), metadata.get("trace_id")),
        "traceparent": logged_parent(around, metadata),
        "session_id": first(get("session_id"), metadata.get("session_id"), get("conversation_id")),
        "workload": first(get("workload_id"), get("workload"), metadata.get("workload")),
        "user": first(get("user_id"), request.get("safety_identifier")),
    }


def _first_choice(choices: Any) -> tuple[str, tuple[Message, ...]]:
    """Returns (finish reason, message) of the first choice; nothing where there is none."""
    if choices.__class__ is not list:
        raise RecordError("wrong_type", f"`choices` is {kind(choices)}, expected an array")
    if not choices:
        return "", ()
    choice = choices[0]
    if choice.__class__ is not dict:
        raise RecordError("wrong_type", f"`choices[0]` is {kind(choice)}, expected an object")
    finish, message = choice.get("finish_reason"), choice.get("message")
    if finish.__class__ is not str:
        finish = text(finish)
    if message.__class__ is not dict:
        if message is not None or not isinstance(choice.get("text"), str):
            raise RecordError("wrong_type", f"`choices[0].message` is {kind(message)}, expected an object")
        message = {"content": choice["text"]}  # legacy completions
    content = message.get("content")
    if content.__class__ is not str and content is not None and content.__class__ is not list:
        raise RecordError("wrong_type", f"`choices[0].message.content` is {kind(content)}, expected text")
    return finish, read_completion(message, "choices[0].message")


def _legacy_prompt(request: dict[str, Any]) -> list[dict[str, Any]]:
    prompt = request.get("prompt")
    if not isinstance(prompt, str) or not ("model" in request or "max_tokens" in request):
        raise RecordError("no_messages", f"no `messages` in the record; its keys are {keys(request)}")
    return [{"role": "user", "content": prompt}]


def _legacy_functions(functions: Any) -> Any:
    if not isinstance(functions, list):
        return None
    return [{"type": "function", "function": obj(function)} for function in functions]
