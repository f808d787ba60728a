"""The data recipes: which rows of one and the same gold set a method trains on, and which answer of each.

Called by trainer.dataset, which turns the answers into tokens. All are selections: one factory run feeds them all.

rgt, isft: the accepted answer of every gold row; rgt adds pair B, with the strategy, where the row has one.
sft: the first rewrite by a refiner other than the student, whatever the judge said of it, also of unresolved rows. A
case whose first attempt passed has no teacher's answer. Production's logged answer is none: it is what the product
wants to do better than.
rejection: first attempts of the student that passed, the first one of each prompt.
on_policy: accepted answers that the student wrote as its own refiner; what passed at once is left to rejection.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import pyarrow as pa

Recipe = Literal["rgt", "isft", "sft", "rejection", "on_policy"]


class RecipeNeeds(NamedTuple):
    """What a recipe reads of the gold set."""

    outcomes: tuple[str, ...]  # the kinds of rows
    attempts: bool  # whether it looks at the attempts one by one, the largest column
    advice: str  # what to change where it finds nothing


_MORE_GOLD = "Let more cases end as gold"
RECIPES: dict[Recipe, RecipeNeeds] = {
    "rgt": RecipeNeeds(("gold",), False, _MORE_GOLD),
    "isft": RecipeNeeds(("gold",), False, _MORE_GOLD),
    "sft": RecipeNeeds(
        ("gold", "unresolved"),
        True,
        'Recipe "sft" takes the first rewrite by a refiner that is another model than the student: let a teacher '
        'refine, or set trainer.recipe = "on_policy"',
    ),
    "rejection": RecipeNeeds(
        ("gold",),
        True,
        'Recipe "rejection" takes first attempts of the student that passed, and the base may be too weak to make '
        'any: set trainer.recipe = "isft", which learns from repaired ones',
    ),
    "on_policy": RecipeNeeds(
        ("gold",),
        True,
        'Recipe "on_policy" takes answers that the student itself repaired: give the task\'s refiner the model of its '
        'student, or set trainer.recipe = "isft"',
    ),
}


class Chosen(NamedTuple):
    """A row that a recipe takes, and its answer there; the score runs from 0 to 1, None where nobody judged it."""

    row: dict[str, Any]
    answer: str | None
    calls: str | None  # of tools, JSON: schemas.case.Attempt.tool_calls
    score: float | None


class LeftOut(Exception):
    """An answer or pair that is not trained on; the text is a key of trainer.dataset.SKIPPED_REASONS."""


def chosen_answers(rows: pa.Table, recipe: Recipe, student_model: str, skipped: Counter[str]) -> Iterator[Chosen]:
    """Yields every row that a recipe takes with its answer, and counts the others in `skipped`.

    An attempt is the student's where its model is `student_model`, the task's own now, or that of the row's student
    attempt, since settings change.
    """
    prompts: set[str] = set()
    for row in _rows(rows):
        try:
            chosen = _answer(row, recipe, student_model)
            if recipe == "rejection":
                _leave_out_known(row, prompts)
        except LeftOut as reason:
            skipped[str(reason)] += 1
            continue
        yield chosen


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1024):  # Python objects of a whole gold set would not fit
        yield from batch.to_pylist()


def _answer(row: dict[str, Any], recipe: Recipe, student_model: str) -> Chosen:
    attempts = (row["attempts"] or []) if RECIPES[recipe].attempts else []
    students = {student_model} - {""} | {a["model"] for a in attempts[:1] if a["source"] == "student"}
    if recipe == "sft":
        rewrites = (a for a in attempts if a["source"] == "refiner" and a["model"] not in students)
        teacher = next(rewrites, None)
        if teacher is None:
            raise LeftOut("no_teacher")
        return Chosen(row, teacher["text"], teacher["tool_calls"], _share(teacher))
    if recipe == "rejection" and not any(a["source"] == "student" and a["passed"] for a in attempts[:1]):
        raise LeftOut("not_passed_at_once")
    if recipe == "on_policy" and not any(a["source"] == "refiner" and a["model"] in students for a in attempts[-1:]):
        raise LeftOut("not_self_refined")
    return Chosen(row, row["answer"], row["answer_tool_calls"], _share(row))


def _share(judged: dict[str, Any]) -> float | None:
    score, max_score = judged["score"], judged["max_score"]
    return score / max_score if score is not None and max_score else None


def _leave_out_known(row: dict[str, Any], prompts: set[str]) -> None:
    prompt = hashlib.sha256(json.dumps(row["messages"], sort_keys=True).encode()).hexdigest()
    if prompt in prompts:
        raise LeftOut("same_prompt")
    prompts.add(prompt)
