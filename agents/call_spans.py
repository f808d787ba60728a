"""The span of a model call, by OpenTelemetry's conventions for generative AI.

agents.traced imports it where tracing is on. Prompts and answers enter a span only with tracing.record_content.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import msgspec
from opentelemetry import context as current
from opentelemetry.trace import SpanKind, Status, StatusCode, get_current_span, set_span_in_context
from opentelemetry.util.types import AttributeValue

from agents.completion import Completion
from schemas.case import Message
from schemas.errors import ModelError
from schemas.settings import Model, Role
from schemas.tracing.context import TRACEPARENT, TRACESTATE, run_parent
from schemas.tracing.sdk import Tracer, parent_of

# What LiteLLM calls a provider, and the conventions otherwise; the rest have one name.
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "bedrock_converse": "aws.bedrock",
    "gemini": "gcp.gemini",
    "hosted_vllm": "vllm",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}


class CallSpan:
    """One try at a model, as a context manager; `answered` tells what came of it."""

    __slots__ = ("_adapter", "_asked", "_messages", "_name", "_span", "_token", "_tracer")

    def __init__(
        self,
        tracer: Tracer,
        role: Role,
        task: str,
        model: Model,
        adapter: str,
        messages: Sequence[Message],
        tries: int,
    ) -> None:
        self._tracer, self._messages, self._adapter = tracer, messages, (task, adapter)
        provider, name = _named(model.model)
        self._name = f"chat {name}"
        self._asked: dict[str, AttributeValue] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": name,
            "gen_ai.request.max_tokens": model.max_tokens,
            "gen_ai.request.temperature": model.temperature,
            "goldstream.task": task,
            "goldstream.role": role,
        }
        if adapter:
            self._asked["goldstream.adapter"] = adapter
        if tries:
            self._asked["goldstream.try"] = tries
        if model.api_base:
            server = urlsplit(model.api_base)
            self._asked["server.address"] = server.hostname or ""
            self._asked["server.port"] = server.port or (443 if server.scheme == "https" else 80)

    def __enter__(self) -> CallSpan:
        task, adapter = self._adapter
        links = [run_parent(task, adapter)] if adapter else []
        self._span = self._tracer.start(
            self._name, SpanKind.CLIENT, get_current_span(), attributes=self._asked, links=links
        )
        if self._tracer.record_content:
            asked = [_written(message.role, message.text()) for message in self._messages]
            self._span.set_attribute("gen_ai.input.messages", msgspec.json.encode(asked).decode())
        self._token = current.attach(set_span_in_context(self._span))
        return self

    def answered(self, completion: Completion) -> None:
        """Notes the answer; the model that gave it may be a fallback."""
        provider, name = _named(completion.model)
        self._span.set_attributes(
            {
                "gen_ai.provider.name": provider,
                "gen_ai.response.model": name,
                "gen_ai.usage.input_tokens": completion.prompt_tokens,
                "gen_ai.usage.output_tokens": completion.completion_tokens,
                "goldstream.cost_usd": completion.cost_usd,
            }
        )
        if completion.finish_reason:
            self._span.set_attribute("gen_ai.response.finish_reasons", [completion.finish_reason])
        if self._tracer.record_content:
            said = _written("assistant", completion.text) | {"finish_reason": completion.finish_reason or "stop"}
            self._span.set_attribute("gen_ai.output.messages", msgspec.json.encode([said]).decode())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        current.detach(self._token)
        if error is not None:
            self._span.set_attribute("error.type", _error_type(error))
            self._span.set_status(Status(StatusCode.ERROR))  # the error's text is not told: it may quote the prompt
        self._span.end()


def in_a_case() -> bool:
    """Whether the call is one of a sampled case, and not of a gate, a calibration or a probe."""
    return get_current_span().is_recording()


def http_headers() -> dict[str, str]:
    """Returns the headers that carry the current span to a server."""
    span = get_current_span()
    if not span.is_recording():
        return {}
    parent = parent_of(span)
    return {TRACEPARENT: parent.header} | ({TRACESTATE: parent.state} if parent.state else {})


def _named(model: str) -> tuple[str, str]:
    """Returns (provider, model) of a LiteLLM model string; one without a provider is OpenAI's."""
    provider, slash, name = model.partition("/")
    return (_PROVIDERS.get(provider, provider), name) if slash else ("openai", model)


def _written(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def _error_type(error: BaseException) -> str:
    if isinstance(error, ModelError):
        return error.reason
    return "timeout" if isinstance(error, TimeoutError) else type(error).__name__
