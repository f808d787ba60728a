"""What the types cannot say of budgets and of models that stand in for others."""

from __future__ import annotations

from schemas.errors import SettingsError
from schemas.settings.root import Task
from schemas.settings.section import ROLES


def check_budget(task: Task, where: str) -> None:
    """Refuses half a price under a cap, a cap below one answer, and fallbacks that cannot work."""
    for role in ROLES:
        model = task.model(role)
        if role == "student" and model.fallbacks:
            raise SettingsError(
                f"{where}.student.fallbacks: the student has none, since what it learns from must be its own attempts. "
                "While it is down its cases wait. Remove the key."
            )
        for number, one in enumerate((model, *model.fallbacks)):
            key = f"{where}.{role}" + (f".fallbacks[{number - 1}]" if number else "")
            if model.fallbacks and one.model.startswith(("local/", "scripted/")):
                raise SettingsError(
                    f"{key}: {one.model} runs in this very process and cannot be down alone; it neither has fallbacks "
                    "nor is one. Name models behind an address."
                )
            if number and (one.fallbacks or not one.model):
                wrong = "has fallbacks of its own; list all in one" if one.fallbacks else "has no model; name one"
                raise SettingsError(f"{key} {wrong}.")
            prices = (one.input_cost_per_token, one.output_cost_per_token)
            if not task.budget.caps_money(role) or prices == (None, None):
                continue
            missing = [name for name, price in zip(("input", "output"), prices, strict=True) if price is None]
            if missing:
                raise SettingsError(
                    f"{key}.{missing[0]}_cost_per_token is missing beside the other price, and the task has a cap in "
                    "money: the tokens would count as free. Set both."
                )
            caps = (task.budget.usd_per_day, task.budget.limits(role).usd_per_day)
            cap = min(cap for cap in caps if cap is not None)
            longest = one.max_tokens * (one.output_cost_per_token or 0.0)
            if 0 < cap < longest:
                raise SettingsError(
                    f"{key}: one answer of max_tokens {one.max_tokens} may cost {longest:.6g} USD, more than the "
                    f"{cap:.6g} USD a day that it may spend. Raise usd_per_day or lower max_tokens."
                )
