"""Langfuse's observations, as its exports write them: input and output are plain text, JSON, or JSON in a text."""

from __future__ import annotations

from typing import Any

from schemas.errors import RecordError
from schemas.tracing.context import joined
from streams.records import Record
from streams.shapes.chat import asked_and_answered, read_completion, read_messages
from streams.shapes.values import amount, first, keys, number, obj, params, parsed, text, time_ms, tools


def is_langfuse(body: dict[str, Any]) -> bool:
    """Whether an object is an observation, or a score, which Langfuse exports apart."""
    if "provided_model_name" in body or "providedModelName" in body:
        return True
    return "observation_id" in body and "data_type" in body and "value" in body


def read_langfuse(body: dict[str, Any]) -> Record:
    """Returns the record of one observation."""
    observation = text(body.get("type")) or "GENERATION"
    if observation.upper() != "GENERATION" or ("observation_id" in body and "value" in body):
        raise RecordError("no_call", f"an observation of type {observation[:40]}, or a score: these are not calls")
    if body.get("level") == "ERROR":
        raise RecordError("failed_call", "the observation's level is ERROR")
    given = parsed(_either(body, "input"))
    raw, offered = _asked(given)
    messages = read_messages(raw, "input")
    completion = read_completion(_answered(parsed(_either(body, "output"))), "output")
    if not completion and messages[-1].role == "assistant":
        messages, completion = asked_and_answered(messages)
    usage = obj(_either(body, "usage_details"))
    details = obj(_either(body, "model_parameters"))
    metadata = obj(body.get("metadata"))
    cost = _either(body, "total_cost")
    scores = parsed(body.get("scores"))
    return Record(
        messages=messages,
        completion=completion,
        event_id=first(body.get("id")),
        ts_ms=time_ms(_either(body, "start_time")),
        source="langfuse",
        trace_id=first(_either(body, "trace_id")),
        traceparent=joined(_either(body, "trace_id"), body.get("id")),  # their newer ids are OpenTelemetry's
        session_id=first(_either(body, "session_id"), metadata.get("session_id")),
        workload=first(metadata.get("workload"), body.get("name")),
        user=first(_either(body, "user_id"), metadata.get("user_id")),
        model=first(_either(body, "provided_model_name")),
        tools=tools(offered or details.get("tools")),
        params=params(details),
        prompt_tokens=number(usage.get("input", usage.get("prompt_tokens"))),
        completion_tokens=number(usage.get("output", usage.get("completion_tokens"))),
        cost_usd=amount(cost if cost is not None else obj(_either(body, "cost_details")).get("total")),
        feedback={"scores": scores} if isinstance(scores, list | dict) and scores else {},
        shape="langfuse",
    )


def _either(body: dict[str, Any], name: str) -> Any:
    """Returns a field by its name in exports, or by that of the API, which is in camel case."""
    if name in body:
        return body[name]
    head, *rest = name.split("_")
    return body.get(head + "".join(part.capitalize() for part in rest))


def _asked(given: Any) -> tuple[Any, Any]:
    """Returns (messages, tools) of an observation's input."""
    if isinstance(given, str) and given.strip():
        return [{"role": "user", "content": given}], None
    if isinstance(given, dict):
        for name in ("messages", "input", "prompt"):
            if given.get(name):
                inner = parsed(given[name])
                return ([{"role": "user", "content": inner}] if isinstance(inner, str) else inner), given.get("tools")
        if "role" in given:
            return [given], None
        raise RecordError("no_messages", f"`input` holds no messages; its keys are {keys(given)}")
    if given is None or given == "" or isinstance(given, str):
        raise RecordError("no_messages", "`input` is empty; Langfuse was told not to keep it, or it is a shell")
    return given, None


def _answered(said: Any) -> Any:
    """Returns what of an observation's output is the answer."""
    if isinstance(said, dict):
        choices = said.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            return choices[0].get("message")
        if "role" not in said and "content" not in said and "tool_calls" not in said:
            return next(
                (said[name] for name in ("completion", "text", "output", "answer", "result") if said.get(name)), None
            )
    return said
