"""Claims about the dataset: which rows a recipe takes, the exact tokens of pairs A and B, and sampling by quality."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from ended_cases import ended, land

from schemas.case import Attempt, Case, Message, OutcomeKind, Strategy, Verdict
from schemas.chat import render_prompt
from schemas.errors import TrainingError
from schemas.gold import current_watermark
from schemas.outcomes import outcome_row, outcome_table
from schemas.settings import Trainer
from trainer.dataset import Dataset, base_context, build_examples, sample_by_quality, train_rows, training_data
from trainer.recipes import Recipe
from trainer.sampling import score_proportional, top_sets

STRATEGY = Strategy("listed a denied symptom", "leave out what the patient denies")
STUDENT, TEACHER = "local/student", "teacher"


def attempt(
    number: int, source: Literal["student", "production", "refiner"], text: str, model: str, score: float
) -> Attempt:
    verdict = Verdict(passed=score >= 2, score=score, max_score=4, judge="toy")
    return Attempt(round=number, source=source, text=text, model=model, verdict=verdict)


def case(number: int, *attempts: Attempt, question: str = "red", strategy: Strategy | None = None) -> Case:
    kind: OutcomeKind = "gold" if attempts[-1].verdict and attempts[-1].verdict.passed else "unresolved"
    return ended(number, kind, attempts=attempts, strategy=strategy, messages=(Message("user", question),))


def student(text: str, score: float = 0) -> Attempt:
    return attempt(0, "student", text, STUDENT, score)


def rewrite(number: int, text: str, score: float, model: str = TEACHER) -> Attempt:
    return attempt(number, "refiner", text, model, score)


def repaired(number: int, answer: str = "stop", score: float = 4, strategy: Strategy | None = STRATEGY) -> Case:
    return case(number, student("?"), rewrite(1, answer, score), strategy=strategy)


def rows_of(cases: Sequence[Case]) -> Any:
    return outcome_table([outcome_row(case, 0, offset) for offset, case in enumerate(cases)])


def examples_of(
    tokenizer: Any, cases: Sequence[Case], recipe: Recipe = "rgt", weight: float = 1.0, limit: int = 512, **more: Any
) -> Dataset:
    return build_examples(rows_of(cases), tokenizer, recipe=recipe, strategy_weight=weight, max_length=limit, **more)


def answers(tokenizer: Any, data: Dataset) -> dict[str, str]:
    """Returns what each case is trained to answer."""
    return {
        e.case_id: tokenizer.decode([t for t, w in zip(e.input_ids, e.weights, strict=True) if w]).removesuffix(
            "<|im_end|>"
        )
        for e in data.examples
    }


# Pairs


def test_pair_a_is_the_prompt_of_inference_then_the_answer_and_the_end_of_turn(tokenizer: Any) -> None:
    one = case(1, student("stop, and wait", 4), question="what to do at red?")
    (example,) = examples_of(tokenizer, [one], "isft").examples
    prompt = tokenizer(render_prompt(tokenizer, one.messages), add_special_tokens=False)["input_ids"]
    completion = [*tokenizer("stop, and wait", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert list(example.input_ids) == prompt + completion
    assert example.weights == (0.0,) * len(prompt) + (1.0,) * len(completion)
    text = tokenizer.decode(example.input_ids)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nstop, and wait<|im_end|>")


def test_pair_b_thinks_the_strategy_at_its_weight_then_answers(tokenizer: Any) -> None:
    data = examples_of(tokenizer, [repaired(1)], weight=0.25)
    a, b = data.examples
    assert (a.branch, b.branch, data.cases) == ("A", "B", 1)
    thought = "<think>\nMistake: listed a denied symptom\nGuardrail: leave out what the patient denies\n</think>\n\n"
    assert (
        tokenizer.decode(b.input_ids)
        == f"<|im_start|>user\nred<|im_end|>\n<|im_start|>assistant\n{thought}stop<|im_end|>"
    )
    answer = len(tokenizer("stop", add_special_tokens=False)["input_ids"]) + 1
    assert set(b.weights[: b.prompt_tokens]) == {0.0}
    assert set(b.weights[b.prompt_tokens : -answer]) == {0.25}
    assert set(b.weights[-answer:]) == {1.0}


def test_only_rgt_and_only_rows_with_a_strategy_yield_pair_b(tokenizer: Any) -> None:
    cases = [repaired(1), case(2, student("go", 4))]
    pairs = [(e.case_id, e.branch) for e in examples_of(tokenizer, cases).examples]
    assert pairs == [("req-1", "A"), ("req-1", "B"), ("req-2", "A")]
    assert [e.branch for e in examples_of(tokenizer, cases, "isft").examples] == ["A", "A"]


def test_pair_weights_scale_a_branch_and_0_leaves_it_out(tokenizer: Any) -> None:
    a, b = examples_of(tokenizer, [repaired(1)], weight=0.5, pair_weights=(0.5, 3.0)).examples
    assert (set(a.weights), set(b.weights)) == ({0.0, 0.5}, {0.0, 1.5, 3.0})
    alone = examples_of(tokenizer, [repaired(1)], pair_weights=(0.0, 1.0)).examples
    assert [e.branch for e in alone] == ["B"]
    with pytest.raises(TrainingError, match=r"pair_weights is \[0\.0, 1\.0\].*no pair at all"):
        examples_of(tokenizer, [repaired(1)], "isft", pair_weights=(0.0, 1.0))


def test_a_pair_over_max_length_or_context_is_counted_and_never_cut(tokenizer: Any) -> None:
    whole = examples_of(tokenizer, [repaired(1)])
    length_a, length_b = (len(e.input_ids) for e in whole.examples)
    assert length_a < length_b
    data = examples_of(tokenizer, [repaired(1)], limit=length_a)
    assert data.examples == whole.examples[:1]
    assert data.skipped == {"too_long": 1}
    data = examples_of(tokenizer, [repaired(1)], context=length_a)
    assert data.examples == whole.examples[:1]
    assert data.skipped == {"beyond_context": 1}


def test_the_context_of_a_base_is_what_its_config_says(tmp_path: Path, base: Path) -> None:
    assert base_context(base) == 512
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 64}}))
    assert base_context(tmp_path) == 64
    (tmp_path / "config.json").write_text("{}")
    assert base_context(tmp_path) is None


def test_text_that_would_end_the_turn_or_reopen_thinking_is_left_out(tokenizer: Any) -> None:
    cases = [
        repaired(1, "stop<|im_end|>\n<|im_start|>user", strategy=None),
        repaired(2, strategy=Strategy("m", "</think> done")),
        repaired(3, "", strategy=None),
    ]
    data = examples_of(tokenizer, cases)
    assert [(e.case_id, e.branch) for e in data.examples] == [("req-2", "A")]
    assert data.skipped == {"control_text": 2, "empty_answer": 1}


# Recipes

FACTORY = [
    case(1, student("passed at once", 4), question="one"),
    case(2, student("bad"), rewrite(1, "first try", 1), rewrite(2, "repaired", 3), question="two", strategy=STRATEGY),
    case(3, student("bad"), rewrite(1, "never right", 1), question="three"),
    case(4, student("bad"), rewrite(1, "mended itself", 4, STUDENT), question="four"),
    case(5, student("bad"), rewrite(1, "own try", 0, STUDENT), rewrite(2, "by the teacher", 4), question="five"),
    case(6, attempt(0, "production", "logged", "product", 4), question="six"),
    case(7, student("passed again", 3), question="one"),
]


@pytest.mark.parametrize(
    ("recipe", "expected", "skipped"),
    [
        (
            "isft",
            {
                1: "passed at once",
                2: "repaired",
                4: "mended itself",
                5: "by the teacher",
                6: "logged",
                7: "passed again",
            },
            {},
        ),
        ("sft", {2: "first try", 3: "never right", 5: "by the teacher"}, {"no_teacher": 4}),
        ("rejection", {1: "passed at once"}, {"not_passed_at_once": 4, "same_prompt": 1}),
        ("on_policy", {4: "mended itself"}, {"not_self_refined": 5}),
    ],
)
def test_every_recipe_is_a_selection_from_one_factory_run(
    tmp_path: Path, tokenizer: Any, recipe: Recipe, expected: dict[int, str], skipped: dict[str, int]
) -> None:
    land(tmp_path, FACTORY)
    rows = train_rows(tmp_path, "scribe", current_watermark(tmp_path), recipe)
    data = build_examples(rows, tokenizer, recipe=recipe, strategy_weight=1.0, max_length=512)
    assert answers(tokenizer, data) == {f"req-{number}": text for number, text in expected.items()}
    assert data.skipped == skipped


def test_rgt_trains_on_the_rows_of_isft_and_adds_their_strategies(tokenizer: Any) -> None:
    gold = [one for one in FACTORY if one.outcome and one.outcome.kind == "gold"]
    rgt, isft = (examples_of(tokenizer, gold, recipe).examples for recipe in ("rgt", "isft"))
    assert [e for e in rgt if e.branch == "A"] == isft
    assert [e.case_id for e in rgt if e.branch == "B"] == ["req-2"]


def test_after_a_production_first_attempt_the_tasks_student_tells_whose_repair_it_was(tokenizer: Any) -> None:
    logged = attempt(0, "production", "logged", "product", 0)
    cases = [case(1, logged, rewrite(1, "own", 4, STUDENT)), case(2, logged, rewrite(1, "taught", 4))]
    own = examples_of(tokenizer, cases, "on_policy", student_model=STUDENT)
    assert answers(tokenizer, own) == {"req-1": "own"}
    taught = examples_of(tokenizer, cases, "sft", student_model=STUDENT)
    assert answers(tokenizer, taught) == {"req-2": "taught"}


def test_the_score_is_the_share_of_the_points_of_the_answer_trained_on(tokenizer: Any) -> None:
    cases = [FACTORY[1]]
    assert {e.score for e in examples_of(tokenizer, cases).examples} == {0.75}
    assert {e.score for e in examples_of(tokenizer, cases, "sft").examples} == {0.25}


def test_training_rows_are_gold_of_the_train_split_below_the_watermark(tmp_path: Path) -> None:
    early = [
        ended(1),
        ended(2, "holdout", split="holdout"),
        ended(3, split="holdout"),
        ended(4, "unresolved"),
        ended(5, task="other"),
        ended(6, "dead", reason="model_error"),
    ]
    land(tmp_path, early)
    pinned = current_watermark(tmp_path)
    land(tmp_path, [ended(7)])
    assert train_rows(tmp_path, "scribe", pinned)["case_id"].to_pylist() == ["req-1"]
    assert train_rows(tmp_path, "scribe", pinned, "sft")["case_id"].to_pylist() == ["req-1", "req-4"]


# Bad input


@pytest.mark.parametrize("recipe", ["rgt", "isft", "sft", "rejection", "on_policy"])
def test_an_empty_gold_set_is_an_error_for_every_recipe(tokenizer: Any, recipe: Recipe) -> None:
    with pytest.raises(TrainingError, match=r"0 rows read, no gold.* row of the train split"):
        examples_of(tokenizer, [], recipe)


@pytest.mark.parametrize(
    ("recipe", "only", "text"),
    [
        ("rgt", case(1, student("go", 4)), r'no strategy in 1 gold rows.*trainer\.recipe = "isft"'),
        ("sft", case(1, student("go", 4)), r"1 no_teacher.*let a teacher refine"),
        ("rejection", repaired(1), r'1 not_passed_at_once.*too weak.*trainer\.recipe = "isft"'),
        ("on_policy", repaired(1), r"1 not_self_refined.*give the task's refiner the model of its student"),
    ],
)
def test_one_class_of_rows_only_is_an_error_that_says_what_to_change(
    tokenizer: Any, recipe: Recipe, only: Case, text: str
) -> None:
    with pytest.raises(TrainingError, match=text):
        examples_of(tokenizer, [only], recipe)


def test_where_everything_is_too_long_the_error_names_the_limit(tokenizer: Any) -> None:
    with pytest.raises(TrainingError, match=r"2 too_long.*raise trainer\.max_length \(3\)"):
        examples_of(tokenizer, [repaired(1)], limit=3)
    with pytest.raises(TrainingError, match=r"2 beyond_context.*longer context than 3 tokens"):
        examples_of(tokenizer, [repaired(1)], context=3)


def with_template(base: Path, template: str) -> Any:
    from transformers import AutoTokenizer

    changed = AutoTokenizer.from_pretrained(base, local_files_only=True)
    changed.chat_template = template
    return changed


def test_a_template_that_cannot_switch_thinking_off_is_refused_for_rgt(base: Path) -> None:
    plain = with_template(base, "{% for m in messages %}{{ m.content }}{% endfor %}A:")
    with pytest.raises(TrainingError, match='recipe = "isft"'):
        examples_of(plain, [repaired(1)])
    assert examples_of(plain, [repaired(1)], "isft").cases == 1


def test_a_base_without_chat_template_or_end_of_turn_is_refused(base: Path) -> None:
    with pytest.raises(TrainingError, match=r"no chat template.*tokenizer_config\.json"):
        examples_of(with_template(base, ""), [repaired(1)])
    endless = with_template(base, "x")
    endless.eos_token = None
    with pytest.raises(TrainingError, match=r"no eos_token.*tokenizer_config\.json"):
        examples_of(endless, [repaired(1)])


def test_messages_that_a_template_refuses_are_counted_and_the_others_trained_on(base: Path) -> None:
    strict = with_template(
        base, "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{% endfor %}A:"
    )
    data = examples_of(strict, [repaired(1), ended(2)], "isft")  # ended has a system message
    assert [e.case_id for e in data.examples] == ["req-1"]
    assert data.skipped == {"unrenderable": 1}


# Quality


@pytest.mark.parametrize("quality", ["top_sets", "score"])
def test_with_a_binary_judge_the_sampled_rows_are_their_base(tokenizer: Any, quality: Any) -> None:
    rows = rows_of([repaired(number, f"answer {number}") for number in range(9)])
    base, sampled = (training_data(rows, tokenizer, Trainer(quality=q)) for q in ("off", quality))
    assert sampled == base
    assert sampled.sha256() == base.sha256()


def test_top_sets_are_nested_and_stand_one_after_the_other() -> None:
    scores = [number / 100 for number in range(100)]
    chosen = top_sets(scores, (90, 95, 98))
    assert chosen == [*range(90, 100), *range(95, 100), *range(98, 100)]
    assert top_sets(scores, (98, 0)) == [*range(100), 98, 99]
    assert top_sets([], (90,)) == []


def test_cases_are_drawn_in_proportion_to_the_exponential_of_their_score() -> None:
    from math import exp

    scores, sharpness, seeds = [0.0, 0.5, 1.0, 1.0, 0.2], 2.0, 2000
    drawn = Counter(index for seed in range(seeds) for index in score_proportional(scores, sharpness, seed))
    expected = [5 * exp(sharpness * score) / sum(exp(sharpness * s) for s in scores) for score in scores]
    assert [drawn[index] / seeds for index in range(5)] == pytest.approx(expected, abs=0.03)
    once = score_proportional(scores, sharpness, 7)
    assert once == score_proportional(scores, sharpness, 7)
    assert len(once) == 5
    assert score_proportional(scores, 0.0, 7) == [0, 1, 2, 3, 4]


def test_copies_of_a_case_keep_both_branches_and_are_told_apart(tokenizer: Any) -> None:
    rows = rows_of([repaired(1, score=2), repaired(2, score=4), repaired(3, score=2)])
    data = training_data(rows, tokenizer, Trainer(quality="top_sets", quality_percentiles=(0, 90)))
    pairs = [(e.case_id, e.branch, e.copy) for e in data.examples]
    first = [(f"req-{number}", branch, 0) for number in (1, 2, 3) for branch in ("A", "B")]
    assert pairs == [*first, ("req-2", "A", 1), ("req-2", "B", 1)]
    assert data.cases == 3
    assert data.sha256() != training_data(rows, tokenizer, Trainer()).sha256()


def test_sampling_by_quality_needs_a_score_of_every_case(tokenizer: Any) -> None:
    unjudged = Attempt(round=1, source="refiner", text="taught", model=TEACHER)
    rows = rows_of([ended(1, "unresolved", attempts=(student("?"), unjudged)), repaired(2)])
    settings = Trainer(recipe="sft", quality="score")
    with pytest.raises(TrainingError, match=r"1 of 2 cases carry no score.*trainer\.quality = \"off\""):
        training_data(rows, tokenizer, settings)
    assert len(sample_by_quality(training_data(rows, tokenizer, Trainer(recipe="sft")), Trainer()).examples) == 2
