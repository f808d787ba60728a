"""The rows that learn from their own samples: REINFORCE, GRPO and on-policy distillation.

Advantages and losses are pure functions of flat log-probabilities (axis N: sampled tokens, S: samples); the loops
draw, judge and step. Choices the sources leave open: rewards are the judge's graded score over its maximum; GRPO has
no KL term and takes two updates on each batch of rollouts, so that the clip can act.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.methods.learner import Learner, Sample, parts, trained_logprobs

GROUP = 8  # GRPO's samples a prompt
CLIP = 0.2  # GRPO's ratio stays within 1 ± this
UPDATES = 2  # on each batch of GRPO's rollouts
GROUPS_PER_BATCH = 8
EPSILON = 1e-4  # keeps a group of equal rewards from dividing by zero: its advantages are 0

Reward = Callable[[int, str], float]  # (number of the prompt, answer) -> 0 to 1


class Spent(NamedTuple):
    """What an on-policy run used up."""

    judge_calls: int = 0
    generated_tokens: int = 0
    trained_tokens: int = 0
    first_reward: float = 0.0  # mean over the first batch; 0 for distillation, which has no judge
    last_reward: float = 0.0


def group_advantages(rewards_S: Tensor, group: int) -> Tensor:
    """Returns GRPO's advantages: (r - mean) / std within each group of consecutive samples (population std)."""
    rewards_PG = rewards_S.view(-1, group)
    centred_PG = rewards_PG - rewards_PG.mean(1, keepdim=True)
    return (centred_PG / (rewards_PG.std(1, keepdim=True, correction=0) + EPSILON)).view(-1)


def reinforce_loss(logprobs_N: Tensor, row_N: Tensor, advantages_S: Tensor, samples: int) -> Tensor:
    """Returns -Σ_s A_s · Σ_t log p / `samples`: the gradient raises what beat the baseline."""
    return -(advantages_S[row_N] * logprobs_N).sum() / samples


def grpo_loss(logprobs_N: Tensor, old_N: Tensor, row_N: Tensor, advantages_S: Tensor, samples: int) -> Tensor:
    """Returns the clipped surrogate, averaged over each sample's tokens and summed over the samples / `samples`."""
    ratio_N = (logprobs_N - old_N).exp()
    advantage_N = advantages_S[row_N]
    surrogate_N = torch.minimum(ratio_N * advantage_N, ratio_N.clamp(1 - CLIP, 1 + CLIP) * advantage_N)
    lengths_S = torch.bincount(row_N, minlength=len(advantages_S)).clamp(min=1)
    return -(surrogate_N / lengths_S[row_N]).sum() / samples


def distillation_advantages(logprobs_N: Tensor, teacher_N: Tensor) -> Tensor:
    """Returns -(log p_θ - log p_teacher) of each sampled token: the reverse KL there, β = 1, discount 0, no gradient.

    Its mean over the student's samples is -KL(student ‖ teacher) per token.
    """
    return (teacher_N - logprobs_N).detach()


def reinforce(
    learner: Learner, prompts: Sequence[list[int]], reward: Reward, *, epochs: int, batch: int, seed: int, **draw: Any
) -> Spent:
    """One sample a prompt and pass; the advantage is the reward less the mean of all rewards before this batch."""
    spent, seen, total = Spent(), 0, 0.0
    for number, members in enumerate(_batches(len(prompts), epochs, batch, seed)):
        drawn = learner.sample([prompts[i] for i in members], temperature=1.0, seed=_mix(seed, number), **draw)
        rewards = [reward(i, one.text) for i, one in zip(members, drawn, strict=True)]
        baseline = total / seen if seen else sum(rewards) / len(rewards)
        seen, total = seen + len(rewards), total + sum(rewards)
        advantages_S = torch.tensor(rewards) - baseline
        rows = [one.row() for one in drawn]
        learner.begin()
        loss = 0.0
        for part in parts(rows):
            found = learner.trained([rows[i] for i in part])
            share = reinforce_loss(found.logprobs_N, found.row_N, advantages_S[part], len(rows))
            torch.autograd.backward(share)
            loss += share.item()
        learner.finish(loss)
        spent = _add(spent, drawn, rewards, 1)
    return spent


def grpo(
    learner: Learner, prompts: Sequence[list[int]], reward: Reward, *, epochs: int, seed: int, **draw: Any
) -> Spent:
    """GROUP samples a prompt and pass, GROUPS_PER_BATCH prompts a batch of rollouts, UPDATES steps on each."""
    spent = Spent()
    for number, members in enumerate(_batches(len(prompts), epochs, GROUPS_PER_BATCH, seed)):
        asked = [i for i in members for _ in range(GROUP)]
        drawn = learner.sample([prompts[i] for i in asked], temperature=1.0, seed=_mix(seed, number), **draw)
        rewards = [reward(i, one.text) for i, one in zip(asked, drawn, strict=True)]
        advantages_S = group_advantages(torch.tensor(rewards), GROUP)
        informative = [s for s, advantage in enumerate(advantages_S.tolist()) if advantage != 0]
        rows = [drawn[s].row() for s in informative]
        kept_S = advantages_S[informative]
        old: dict[int, Tensor] = {}
        for update in range(UPDATES if rows else 0):
            learner.begin()
            loss = 0.0
            for place, part in enumerate(parts(rows)):
                found = learner.trained([rows[i] for i in part])
                if update == 0:
                    old[place] = found.logprobs_N.detach()
                share = grpo_loss(found.logprobs_N, old[place], found.row_N, kept_S[part], len(drawn))
                torch.autograd.backward(share)
                loss += share.item()
            learner.finish(loss)
        spent = _add(spent, drawn, rewards, UPDATES)
    return spent


def distil(
    learner: Learner, teacher: Any, prompts: Sequence[list[int]], *, epochs: int, batch: int, seed: int, **draw: Any
) -> Spent:
    """One sample a prompt and pass; the teacher scores the same tokens, and no judge is asked."""
    spent = Spent()
    for number, members in enumerate(_batches(len(prompts), epochs, batch, seed)):
        drawn = learner.sample([prompts[i] for i in members], temperature=1.0, seed=_mix(seed, number), **draw)
        rows = [one.row() for one in drawn]
        tokens = sum(len(one.tokens) for one in drawn)
        learner.begin()
        loss = 0.0
        for part in parts(rows):
            scored = [rows[i] for i in part]
            found = learner.trained(scored)
            with torch.no_grad():
                teacher_N = trained_logprobs(teacher, scored, {}).logprobs_N
            advantages_N = distillation_advantages(found.logprobs_N, teacher_N)
            share = -(advantages_N * found.logprobs_N).sum() / tokens
            torch.autograd.backward(share)
            loss += share.item()
        learner.finish(loss)
        spent = _add(spent, drawn, [], 1)
    return spent


def _batches(count: int, epochs: int, batch: int, seed: int) -> Iterator[list[int]]:
    for epoch in range(epochs):
        order = list(range(count))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        for first in range(0, count, batch):
            yield order[first : first + batch]


def _mix(seed: int, number: int) -> int:
    return random.Random(f"draw:{seed}:{number}").getrandbits(48)


def _add(spent: Spent, drawn: Sequence[Sample], rewards: Sequence[float], updates: int) -> Spent:
    tokens = sum(len(one.tokens) for one in drawn)
    mean = sum(rewards) / len(rewards) if rewards else 0.0
    return Spent(
        spent.judge_calls + len(rewards),
        spent.generated_tokens + tokens,
        spent.trained_tokens + updates * tokens,
        spent.first_reward if spent.judge_calls else mean,
        mean,
    )
