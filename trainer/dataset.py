"""From gold rows to training examples: the exact tokens of pair A and pair B.

Pair A is x -> y* behind the empty think block that inference uses; pair B is x -> strategy, y* (trainer.pairs).
All gold below the watermark counts: that is DAgger aggregation, whether the run starts from the base or from the
incumbent (trainer.continue_from).
Called by trainer.service; trainer.loop consumes the examples.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import TrainingError
from schemas.gold import read_outcomes
from schemas.outcomes import row_strategy
from schemas.settings import Trainer
from trainer.pairs import Branch as Branch
from trainer.pairs import Pair, PairMemory, make_pair, name_of
from trainer.recipes import RECIPES, Chosen, LeftOut, Recipe, chosen_answers
from trainer.sampling import score_proportional, top_sets

COLUMNS = (
    "case_id",
    "split",
    "outcome",
    "messages",
    "answer",
    "score",
    "max_score",
    "strategy_mistake",
    "strategy_guardrail",
    "strategy_model",
    "tools",
    "answer_tool_calls",
)
SKIPPED_REASONS = {
    "too_long": "the pair is longer than trainer.max_length; it is left out, never cut",
    "beyond_context": "the pair is longer than the context of the base; it is left out, never cut",
    "control_text": "the answer or strategy holds a control token's text, which would end or reopen the turn",
    "empty_answer": "the row carries no answer",
    "contaminated": "too many of its runs of words are in the holdout too: trainer.max_overlap",
    "unrenderable": "the base's chat template refuses these messages",
    "no_call_template": "the answer calls tools, and the base's chat template does not write calls",
    "no_teacher": "sft: no refiner but the student itself wrote an answer, as where the first attempt passed",
    "not_passed_at_once": "rejection: the first attempt failed, or was not the student's",
    "same_prompt": "rejection: a sample of the same prompt is already taken",
    "not_self_refined": "on_policy: the accepted answer is not the student's own repair",
}


class Example(msgspec.Struct, frozen=True):
    """One sequence to train on. `weights[i]` is the loss weight of predicting `input_ids[i]`; 0 is masked."""

    case_id: str
    branch: Branch
    input_ids: tuple[int, ...]
    weights: tuple[float, ...]
    prompt_tokens: int  # A and B of a case share a beginning, though not all of these
    score: float | None = None  # the judge's of the answer, from 0 to 1; None where nobody judged it
    copy: int = 0  # SFT(Q) repeats cases: copies of one differ in this alone, and are cases of their own to the loop


class Dataset(NamedTuple):
    """The examples of a run; `skipped` counts pairs left out, by a key of SKIPPED_REASONS."""

    examples: list[Example]
    cases: int
    skipped: dict[str, int]

    def sha256(self) -> str:
        """Returns a hash of everything the loop will see, whatever the order of the rows."""
        digest = hashlib.sha256()
        for example in sorted(self.examples, key=lambda e: (e.case_id, e.branch)):
            digest.update(json.dumps([example.case_id, example.branch, example.input_ids, example.weights]).encode())
        return digest.hexdigest()


def train_rows(
    gold: Path,
    task: str,
    watermark: Mapping[int, int],
    recipe: Recipe = "rgt",
    above: Mapping[int, int] | None = None,
) -> pa.Table:
    """Returns the rows of a task's train split below the watermark that a recipe reads, only the columns it needs.

    `above` leaves out those below an earlier watermark, for whoever has read them.
    """
    wanted = RECIPES[recipe]
    columns = (*COLUMNS, "attempts") if wanted.attempts else COLUMNS
    rows = read_outcomes(gold, columns, task=task, watermark=watermark, above=above)
    counts = pc.is_in(rows["outcome"], value_set=pa.array(wanted.outcomes))
    return rows.filter(pc.and_(counts, pc.equal(rows["split"], "train")))


def training_data(
    rows: pa.Table,
    tokenizer: Any,
    trainer: Trainer,
    *,
    context: int | None = None,
    student_model: str = "",
    tools: bool = True,
    known: PairMemory | None = None,
) -> Dataset:
    """Returns what a run of these settings trains on: the recipe's examples, sampled by quality where that is on.

    `context` is the base's (`base_context`), `student_model` the model string of the task's student, `tools` whether it
    is offered the tools of the product's call (carry_over.tools), `known` pairs that this tokenizer made before. Raises
    TrainingError as build_examples and sample_by_quality do.
    """
    data = build_examples(
        rows,
        tokenizer,
        recipe=trainer.recipe,
        strategy_weight=trainer.strategy_weight,
        max_length=trainer.max_length,
        pair_weights=trainer.pair_weights,
        context=context,
        student_model=student_model,
        tools=tools,
        known=known,
    )
    return sample_by_quality(data, trainer)


def tokenise_ahead(
    rows: pa.Table, known: PairMemory, trainer: Trainer, *, student_model: str = "", tools: bool = True
) -> Iterator[None]:
    """Tokenises what a run would train of these rows, a few at a time; what it cannot, the run itself will tell."""
    for number, chosen in enumerate(chosen_answers(rows, trainer.recipe, student_model, Counter())):
        for branch in _branches(chosen, trainer.recipe, trainer.pair_weights):
            try:
                known.pair(branch, chosen, tools)
            except LeftOut:
                continue
            except TrainingError:
                return
        if number % 16 == 15:
            yield


def build_examples(
    rows: pa.Table,
    tokenizer: Any,
    *,
    recipe: Recipe,
    strategy_weight: float,
    max_length: int,
    pair_weights: tuple[float, float] = (1.0, 1.0),
    context: int | None = None,
    student_model: str = "",
    tools: bool = True,
    known: PairMemory | None = None,
) -> Dataset:
    """Returns pair A of every row the recipe takes and, for "rgt", pair B of every row with a strategy.

    What a recipe takes: trainer.recipes. A row whose first attempt passed has no strategy and yields pair A alone.
    `pair_weights` multiply the loss weights of A and B, which the publication leaves open. Raises TrainingError where
    nothing is left to train on, for "rgt" where no row has a strategy (it would silently be isft), and for "rgt" with
    a chat template that cannot switch thinking off: A and B would then teach opposite answers to one prompt.
    """
    if tokenizer.eos_token_id is None:
        raise TrainingError(
            f"the tokenizer of {name_of(tokenizer)} has no eos_token: training could not teach where an answer ends. "
            "Set eos_token in its tokenizer_config.json to the token that closes a turn, or choose a chat model."
        )
    weight_a, weight_b = pair_weights
    if weight_a == 0 and (weight_b == 0 or recipe != "rgt"):
        raise TrainingError(
            f'trainer.pair_weights is {list(pair_weights)}, which leaves recipe "{recipe}" no pair at all: expected '
            'above 0 for pair A or, with recipe "rgt", for pair B. Set it to [1.0, 1.0].'
        )
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    strategies = 0
    for chosen in chosen_answers(rows, recipe, student_model, skipped):
        for branch in _branches(chosen, recipe, pair_weights):
            strategies += branch == "B"
            weight = weight_a if branch == "A" else weight_b
            try:
                pair = (
                    known.pair(branch, chosen, tools)
                    if known is not None
                    else make_pair(branch, chosen, tokenizer, tools)
                )
                example = _example(chosen.row["case_id"], branch, pair, weight, strategy_weight * weight, chosen.score)
                _refuse_length(len(example.input_ids), max_length, context)
                examples.append(example)
            except LeftOut as reason:
                skipped[str(reason)] += 1
    if not examples:
        raise _nothing_left(len(rows), recipe, skipped, max_length, context)
    if recipe == "rgt" and weight_b and not strategies:
        raise TrainingError(
            f'recipe "rgt" found no strategy in {len(rows)} gold rows, so there is no pair B and it would be "isft". '
            "Strategies come from cases whose first attempt failed: see with `goldstream gold stats` whether there are "
            'any and whether the strategist answers, or set trainer.recipe = "isft".'
        )
    return Dataset(examples, len({e.case_id for e in examples}), dict(skipped))


def sample_by_quality(data: Dataset, trainer: Trainer) -> Dataset:
    """Returns the examples that trainer.quality takes: whole cases, those of high score several times (SFT(Q)).

    Raises TrainingError where a case has no score.
    """
    if trainer.quality == "off":
        return data
    by_case: dict[str, list[Example]] = {}
    for example in data.examples:
        by_case.setdefault(example.case_id, []).append(example)
    scores = [score for pairs in by_case.values() if (score := pairs[0].score) is not None]
    if len(scores) < len(by_case):
        raise TrainingError(
            f"trainer.quality is {trainer.quality!r}, and {len(by_case) - len(scores)} of {len(by_case)} cases "
            'carry no score of a judge. Set trainer.quality = "off", or take answers that were judged, as with "isft".'
        )
    if trainer.quality == "top_sets":
        chosen = top_sets(scores, trainer.quality_percentiles)
    else:
        chosen = score_proportional(scores, trainer.quality_sharpness, trainer.seed)
    cases = list(by_case.values())
    copies: Counter[int] = Counter()
    examples: list[Example] = []
    for index in chosen:
        examples += [msgspec.structs.replace(example, copy=copies[index]) for example in cases[index]]
        copies[index] += 1
    return Dataset(examples, len(copies), data.skipped)


def base_context(base: Path) -> int | None:
    """Returns how many tokens a base can attend to, as its config.json says; None where it does not."""
    config = json.loads((base / "config.json").read_bytes())
    limit = config.get("max_position_embeddings", config.get("text_config", {}).get("max_position_embeddings"))
    return limit if isinstance(limit, int) else None


def _refuse_length(tokens: int, max_length: int, context: int | None) -> None:
    if context is not None and tokens > context:
        raise LeftOut("beyond_context")
    if tokens > max_length:
        raise LeftOut("too_long")


def _nothing_left(
    rows: int, recipe: Recipe, skipped: Counter[str], max_length: int, context: int | None
) -> TrainingError:
    why = ", ".join(f"{n} {reason} ({SKIPPED_REASONS[reason]})" for reason, n in skipped.items())
    advice = RECIPES[recipe].advice
    if skipped["too_long"]:
        advice += f", or raise trainer.max_length ({max_length})"
    if skipped["beyond_context"]:
        advice += f", or choose a base with a longer context than {context} tokens"
    kinds = " or ".join(RECIPES[recipe].outcomes)
    return TrainingError(
        f"nothing to train on: {rows} rows read, {why or f'no {kinds} row of the train split'}. {advice}; "
        "`goldstream gold stats` counts the rows."
    )


def _branches(chosen: Chosen, recipe: Recipe, pair_weights: tuple[float, float]) -> Iterator[Branch]:
    """Yields the pairs that a row is trained as."""
    if pair_weights[0]:
        yield "A"
    if pair_weights[1] and recipe == "rgt" and row_strategy(chosen.row) is not None:
        yield "B"


def _example(case_id: str, branch: Branch, pair: Pair, weight: float, strategy: float, score: float | None) -> Example:
    ids, weights = list(pair.prompt), [0.0] * len(pair.prompt)
    for part in pair.parts:
        ids += part.ids
        weights += [strategy if part.strategy else weight] * len(part.ids)
    return Example(case_id, branch, tuple(ids), tuple(weights), len(pair.prompt), score)
