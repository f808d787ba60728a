"""What training minimises: pure functions of the trained tokens' log-probabilities and weights.

trainer.loop computes the log-probabilities; every objective sees only the trained tokens of one part of a batch,
flat (axis N). The formulas are those of arXiv 2507.12856 and of its authors' code. A weight multiplies the loss of a
token and carries no gradient; the loss of plain fine-tuning is that of weight 1.

One optimiser step of accumulation over the parts of a batch:

1. for each part `w_N = importance_weights(objective, part)`, then `weighted_loss(part, w_N, total).backward()`, where
   `total` is the sum of the loss weights over all parts;
2. `stats = stats.merged(weight_stats(objective, part, w_N))`;
3. after the last part, multiply every gradient (and the loss to log) by `normaliser(objective, stats)`. A batch-wide
   normalisation is a factor of the whole gradient, so it needs no second pass over the batch;
4. clip, step, and then, for a moving average, `update_average`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from schemas.errors import SettingsError, TrainingError
from schemas.settings import Trainer


class TokenBatch(NamedTuple):
    """The trained tokens of a part of a batch; log-probabilities in nats, fp32 or wider."""

    logprobs_N: Tensor  # log p_theta, with gradient
    weights_N: Tensor  # loss weight, above 0
    sequence_N: Tensor  # int64: the sequence a token belongs to; A and B of a case are two. Never spans parts
    reference_N: Tensor | None = None  # log p_ref: the base with its adapters off
    proposal_N: Tensor | None = None  # log q where q is not theta: a moving average, or theta of an earlier stage


class Objective(NamedTuple):
    """A variant with its constants; PUBLISHED holds those of the publications."""

    name: Literal["sft", "iw-sft", "iw-sft-step", "iw-sft-ema", "dft"]
    temperature: float = 1.0
    low: float = 0.0  # weights are clamped to low <= w <= high
    high: float = math.inf
    normalise: bool = False  # to mean 1 over each optimiser batch

    @property
    def needs_reference(self) -> bool:
        """Whether `reference_N` is asked for."""
        return self.name.startswith("iw-")

    @property
    def needs_average(self) -> bool:
        """Whether `proposal_N` is asked for: log-probabilities under the moving average of theta."""
        return self.name == "iw-sft-ema"

    @property
    def per_token(self) -> bool:
        """Whether each token has a weight of its own; else all tokens of a sequence share one."""
        return self.name in ("iw-sft-step", "dft")


PUBLISHED = {
    "sft": Objective("sft"),
    "iw-sft": Objective("iw-sft", high=16.0),
    "iw-sft-step": Objective("iw-sft-step", low=0.2, high=1.8),
    "iw-sft-ema": Objective("iw-sft-ema", temperature=10.0, high=1000.0, normalise=True),
    "dft": Objective("dft"),
}


class WeightStats(NamedTuple):
    """The weights of a batch in four numbers that add up over its parts and over processes.

    They are counted by sequence, or by token where every token has its own.
    """

    number: int = 0
    total: float = 0.0
    squares: float = 0.0
    largest: float = 0.0

    @property
    def mean(self) -> float:
        """The mean weight, 0 of none."""
        return self.total / self.number if self.number else 0.0

    @property
    def effective(self) -> float:
        """The effective sample size (Σw)² / Σw², from 1 to `number`; 0 where no weight is above 0."""
        return self.total**2 / self.squares if self.squares else 0.0

    def merged(self, other: WeightStats) -> WeightStats:
        """Returns the statistics of both together."""
        return WeightStats(
            self.number + other.number,
            self.total + other.total,
            self.squares + other.squares,
            max(self.largest, other.largest),
        )

    def as_log(self) -> dict[str, float]:
        """Returns what a line of the step log says of the weights, before any normalisation."""
        return {"weight_mean": self.mean, "weight_max": self.largest, "weight_ess": self.effective}


def objective_of(settings: Trainer) -> Objective:
    """Returns the objective the settings ask for; what they leave unset is as published.

    Raises SettingsError where the smallest weight would exceed the largest.
    """
    published = PUBLISHED[settings.objective]
    chosen = Objective(
        published.name,
        _chosen(settings.weight_temperature, published.temperature),
        _chosen(settings.weight_min, published.low),
        _chosen(settings.weight_max, published.high),
        published.normalise if settings.normalise_weights is None else settings.normalise_weights,
    )
    if chosen.low > chosen.high:
        raise SettingsError(
            f"trainer.weight_min is {chosen.low:g} and trainer.weight_max {chosen.high:g} for objective "
            f"{chosen.name}: no weight lies between. Unset them for the published {published.low:g} to "
            f"{published.high:g}, or exchange them."
        )
    return chosen


@torch.no_grad()
def importance_weights(objective: Objective, batch: TokenBatch) -> Tensor:
    """Returns the weight w of every token (N,), without gradient and before any normalisation over the batch.

    sft: 1. dft: p_θ,t to the power T, the temperature. The rest weigh by q / p_ref, with n the trained tokens of a
    sequence, which count alike whatever their loss weight:
    iw-sft and iw-sft-ema: clamp(exp(T·(1/n)·Σ_t [log q_t - log p_ref,t])), one weight a sequence;
    iw-sft-step: clamp(exp(T·[log q_t - log p_ref,t])).
    q is θ itself unless `proposal_N` is given. Where q starts at the reference, w is 1 at step 0. Raises TrainingError
    where a needed input is missing.
    """
    if objective.name == "sft":
        return torch.ones_like(batch.logprobs_N)
    if objective.name == "dft":
        log_w_N = batch.logprobs_N
    else:
        log_w_N = _proposal(objective, batch) - _reference(objective, batch)
        if not objective.per_token:
            log_w_N = _sequence_means(log_w_N, batch.sequence_N)
    # Clamped before exp as well: exp overflows where the clamped weight is an ordinary number.
    ceiling = math.log(objective.high) if 0 < objective.high < math.inf else math.inf
    return (objective.temperature * log_w_N).clamp(max=ceiling).exp().clamp(objective.low, objective.high)


def weighted_loss(batch: TokenBatch, w_N: Tensor, total_weight: float | Tensor) -> Tensor:
    """Returns this part's share of a batch's loss, nats: Σ weight·w·(-log p_θ) over the part / `total_weight`.

    `total_weight` is Σ weight over the whole optimiser batch, so that the gradients of its parts add up to its own.
    Dividing by it rather than by N keeps the step size independent of how little the strategy tokens weigh.
    """
    return -(batch.weights_N * w_N * batch.logprobs_N).sum() / total_weight


@torch.no_grad()
def weight_stats(objective: Objective, batch: TokenBatch, w_N: Tensor) -> WeightStats:
    """Returns the statistics of a part's weights."""
    if len(w_N) == 0:
        return WeightStats()
    w = w_N if objective.per_token else _first_of_each(w_N, batch.sequence_N)
    total, squares, largest = torch.stack([w.sum(), w.square().sum(), w.max()]).tolist()  # one wait for the device
    return WeightStats(len(w), total, squares, largest)


