"""Cases of the toy task as a judge has left them, and the rows they have become."""

from __future__ import annotations

from typing import Any

from ended_cases import ended

from schemas.case import Attempt, Case, Verdict, Violation
from schemas.settings import Settings
from streams.gold import query

CURT = Violation("polite", "major", "wait", "no please", "say please")
FAILED = Verdict(passed=False, score=0, max_score=1, violations=(CURT,), judge="judge", kind="model", rubric="r1")
PASSED = Verdict(passed=True, score=1, max_score=1, judge="judge", kind="model", rubric="r1")


def tried(text: str, round: int, verdict: Verdict | None) -> Attempt:
    return Attempt(round=round, source="refiner" if round else "student", text=text, model="m", verdict=verdict)


def toy(number: int, *verdicts: Verdict, **changes: Any) -> Case:
    """Returns a case of the toy task whose attempts were judged so: gold where the last one passed."""
    attempts = tuple(tried(f"answer {n}", n, verdict) for n, verdict in enumerate(verdicts))
    kind: Any = "gold" if verdicts[-1].passed else "unresolved"
    reason = "" if verdicts[-1].passed else "rounds_spent"
    return ended(number, kind, **({"task": "toy", "attempts": attempts, "strategy": None, "reason": reason} | changes))


def rows(settings: Settings, names: str = "case_id, outcome, epoch, answer, review") -> list[tuple[Any, ...]]:
    return query(settings.gold, f"select {names} from outcomes order by case_id")[1]
