"""Claims about the objectives: the two-arm bandit of the publication, and the arithmetic of weights and parts.

The bandit: a uniform reference, the right arm succeeds twice as often, so that filtered data holds it twice as often.
Three sequences of one token (right, right, left) make the batch's gradient the population's.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from schemas.errors import SettingsError, TrainingError
from schemas.settings import Trainer
from trainer.objectives import (
    PUBLISHED,
    Objective,
    TokenBatch,
    WeightStats,
    importance_weights,
    normaliser,
    objective_of,
    update_average,
    weight_stats,
    weighted_loss,
)

RIGHT = torch.tensor([0, 0, 1])
WEIGHED_BY_Q = ["iw-sft", "iw-sft-step", "iw-sft-ema"]


# The bandit


def pulls(policy: Tensor) -> Tensor:
    return policy.log_softmax(0)[RIGHT]


def p_right(policy: Tensor) -> float:
    return float(policy.detach().softmax(0)[0])


def gradient_step(policy: Tensor, objective: Objective, q: Tensor | None, rate: float) -> None:
    batch = TokenBatch(pulls(policy), torch.ones(3), torch.arange(3), torch.full((3,), math.log(0.5)), q)
    w = importance_weights(objective, batch)
    loss = weighted_loss(batch, w, 3.0) * normaliser(objective, weight_stats(objective, batch, w))
    (gradient,) = torch.autograd.grad(loss, policy)
    with torch.no_grad():
        policy -= rate * gradient


def solve(objective: Objective, steps: int = 600, rate: float = 3.0, q: Tensor | None = None) -> float:
    """Returns P(right) after gradient descent from the uniform policy."""
    policy = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        gradient_step(policy, objective, q, rate)
    return p_right(policy)


def of(**settings: object) -> Objective:
    return objective_of(Trainer(**settings))  # type: ignore[arg-type]


def test_bandit_plain_fine_tuning_copies_the_data() -> None:
    assert solve(of()) == pytest.approx(2 / 3, abs=1e-6)


def test_bandit_weighted_by_the_present_policy_finds_the_better_arm_exact_or_clamped() -> None:
    assert solve(of(objective="iw-sft")) > 0.999
    assert solve(of(objective="iw-sft", weight_max=1e9)) > 0.999


def test_bandit_weighted_by_a_moving_average_finds_the_better_arm() -> None:
    objective = of(objective="iw-sft-ema")
    policy = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    average = policy.detach().clone()
    for _ in range(600):
        update_average([average], [policy], Trainer().ema_decay)
        gradient_step(policy, objective, pulls(average), 3.0)
    assert p_right(policy) > 0.999


def test_bandit_weights_frozen_per_stage_climb_by_powers_of_two() -> None:
    q, reached = torch.zeros(2, dtype=torch.float64), []
    for _ in range(4):
        share = solve(of(objective="iw-sft"), q=pulls(q))
        q = torch.tensor([share, 1 - share], dtype=torch.float64).log()
        reached.append(share)
    assert reached == pytest.approx([2**k / (2**k + 1) for k in (1, 2, 3, 4)], abs=1e-5)
    assert reached == pytest.approx([0.667, 0.8, 0.889, 0.941], abs=5e-4)


def test_bandit_per_step_clamp_stops_at_18_of_19() -> None:
    assert solve(of(objective="iw-sft-step")) == pytest.approx(18 / 19, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.25, 0.5, 0.75])
def test_bandit_temperature_sets_the_odds(temperature: float) -> None:
    odds = 2 ** (1 / (1 - temperature))
    reached = solve(of(objective="iw-sft", weight_temperature=temperature, weight_max=1e9), steps=2000)
    assert reached == pytest.approx(odds / (odds + 1), abs=1e-6)


def test_bandit_dft_finds_the_better_arm() -> None:
    assert solve(of(objective="dft"), steps=1000) > 0.999


# Weights


def random_batch(seed: int = 0, sequences: int = 5) -> TokenBatch:
    """Returns sequences of different lengths, their tokens interleaved as in packed rows."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.cat([torch.full((length,), 10 * number) for number, length in enumerate(range(1, sequences + 1))])
    ids = ids[torch.randperm(len(ids), generator=generator)]
    theta, reference, q = (-2 * torch.rand(len(ids), generator=generator, dtype=torch.float64) for _ in range(3))
    weights = torch.rand(len(ids), generator=generator, dtype=torch.float64) + 0.1
    return TokenBatch(theta.requires_grad_(), weights, ids, reference, q)


def weight_by_hand(objective: Objective, batch: TokenBatch, token: int) -> float:
    theta, reference = batch.logprobs_N.tolist(), batch.reference_N
    if objective.name == "sft":
        return 1.0
    if objective.name == "dft":
        return math.exp(theta[token])
    assert reference is not None
    q = theta if batch.proposal_N is None else batch.proposal_N.tolist()
    mine = [i for i, s in enumerate(batch.sequence_N.tolist()) if s == int(batch.sequence_N[token])]
    over = [token] if objective.name == "iw-sft-step" else mine
    mean = sum(q[i] - float(reference[i]) for i in over) / len(over)
    return min(max(math.exp(objective.temperature * mean), objective.low), objective.high)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_sequence_of_a_micro_batch_gets_its_own_weight(name: str) -> None:
    objective, batch = PUBLISHED[name], random_batch()
    if name in ("iw-sft", "iw-sft-step"):
        batch = batch._replace(proposal_N=None)
    by_hand = [weight_by_hand(objective, batch, token) for token in range(len(batch.weights_N))]
    weights = importance_weights(objective, batch)
    assert weights.tolist() == pytest.approx(by_hand)
    tokens = zip(batch.weights_N.tolist(), by_hand, batch.logprobs_N.tolist(), strict=True)
    loss = -sum(weight * w * logprob for weight, w, logprob in tokens) / float(batch.weights_N.sum())
    assert weighted_loss(batch, weights, batch.weights_N.sum()).item() == pytest.approx(loss)


