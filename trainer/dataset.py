"""From gold rows to training examples: which rows count, and the exact tokens of pair A and pair B.

Pair A is x -> y* behind the empty think block that inference uses; pair B is x -> strategy, y*.
Called by trainer.service; trainer.loop consumes the examples.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from schemas.chat import render_prompt, strategy_text
from schemas.errors import TrainingError
from schemas.gold import read_outcomes
from schemas.outcomes import row_messages, row_strategy

COLUMNS = (
    "case_id",
    "split",
    "outcome",
    "messages",
    "answer",
    "strategy_mistake",
    "strategy_guardrail",
    "strategy_model",
)
SKIPPED_REASONS = {
    "too_long": "the pair is longer than trainer.max_length; it is left out, never cut",
    "control_text": "the answer or strategy holds a control token's text, which would end or reopen the turn",
    "empty_answer": "the row carries no answer",
}


class Example(msgspec.Struct, frozen=True):
    """One sequence to train on. `weights[i]` is the loss weight of predicting `input_ids[i]`; 0 is masked."""

    case_id: str
    branch: Literal["A", "B"]
    input_ids: tuple[int, ...]
    weights: tuple[float, ...]
    prompt_tokens: int  # A and B of a case share a beginning, though not all of these


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


class _Refused(Exception):
    """A pair that cannot be trained on; the text is a key of SKIPPED_REASONS."""


def train_rows(gold: Path, task: str, watermark: Mapping[int, int]) -> pa.Table:
    """Returns the gold rows of a task's train split below the watermark, only the columns training needs."""
    rows = read_outcomes(gold, COLUMNS, task=task, watermark=watermark)
    return rows.filter(pc.and_(pc.equal(rows["outcome"], "gold"), pc.equal(rows["split"], "train")))


def build_examples(
    rows: pa.Table, tokenizer: Any, *, recipe: Literal["rgt", "isft"], strategy_weight: float, max_length: int
) -> Dataset:
    """Returns pair A of every row and, for recipe "rgt", pair B of every row with a strategy.

    Raises TrainingError where nothing is left to train on, and for "rgt" with a chat template that cannot
    switch thinking off: A and B would then teach opposite answers to one prompt.
    """
    if tokenizer.eos_token_id is None:
        raise TrainingError("the base's tokenizer has no eos_token; training could not teach where an answer ends.")
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    for row in _rows(rows):
        for branch in ("A", "B") if recipe == "rgt" and row_strategy(row) else ("A",):
            try:
                build = _pair_a(row, tokenizer) if branch == "A" else _pair_b(row, tokenizer, strategy_weight)
                if len(build.input_ids) > max_length:
                    raise _Refused("too_long")
                examples.append(build)
            except _Refused as refused:
                skipped[str(refused)] += 1
    if not examples:
        why = ", ".join(f"{n} {reason}" for reason, n in skipped.items()) or "no gold row of the train split"
        raise TrainingError(
            f"nothing to train on: {len(rows)} rows read, {why}. Let more cases end as gold"
            f"{' or raise trainer.max_length (' + str(max_length) + ')' if skipped['too_long'] else ''};"
            " `goldstream gold stats` counts them."
        )
    return Dataset(examples, len({e.case_id for e in examples}), dict(skipped))


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1024):  # Python objects of a whole gold set would not fit
        yield from batch.to_pylist()


def _pair_a(row: dict[str, Any], tokenizer: Any) -> Example:
    """Builds x -> y* on the prompt of inference; the prompt, with its empty think block, is masked."""
    prompt = _encode(tokenizer, render_prompt(tokenizer, row_messages(row), thinking=False))
    return _example(row["case_id"], "A", prompt, [(_answer(row, tokenizer), 1.0)])


def _pair_b(row: dict[str, Any], tokenizer: Any, strategy_weight: float) -> Example:
    """Builds x -> think block with the strategy, then y*. Strategy and think tags weigh `strategy_weight`."""
    messages, strategy = row_messages(row), row_strategy(row)
    assert strategy is not None
    text = render_prompt(tokenizer, messages, thinking=True)
    if text == render_prompt(tokenizer, messages, thinking=False):
        raise TrainingError(
            f"the chat template of {getattr(tokenizer, 'name_or_path', 'the base')} does not know enable_thinking, so "
            'that pair B would teach thinking where inference wants none. Set trainer.recipe = "isft", or choose a '
            "hybrid base such as Qwen3 (not its Instruct-2507 variants)."
        )
    block = strategy_text(strategy)
    _refuse_control_text(tokenizer, block)
    # Some templates open the block themselves.
    opening = "" if text.rstrip().endswith("<think>") else "<think>\n"
    thought = _encode(tokenizer, f"{opening}{block}\n</think>\n\n")
    answer = _answer(row, tokenizer)
    return _example(row["case_id"], "B", _encode(tokenizer, text), [(thought, strategy_weight), (answer, 1.0)])


def _answer(row: dict[str, Any], tokenizer: Any) -> list[int]:
    if not row["answer"]:
        raise _Refused("empty_answer")
    _refuse_control_text(tokenizer, row["answer"])
    return [*_encode(tokenizer, row["answer"]), tokenizer.eos_token_id]


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Tokenises one part by itself, as inference does with the prompt: tokens never span a seam."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _refuse_control_text(tokenizer: Any, text: str) -> None:
    if any(tag in text for tag in (*tokenizer.all_special_tokens, "<think>", "</think>")):
        raise _Refused("control_text")


def _example(
    case_id: str, branch: Literal["A", "B"], prompt: list[int], parts: list[tuple[list[int], float]]
) -> Example:
    ids, weights = list(prompt), [0.0] * len(prompt)
    for part, weight in parts:
        ids += part
        weights += [weight] * len(part)
    return Example(case_id, branch, tuple(ids), tuple(weights), len(prompt))
