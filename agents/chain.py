"""Who refines a failed attempt next, from which attempt, and when that is given up: pure functions of the case.

streams.stage asks at the judge whether a case goes on; agents.refiner asks again who it is that goes on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from schemas.case import Attempt, Case
from schemas.settings import Refiner, Task

By = Literal["student", "teacher"]


class Step(NamedTuple):
    """The next refinement: who makes it, the number of the attempt in the case that is rewritten, and who stands in.

    The others of the chain who come later make it where the first cannot: its context may be too short for the prompt.
    """

    by: By
    attempt: int
    stand_ins: tuple[By, ...] = ()


class Stop(NamedTuple):
    """No further refinement; `reason` is a key of schemas.case.UNRESOLVED_REASONS."""

    reason: str
    detail: str


def next_step(case: Case, task: Task) -> Step | Stop:
    """Returns the refinement that comes next for a case whose last attempt failed, or why there is none.

    1. max_rounds limits the refinements of all together.
    2. A refiner gives way to the next of the chain when its rounds are spent, or when `patience` of its refinements in
       a row stalled. The last one's end is the case's.
    3. What is rewritten is the best attempt so far: after a rewrite that made it worse, the one before.
    """
    chain, patience = task.refining.chain, task.refining.patience
    made = case.rounds
    if made >= task.max_rounds:
        return Stop("rounds_spent", f"failed after {made} refinements")
    place, used, stalled, fell = 0, 0, 0, False
    for number, attempt in enumerate(case.attempts):
        if attempt.source != "refiner":
            continue
        place, used, stalled = _moved(chain, patience, place, used, stalled)
        fell = _fell(case.attempts, number)
        used, stalled = used + 1, stalled + 1 if has_stalled(case.attempts, number) else 0
    place, used, stalled = _moved(chain, patience, place, used, stalled)
    if place < len(chain):
        others = dict.fromkeys(later.by for later in chain[place + 1 :] if later.by != chain[place].by)
        return Step(chain[place].by, best_attempt(case.attempts), tuple(others))
    if stalled:
        what = "the last one scored less" if fell else "the same text or the same violations again"
        return Stop("score_fell" if fell else "no_progress", f"stopped after {made} refinements: {what}")
    return Stop("rounds_spent", f"failed after {made} refinements, the rounds of every refiner")


def has_stalled(attempts: Sequence[Attempt], number: int) -> bool:
    """Tells whether a refinement brought nothing: a text that was there before, the same violations, or less score."""
    attempt, before = attempts[number], attempts[_rewritten(attempts, number)]
    texts = {_plain(earlier.text) for earlier in attempts[:number]}
    return _plain(attempt.text) in texts or _fell(attempts, number) or _same_violations(before, attempt)


def best_attempt(attempts: Sequence[Attempt]) -> int:
    """Returns the number of the attempt to go on from: the highest score, then the fewest violations, then the last."""
    return max(range(len(attempts)), key=lambda number: (*_quality(attempts[number]), number))


def _moved(chain: Sequence[Refiner], patience: int, place: int, used: int, stalled: int) -> tuple[int, int, int]:
    """Returns (place, used, stalled) after a refiner whose turn is over gave way; past the end `stalled` stays."""
    if place >= len(chain):
        return place, used, stalled
    spent = bool(chain[place].rounds) and used >= chain[place].rounds
    if not spent and not (patience and stalled >= patience):
        return place, used, stalled
    is_last = place + 1 == len(chain)
    gave_up = stalled if patience and stalled >= patience else 0
    return place + 1, 0, gave_up if is_last else 0


def _rewritten(attempts: Sequence[Attempt], number: int) -> int:
    """Returns the number of the attempt that a refinement rewrote; of one that does not tell, the one before it."""
    told = attempts[number].rewrote
    found = next((n for n, attempt in enumerate(attempts[:number]) if attempt.round == told), None)
    return number - 1 if found is None else found


def _fell(attempts: Sequence[Attempt], number: int) -> bool:
    return _quality(attempts[number])[0] < _quality(attempts[_rewritten(attempts, number)])[0]


def _quality(attempt: Attempt) -> tuple[float, int]:
    verdict = attempt.verdict
    if verdict is None:
        return 0.0, 0
    return (verdict.score / verdict.max_score if verdict.max_score else 0.0), -len(verdict.violations)


def _same_violations(before: Attempt, after: Attempt) -> bool:
    return _violations(before) == _violations(after) != set()


def _violations(attempt: Attempt) -> set[tuple[str, str]]:
    found = attempt.verdict.violations if attempt.verdict else ()
    return {(violation.rule, _plain(violation.hinge)) for violation in found}


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