@pytest.mark.parametrize("name", WEIGHED_BY_Q)
def test_weights_are_one_at_step_0(name: str) -> None:
    batch = random_batch()
    at_start = batch._replace(reference_N=batch.logprobs_N.detach(), proposal_N=batch.logprobs_N.detach())
    weights = importance_weights(PUBLISHED[name], at_start)
    assert torch.equal(weights, torch.ones_like(weights))
    stats = weight_stats(PUBLISHED[name], at_start, weights)
    assert (stats.mean, stats.largest, normaliser(PUBLISHED[name], stats)) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_gradient_flows_through_the_weight(name: str) -> None:
    batch = random_batch()
    weights = importance_weights(PUBLISHED[name], batch)
    (gradient,) = torch.autograd.grad(weighted_loss(batch, weights, 7.0), batch.logprobs_N)
    assert torch.allclose(gradient, -batch.weights_N * weights / 7.0)


def test_a_ratio_beyond_floating_point_is_clamped_and_no_infinity() -> None:
    batch = TokenBatch(torch.tensor([-1.0, -9e4]), torch.ones(2), torch.arange(2), torch.tensor([-9e4, -1.0]))
    assert importance_weights(PUBLISHED["iw-sft"], batch).tolist() == pytest.approx([16.0, 0.0])
    assert importance_weights(PUBLISHED["iw-sft-step"], batch).tolist() == pytest.approx([1.8, 0.2])


# Parts of a batch


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("normalise", [False, True])
def test_gradients_of_the_parts_add_up_to_those_of_the_whole_batch(name: str, normalise: bool) -> None:
    objective, batch = PUBLISHED[name]._replace(normalise=normalise), random_batch()
    total = batch.weights_N.sum()

    by_hand = torch.tensor([weight_by_hand(objective, batch, i) for i in range(len(batch.weights_N))])
    if normalise:
        once = batch.sequence_N.unique() if not objective.per_token else None
        each = by_hand if once is None else torch.stack([by_hand[batch.sequence_N == s][0] for s in once])
        by_hand = by_hand / each.mean()
    whole = -(batch.weights_N * by_hand) / total

    stats = WeightStats()
    for sequences in ((0, 30), (10, 20, 40)):
        here = torch.isin(batch.sequence_N, torch.tensor(sequences))
        assert batch.reference_N is not None
        assert batch.proposal_N is not None
        part = TokenBatch(
            batch.logprobs_N[here],
            batch.weights_N[here],
            batch.sequence_N[here],
            batch.reference_N[here],
            batch.proposal_N[here],
        )
        weights = importance_weights(objective, part)
        weighted_loss(part, weights, total).backward()  # type: ignore[no-untyped-call]
        stats = stats.merged(weight_stats(objective, part, weights))
    assert batch.logprobs_N.grad is not None
    assert torch.allclose(batch.logprobs_N.grad * normaliser(objective, stats), whole, rtol=1e-5)


def test_weight_statistics_count_a_sequence_once_however_long() -> None:
    reference = torch.tensor([0.0, 0.0, 0.0, math.log(3.0)])
    batch = TokenBatch(torch.full((4,), math.log(3.0)), torch.ones(4), torch.tensor([5, 5, 5, 8]), reference)
    stats = weight_stats(PUBLISHED["iw-sft"], batch, importance_weights(PUBLISHED["iw-sft"], batch))
    assert stats == (2, pytest.approx(4.0), pytest.approx(10.0), pytest.approx(3.0))
    log = stats.as_log()
    assert log == pytest.approx({"weight_mean": 2.0, "weight_max": 3.0, "weight_ess": 1.6})
    assert stats.merged(WeightStats()) == stats
    empty = TokenBatch(*(tensor[:0] for tensor in batch if tensor is not None))
    assert weight_stats(PUBLISHED["iw-sft"], empty, importance_weights(PUBLISHED["iw-sft"], empty)) == WeightStats()


def test_a_moving_average_keeps_its_decay_and_takes_the_rest() -> None:
    average, parameter = torch.tensor([1.0]), torch.tensor([2.0], requires_grad=True)
    update_average([average], [parameter], 0.9)
    assert average.item() == pytest.approx(1.1)


# Settings


def test_what_the_settings_leave_unset_is_as_published() -> None:
    for name, published in PUBLISHED.items():
        assert of(objective=name) == published
    changed = of(
        objective="iw-sft-ema", weight_temperature=2.0, weight_min=0.5, weight_max=2.0, normalise_weights=False
    )
    assert changed == Objective("iw-sft-ema", 2.0, 0.5, 2.0, False)
    with pytest.raises(SettingsError, match=r"weight_min is 2 and trainer.weight_max 1\.8"):
        of(objective="iw-sft-step", weight_min=2.0)


def test_missing_log_probabilities_are_an_error_that_names_them() -> None:
    batch = random_batch()
    with pytest.raises(TrainingError, match="reference_N"):
        importance_weights(PUBLISHED["iw-sft"], batch._replace(reference_N=None))
    with pytest.raises(TrainingError, match="proposal_N"):
        importance_weights(PUBLISHED["iw-sft-ema"], batch._replace(proposal_N=None))


def test_the_defaults_are_those_published_with_rgt() -> None:
    default = Trainer()
    assert (default.rank, default.alpha, default.learning_rate, default.dropout) == (256, 32, 2e-4, 0.0)
    assert (default.recipe, default.objective, default.quality, default.continue_from) == ("rgt", "sft", "off", "base")
