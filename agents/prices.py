"""What models cost a token, and what a call may cost at most before it is made.

Prices come from the settings, else from LiteLLM's list. A model of neither has none: under a cap in money that is a
mistake in the settings, never a price of 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import msgspec

from agents.account import Call
from agents.providers import load_litellm
from schemas.case import Message
from schemas.errors import SettingsError
from schemas.settings import ROLES, Model, Role, Settings

BYTES_A_TOKEN = 3  # of English 4, of most other languages 2 to 3.5: an estimate should rather be high
TOKENS_A_MESSAGE = 8  # what a chat template adds


class Price(NamedTuple):
    """USD a token."""

    prompt: float
    completion: float


def price_of(model: Model) -> Price | None:
    """Returns a model's price, None where nobody knows it. Our in-process models are free. May import LiteLLM."""
    if model.input_cost_per_token is not None or model.output_cost_per_token is not None:
        return Price(model.input_cost_per_token or 0.0, model.output_cost_per_token or 0.0)
    if model.model.startswith(("local/", "scripted/")):
        return Price(0.0, 0.0)
    if model.model.startswith("hosted_vllm/"):  # servers of the user's own: LiteLLM 1.106.2 lists none
        return None
    return _listed(model.model)


def expected(
    model: Model, messages: Sequence[Message], round: int, *, priced: bool, told: Mapping[str, Any] | None = None
) -> Call:
    """Returns what a call takes at most: its prompt by its bytes, the answer by max_tokens.

    `told` is what else the server is sent, tools above all, which become part of the prompt.
    Of a model and its fallbacks the dearest counts. Raises SettingsError where a price is needed and unknown.
    """
    prompt = sum(len(message.text().encode("utf-8", "replace")) // BYTES_A_TOKEN for message in messages)
    prompt += TOKENS_A_MESSAGE * (len(messages) + 1)
    more = [message.tool_calls for message in messages if message.tool_calls]
    if told or more:
        prompt += len(msgspec.json.encode([told, more])) // BYTES_A_TOKEN
    usd, longest = 0.0, 0
    for one in (model, *model.fallbacks):
        longest = max(longest, one.max_tokens)
        if priced:
            price = price_of(one)
            if price is None:
                raise SettingsError(f"{one.model} has no known price; set its input_ and output_cost_per_token.")
            usd = max(usd, prompt * price.prompt + one.max_tokens * price.completion)
    return Call(model.model, round, prompt + longest, usd)


def check_prices(settings: Settings, roles: Sequence[Role] = ROLES) -> None:
    """Raises SettingsError for the first model without a known price under a cap in money."""
    for name, task in settings.tasks.items():
        for role in roles:
            if not task.budget.caps_money(role) or not task.model(role).model:
                continue
            panel = (*task.panel.judges, task.panel.tie_break) if role == "judge" else ()
            for model in (task.model(role), *panel):
                for one in (model, *model.fallbacks):
                    if one.model and price_of(one) is None:
                        raise SettingsError(
                            f"tasks.{name}.budget caps the {role}'s spend, but the price of {one.model!r} is unknown: "
                            "LiteLLM does not list it. Beside its model, set input_cost_per_token and "
                            "output_cost_per_token (USD; 0 for a server of your own)."
                        )


@cache
def _listed(model: str) -> Price | None:
    try:
        found = load_litellm().get_model_info(model)
    except Exception:  # LiteLLM raises a plain Exception of its own for a model that it does not list
        return None
    prompt, completion = found.get("input_cost_per_token"), found.get("output_cost_per_token")
    return Price(prompt, completion) if prompt is not None and completion is not None else None
