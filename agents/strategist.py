"""The strategist: distils what the failed rounds taught into one transferable rule."""

from __future__ import annotations

import re

import msgspec

from agents.models import Models
from agents.prompts import STRATEGY_SCHEMA, strategist_messages
from schemas.case import Case, Strategy
from schemas.errors import BadAnswer
from schemas.settings import Settings


async def distil(case: Case, settings: Settings, models: Models, *, deadline: float) -> Case:
    """Returns the case with a strategy, or without one where none is needed or usable.

    An attempt that passed at once has nothing to distil and costs no call. A strategy that gives the answer
    away, or cannot be read, is left out: the case is gold without one. Raises ModelError as agents.models does,
    except BadAnswer.
    """
    if case.rounds == 0:
        return case
    prompt = strategist_messages(case, settings.task(case.task).rubric)
    try:
        answer = await models.complete(
            "strategist", case.task, prompt, deadline=deadline, response_format=STRATEGY_SCHEMA
        )
    except BadAnswer:
        return case
    spend = case.spend.plus(answer.spend())
    strategy = read_strategy(answer.text, answer.model)
    if strategy is None or leaks(strategy, case):
        return msgspec.structs.replace(case, spend=spend)
    return msgspec.structs.replace(case, strategy=strategy, spend=spend)


def read_strategy(text: str, model: str) -> Strategy | None:
    """Reads {"mistake", "guardrail"} from a strategist's answer; None where it cannot be read or is empty."""
    try:
        found = msgspec.json.decode(text[text.find("{") : text.rfind("}") + 1].encode(), type=_ModelStrategy)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
    mistake, guardrail = found.mistake.strip(), found.guardrail.strip()
    return Strategy(mistake, guardrail, model) if mistake and guardrail else None


def leaks(strategy: Strategy, case: Case, words: int = 4) -> bool:
    """Tells whether a strategy repeats `words` words in a row of the accepted answer, or a whole line of it.

    A rule that holds the answer teaches copying, and it does not transfer.
    """
    text = " ".join(_words(f"{strategy.mistake} {strategy.guardrail}"))
    answer = case.attempts[-1].text
    tokens = _words(answer)
    runs = (" ".join(tokens[i : i + words]) for i in range(len(tokens) - words + 1))
    lines = (" ".join(_words(line)) for line in answer.splitlines())
    return any(run in text for run in runs) or any(len(line) > 12 and line in text for line in lines)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


class _ModelStrategy(msgspec.Struct):
    mistake: str
    guardrail: str
