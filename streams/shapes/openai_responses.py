"""OpenAI's Responses API: `instructions` and `input` in, `output` items out."""

from __future__ import annotations

from typing import Any

from schemas.errors import RecordError
from schemas.tracing.context import logged_parent
from streams.records import TOLD, Record, complete
from streams.shapes.chat import only_text, read_completion, read_messages
from streams.shapes.values import amount, arguments, first, kind, number, obj, params, parsed, text, time_ms, tools

_TEXTS = ("input_text", "output_text")


def is_responses(request: dict[str, Any], response: Any) -> bool:
    """Whether two halves are of the Responses API."""
    if "messages" in request:
        return False
    if isinstance(response, dict) and ("output" in response or response.get("object") == "response"):
        return isinstance(response.get("output"), list) or "instructions" in response
    return "input" in request and ("instructions" in request or "previous_response_id" in request)


def read_responses(request: dict[str, Any], response: Any, around: dict[str, Any], shape: str, ts_ms: int) -> Record:
    """Returns the record of one response; `around` is the object that holds both halves."""
    response = response if response.__class__ is dict else obj(response)
    if response.get("status") in ("failed", "cancelled") or (response.get("error") and not response.get("output")):
        raise RecordError("failed_call", "the response's status is not completed")
    said = parsed(request.get("input"))
    if said is None:
        raise RecordError("no_messages", "the response was logged without the request's `input`")
    earlier = request.get("previous_response_id") or response.get("previous_response_id")
    if earlier and first(request.get("previous_response_id"), response.get("previous_response_id")):
        raise RecordError(
            "no_messages", "the turns before are named by `previous_response_id` and not in the record; log them too"
        )
    instructions = request.get("instructions", response.get("instructions"))
    messages: list[Any] = [{"role": "system", "content": instructions}] if isinstance(instructions, str) else []
    messages += [{"role": "user", "content": said}] if isinstance(said, str) else _items(said, "input")
    usage = response.get("usage")
    usage = usage if usage.__class__ is dict else obj(usage)
    output = response.get("output")
    answer = _items(output, "output") if output is not None else []
    event_id, model, user = response.get("id"), response.get("model"), request.get("user")
    if event_id.__class__ is not str or not event_id:
        event_id = first(event_id, around.get("request_id"), request.get("id"))
    record = Record(
        messages=read_messages(messages, "input"),
        completion=read_completion(answer, "output"),
        event_id=event_id,
        ts_ms=ts_ms or time_ms(response.get("created_at") or around.get("timestamp")),
        user=user if user.__class__ is str else first(user),
        model=model if model.__class__ is str and model else first(model, request.get("model")),
        tools=tools(request.get("tools") or response.get("tools")),
        params=params(request),
        prompt_tokens=number(usage.get("input_tokens")),
        completion_tokens=number(usage.get("output_tokens")),
        finish_reason=first(response.get("status")),
        cost_usd=amount(around["cost"]) if "cost" in around else None,
        shape=shape,
    )
    given = request.get("metadata") or response.get("metadata")
    conversation = request.get("conversation") or response.get("conversation")
    if given or conversation or "safety_identifier" in request or not TOLD.isdisjoint(around):
        metadata = obj(given)
        conversation = conversation.get("id") if isinstance(conversation, dict) else conversation
        told = {
            "trace_id": first(around.get("trace_id"), metadata.get("trace_id")),
            "traceparent": logged_parent(around, metadata),
            "session_id": first(around.get("session_id"), metadata.get("session_id"), conversation),
            "workload": first(around.get("workload_id"), metadata.get("workload")),
            "user": first(request.get("safety_identifier"), around.get("user_id")),
        }
        complete(record, told)
    return record


def _items(items: Any, where: str) -> list[dict[str, Any]]:
    """Returns input or output items as chat messages; consecutive tool calls are one message."""
    if not isinstance(items, list):
        raise RecordError("wrong_type", f"`{where}` is {kind(items)}, expected text or an array")
    messages: list[dict[str, Any]] = []
    for item in items:
        if not isinstance(item, dict):
            raise RecordError("wrong_type", f"one of `{where}` is {kind(item)}, expected an object")
        name = item.get("type", "message")
        if name == "message":
            content = item.get("content")
            if content.__class__ is list:
                content = only_text(content, _TEXTS) or content
            messages.append({"role": item.get("role", "assistant"), "content": content})
        elif name == "function_call":
            function = {"name": text(item.get("name")), "arguments": arguments(item.get("arguments"))}
            call = {"id": first(item.get("call_id"), item.get("id")), "type": "function", "function": function}
            if messages and messages[-1].get("tool_calls") and messages[-1]["role"] == "assistant":
                messages[-1]["tool_calls"].append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif name == "function_call_output":
            result = item.get("output")
            result = result if isinstance(result, str | list) else arguments(result)
            messages.append({"role": "tool", "tool_call_id": first(item.get("call_id")), "content": result})
        elif name in ("input_image", "input_file", "input_audio", "image_generation_call"):
            raise RecordError("not_text", f"`{where}` holds {name}")
        elif name in _TEXTS:
            messages.append({"role": "user" if name == "input_text" else "assistant", "content": [item]})
        # What is left is thinking, or a tool of the vendor's own, whose result the model saw and we do not.
    return messages
