"""What a call that goes past LiteLLM sends, and which calls may: pure, agents.direct sends it.

A vLLM server is asked for exactly what LiteLLM 1.106.2 would ask it for (tests/test_direct.py compares the two). What
only LiteLLM knows how to do stays with it: see `goes_direct`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from schemas.case import Message
from schemas.settings import Model

PROVIDER = "hosted_vllm/"
NO_KEY = "fake-api-key"  # what LiteLLM sends where there is none; a gateway may ask for any key at all

# Of chat completions, as LiteLLM takes them for vLLM.
_STANDARD = frozenset(
    re.findall(
        r"\w+",
        "frequency_penalty logit_bias logprobs max_completion_tokens max_tokens n parallel_tool_calls presence_penalty "
        "reasoning_effort response_format seed stop temperature tool_choice top_logprobs top_p",
    )
)
# vLLM's own. LiteLLM lets them stand above the same names in extra_body.
_VLLM = frozenset(
    re.findall(
        r"\w+",
        "add_generation_prompt add_special_tokens allowed_token_ids bad_words cache_salt chat_template "
        "chat_template_kwargs continue_final_message documents echo ignore_eos include_reasoning "
        "include_stop_str_in_output kv_transfer_params length_penalty min_p min_tokens mm_processor_kwargs priority "
        "prompt_logprobs repetition_penalty request_id return_token_ids return_tokens_as_token_ids "
        "skip_special_tokens spaces_between_special_tokens stop_token_ids structured_outputs top_k "
        "truncate_prompt_tokens use_beam_search vllm_xargs",
    )
)
_SAID_OTHERWISE = frozenset(
    ("api_base", "api_key", "extra_body", "extra_headers", "max_retries", "num_retries", "timeout")
)
_NOT_SENT = _SAID_OTHERWISE | {"model", "messages", "drop_params"}
_EXTRA = _STANDARD | _VLLM | _SAID_OTHERWISE | {"drop_params"}
_OUR_HEADERS = frozenset(
    re.findall(
        r"[\w-]+",
        "accept accept-encoding authorization connection content-encoding content-length content-type cookie expect "
        "host transfer-encoding user-agent",
    )
)
_STOPS = 4  # as many as OpenAI takes; LiteLLM leaves out the rest
# How LiteLLM is told to connect. Nobody else knows these: where one is set, all calls stay with it.
_KNOBS = (
    "AIOHTTP_TRUST_ENV",
    "DISABLE_AIOHTTP_TRANSPORT",
    "DISABLE_AIOHTTP_TRUST_ENV",
    "LITELLM_HTTP2",
    "LITELLM_USER_AGENT",
    "SSL_CERTIFICATE",
    "SSL_ECDH_CURVE",
    "SSL_SECURITY_LEVEL",
    "SSL_VERIFY",
)


def connects_plainly(environ: Mapping[str, str]) -> bool:
    """Tells whether LiteLLM would connect as anybody does, so that calls may go past it."""
    return not any(environ.get(name) for name in _KNOBS)


def goes_direct(model: Model) -> bool:
    """Tells whether calls to a model go past LiteLLM.

    These stay with it: providers other than hosted_vllm; `direct = false`; models with fallbacks, which are its
    Router's; an api_base that is missing, no http(s) address, or holds a user name; keys of `extra` that are neither
    chat completions' nor vLLM's, such as `user`, `thinking`, `stream`, `metadata`, `headers`, `ssl_verify` or
    `allowed_openai_params`; headers in `extra_headers` that every call has.
    """
    if not model.direct or model.fallbacks or not model.model.startswith(PROVIDER):
        return False
    if not _is_address(model.api_base or model.extra.get("api_base")):
        return False
    return not model.extra or _is_known(model.extra)


def takes_messages(messages: Sequence[Message], response_format: object) -> bool:
    """Tells whether these messages and this format can be sent as they are, or with their texts joined.

    Parts that are no text and pydantic classes stay with LiteLLM, which rewrites them.
    """
    if isinstance(response_format, type):
        return False
    for message in messages:
        if isinstance(message.content, list) and not all(map(_is_text, message.content)):
            return False
    return True


def _is_text(part: Mapping[str, Any]) -> bool:
    return part.get("type") == "text" and isinstance(part.get("text"), str)


def url_of(api_base: str) -> str:
    """Returns the address that an api_base stands for."""
    base = api_base.rstrip("/")
    return base if "chat/completions" in base else f"{base}/chat/completions"


def body_of(call: Mapping[str, Any]) -> bytes:
    """Returns the JSON body of a call, told as agents.models tells LiteLLM; its `messages` are schemas.case.Message."""
    body: dict[str, Any] = {"model": call["model"].removeprefix(PROVIDER), "messages": _plain(call["messages"])}
    own = dict(call.get("extra_body") or {})
    own.pop("model", None)
    for name, value in call.items():
        if value is not None and name not in _NOT_SENT:
            (own if name in _VLLM else body)[name] = value
    if "stop" in body and isinstance(body["stop"], list):
        body["stop"] = body["stop"][:_STOPS]
    body.pop("tool_choice", None)  # without tools beside it, which stand in extra_body with their own
    try:
        return msgspec.json.encode(body | own)
    except UnicodeEncodeError:  # half an emoji
        return json.dumps(msgspec.to_builtins(body | own)).encode()


def _plain(messages: Sequence[Message]) -> Sequence[Message | dict[str, Any]]:
    """Returns messages as vLLM takes them: a developer is a system, an assistant's texts are one."""
    for message in messages:
        if type(message.content) is not str or message.role not in _PLAIN_ROLES:
            return [_plain_message(message) for message in messages]
    return messages


_PLAIN_ROLES = frozenset(("system", "user", "assistant", "tool"))


def _plain_message(message: Message) -> Message:
    role, content = message.role or "assistant", message.content
    if isinstance(content, list):
        if role == "assistant":
            content = "\n".join(part["text"] for part in content)
        else:
            content = [{name: value for name, value in part.items() if name != "cache_control"} for part in content]
    if role == "developer":
        return Message("system", content)
    return msgspec.structs.replace(message, role=role, content=content)


@functools.lru_cache(256)
def _is_address(api_base: object) -> bool:
    if not isinstance(api_base, str) or not api_base.startswith(("http://", "https://")):
        return False
    try:
        found = urlsplit(api_base)
        return bool(found.hostname) and "@" not in found.netloc and " " not in found.netloc and found.port != 0
    except ValueError:  # a port that is no number
        return False


def _is_known(extra: Mapping[str, Any]) -> bool:
    headers, body = extra.get("extra_headers") or {}, extra.get("extra_body") or {}
    return (
        extra.keys() <= _EXTRA
        and isinstance(body, dict)
        and isinstance(headers, dict)
        and all(isinstance(value, str) and name.lower() not in _OUR_HEADERS for name, value in headers.items())
        and isinstance(extra.get("api_key") or "", str)
    )
