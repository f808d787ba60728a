"""Which models are called, and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from schemas.settings.section import Positive, Seconds, Section, VariableName

Carried = Literal[
    "tool_choice", "parallel_tool_calls", "response_format", "temperature", "top_p", "max_tokens", "stop", "seed"
]


class Model(Section, frozen=True):
    """One model as LiteLLM addresses it."""

    model: str = ""  # local/NAME, scripted/NAME, hosted_vllm/NAME, or any LiteLLM model string
    api_base: str = ""
    api_key_env: VariableName = ""  # name of the variable that holds the key
    temperature: Annotated[float, Meta(ge=0)] = 0.0
    max_tokens: Positive = 1024
    timeout_s: Seconds = 30.0  # hard deadline of one call
    retries: Annotated[int, Meta(ge=0)] = 2  # within the event's deadline, with backoff
    input_cost_per_token: float | None = None  # for models LiteLLM has no price for
    output_cost_per_token: float | None = None
    extra: dict[str, Any] = {}  # passed to LiteLLM as it is
    direct: bool = True  # hosted_vllm/ is called past LiteLLM, unless `extra` asks for what only LiteLLM can do
    fallbacks: tuple[Model, ...] = ()  # asked in this order where this one fails or is cooling down; not of a student


class CarryOver(Section, frozen=True):
    """What of the product's own call the student's call has too, besides the messages."""

    tools: bool = True  # the tools it offered; training and the gate render them likewise
    # Of its parameters those that say what an answer may look like; how it is sampled is the student's own.
    params: tuple[Carried, ...] = ("tool_choice", "parallel_tool_calls", "response_format")


class LocalModel(Section, frozen=True):
    """A model folder served in process under the model string local/NAME."""

    path: str
    max_batch: Positive = 64
    threads: Annotated[int, Meta(ge=0)] = 0
