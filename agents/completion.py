"""A model's answer, whichever way it was asked, with what it took and cost."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from agents.providers import OURS
from schemas.case import Attempt, Spend
from schemas.chat import split_thinking
from schemas.errors import BadAnswer
from schemas.settings import Model
from schemas.tools import Calls, answer_text, plain_call, read_answer

MOST_TOKENS = 10**9  # of one call, whatever a server says


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


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a server answered, whichever way it was asked."""

    content: str = ""
    reasoning: str = ""  # where it stands beside the content
    calls: Calls = ()
    finish_reason: str = ""
    logprob: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None  # by LiteLLM's price list
    has_choice: bool = True


def answer_of(response: Any) -> Answer:
    """Reads what LiteLLM returned; raises what one of our own providers put into it."""
    hidden = getattr(response, "_hidden_params", None) or {}
    ours = hidden.get(OURS)
    if isinstance(ours, Exception):
        raise ours
    usage = getattr(response, "usage", None)
    known: dict[str, Any] = {
        "prompt_tokens": getattr(usage, "prompt_tokens", 0),
        "completion_tokens": getattr(usage, "completion_tokens", 0),
        "cost_usd": hidden.get("response_cost"),
    }
    if not response.choices:
        return Answer(has_choice=False, **known)
    choice = response.choices[0]
    listed = getattr(getattr(choice, "logprobs", None), "content", None)
    return Answer(
        content=choice.message.content or "",
        reasoning=getattr(choice.message, "reasoning_content", None) or "",
        calls=tuple(plain_call(call.model_dump()) for call in getattr(choice.message, "tool_calls", None) or ()),
        finish_reason=choice.finish_reason or "",
        logprob=ours if ours is not None or not listed else sum(token.logprob for token in listed),
        **known,
    )


def read_completion(
    answer: Answer, model: Model, adapter: str, latency_s: float, what: str, *, offered: bool = False
) -> Completion:
    """Returns an answer with what it took and cost; raises BadAnswer, which carries the spend, where it says nothing.

    Where tools were `offered`, calls that a server left in the text are read too.
    """
    prompt_tokens, completion_tokens = _bounded(answer.prompt_tokens), _bounded(answer.completion_tokens)
    cost_usd = _cost_usd(model, prompt_tokens, completion_tokens, answer.cost_usd)
    thinking, text = split_thinking(_sayable(answer.content))
    calls = answer.calls
    if calls:
        text = answer_text(text, calls)
    elif offered:
        text, calls = read_answer(text)
    if not text:
        error = BadAnswer(
            f"{what} answered with empty content (finish reason {answer.finish_reason}). "
            "If it spent max_tokens on thinking, raise max_tokens or turn thinking off."
            if answer.has_choice
            else f"{what} answered without choices; expected one."
        )
        error.spend = Spend(1, prompt_tokens, completion_tokens, cost_usd, latency_s)
        raise error
    return Completion(
        text=text,
        thinking=thinking or _sayable(answer.reasoning),
        model=model.model,
        adapter=adapter,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        logprob=answer.logprob,
        latency_s=latency_s,
        cost_usd=cost_usd,
        tool_calls=calls,
        finish_reason=answer.finish_reason,
    )


def _sayable(text: str) -> str:
    """Returns a text that a message can hold: half an emoji fits none."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _bounded(tokens: int) -> int:
    """Returns a count that a server told as one that can be true, and that a message can hold."""
    return min(max(tokens, 0), MOST_TOKENS)


def _cost_usd(model: Model, prompt_tokens: int, completion_tokens: int, known: float | None) -> float:
    """Returns the cost by the settings' prices, else LiteLLM's own figure, else 0 for a model it does not know."""
    if model.input_cost_per_token is None and model.output_cost_per_token is None:
        return known or 0.0
    return prompt_tokens * (model.input_cost_per_token or 0.0) + completion_tokens * (
        model.output_cost_per_token or 0.0
    )