def normaliser(objective: Objective, stats: WeightStats) -> float:
    """Returns the factor of a batch's gradient and loss, given the statistics of all its parts.

    The authors' code divides by the sum of the weights; dividing by their mean instead leaves the learning rate its
    meaning, whatever the batch size, and a batch of equal weights as it is.
    """
    return 1.0 / stats.mean if objective.normalise and stats.mean > 0 else 1.0


@torch.no_grad()
def update_average(averages: Iterable[Tensor], parameters: Iterable[Tensor], decay: float) -> None:
    """Moves each average in place to decay·average + (1 - decay)·parameter: q of iw-sft-ema.

    It begins as a copy of the parameters and moves after every optimiser step, so that the next weights know its
    result, as in the authors' code. Of a LoRA adapter A and B are averaged, not their product.
    """
    for average, parameter in zip(averages, parameters, strict=True):
        average.lerp_(parameter.detach().to(average.dtype), 1.0 - decay)


def cross_entropy(logprobs_N: Tensor, weights_N: Tensor) -> Tensor:
    """Returns the weighted token mean of -log p, nats: Σ w·(-log p) / Σ w."""
    return -(weights_N * logprobs_N).sum() / weights_N.sum()


def _proposal(objective: Objective, batch: TokenBatch) -> Tensor:
    if batch.proposal_N is not None:
        return batch.proposal_N.to(batch.logprobs_N.dtype)
    if objective.needs_average:
        raise TrainingError(
            "objective iw-sft-ema weighs by a moving average of the adapter, and no log-probabilities under it were "
            'given (proposal_N). Compute them with the averaged adapter, or set trainer.objective = "iw-sft".'
        )
    return batch.logprobs_N


def _reference(objective: Objective, batch: TokenBatch) -> Tensor:
    if batch.reference_N is None:
        raise TrainingError(
            f"objective {objective.name} weighs by the base's log-probabilities, and none were given (reference_N). "
            'Compute them with trainer.reference, or set trainer.objective to "sft" or "dft".'
        )
    return batch.reference_N.to(batch.logprobs_N.dtype)


def _sequence_means(values_N: Tensor, sequence_N: Tensor) -> Tensor:
    """Returns for every token the mean of `values_N` over its sequence."""
    sequences, place_N = _places(sequence_N)
    sums_S = values_N.new_zeros(sequences).index_add_(0, place_N, values_N)
    return (sums_S / place_N.bincount(minlength=sequences)).index_select(0, place_N)


def _first_of_each(values_N: Tensor, sequence_N: Tensor) -> Tensor:
    """Returns one value of each sequence, where all of its tokens have the same."""
    sequences, place_N = _places(sequence_N)
    return values_N.new_zeros(sequences).scatter_(0, place_N, values_N)


def _places(sequence_N: Tensor) -> tuple[int, Tensor]:
    """Returns how many sequences there are, and for every token the number of its own, from 0."""
    ids_S, place_N = torch.unique(sequence_N, return_inverse=True)
    return len(ids_S), place_N


def _chosen(asked: float | None, published: float) -> float:
    return published if asked is None else asked
