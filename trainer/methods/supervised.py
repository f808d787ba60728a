"""The supervised rows: from the factory's data to examples, and from examples to steps.

The tokens of pairs A and B are production's (trainer.dataset), the weights too (trainer.objectives).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import torch

from schemas.case import Attempt, Case
from schemas.outcomes import outcome_row, outcome_table
from trainer.dataset import Example, build_examples
from trainer.methods.factory import Produced
from trainer.methods.learner import Learner, Row, parts
from trainer.methods.table import Method
from trainer.objectives import PUBLISHED, TokenBatch, WeightStats, importance_weights, weight_stats, weighted_loss
from trainer.sampling import score_proportional

SHARPNESS = 4.0  # SFT(Q): an attempt is drawn in proportion to exp(4 · score), trainer.quality_sharpness's default
MAX_LENGTH = 512


class Fit(NamedTuple):
    """What a supervised run did."""

    trained_tokens: int = 0
    first_loss: float = 0.0
    last_loss: float = 0.0
    effective: float = 1.0  # effective sample size of the weights as a share of their number, mean over the steps


def build(method: Method, data: Sequence[Produced], tokenizer: Any, seed: int) -> list[Example]:
    """Returns what a supervised row trains on; empty where the data hold nothing for it."""
    cases = [one.case for one in data if one.case.outcome is not None and one.case.outcome.kind == "gold"]
    rows = [outcome_row(case, 0, index) for index, case in enumerate(cases)]
    match method.data:
        case "teacher":
            rows = [_answered(one.case, one.teacher, 1.0) for one in data if one.teacher]
        case "draws":
            rows = [_answered(one.case, text, 1.0) for one in data if (text := first_pass(one))]
        case "attempts":
            rows = _by_quality(data, seed)
        case "shuffled pairs":
            _shuffle_strategies(rows, seed)
        case _:
            pass
    if not rows:
        return []
    paired = method.data in ("pairs", "shuffled pairs", "B alone")
    return build_examples(
        outcome_table(rows),
        tokenizer,
        recipe="rgt" if paired else "isft",
        strategy_weight=method.strategy_weight,
        max_length=MAX_LENGTH,
        pair_weights=(0.0, 1.0) if method.data == "B alone" else (1.0, 1.0),
    ).examples


def steps_of(method: Method, data: Sequence[Produced], examples: Sequence[Example], epochs: int, batch: int) -> int:
    """Returns a run's optimiser steps: `batch` cases each, with both their branches, as production counts.

    "iSFT at RGT's steps" takes as many as RGT's sequences, A and B counted each, would fill with `batch` of them.
    """
    number = len({example.case_id for example in examples})
    if method.data == "gold at RGT's steps":
        number = len(examples) + sum(one.case.strategy is not None for one in data)
    return math.ceil(number / batch) * epochs


def train(learner: Learner, examples: Sequence[Example], objective_name: str, steps: int, batch: int, seed: int) -> Fit:
    """Trains for `steps` steps, shuffling the cases anew for each pass; the reference is the base, cached once."""
    by_case: dict[str, list[int]] = {}
    rows = [Row(example.input_ids, example.weights) for example in examples]
    for index, example in enumerate(examples):
        by_case.setdefault(example.case_id, []).append(index)
    objective = PUBLISHED[objective_name]
    reference = _reference(learner, rows) if objective.needs_reference else []
    losses, shares, tokens = [], [], 0
    order: list[str] = []
    for step in range(steps):
        if not order:
            order = sorted(by_case)
            random.Random(f"{seed}:{step}").shuffle(order)
        taken, order = order[:batch], order[batch:]
        members = [index for case_id in taken for index in by_case[case_id]]
        total = sum(sum(rows[i].weights) for i in members)
        loss, stats = 0.0, WeightStats()
        learner.begin()
        for part in parts([rows[i] for i in members]):
            chosen = [members[i] for i in part]
            found = learner.trained([rows[i] for i in chosen])
            known = torch.cat([reference[i] for i in chosen]) if reference else None
            tokens_N = TokenBatch(found.logprobs_N, found.weights_N, found.row_N, known)
            w_N = importance_weights(objective, tokens_N)
            share = weighted_loss(tokens_N, w_N, total)
            torch.autograd.backward(share)
            stats = stats.merged(weight_stats(objective, tokens_N, w_N))
            loss += share.item()
            tokens += len(w_N)
        learner.finish(loss)
        losses.append(loss)
        shares.append(stats.effective / stats.number)
    if not losses:
        return Fit()
    tail = losses[-math.ceil(len(losses) / 10) :]
    return Fit(tokens, losses[0], sum(tail) / len(tail), sum(shares) / len(shares))


def first_pass(one: Produced) -> str:
    """Returns the first of a prompt's samples that the judge passed, "" where none did."""
    tried = (one.case.attempts[0], *one.draws)
    return next((a.text for a in tried if a.verdict is not None and a.verdict.passed), "")


