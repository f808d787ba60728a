"""Claims about the reference's log-probabilities: computed once, pinned, and refused where the base is no longer it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from schemas.errors import TrainingError
from trainer.dataset import Branch, Example
from trainer.reference import References, check_reference, reference_logprobs


def an_example(case_id: str, branch: Branch, trained: int, copy: int = 0) -> Example:
    ids = (7, *range(trained))
    return Example(case_id, branch, ids, (0.0, *[0.5] * trained), 1, copy=copy)


EXAMPLES = [an_example("b", "A", 2), an_example("a", "B", 3), an_example("a", "A", 1)]


class Base:
    """A model whose log-probability of a token is minus its id, and that counts the sequences it is asked for."""

    asked = 0

    def __call__(self, examples: Sequence[Example]) -> Iterator[Tensor]:
        for example in examples:
            self.asked += 1
            yield -torch.tensor(example.input_ids[1:], dtype=torch.float64)


def logprobs_of(path: Path, base: Any, examples: Sequence[Example] = EXAMPLES, **changes: Any) -> References:
    pinned: dict[str, Any] = {"base_sha256": "f00d", "watermark": {0: 5}} | changes
    return reference_logprobs(path, examples, base, **pinned)


def test_the_base_is_asked_once_and_the_file_answers_from_then_on(tmp_path: Path) -> None:
    base, path = Base(), tmp_path / "run" / "reference.safetensors"
    first = logprobs_of(path, base)
    assert {key: value.tolist() for key, value in first.items()} == {
        ("a", "A"): [0],
        ("a", "B"): [0, -1, -2],
        ("b", "A"): [0, -1],
    }
    assert {value.dtype for value in first.values()} == {torch.float32}
    again = logprobs_of(path, base, EXAMPLES[::-1])
    assert base.asked == 3
    assert {key: value.tolist() for key, value in again.items()} == {k: v.tolist() for k, v in first.items()}
    assert [file.name for file in path.parent.iterdir()] == ["reference.safetensors"]


@pytest.mark.parametrize(
    "changes",
    [
        {"base_sha256": "beef"},
        {"watermark": {0: 6}},
        {"examples": [*EXAMPLES[:2], an_example("a", "A", 2)]},
        {"examples": EXAMPLES[:2]},
    ],
    ids=["base", "watermark", "tokens", "cases"],
)
def test_another_base_watermark_or_dataset_is_computed_anew(tmp_path: Path, changes: dict[str, Any]) -> None:
    base, path = Base(), tmp_path / "reference.safetensors"
    logprobs_of(path, base)
    logprobs_of(path, base, **changes)
    assert base.asked == 3 + len(changes.get("examples", EXAMPLES))


def test_copies_of_a_case_share_one_pass_of_the_base(tmp_path: Path) -> None:
    base = Base()
    copies = [*EXAMPLES, an_example("b", "A", 2, copy=1)]
    assert logprobs_of(tmp_path / "reference", base, copies).keys() == logprobs_of(tmp_path / "other", base).keys()
    assert base.asked == 6


@pytest.mark.parametrize("damage", ["cut", "flip", "garbage"])
def test_a_damaged_file_is_computed_anew(tmp_path: Path, damage: str) -> None:
    base, path = Base(), tmp_path / "reference.safetensors"
    first = logprobs_of(path, base)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes({"cut": bytes(content[:-5]), "flip": bytes(content), "garbage": b"nothing"}[damage])
    again = logprobs_of(path, base)
    assert base.asked == 6
    assert all(torch.equal(again[key], first[key]) for key in first)
    logprobs_of(path, base)
    assert base.asked == 6


def test_a_base_that_gives_no_finite_number_is_an_error_that_names_the_case(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    with pytest.raises(TrainingError, match=r"case a, branch A, a log-probability that is no finite number"):
        logprobs_of(path, lambda examples: [value + float("nan") for value in Base()(examples)])
    with pytest.raises(TrainingError, match=r"returned 3 log-probabilities.*expected 6"):
        logprobs_of(path, lambda examples: [value[:1] for value in Base()(examples)])
    assert not path.exists()


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "reference.safetensors"
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(TrainingError, match=r"No space left on device.*Free space"):
            logprobs_of(path, Base())
    assert list(tmp_path.iterdir()) == []
    assert logprobs_of(path, Base()).keys() == {("a", "A"), ("a", "B"), ("b", "A")}


@pytest.mark.parametrize(
    ("init", "kept"),
    [
        (True, True),
        (False, True),
        ("gaussian", True),
        ("orthogonal", True),
        ("mica", True),
        ("pissa", False),
        ("pissa_niter_4", False),
        ("olora", False),
    ],
)
def test_an_initialisation_is_refused_exactly_where_peft_changes_the_base_with_it(init: Any, kept: bool) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model: Any = torch.nn.Sequential(torch.nn.Linear(8, 8))
    before, inputs = model[0].weight.detach().clone(), torch.randn(3, 8)
    expected = model(inputs).detach()
    lora = LoraConfig(r=4, target_modules=["0"], init_lora_weights=init)
    adapted: Any = get_peft_model(model, lora)
    with adapted.disable_adapter():
        assert torch.allclose(adapted(inputs), expected, atol=1e-6) is kept
    assert torch.equal(model[0].base_layer.weight, before) is kept
    if kept:
        check_reference(lora)
    else:
        with pytest.raises(TrainingError, match=r"rewrites the base's weights"):
            check_reference(lora)


@pytest.mark.parametrize("init", ["corda", "loftq", "lora_ga", "an initialisation of a later PEFT"])
def test_initialisations_that_need_data_to_try_and_unknown_ones_are_refused_too(init: str) -> None:
    class Lora:
        init_lora_weights = init

    with pytest.raises(TrainingError, match=init):
        check_reference(Lora())


def test_an_adapter_that_trains_the_bases_own_biases_is_refused() -> None:
    from peft import LoraConfig

    with pytest.raises(TrainingError, match="biases of the base"):
        check_reference(LoraConfig(bias="all"))
