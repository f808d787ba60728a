"""The refiner: rewrites the best attempt so far from the violations the judge found.

Who does it is the chain's turn (agents.chain): the student itself, with the adapter it serves with now, or the teacher.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter

import msgspec
import numpy as np

from agents.chain import By, Step, best_attempt, next_step
from agents.completion import Completion
from agents.models import Models
from agents.prompts import refiner_messages
from schemas.case import Case, Message
from schemas.errors import EndpointRefused, ModelError
from schemas.settings import Settings
from schemas.tools import read_answer

log = logging.getLogger(__name__)

_COMPARED = 1_000_000  # pairs of words


async def refine(case: Case, settings: Settings, models: Models, *, deadline: float) -> Case:
    """Returns the case with one more attempt, a round further. Raises ModelError as agents.models does.

    A case that the judge sent on under other settings, by which nothing is left to do, goes to the chain's last.
    """
    task = settings.task(case.task)
    step = next_step(case, task)
    if not isinstance(step, Step):
        step = Step(task.refining.chain[-1].by, best_attempt(case.attempts))
    before = case.attempts[step.attempt]
    prompt = refiner_messages(case, before, task.rubric)
    by, answer = await _asked(step, case, prompt, models, deadline)
    if case.tools and not answer.tool_calls:  # the prompt asks for calls as blocks in the text
        text, calls = read_answer(answer.text)
        answer = msgspec.structs.replace(answer, text=text, tool_calls=calls)
    rewritten = msgspec.structs.replace(
        answer.attempt("refiner", case.rounds + 1),
        refiner=by,
        rewrote=before.round,
        changed=changed_share(before.text, answer.text),
    )
    return msgspec.structs.replace(case, attempts=(*case.attempts, rewritten), spend=case.spend.plus(answer.spend()))


async def _asked(
    step: Step, case: Case, prompt: list[Message], models: Models, deadline: float
) -> tuple[By, Completion]:
    """Returns who rewrote it, and the answer: that of the first in turn who does not refuse this case for good.

    An outage is no reason to ask another: the case waits for its refiner as it would for any model.
    """
    ask = functools.partial(models.complete, "refiner", case.task, prompt, deadline=deadline)
    for by in (step.by, *step.stand_ins):
        try:
            return by, await (ask(by="student") if by == "student" else ask())
        except ModelError as error:
            if error.transient or isinstance(error, EndpointRefused) or by == (step.by, *step.stand_ins)[-1]:
                raise
            log.info("refiner: case %s goes past the %s (%s)", case.case_id, by, error.reason)
    raise AssertionError("a step has at least one refiner")


def changed_share(before: str, after: str) -> float:
    """Returns the share of the words that a rewrite put in, took out or replaced: 0 the same, 1 nothing kept.

    It is the edit distance over words. Texts too different and too long for that are compared by lines, and at last
    by their words alone, whatever the order, so that none takes more than some 30 ms.
    """
    for old, new in ((before.split(), after.split()), (before.splitlines(), after.splitlines())):
        most = max(len(old), len(new))
        old, new = _without_common_ends(old, new)
        if len(old) * len(new) <= _COMPARED:
            return round(_distance(old, new) / most, 4) if most else 0.0
    left, right = Counter(before.split()), Counter(after.split())
    return round(1 - (left & right).total() / max(left.total(), right.total()), 4)


def _without_common_ends(old: list[str], new: list[str]) -> tuple[list[str], list[str]]:
    head = _common(old, new)
    old, new = old[head:], new[head:]
    tail = _common(old[::-1], new[::-1])
    return old[: len(old) - tail], new[: len(new) - tail]


def _common(old: list[str], new: list[str]) -> int:
    for at, (one, other) in enumerate(zip(old, new, strict=False)):
        if one != other:
            return at
    return min(len(old), len(new))


def _distance(old: list[str], new: list[str]) -> int:
    """Returns Levenshtein's distance of two sequences; one numpy row at a time."""
    if not old or not new:
        return len(old) + len(new)
    ids: dict[str, int] = {}
    left, right = ([ids.setdefault(word, len(ids)) for word in words] for words in (old, new))
    target, steps = np.array(right, np.int64), np.arange(len(right) + 1)
    row = steps.copy()
    for number, word in enumerate(left, 1):
        replaced = np.minimum(row[1:] + 1, row[:-1] + (target != word))
        row = np.minimum.accumulate(np.concatenate(([number], replaced)) - steps) + steps
    return int(row[-1])
