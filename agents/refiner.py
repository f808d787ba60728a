"""The refiner: rewrites the last attempt from the violations the judge found."""

from __future__ import annotations

import msgspec

from agents.models import Models
from agents.prompts import refiner_messages
from schemas.case import Case
from schemas.settings import Settings


async def refine(case: Case, settings: Settings, models: Models, *, deadline: float) -> Case:
    """Returns the case with one more attempt, a round further. Raises ModelError as agents.models does."""
    prompt = refiner_messages(case, settings.task(case.task).rubric)
    answer = await models.complete("refiner", case.task, prompt, deadline=deadline)
    rewritten = answer.attempt("refiner", case.rounds + 1)
    return msgspec.structs.replace(case, attempts=(*case.attempts, rewritten), spend=case.spend.plus(answer.spend()))
