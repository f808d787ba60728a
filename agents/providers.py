"""All that knows LiteLLM's insides: its set-up, our two providers, and what its errors mean, and agents.direct's.

Only agents.models and agents.direct come here. `local/NAME` leads to the engine of the call being made,
`scripted/NAME` to agents.scripted. No prompt, answer or key gets into a log or an error text.
"""

from __future__ import annotations

import email.utils
import functools
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import msgspec

from agents import scripted
from agents.local import LocalEngine
from schemas.case import Message
from schemas.errors import (
    AdapterError,
    BadAnswer,
    EndpointRefused,
    ModelError,
    ModelRefused,
    ModelTimeout,
    ModelUnavailable,
    RateLimited,
)
from schemas.settings import Model

OURS = "goldstream"  # key in LiteLLM's hidden parameters, which reach the caller untouched

_WORD = re.compile(r"\w{2,}")
_ESCAPED = re.compile(r"\\+(?:[ux]([0-9a-fA-F]{4}|[0-9a-fA-F]{2})|[nrtbf\"'/])")
_SPOKEN = frozenset(
    re.findall(
        r"\w+",
        "an and api at be bad body but by can cannot code content context could error exceeded exceeds exception "
        "expected field for found function greater has image in input internal invalid is it key larger least length "
        "less limit litellm max max_tokens maximum message messages missing model more must no not object of on one or "
        "param parameter permission prompt quota rate reached refused request requested required requires response "
        "role schema server stream supported system than that the this timeout to token tokens too tool type unknown "
        "unsupported use user valid value was with you your",
    )
)

# Engine, thinking switch and tools of the call being made, for the `local` provider, which LiteLLM calls.
call_engine: ContextVar[tuple[LocalEngine, bool, Sequence[dict[str, Any]]]] = ContextVar("call_engine")


class CallFailed(Exception):
    """A call past LiteLLM that brought no answer: the status is the one LiteLLM would give it."""

    def __init__(self, message: str, status_code: object, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.status_code, self.retry_after = status_code, retry_after


class UnusableAnswer(CallFailed):
    """An answer that is too long to be read, and would be again."""


@functools.cache
def load_litellm() -> Any:
    """Imports LiteLLM, silences it and registers our two providers."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it downloads prices at import
    os.environ.setdefault("LITELLM_MODE", "PRODUCTION")  # else it reads .env files at import
    import litellm

    litellm.ModelResponse()  # pydantic builds its types at first use, and warns unless LiteLLM's own filters still hold
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    litellm.turn_off_message_logging = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).disabled = True  # at debug level it logs prompts
    for name in ("openai", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)

    class Local(litellm.CustomLLM):  # type: ignore[misc]
        async def acompletion(self, *args: Any, **call: Any) -> Any:
            engine, thinking, tools = call_engine.get()
            options, (_, _, adapter) = call["optional_params"], call["model"].partition(":")
            try:
                made = await engine.generate(
                    msgspec.convert(call["messages"], list[Message]),
                    adapter=adapter,
                    temperature=options["temperature"],
                    max_tokens=options["max_tokens"],
                    thinking=thinking,
                    seed=options.get("seed"),
                    tools=tools,
                )
            except (ModelError, AdapterError) as error:
                return _answered(call["model_response"], "", error)
            tokens = {"prompt_tokens": made.prompt_tokens, "completion_tokens": made.completion_tokens}
            response = _answered(call["model_response"], made.text, made.logprob, **tokens)
            response.choices[0].message.reasoning_content = made.thinking
            return response

    class Scripted(litellm.CustomLLM):  # type: ignore[misc]
        async def acompletion(self, *args: Any, **call: Any) -> Any:
            try:
                return _answered(call["model_response"], scripted.answer(call["model"], call["messages"]), None)
            except ModelError as error:
                return _answered(call["model_response"], "", error)

    def _answered(response: Any, text: str, ours: Exception | float | None, **tokens: int) -> Any:
        """Fills in a response. An error travels inside it: raised, LiteLLM would wrap it in a traceback."""
        response.choices[0].message.content = text
        response._hidden_params[OURS] = ours
        response.usage = litellm.Usage(total_tokens=sum(tokens.values()), **tokens)
        return response

    ours = [{"provider": "local", "custom_handler": Local()}, {"provider": "scripted", "custom_handler": Scripted()}]
    litellm.custom_provider_map = [*litellm.custom_provider_map, *ours]
    return litellm


def carried(told: Mapping[str, Any], model: Model, body: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns what a call is told besides, for LiteLLM; parameters that its provider does not know are dropped.

    vLLM gets its tools past LiteLLM 1.106.2, which takes additionalProperties out of them: they are part of the prompt,
    and must stand in it as training has them.
    """
    if not told:
        return {}
    call = dict(told) | {"drop_params": True}
    if "max_tokens" in told:
        call["max_tokens"] = min(model.max_tokens, told["max_tokens"])
    if "tools" in told and model.model.startswith("hosted_vllm/"):
        with_tools = ("tools", "tool_choice", "parallel_tool_calls")
        call["extra_body"] = {**(body or {}), **{name: call.pop(name) for name in with_tools if name in call}}
    return call


def failure(error: Exception, what: str, adapter: str, messages: Sequence[Message], keys: Sequence[str]) -> Exception:
    """Returns what a call has raised as one of our errors; a 404 with an adapter means that adapter is missing."""
    if isinstance(error, (ModelError, AdapterError)):
        return error  # one of our own providers'
    status = getattr(error, "status_code", None)
    if isinstance(status, str):  # of an error inside an answer, which may be a word
        status = int(status) if status.isdecimal() else None
    text = f"{what}: {_detail(error, messages, keys)}"
    if isinstance(error, UnusableAnswer):
        return BadAnswer(text)
    if adapter and status == 404:
        return AdapterError(text)
    if status in (408, 504) or "Timeout" in type(error).__name__:
        return ModelTimeout(text)
    if status == 429:
        return RateLimited(text, _retry_after_s(error))
    if not isinstance(status, int):
        return ModelError(text)
    if status in (409, 425) or status >= 500 or status < 300:  # 200: the answer broke off or is not JSON
        return ModelUnavailable(text)
    if status in (401, 402, 403, 404):
        return EndpointRefused(text)
    return ModelRefused(text)


def _detail(error: Exception, messages: Sequence[Message], keys: Sequence[str]) -> str:
    """Returns the first line of an error's text, short, without the key and without the prompt.

    Servers quote what they were asked whole, cut or escaped, so every word that the prompt holds too is left out,
    unless it is one of those in which servers speak of a call.
    """
    text = str(error).partition("\n")[0][:1000]
    for key in keys:
        text = text.replace(key, "[key]") if key else text
    text = _ESCAPED.sub(lambda found: chr(int(found[1], 16)) if found[1] else " ", text)
    asked = msgspec.json.encode([message.text() for message in messages]).decode().lower()
    asked = _ESCAPED.sub(" ", asked)
    told = _WORD.sub(
        lambda found: found[0] if found[0].lower() in _SPOKEN or found[0].lower() not in asked else "…", text
    )
    told = re.sub(r"…[\W_]*(?:…[\W_]*)*", "… ", told)[:300].strip()
    return told.encode("utf-8", "replace").decode()  # half an emoji fits no message of ours


def _retry_after_s(error: Exception) -> float | None:
    """Returns what the Retry-After header asks for, in seconds: it holds a number or a date."""
    headers = getattr(error, "litellm_response_headers", None) or {}
    value = getattr(error, "retry_after", None)
    if value is None:
        value = next((v for k, v in headers.items() if str(k).lower() == "retry-after"), None)
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
