"""How often experts say what the judge said: figures from the decisions that stand in the gold set.

Reviewed cases are no random sample of all: every unresolved case is asked for, of the accepted ones a share. So each
kind is estimated by itself and weighed by how many of it there are. That is unbiased where the cases decided on are a
random part of their kind, as they are for whoever works through `goldstream review` in its order. Accepted cases that
were looked up by their id outside the sample are counted, and left out of the estimate.
"""

from __future__ import annotations

from typing import Any

import msgspec

from agents.calibration import kappa, share
from schemas.settings import Settings
from streams.gold import open_gold

COUNTED = ("judged", "review", "sampled", "judge_rules", "rules", "reviewer", "cases")


class Kind(msgspec.Struct, kw_only=True):
    """The cases that the judge passed, or those it failed."""

    judge: str  # passed or failed
    cases: int  # in the gold set, reviewed or not
    reviewed: int  # at random
    agreed: int  # of these
    agreement: float | None
    low: float  # of the 95 % interval (Wilson)
    high: float


class RuleAgreement(msgspec.Struct, kw_only=True):
    """Who found a rule broken, in the decisions where the expert accepted or named the broken rules."""

    rule: str
    both: int
    judge_only: int
    expert_only: int
    neither: int
    agreement: float
    kappa: float | None


class Agreement(msgspec.Struct, kw_only=True):
    """What `goldstream review agreement` tells. `agreement` and `kappa` estimate all judged cases; None: too few."""

    task: str
    decisions: int
    not_drawn: int  # accepted cases decided on that were not in the sample
    kinds: list[Kind]
    agreement: float | None
    low: float | None
    high: float | None
    kappa: float | None
    rules: list[RuleAgreement]
    rules_from: int  # decisions
    reviewers: dict[str, int]
    notes: list[str]


def agreement(settings: Settings, task: str | None = None) -> Agreement:
    """Returns how far judge and experts agree, for a task or all together."""
    with open_gold(settings.gold) as connection:
        rows = connection.execute(_JUDGED, {"task": task}).fetchall()
        return agreement_of([dict(zip(COUNTED, row, strict=True)) for row in rows], task or "all")


def agreement_of(found: list[dict[str, Any]], task: str = "all") -> Agreement:
    """Returns what counts of judged cases come to: rows of COUNTED, `review` None where no expert has decided."""
    decided = [one for one in found if one["review"] is not None]
    drawn = [one for one in decided if one["sampled"]]
    kinds = [_kind(judged, found, drawn) for judged in (True, False)]
    total = sum(kind.cases for kind in kinds)
    estimated = bool(total) and all(kind.reviewed or not kind.cases for kind in kinds)
    notes = [
        f"no case that the judge {kind.judge} has been reviewed at random, so the whole cannot be estimated"
        for kind in kinds
        if kind.cases and not kind.reviewed
    ]
    named = [one for one in decided if one["review"] == "accept" or one["rules"]]
    counted = sum(one["cases"] for one in decided)
    reviewers: dict[str, int] = {}
    for one in decided:
        reviewers[one["reviewer"]] = reviewers.get(one["reviewer"], 0) + one["cases"]
    unnamed = counted - sum(one["cases"] for one in named)
    if unnamed:
        notes.append(f"{unnamed} decisions against an answer named no rule; by rule they are not counted")
    return Agreement(
        task=task,
        decisions=counted,
        not_drawn=counted - sum(one["cases"] for one in drawn),
        kinds=kinds,
        agreement=_weighed(kinds, "agreement") if estimated else None,
        low=_weighed(kinds, "low") if estimated else None,
        high=_weighed(kinds, "high") if estimated else None,
        kappa=_whole_kappa(kinds) if estimated else None,
        rules=_by_rule(named),
        rules_from=sum(one["cases"] for one in named),
        reviewers=dict(sorted(reviewers.items())),
        notes=notes,
    )


def tell_agreement(found: Agreement) -> list[str]:
    """Returns the last lines for people: what the figures come to, and how far they can be trusted."""
    if found.agreement is None or found.low is None or found.high is None:
        lines = [f"{found.decisions} decisions; no estimate yet"]
    else:
        kappa = "" if found.kappa is None else f", kappa {found.kappa:.2f}"
        lines = [
            f"judge and experts agree on {found.agreement:.1%} of the judged cases ({found.low:.1%} to "
            f"{found.high:.1%}){kappa}, from {found.decisions - found.not_drawn} decisions"
        ]
        lines.append("unbiased only as far as the cases decided on were taken in the queue's order, none left out")
    if found.not_drawn:
        lines.append(f"{found.not_drawn} decisions on accepted cases outside the sample are not in the estimate")
    return [*lines, *found.notes]


def _kind(judged: bool, found: list[dict[str, Any]], drawn: list[dict[str, Any]]) -> Kind:
    cases = sum(one["cases"] for one in found if one["judged"] is judged)
    looked = [one for one in drawn if one["judged"] is judged]
    reviewed = sum(one["cases"] for one in looked)
    agreed = sum(one["cases"] for one in looked if (one["review"] == "accept") is judged)
    found_share = share(agreed, reviewed)
    return Kind(
        judge="passed" if judged else "failed",
        cases=cases,
        reviewed=reviewed,
        agreed=agreed,
        agreement=found_share.value,
        low=found_share.low,
        high=found_share.high,
    )


def _weighed(kinds: list[Kind], name: str) -> float:
    total = sum(kind.cases for kind in kinds)
    shares: list[float] = [kind.cases / total * getattr(kind, name) for kind in kinds if kind.cases]
    return sum(shares)


def _whole_kappa(kinds: list[Kind]) -> float | None:
    passed, failed = kinds
    yes = (passed.agreement or 0.0) * passed.cases
    no = (failed.agreement or 0.0) * failed.cases
    return kappa((yes, passed.cases - yes, failed.cases - no, no))


def _by_rule(named: list[dict[str, Any]]) -> list[RuleAgreement]:
    total = sum(one["cases"] for one in named)
    tables: dict[str, list[int]] = {}
    for one in named:
        judge, expert = set(one["judge_rules"] or ()), set(one["rules"] or ())
        for rule in judge | expert:
            place = 0 if rule in judge and rule in expert else 1 if rule in judge else 2
            tables.setdefault(rule, [0, 0, 0])[place] += one["cases"]
    found = []
    for rule, (both, judge_only, expert_only) in sorted(tables.items()):
        neither = total - both - judge_only - expert_only
        found.append(
            RuleAgreement(
                rule=rule,
                both=both,
                judge_only=judge_only,
                expert_only=expert_only,
                neither=neither,
                agreement=(both + neither) / total,
                kappa=kappa((both, judge_only, expert_only, neither)),
            )
        )
    return found


_JUDGED = """
SELECT CASE WHEN review IS NULL THEN outcome = 'gold' ELSE judge_passed END AS judged,
       review, review_sampled, judge_rules, review_rules, reviewer, count(*) AS cases
FROM outcomes
WHERE outcome IN ('gold', 'unresolved') AND ($task IS NULL OR task = $task)
GROUP BY ALL
"""
