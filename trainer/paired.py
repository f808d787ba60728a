"""The gate's statistics: pure functions over paired verdicts on the same holdout cases.

McNemar's test compares passes, a paired bootstrap compares mean scores; `decide` reads either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from schemas.adapters import Comparison
from schemas.case import Verdict
from schemas.settings import Gate

Decision = Literal["promote", "refuse", "undecided"]
_AT_ONCE = 4_000_000  # drawn cases of one part of the bootstrap: 32 MB


def compare(gate: Gate, before: Mapping[str, Verdict], after: Mapping[str, Verdict], ids: Sequence[str]) -> Comparison:
    """Compares two sides on the cases `ids`, which both have a verdict on; `ids` must not be empty."""
    passed_before, passed_after = [before[i].passed for i in ids], [after[i].passed for i in ids]
    gained = sum(new and not old for old, new in zip(passed_before, passed_after, strict=True))
    lost = sum(old and not new for old, new in zip(passed_before, passed_after, strict=True))
    scores_before, scores_after = [share(before[i]) for i in ids], [share(after[i]) for i in ids]
    differences = [new - old for old, new in zip(scores_before, scores_after, strict=True)]
    p_value, low, high = bootstrap(differences, gate.resamples, gate.significance)
    return Comparison(
        cases=len(ids),
        before=sum(passed_before) / len(ids),
        after=sum(passed_after) / len(ids),
        gained=gained,
        lost=lost,
        p_value=mcnemar(gained, lost) if gate.test == "mcnemar" else p_value,
        score_before=math.fsum(scores_before) / len(ids),
        score_after=math.fsum(scores_after) / len(ids),
        score_low=low,
        score_high=high,
    )


def share(verdict: Verdict) -> float:
    """Returns a verdict's score as a share of its maximum, 0 to 1."""
    return verdict.score / verdict.max_score if verdict.max_score > 0 else float(verdict.passed)


def mcnemar(gained: int, lost: int) -> float:
    """Returns the exact two-sided p-value of McNemar's test: a fair coin over the cases that changed."""
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    p_value: float = 2 * tail / 2**changed
    return min(1.0, p_value)


def bootstrap(differences: Sequence[float], resamples: int, significance: float) -> tuple[float, float, float]:
    """Returns (two-sided p-value, low, high) of the mean of paired differences, by resampling cases.

    Percentile interval at 1 - significance; the p-value is twice the smaller share of resampled means on one side
    of 0, counted with the sample itself (Davison and Hinkley, Bootstrap Methods, 1997, 4.2 and 5.3). The same
    differences give the same figures.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not values.any():
        return 1.0, 0.0, 0.0
    random = np.random.default_rng(0)
    part = max(1, _AT_ONCE // len(values))
    means = np.concatenate(
        [
            values[random.integers(0, len(values), (min(part, resamples - start), len(values)))].mean(axis=1)
            for start in range(0, resamples, part)
        ]
    )
    tiny = 1e-12  # a mean of differences that cancel is 0 but for rounding
    below, above = (means <= tiny).sum(), (means >= -tiny).sum()
    p_value = 2 * (min(below, above) + 1) / (resamples + 1)
    low, high = np.quantile(means, [significance / 2, 1 - significance / 2])
    return float(min(1.0, p_value)), float(low), float(high)


def decide(gate: Gate, found: Comparison) -> tuple[Decision, str]:
    """Decides on a candidate; the reason is for people.

    Promotes on no significant loss and a gain above gate.min_gain, in passes or, with the bootstrap, in mean score.
    """
    if found.cases < gate.min_holdout:
        return "undecided", (
            f"{found.cases} holdout cases, gate.min_holdout asks for {gate.min_holdout}. They come with the traffic "
            "(intake.holdout_share); a person can promote it meanwhile"
        )
    graded = gate.test == "bootstrap"
    before, after = (found.score_before, found.score_after) if graded else (found.before, found.after)
    what = "mean score" if graded else "pass rate"
    figures = f"{what} {before:.1%} -> {after:.1%} of {found.cases} cases, p = {found.p_value:.2g}"
    gain = after - before
    if gain < 0 and found.p_value <= gate.significance:
        return "refuse", f"significantly worse: {figures}"
    if gain <= gate.min_gain + 1e-9:  # 0.30 - 0.25 is a little less than 0.05
        if gate.min_gain > 0 and gain > 0:
            return "refuse", f"gains no more than gate.min_gain {gate.min_gain:g}: {figures}"
        full = ". The incumbent has nothing left to gain here: harder holdout cases would tell more"
        return "refuse", f"no gain: {figures}{full if before == 1 else ''}"
    return "promote", f"{'better' if gain > 0 else 'not significantly worse'}: {figures}"
