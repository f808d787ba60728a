"""The expert: accepts, edits or rejects how a case has ended. Pure; streams.review moves the decisions.

What the judge had said of the answer stays beside the expert's word, so that the two can be compared.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal

import msgspec

from agents.chain import best_attempt
from agents.refiner import changed_share
from agents.strategist import leaks
from schemas.case import Attempt, Case, Review, Verdict, Violation
from schemas.errors import AlreadyReviewed, ReviewError
from schemas.settings import Settings
from schemas.tools import read_answer

NAME = r"[\w.@+-][\w .@+-]{0,63}"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What an expert wants done with a case."""

    decision: Literal["accept", "edit", "reject"]
    by: str
    text: str = ""  # edit: the answer in its place
    reason: str = ""
    rules: tuple[str, ...] = ()  # of the rubric, that the judged answer breaks
    round: int | None = None  # accept: of the attempt meant; None is the accepted one, or the best
    again: bool = False  # over an earlier expert's decision


def check_decision(case: Case, decision: Decision, settings: Settings) -> None:
    """Raises ReviewError where a decision cannot be made on this case as it is."""
    outcome = case.outcome.kind if case.outcome else "unended"
    if outcome not in ("gold", "unresolved"):
        raise ReviewError(f"case {case.case_id} is {outcome}: only gold and unresolved cases are reviewed.")
    if not case.attempts:
        raise ReviewError(f"case {case.case_id} has no attempt to decide on.")
    if not re.fullmatch(NAME, decision.by):
        raise ReviewError(f"--by {decision.by!r}: expected a name of letters, digits, spaces and . @ + -, at most 64.")
    if case.review is not None and not decision.again:
        raise AlreadyReviewed(told(case) + " Decide again with --again.")
    known = [rule.id for rule in settings.task(case.task).rubric.rules] if case.task in settings.tasks else None
    unknown = sorted(set(decision.rules) - set(known)) if known is not None else []
    if unknown:
        raise ReviewError(
            f"no rule {', '.join(unknown)} in the rubric of task {case.task}; it has {', '.join(known or [])}."
        )
    if decision.decision == "reject" and not decision.reason.strip():
        raise ReviewError("a rejection needs a reason: say in a sentence what is wrong.")
    if decision.decision == "edit":
        if not decision.text.strip():
            raise ReviewError("the edited answer is empty. Reject the case, or write the answer that is right.")
        if decision.text == case.attempts[judged_attempt(case)].text:
            raise ReviewError("the edited answer is the one that was there. Accept it, if it is right.")
    rounds = [attempt.round for attempt in case.attempts]
    if decision.decision == "accept" and decision.round is not None and decision.round not in rounds:
        raise ReviewError(f"case {case.case_id} has no attempt of round {decision.round}; it has {rounds}.")


def decided_case(case: Case, decision: Decision, at_ms: int, sampled: bool) -> Case:
    """Returns the case as the decision leaves it, at the next epoch. Pure.

    accept: the attempt passes, by the expert; gold. edit: the expert's text is one more attempt, which passes; gold.
    reject: unresolved, with the reason. Where the judge had passed what is edited or rejected, the expert's failure
    stands in its verdict's place, so that the first attempt counts as failed and the case as corrected. What the judge
    had said is kept in `review`. A strategy that gives an edited answer away is taken off.
    """
    place = judged_attempt(case)
    if decision.decision == "accept" and decision.round is not None:
        place = [attempt.round for attempt in case.attempts].index(decision.round)
    judged, verdict = case.attempts[place], case.attempts[place].verdict
    earlier = case.review
    review = Review(
        decision=decision.decision,
        by=decision.by,
        at_ms=at_ms,
        reason=decision.reason[:500],
        rules=tuple(dict.fromkeys(decision.rules)),
        sampled=sampled,
        judged_passed=earlier.judged_passed if earlier else (verdict.passed if verdict else None),
        judged_by=earlier.judged_by if earlier else (verdict.judge if verdict else ""),
        judged_rules=earlier.judged_rules if earlier else _rules(verdict),
    )
    attempts = list(case.attempts)
    last = attempts[-1].round
    if decision.decision == "accept":
        passed = _verdict(verdict, decision, passes=True)
        attempts[place] = msgspec.structs.replace(judged, verdict=passed)
        if place != len(attempts) - 1:  # a row's answer is that of its last attempt
            chosen = msgspec.structs.replace(
                attempts[place], source="refiner", round=last + 1, refiner="expert", rewrote=judged.round, changed=0.0,
                prompt_tokens=0, completion_tokens=0, latency_s=0.0, cost_usd=0.0,
            )  # fmt: skip
            attempts.append(chosen)
    elif verdict is None or verdict.passed:
        attempts[place] = msgspec.structs.replace(judged, verdict=_verdict(verdict, decision, passes=False))
    if decision.decision == "edit":
        text, calls = read_answer(decision.text) if case.tools else (decision.text, ())
        attempts.append(
            Attempt(
                round=last + 1,
                source="refiner",
                text=text,
                tool_calls=calls,
                model=f"expert:{decision.by}",
                refiner="expert",
                rewrote=judged.round,
                changed=changed_share(judged.text, decision.text),
                verdict=_verdict(verdict, decision, passes=True),
            )
        )
    decided = msgspec.structs.replace(case, epoch=case.epoch + 1, attempts=tuple(attempts), review=review)
    if decided.strategy is not None and leaks(decided.strategy, decided):
        decided = msgspec.structs.replace(decided, strategy=None)
    if decision.decision == "reject":
        return decided.ended("unresolved", "judge", at_ms, "rejected", decision.reason)
    return decided.ended("gold", "judge", at_ms)


def judged_attempt(case: Case) -> int:
    """Returns the number of the attempt that an expert decides on: the accepted one, else the best."""
    last = case.attempts[-1].verdict
    return len(case.attempts) - 1 if last is not None and last.passed else best_attempt(case.attempts)


def told(case: Case) -> str:
    """Returns who decided on a case, what and when, as a sentence."""
    review = case.review
    if review is None:
        return f"case {case.case_id} has been sent round again, at epoch {case.epoch}."
    at = datetime.fromtimestamp(review.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    done = {"accept": "accepted", "edit": "edited and accepted", "reject": "rejected"}[review.decision]
    why = f" ({review.reason})" if review.reason else ""
    return f"{review.by} {done} case {case.case_id} on {at}{why}."


def _verdict(judged: Verdict | None, decision: Decision, *, passes: bool) -> Verdict:
    """Returns the expert's verdict, on the scale and by the rubric that the judge used."""
    max_score = judged.max_score if judged is not None and judged.max_score else 1.0
    broken = [Violation(rule, "major", "", decision.reason) for rule in decision.rules]
    return Verdict(
        passed=passes,
        score=max_score if passes else 0.0,
        max_score=max_score,
        violations=() if passes else tuple(broken) or (Violation("expert", "major", "", decision.reason),),
        judge=f"expert:{decision.by}",
        kind="expert",
        rubric=judged.rubric if judged is not None else "",
    )


def _rules(verdict: Verdict | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(violation.rule for violation in verdict.violations)) if verdict else ()
