"""Models that stand in for others, through the one LiteLLM Router of the process.

A model with fallbacks is a group of the Router: its members are asked in order, and one that fails again and again
cools down, so that the next is asked at once. Who decides what: the Router's cooldowns choose among the members of a
group, and the last never cools down; the breaker of agents.endpoints sees a failure only when all have failed, and
alone decides whether cases are called at all. The Router never retries: agents.models does, within the deadline.

A model without fallbacks does not come here: the Router would add nothing but 1.0 to 1.3 ms of CPU to the 2.8 ms that
a call through LiteLLM 1.106.2 takes (one core, 300 calls, four rounds).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec

from agents.providers import load_litellm
from schemas.settings import Model

Params = Callable[[Model], dict[str, Any]]  # -> what LiteLLM is told of a model: address, key, temperature ...


class Routes:
    """The Router, made when the first model with fallbacks is called, and the groups it knows."""

    def __init__(self, cooldown_s: float) -> None:
        self._cooldown_s = cooldown_s
        self._router: Any = None
        self._groups: set[str] = set()

    async def complete(self, model: Model, params: Params, **call: Any) -> tuple[Any, Model]:
        """Asks a model, then its fallbacks; returns the response and the model that gave it."""
        group = self._group(model, params)
        response = await self._router.acompletion(model=group, **call)
        hidden = getattr(response, "_hidden_params", None) or {}
        number = str(hidden.get("model_id", "")).rpartition("#")[2]
        from litellm.router_utils.router_callbacks.track_deployment_metrics import (
            increment_deployment_successes_for_current_minute,
        )

        increment_deployment_successes_for_current_minute(self._router, f"{group}#{number or 0}")
        members = (model, *model.fallbacks)
        return response, members[int(number)] if number.isdigit() else model

    def _made(self) -> Any:
        """Returns a Router that counts successes here and not in a callback.

        LiteLLM runs a success callback after every call of the process, the Router's or not, and gathers a whole
        logging record for it: 2 ms of CPU each time.
        """
        litellm = load_litellm()
        router = litellm.Router(num_retries=0, cooldown_time=self._cooldown_s, set_verbose=False)
        manager = litellm.logging_callback_manager
        for callbacks in (litellm._async_success_callback, litellm.success_callback):
            manager.remove_callback_from_list_by_object(callbacks, router)
        return router

    def _group(self, model: Model, params: Params) -> str:
        """Returns the name of a model's group; the Router is told of it once."""
        fixed = msgspec.structs.replace(model, timeout_s=1.0)
        group = hashlib.sha256(msgspec.json.encode(fixed)).hexdigest()[:16]
        if group in self._groups:
            return group
        from litellm.types.router import Deployment

        if self._router is None:
            self._router = self._made()
        members = (model, *model.fallbacks)
        for number, member in enumerate(members):
            last = number == len(members) - 1
            told = params(member) | {"order": number + 1, "timeout": member.timeout_s}
            for price in ("input_cost_per_token", "output_cost_per_token"):
                if (usd := getattr(member, price)) is not None:
                    told[price] = usd  # of a model without prices LiteLLM asks itself at each call why: 2 ms of CPU
            info = {"id": f"{group}#{number}"} | ({"cooldown_time": 0.0} if last else {})
            self._router.add_deployment(Deployment(model_name=group, litellm_params=told, model_info=info))
        self._groups.add(group)
        return group
