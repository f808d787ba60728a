"""The statistics of the benchmark: means with confidence intervals, the log fit, prompts for an improvement.

As the reference computes them: score = a + b·log(n) fitted to each learning curve, the crossing of baseline + 25 %
found by binary search with linear interpolation, all relative to RGT's. Pure functions.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import NamedTuple

GAIN = 0.25  # relative to the baseline: 60 % normalised becomes 75 %
GRID = [10 ** (k / 50) for k in range(351)]  # prompts, from 1 to 10 million

# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond, the normal's.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


class LogFit(NamedTuple):
    """score = a + b·log(n), least squares; r2 is the share of variance it explains."""

    a: float
    b: float
    r2: float

    def at(self, n: float) -> float:
        """Returns the fitted score at n prompts."""
        return self.a + self.b * math.log(n)


class Interval(NamedTuple):
    """A mean and the half width of its 95 % confidence interval; infinite for one value."""

    mean: float
    half: float
    number: int


def mean_interval(values: Sequence[float]) -> Interval:
    """Returns the mean over seeds with Student's 95 % interval."""
    number = len(values)
    mean = sum(values) / number
    if number == 1:
        return Interval(mean, math.inf, 1)
    variance = sum((value - mean) ** 2 for value in values) / (number - 1)
    quantile = _T95[number - 2] if number - 1 <= len(_T95) else 1.96
    return Interval(mean, quantile * math.sqrt(variance / number), number)


def fit_log(curve: Sequence[tuple[float, float]]) -> LogFit:
    """Fits (n, score) points. Raises ValueError for fewer than two different n."""
    xs, ys = [math.log(n) for n, _ in curve], [score for _, score in curve]
    if len(set(xs)) < 2:
        raise ValueError(f"a curve needs at least two sizes to be fitted, found {len(set(xs))}")
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    b = sum((p - x) * (q - y) for p, q in zip(xs, ys, strict=True)) / sum((p - x) ** 2 for p in xs)
    a = y - b * x
    total = sum((q - y) ** 2 for q in ys)
    rest = sum((q - a - b * p) ** 2 for p, q in zip(xs, ys, strict=True))
    return LogFit(a, b, 1 - rest / total if total else 1.0)


def crossing(curve: Sequence[tuple[float, float]], target: float) -> float:
    """Returns the n at which a rising curve of (n, score) first reaches `target`; inf where it never does.

    Binary search over the points, made monotone by their running maximum, then linear interpolation between the two
    that enclose the target. A curve that starts above it gives its first n: the crossing lies at or below that.
    """
    ns, best, highest = [n for n, _ in curve], [], -math.inf
    for _, score in curve:
        highest = max(highest, score)
        best.append(highest)
    above = bisect_left(best, target)
    if above == len(best):
        return math.inf
    if above == 0:
        return ns[0]
    low, high = best[above - 1], best[above]
    return ns[above - 1] + (ns[above] - ns[above - 1]) * (target - low) / (high - low)


def prompts_needed(fit: LogFit, target: float) -> float:
    """Returns the prompts a fitted curve needs to reach `target`; inf where it does not within 10 million."""
    return crossing([(n, fit.at(n)) for n in GRID], target) if fit.b > 0 else math.inf


def relative(needed: Mapping[str, float], to: str) -> dict[str, float]:
    """Returns each method's prompts as a multiple of `to`'s; nan where neither is finite.

    Empty where `to`'s curve starts above the target: "at most one prompt" is no yardstick.
    """
    if needed.get(to, 0.0) <= GRID[0]:
        return {}
    return {
        name: math.nan if math.isinf(n) and math.isinf(needed[to]) else n / needed[to] for name, n in needed.items()
    }
