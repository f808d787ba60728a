"""Claims about `goldstream ablate`: RGT against iSFT on a gold set of one's own, and what it says where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from toys import TOY, a_case, add_gold, toy_gold, toy_judge, with_task

from schemas.case import Message, Verdict
from schemas.errors import ModelError, ModelUnavailable, TrainingError
from schemas.settings import Settings
from trainer.methods.ablate import ablate, decide_arm


def compare(settings: Settings, judge: Any = toy_judge, seeds: int = 2) -> Any:
    return ablate(settings, "toy", seeds=seeds, say=lambda line: None, judge=judge)


def test_both_methods_train_on_the_same_cases_for_the_same_steps(settings: Settings) -> None:
    toy_gold(settings.gold)
    found = compare(settings)
    assert [(arm.arm, arm.seed) for arm in found.arms] == [("isft", 0), ("rgt", 0), ("isft", 1), ("rgt", 1)]
    assert {arm.steps for arm in found.arms} == {found.steps}
    assert (found.cases, found.strategies, found.holdout) == (4, 4, 4)
    isft, rgt = (sum(arm.passed for arm in found.arms if arm.arm == name) / 2 for name in ("isft", "rgt"))
    assert found.passed[0] == pytest.approx(rgt - isft)
    assert found.passed[1] <= found.passed[0] <= found.passed[2]
    assert found.pays in ("rgt", "isft", "undecided")


def test_a_second_call_trains_nothing_again_and_touches_no_adapter_that_serves(settings: Settings) -> None:
    toy_gold(settings.gold)
    first = compare(settings, seeds=1)
    folders = sorted((settings.state / "ablate" / "toy").glob("v*/manifest.json"))
    before = [path.stat().st_mtime_ns for path in folders]
    assert compare(settings, seeds=1) == first
    assert [path.stat().st_mtime_ns for path in folders] == before
    assert len(before) == 2
    assert not list(settings.adapters.glob("toy/v*"))


def test_an_empty_gold_set_says_what_is_missing(settings: Settings) -> None:
    add_gold(settings.gold, [a_case(f"h-{c}", c, kind="holdout", split="holdout") for c in TOY])
    with pytest.raises(TrainingError, match="no gold in its train split"):
        compare(settings)


def test_gold_without_strategies_says_so(settings: Settings) -> None:
    toy_gold(settings.gold, strategy=None)
    with pytest.raises(TrainingError, match="found no strategy in 4 gold rows"):
        compare(settings)


def test_too_small_a_holdout_says_how_to_get_one(settings: Settings) -> None:
    add_gold(settings.gold, [a_case(f"t-{c}", c, answer) for c, answer in TOY.items()])
    with pytest.raises(
        TrainingError, match=r"0 holdout cases; tasks\.toy\.gate\.min_holdout asks for 4.*holdout_share"
    ):
        compare(settings)


def test_a_judge_that_answers_for_nothing_is_an_error(settings: Settings) -> None:
    async def down(messages: Sequence[Message], answer: str) -> Verdict:
        raise ModelUnavailable("down")

    toy_gold(settings.gold)
    with pytest.raises(ModelError, match="none of 4 holdout cases"):
        compare(settings, down, seeds=1)


def test_settings_of_other_objectives_do_not_decide_the_comparison(settings: Settings) -> None:
    toy_gold(settings.gold)
    plain = compare(settings, seeds=1)
    trainer = msgspec.structs.replace(settings.tasks["toy"].trainer, objective="dft", quality="score")
    other = compare(with_task(settings, trainer=trainer), seeds=1)
    assert [arm.passed for arm in other.arms] == [arm.passed for arm in plain.arms]


@pytest.mark.parametrize(
    ("gain", "p_value", "pays"),
    [(0.1, 0.01, "rgt"), (-0.1, 0.01, "isft"), (0.1, 0.2, "undecided"), (0, 1, "undecided")],
)
def test_what_pays_needs_a_significant_difference(gain: float, p_value: float, pays: str) -> None:
    assert decide_arm(gain, p_value, 0.05, 200, 3)[0] == pays
