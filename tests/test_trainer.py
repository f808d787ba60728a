"""Claims about the trainer's loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import make_tiny_model
from toys import STRATEGY, TOY, a_case, a_manifest

from schemas.case import Case, Message
from schemas.errors import TrainingError
from schemas.outcomes import outcome_row, outcome_table
from schemas.settings import Settings, Trainer
from trainer.dataset import Dataset, build_examples
from trainer.registry import next_version, publish


def examples_of(
    tokenizer: Any, cases: Sequence[Case], recipe: Any = "rgt", weight: float = 1.0, limit: int = 512
) -> Dataset:
    table = outcome_table([outcome_row(case, 0, offset) for offset, case in enumerate(cases)])
    return build_examples(table, tokenizer, recipe=recipe, strategy_weight=weight, max_length=limit)


# Loop


def test_an_adapter_learns_four_lines_and_is_the_same_bit_by_bit_in_a_second_run(
    base: Path, tokenizer: Any, tmp_path: Path, settings: Settings
) -> None:
    from agents.local import LocalEngine
    from trainer.loop import train_lora

    examples = examples_of(tokenizer, [a_case(c, c, a, strategy=STRATEGY) for c, a in TOY.items()]).examples
    seen: list[tuple[int, int]] = []
    first = train_lora(
        base,
        examples,
        settings.tasks["toy"].trainer,
        tmp_path / "first",
        base_name="served/tiny",
        progress=lambda step, steps, loss, rate: seen.append((step, steps)),
    )
    assert seen == [(step, 30) for step in range(1, 31)]
    assert first.last_loss < 0.2 < first.first_loss
    lines = [json.loads(line) for line in (tmp_path / "first/steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[0]["loss"] == first.first_loss
    config = json.loads((tmp_path / "first/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("served/tiny", 16, 32)

    train_lora(base, examples[::-1], settings.tasks["toy"].trainer, tmp_path / "second")
    weights = [(tmp_path / run / "adapter_model.safetensors").read_bytes() for run in ("first", "second")]
    assert weights[0] == weights[1]

    manifest = a_manifest(base, next_version(tmp_path, "toy", "abcdef"))
    folder = publish(tmp_path / "registry", tmp_path / "first", manifest)
    engine = LocalEngine(base, threads=1)
    try:
        engine.load_adapter("x", folder)
        answers = engine.generate_batch([[Message("user", c)] for c in TOY], adapter="x", max_tokens=8)
        assert [answer.text for answer in answers] == list(TOY.values())
    finally:
        engine.close()


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, base: Path, tokenizer: Any) -> None:
    from safetensors.numpy import load_file, save_file

    from trainer.loop import train_lora

    broken = make_tiny_model(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    examples = examples_of(tokenizer, [a_case("1", "red", "stop")], recipe="isft").examples
    with pytest.raises(TrainingError, match=r"loss became nan at step 1 of 3.*learning_rate"):
        train_lora(broken, examples, Trainer(rank=4, threads=1), tmp_path / "out")
    assert not (tmp_path / "out/adapter_model.safetensors").exists()
