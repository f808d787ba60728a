"""The student: makes the first attempt at a production prompt.

With the adapter now serving, or for a canary share of the cases with the one before (schemas.adapters.AdapterRecord).
"""

from __future__ import annotations

from typing import Any

import msgspec

from agents.models import Models
from schemas.case import Attempt, Case
from schemas.settings import CarryOver, Settings
from schemas.tools import answer_text, plain_call, template_tools


async def attempt(case: Case, settings: Settings, models: Models, *, deadline: float) -> Case:
    """Returns the case with its first attempt: the student's, or the logged production answer where the task says so.

    Raises ModelError as agents.models does; an empty answer is BadAnswer, there is nothing in it to judge or repair.
    """
    task = settings.task(case.task)
    if task.first_attempt == "production" and (case.production_answer or case.production_tool_calls):
        return msgspec.structs.replace(case, attempts=(production_attempt(case),))
    told = carried_over(case, task.carry_over)
    more: dict[str, Any] = {"told": told} if told else {}
    answer = await models.complete("student", case.task, case.messages, deadline=deadline, **more)
    first = answer.attempt("student", 0)
    return msgspec.structs.replace(case, attempts=(first,), spend=case.spend.plus(answer.spend()))


def production_attempt(case: Case) -> Attempt:
    """Returns the product's logged answer, with the tools it called, as the first attempt."""
    calls = tuple(map(plain_call, case.production_tool_calls))
    text = answer_text(case.production_answer or "", calls)
    return Attempt(round=0, source="production", text=text, model=case.production_model, tool_calls=calls)


def carried_over(case: Case, wanted: CarryOver) -> dict[str, Any]:
    """Returns what of the product's own call the student's is told too, as chat completions take it.

    What says how tools are chosen goes only with tools; what a log holds in no form that is known is left out.
    """
    told: dict[str, Any] = {}
    tools = template_tools(case.tools) if wanted.tools else []
    if tools:
        told["tools"] = tools
    for name in wanted.params:
        value = case.params.get(name)
        if name == "tool_choice":
            value = _tool_choice(value)
        elif name == "response_format" and not (isinstance(value, dict) and value.get("type") in _FORMATS):
            value = None
        if value is not None and (tools or name not in ("tool_choice", "parallel_tool_calls")):
            told[name] = value
    return told


_FORMATS = ("json_object", "json_schema")


def _tool_choice(logged: Any) -> Any:
    """Returns a choice of tools as chat completions write it; other vendors' words for the same are known."""
    kind = logged.get("type") if isinstance(logged, dict) else logged
    if kind in ("auto", "none", "required"):
        return kind
    if kind == "any":
        return "required"
    if kind in ("function", "tool") and isinstance(logged, dict):
        name = (logged.get("function") or logged).get("name")
        return {"type": "function", "function": {"name": name}} if isinstance(name, str) else None
    return None
