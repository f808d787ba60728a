"""The student: makes the first attempt at a production prompt, with the adapter now serving."""

from __future__ import annotations

import msgspec

from agents.models import Models
from schemas.case import Attempt, Case
from schemas.errors import BadAnswer
from schemas.settings import Settings


async def attempt(case: Case, settings: Settings, models: Models, *, deadline: float) -> Case:
    """Returns the case with its first attempt: the student's, or the logged production answer where the task says so.

    Raises ModelError as agents.models does.
    """
    task = settings.task(case.task)
    if task.first_attempt == "production" and case.production_answer:
        first = Attempt(round=0, source="production", text=case.production_answer, model=case.production_model)
        return msgspec.structs.replace(case, attempts=(first,))
    answer = await models.complete("student", case.task, case.messages, deadline=deadline)
    if not answer.text:
        # An empty answer is a failed attempt, not a failed call: the judge and the refiner deal with it.
        raise_if_truncated_thinking(answer.thinking)
    first = Attempt(
        round=0,
        source="student",
        text=answer.text,
        model=answer.model,
        adapter=answer.adapter,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        logprob=answer.logprob,
        latency_s=answer.latency_s,
        cost_usd=answer.cost_usd,
    )
    return msgspec.structs.replace(case, attempts=(first,), spend=case.spend.plus(answer.spend()))


def raise_if_truncated_thinking(thinking: str) -> None:
    """Raises BadAnswer where the model spent its whole answer on thinking that it was told to leave out."""
    if thinking:
        raise BadAnswer("the student thought and never answered; raise max_tokens or check that thinking is off")
