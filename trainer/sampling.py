"""SFT(Q): how the judge's scores decide which cases are trained on, and how often.

Pure functions from scores to indices, called by trainer.dataset; with iw-SFT as objective the result is iw-SFT(Q).
Scores that are all equal, as those of a binary judge on gold are, return every case once, in its order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np


def top_sets(scores: Sequence[float], percentiles: Sequence[float]) -> list[int]:
    """Returns the indices of nested top sets, one set after the other: a case of the best set stands in all of them.

    A set holds every score at or above its percentile of all scores (linear interpolation), as in the authors' code
    of arXiv 2507.12856. Sets that hold the same cases are kept once: repeating all of them would change the number of
    steps, not the distribution.
    """
    if not scores:
        return []
    sets: list[list[int]] = []
    for cutoff in np.percentile(scores, sorted(percentiles)):
        members = [index for index, score in enumerate(scores) if score >= cutoff]
        if members not in sets:
            sets.append(members)
    return [index for members in sets for index in members]


def score_proportional(scores: Sequence[float], sharpness: float, seed: int) -> list[int]:
    """Returns as many indices as there are scores, ascending, case i drawn in proportion to exp(sharpness·score_i).

    The publication asks for a monotone function of the score and leaves it open; exp is that of reward-weighted
    regression. Systematic resampling: a case whose expected number of copies is c gets floor(c) or ceil(c) of them,
    so that the seed decides as little as possible, and equal scores give one copy each.
    """
    if not scores:
        return []
    order = list(range(len(scores)))
    rng = random.Random(f"{seed}:quality")
    rng.shuffle(order)  # neighbours in the file must not compete for one copy
    best = max(scores)
    shares = [math.exp(sharpness * (scores[index] - best)) for index in order]
    total = math.fsum(shares)
    offset, reached, drawn = rng.random(), 0.0, 0
    chosen: list[int] = []
    for place, (index, share) in enumerate(zip(order, shares, strict=True)):
        reached += len(scores) * share / total
        upto = len(scores) if place == len(scores) - 1 else math.ceil(reached - offset)  # marks at offset + 0, 1, 2 …
        chosen += [index] * (upto - drawn)
        drawn = upto
    return sorted(chosen)
