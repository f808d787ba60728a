"""What training minimises: pure functions of the trained tokens' log-probabilities and weights.

trainer.loop computes the log-probabilities; every objective sees only the trained tokens, flat (axis N).
"""

from __future__ import annotations

from torch import Tensor


def cross_entropy(logprobs_N: Tensor, weights_N: Tensor) -> Tensor:
    """Returns the weighted token mean of -log p, nats: Σ w·(-log p) / Σ w.

    Dividing by Σ w rather than N keeps the step size independent of how little the strategy tokens weigh.
    """
    return -(weights_N * logprobs_N).sum() / weights_N.sum()
