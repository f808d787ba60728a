"""The student: makes the first attempt at a production prompt.

With the adapter now serving, or for a canary share of the cases with the one before (schemas.adapters.AdapterRecord).
"""

from __future__ import annotations

import msgspec

from agents.models import Models
from schemas.case import Attempt, Case
from schemas.settings import Settings


async def attempt(case: Case, settings: Settings, models: Models, *, deadline: float) -> Case:
    """Returns the case with its first attempt: the student's, or the logged production answer where the task says so.

    Raises ModelError as agents.models does; an empty answer is BadAnswer, there is nothing in it to judge or repair.
    """
    task = settings.task(case.task)
    if task.first_attempt == "production" and case.production_answer:
        first = Attempt(round=0, source="production", text=case.production_answer, model=case.production_model)
        return msgspec.structs.replace(case, attempts=(first,))
    answer = await models.complete("student", case.task, case.messages, deadline=deadline)
    first = answer.attempt("student", 0)
    return msgspec.structs.replace(case, attempts=(first,), spend=case.spend.plus(answer.spend()))