def _reference(learner: Learner, rows: Sequence[Row]) -> list[torch.Tensor]:
    """Returns each row's log-probabilities under the base."""
    found: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    for part in parts(rows):
        known = learner.reference([rows[i] for i in part])
        for place, index in enumerate(part):
            found[index] = known.logprobs_N[known.row_N == place]
    return found


def _answered(case: Case, text: str, score: float, suffix: str = "") -> dict[str, Any]:
    """Returns a gold row of the prompt with another answer, whatever a judge may say of it."""
    row = outcome_row(case.ended("gold", "judge", 0), 0, 0)
    return row | {"case_id": case.case_id + suffix, "answer": text, "score": score, "max_score": 1.0}


def _by_quality(data: Sequence[Produced], seed: int) -> list[dict[str, Any]]:
    """Returns as many rows as there are prompts, of all attempts of all rounds, by quality: SFT(Q) on graded scores.

    Gold alone has one score, the highest, so that Q would change nothing there.
    """
    pool: list[tuple[Case, Attempt]] = [(one.case, attempt) for one in data for attempt in one.case.attempts]
    scores = [attempt.verdict.score / attempt.verdict.max_score for _, attempt in pool if attempt.verdict is not None]
    drawn = score_proportional(scores, SHARPNESS, seed)
    random.Random(f"{seed}:thin").shuffle(drawn)
    chosen = drawn[: len(data)]
    return [_answered(*_told(pool[i]), scores[i], f"#{place}") for place, i in enumerate(chosen)]


def _told(pair: tuple[Case, Attempt]) -> tuple[Case, str]:
    return pair[0], pair[1].text


def _shuffle_strategies(rows: list[dict[str, Any]], seed: int) -> None:
    """Exchanges the strategies among the rows that have one, in place."""
    names = ("strategy_mistake", "strategy_guardrail", "strategy_model")
    holders = [row for row in rows if row["strategy_guardrail"]]
    strategies = [[row[name] for name in names] for row in holders]
    random.Random(f"{seed}:strategies").shuffle(strategies)
    for row, strategy in zip(holders, strategies, strict=True):
        row.update(zip(names, strategy, strict=True))


def judge_calls(data: Sequence[Produced], method: Method) -> int:
    """Returns what the judge was asked to make this row's data."""
    if method.data == "teacher":
        return 0
    if method.data == "draws":
        return sum(1 + len(one.draws) for one in data)
    return sum(len(one.case.attempts) for one in data)


def generated_tokens(data: Sequence[Produced], method: Method, tokenizer: Any) -> int:
    """Returns the tokens that student, teacher, refiner and strategist wrote, in the student's tokens."""
    if method.data == "teacher":
        return sum(one.teacher_tokens for one in data)
    if method.data == "draws":
        return sum(a.completion_tokens for one in data for a in (one.case.attempts[0], *one.draws))
    texts = [attempt.text for one in data for attempt in one.case.attempts[1:]]
    if method.data in ("pairs", "shuffled pairs", "B alone"):
        strategies = [one.case.strategy for one in data if one.case.strategy is not None]
        texts += [msgspec.json.encode([s.mistake, s.guardrail]).decode() for s in strategies]
    written = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else 0
    return written + sum(one.case.attempts[0].completion_tokens for one in data)
