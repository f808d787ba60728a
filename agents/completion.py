"""A model's answer, read from what LiteLLM returns, with what it took and cost."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from agents.providers import OURS
from schemas.case import Attempt, Spend
from schemas.chat import split_thinking
from schemas.errors import BadAnswer
from schemas.settings import Model
from schemas.tools import Calls, answer_text, plain_call, read_answer


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A model's answer and what it took to get it."""

    text: str  # without thinking; with calls of tools as schemas.tools writes them
    thinking: str
    model: str  # the model string of the settings, without adapter
    adapter: str  # version that answered, "" for the base
    prompt_tokens: int
    completion_tokens: int
    logprob: float | None  # summed over the completion, nats; where the server tells it
    latency_s: float  # of the successful call
    cost_usd: float
    tool_calls: Calls = ()
    finish_reason: str = ""

    def spend(self) -> Spend:
        """Returns the call as an entry of a case's spend."""
        return Spend(1, self.prompt_tokens, self.completion_tokens, self.cost_usd, self.latency_s)

    def attempt(self, source: Literal["student", "refiner"], round: int) -> Attempt:
        """Returns the answer as an attempt at a case."""
        return Attempt(
            round=round,
            source=source,
            text=self.text,
            model=self.model,
            adapter=self.adapter,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            logprob=self.logprob,
            latency_s=self.latency_s,
            cost_usd=self.cost_usd,
            tool_calls=self.tool_calls,
        )


def read_completion(
    response: Any, model: Model, adapter: str, latency_s: float, what: str, *, offered: bool = False
) -> Completion:
    """Reads a response; raises BadAnswer, which carries the spend, where it holds no answer.

    Where tools were `offered`, calls that a server left in the text are read too.
    """
    hidden = getattr(response, "_hidden_params", None) or {}
    ours = hidden.get(OURS)
    if isinstance(ours, Exception):
        raise ours
    usage = getattr(response, "usage", None)
    prompt_tokens, completion_tokens = getattr(usage, "prompt_tokens", 0), getattr(usage, "completion_tokens", 0)
    spend = Spend(
        1,
        prompt_tokens,
        completion_tokens,
        _cost_usd(model, prompt_tokens, completion_tokens, hidden.get("response_cost")),
        latency_s,
    )
    try:
        return _answer(response, ours, model, adapter, spend, what, offered)
    except BadAnswer as error:
        error.spend = spend
        raise


def _answer(
    response: Any, ours: float | None, model: Model, adapter: str, spend: Spend, what: str, offered: bool
) -> Completion:
    if not response.choices:
        raise BadAnswer(f"{what} answered without choices; expected one.")
    choice = response.choices[0]
    content = (choice.message.content or "").encode("utf-8", "replace").decode()  # a lone surrogate fits no message
    thinking, text = split_thinking(content)
    calls = tuple(plain_call(call.model_dump()) for call in getattr(choice.message, "tool_calls", None) or ())
    if calls:
        text = answer_text(text, calls)
    elif offered:
        text, calls = read_answer(text)
    if not text:
        raise BadAnswer(
            f"{what} answered with empty content (finish reason {choice.finish_reason}). "
            "If it spent max_tokens on thinking, raise max_tokens or turn thinking off."
        )
    listed = getattr(getattr(choice, "logprobs", None), "content", None)
    return Completion(
        text=text,
        thinking=thinking or getattr(choice.message, "reasoning_content", None) or "",
        model=model.model,
        adapter=adapter,
        prompt_tokens=spend.prompt_tokens,
        completion_tokens=spend.completion_tokens,
        logprob=ours if ours is not None or not listed else sum(token.logprob for token in listed),
        latency_s=spend.model_s,
        cost_usd=spend.cost_usd,
        tool_calls=calls,
        finish_reason=choice.finish_reason or "",
    )


def _cost_usd(model: Model, prompt_tokens: int, completion_tokens: int, known: float | None) -> float:
    """Returns the cost by the settings' prices, else LiteLLM's own figure, else 0 for a model it does not know."""
    if model.input_cost_per_token is None and model.output_cost_per_token is None:
        return known or 0.0
    return prompt_tokens * (model.input_cost_per_token or 0.0) + completion_tokens * (
        model.output_cost_per_token or 0.0
    )
