"""Contamination: training texts that the holdout would give away, told from a product's template."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ended_cases import ended, land

from goldstream import cli
from schemas.case import Case, Message
from schemas.errors import TrainingError
from schemas.gold import current_watermark
from schemas.ngrams import HeldOut
from schemas.settings import Settings, Task, Trainer
from streams.admission.contamination import contamination
from trainer.contamination import uncontaminated
from trainer.dataset import train_rows

WORDS = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "st", "rk")]


def text(seed: int, words: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def asked(number: int, prompt: str, **changes: Any) -> Case:
    return ended(number, **({"messages": (Message("user", prompt),)} | changes))


def held(number: int, prompt: str, answer: str | None = None) -> Case:
    return asked(number, prompt, kind="holdout", split="holdout", production_answer=answer)


def held_out(*texts: str) -> HeldOut:
    found = HeldOut()
    for number, one in enumerate(texts):
        found.add(f"h{number}", one)
    return found


def test_a_copy_with_a_word_changed_overlaps_and_says_with_which_case() -> None:
    holdout = held_out(text(1), text(2), text(3))
    copy = text(2).split()
    copy[5] = "other"
    found = holdout.overlap(" ".join(copy), "a short answer")
    assert found.case_id == "h1"
    assert found.share > 0.7
    assert holdout.overlap(text(2).upper().replace(" ", ", "), None).share == 1.0
    assert holdout.overlap(text(9), text(10)).runs == 0


def test_an_answer_learned_by_heart_is_found_under_another_prompt() -> None:
    holdout = HeldOut()
    holdout.add("h", text(1), text(2))
    assert holdout.overlap(text(8), text(2)).share == 1.0


def test_the_products_template_is_no_contamination() -> None:
    template = "Summarise the following letter for the patient in plain words and name the next step: "
    holdout = held_out(*(template + text(n) for n in range(100)))
    assert holdout.overlap(template + text(500), None).share < 0.05
    assert holdout.overlap(template + text(7), None).share == 1.0


def test_a_short_prompt_counts_as_a_whole_and_a_short_answer_for_nothing() -> None:
    holdout = held_out("cancel my order")
    assert holdout.overlap("Cancel my order!", None).share == 1.0
    assert holdout.overlap("cancel my other order", "cancel my order").runs == 0


def test_nothing_held_out_contaminates_nothing() -> None:
    assert HeldOut().overlap(text(1), text(2)).share == 0.0
    assert held_out("", "...").overlap(text(1), "").share == 0.0


def test_training_leaves_out_contaminated_rows_below_the_watermark_and_no_others(tmp_path: Path) -> None:
    land(tmp_path, [asked(1, text(1)), asked(2, text(2)), held(3, text(2) + " more")])
    pinned = current_watermark(tmp_path)
    land(tmp_path, [held(4, text(1))])
    rows = train_rows(tmp_path, "scribe", pinned)
    kept, left_out = uncontaminated(rows, tmp_path, "scribe", pinned, 0.5)
    assert (kept["case_id"].to_pylist(), left_out) == (["req-1"], 1)
    assert uncontaminated(rows, tmp_path, "scribe", pinned, 1.0) == (rows, 0)


def test_a_template_that_the_few_held_out_cases_cannot_show_is_named_where_it_leaves_nothing_to_train_on(
    tmp_path: Path,
) -> None:
    template = text(0, words=100)
    land(tmp_path, [*(asked(n, f"{template} {text(n)}") for n in (1, 2)), held(3, f"{template} {text(3)}")])
    pinned = current_watermark(tmp_path)
    with pytest.raises(TrainingError, match=r"each of 2 rows .* holdout of 1\. While few cases are held out"):
        uncontaminated(train_rows(tmp_path, "scribe", pinned), tmp_path, "scribe", pinned, 0.5)


def test_the_command_names_the_rows_and_what_training_leaves_out(tmp_path: Path) -> None:
    settings = Settings(
        state_dir=str(tmp_path), tasks={"scribe": Task(topics=("logs",), trainer=Trainer(max_overlap=0.6))}
    )
    mixed = " ".join([*text(3).split()[:14], *text(77, 26).split()])
    land(settings.gold, [asked(1, text(1)), asked(2, text(2)), asked(3, mixed), held(4, text(2)), held(5, text(3))])
    found = contamination(settings, "scribe")
    assert (found.holdout, found.gold, found.sharing, found.left_out) == (2, 3, 2, 1)
    assert [(row.case_id, row.holdout, row.left_out) for row in found.worst] == [
        ("req-2", "req-4", True),
        ("req-3", "req-5", False),
    ]
    assert found.worst[1].overlap == pytest.approx(7 / 33)
    assert contamination(settings, "scribe", show=1).worst == found.worst[:1]


def test_the_command_says_so_where_there_is_no_holdout(tmp_path: Path) -> None:
    toml = tmp_path / "goldstream.toml"
    toml.write_text("")
    result = CliRunner().invoke(cli, ["contamination", "--config", str(toml), "--set", f"state_dir={tmp_path}"])
    assert result.exit_code != 0
    assert "which task" in str(result.exception)
