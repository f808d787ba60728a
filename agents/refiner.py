"""The refiner: rewrites the last attempt from the violations the judge found."""

from __future__ import annotations

import msgspec

from agents.models import Models
from agents.prompts import refiner_messages
from schemas.case import Attempt, Case
from schemas.settings import Settings


async def refine(case: Case, settings: Settings, models: Models, *, deadline: float) -> Case:
    """Returns the case with one more attempt, a round further. Raises ModelError as agents.models does."""
    prompt = refiner_messages(case, settings.task(case.task).rubric)
    answer = await models.complete("refiner", case.task, prompt, deadline=deadline)
    rewritten = Attempt(
        round=case.rounds + 1,
        source="refiner",
        text=answer.text,
        model=answer.model,
        adapter=answer.adapter,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        logprob=answer.logprob,
        latency_s=answer.latency_s,
        cost_usd=answer.cost_usd,
    )
    return msgspec.structs.replace(case, attempts=(*case.attempts, rewritten), spend=case.spend.plus(answer.spend()))
