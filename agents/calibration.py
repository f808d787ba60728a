"""How far a judge says what experts said: figures from labelled examples, and whether they are good enough. Pure.

kappa: Cohen, A coefficient of agreement for nominal scales (1960). Its interval is that of the posterior of the
four cells under Jeffreys' prior, so that full agreement on a few examples is not taken for certainty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from schemas.case import Message, Verdict

GOOD_KAPPA = 0.6  # "substantial" in Landis and Koch (1977)
FEWEST_OF_A_KIND = 10  # passed examples, and failed ones
_DRAWS = 20_000
_Z = 1.96


class Example(NamedTuple):
    """An answer with what an expert says of it; `violated` None where rules were not labelled."""

    where: str  # such as "line 7"
    messages: tuple[Message, ...]
    answer: str
    passed: bool
    violated: frozenset[str] | None
    record: Mapping[str, Any] | None = None  # what checks may compare with, as schemas.record has it


class Share(msgspec.Struct, frozen=True):
    """A share with its 95 % interval (Wilson 1927); `value` None of nothing."""

    value: float | None
    low: float
    high: float
    of: int


class RuleFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Who found a rule broken, in the examples that name the broken rules."""

    rule: str
    both: int
    judge_only: int
    expert_only: int
    precision: float | None
    recall: float | None


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """A judge against experts. Confusion: what the judge said of what they said."""

    examples: int
    unjudged: int
    passed_both: int
    passed_judge_only: int  # bad answers that would become gold
    passed_expert_only: int  # good answers that would be refined
    failed_both: int
    agreement: Share
    kappa: float | None
    kappa_low: float
    kappa_high: float
    false_passes: Share  # of the answers that experts fail
    false_failures: Share  # of the answers that experts pass
    rules: tuple[RuleFigures, ...]
    decision: Literal["good", "bad", "unclear"]
    reason: str


def calibrate(examples: Sequence[Example], verdicts: Sequence[Verdict | None], good: float = GOOD_KAPPA) -> Calibration:
    """Compares verdicts with the labels of their examples; None is an answer that the judge could not judge."""
    pairs = [(one, verdict) for one, verdict in zip(examples, verdicts, strict=True) if verdict is not None]
    cells = [
        sum(one.passed is expert and verdict.passed is judge for one, verdict in pairs)
        for judge, expert in ((True, True), (True, False), (False, True), (False, False))
    ]
    both, judge_only, expert_only, neither = cells
    found = kappa(cells)
    low, high = kappa_interval(cells)
    low, high = (low, high) if found is None else (min(low, found), max(high, found))
    decision, reason = _decision(cells, low, high, good)
    return Calibration(
        examples=len(examples),
        unjudged=len(examples) - len(pairs),
        passed_both=both,
        passed_judge_only=judge_only,
        passed_expert_only=expert_only,
        failed_both=neither,
        agreement=share(both + neither, len(pairs)),
        kappa=found,
        kappa_low=low,
        kappa_high=high,
        false_passes=share(judge_only, judge_only + neither),
        false_failures=share(expert_only, expert_only + both),
        rules=_by_rule(pairs),
        decision=decision,
        reason=reason,
    )


def share(count: int, of: int) -> Share:
    """Returns a share with Wilson's interval; everything is possible where nothing was counted."""
    if not of:
        return Share(None, 0.0, 1.0, 0)
    value, z2 = count / of, _Z * _Z / of
    middle, half = value + z2 / 2, _Z * math.sqrt(value * (1 - value) / of + z2 / (4 * of))
    return Share(value, max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2)), of)


def kappa(cells: Sequence[float]) -> float | None:
    """Returns kappa of (both passed, only the judge, only the expert, both failed).

    None where one of the two never varies: then chance alone agrees as well.
    """
    found = float(_kappas(np.array([cells], dtype=float))[0])
    return None if math.isnan(found) else found


def kappa_interval(cells: Sequence[int]) -> tuple[float, float]:
    """Returns the 95 % interval of kappa; the same for the same cells."""
    drawn = np.random.default_rng(0).dirichlet(np.array(cells, dtype=float) + 0.5, _DRAWS)
    low, high = np.quantile(_kappas(drawn), (0.025, 0.975))
    return float(low), float(high)


def _kappas(cells: np.ndarray) -> np.ndarray:
    """Returns the kappa of each row of cells (N, 4)."""
    both, judge_only, expert_only, neither = (cells / np.maximum(cells.sum(axis=1, keepdims=True), 1e-300)).T
    judge, expert = both + judge_only, both + expert_only
    by_chance = judge * expert + (1 - judge) * (1 - expert)
    with np.errstate(invalid="ignore", divide="ignore"):
        kappas: np.ndarray = np.where(by_chance < 1 - 1e-12, (both + neither - by_chance) / (1 - by_chance), np.nan)
    return kappas


def _decision(
    cells: Sequence[int], low: float, high: float, good: float
) -> tuple[Literal["good", "bad", "unclear"], str]:
    both, judge_only, expert_only, neither = cells
    passed, failed = both + expert_only, judge_only + neither
    interval = f"kappa lies between {low:.2f} and {high:.2f}"
    if min(passed, failed) < FEWEST_OF_A_KIND:
        return "unclear", (
            f"too few examples to say: experts pass {passed} and fail {failed} of those judged, at least "
            f"{FEWEST_OF_A_KIND} of each are needed. Label more of the rarer kind."
        )
    if low >= good:
        return "good", f"good enough: {interval}, not below {good:g}."
    if high < good:
        what = "it passes what experts fail" if judge_only > expert_only else "it fails what experts pass"
        return "bad", (
            f"not good enough: {interval}, below {good:g}, and mostly {what}. Read the examples where they differ and "
            "make those rules clearer, with good and bad examples, or take a stronger judge."
        )
    return "unclear", f"not clear yet: {interval}, with {good:g} in between. Label more examples, or mend the rules."


def _by_rule(pairs: Iterable[tuple[Example, Verdict]]) -> tuple[RuleFigures, ...]:
    counts: dict[str, list[int]] = {}
    for one, verdict in pairs:
        if one.violated is None:
            continue
        told = {violation.rule for violation in verdict.violations}
        for rule in told | one.violated:
            cells = counts.setdefault(rule, [0, 0, 0])
            cells[0 if rule in told and rule in one.violated else 1 if rule in told else 2] += 1
    return tuple(
        RuleFigures(
            rule=rule,
            both=both,
            judge_only=judge_only,
            expert_only=expert_only,
            precision=both / (both + judge_only) if both + judge_only else None,
            recall=both / (both + expert_only) if both + expert_only else None,
        )
        for rule, (both, judge_only, expert_only) in sorted(counts.items())
    )
