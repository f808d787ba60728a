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
from streams.export.pairs import Choice
from streams.export.write import export_gold
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


TEMPLATE = text(0, words=100)


def templated(seed: int) -> str:
    return f"{TEMPLATE} {text(seed)}"


def shares(holdout: HeldOut, prompts: list[str]) -> list[float]:
    return [found.share for found in holdout.overlaps((prompt, None) for prompt in prompts)]


def copies_of(prompt: str, number: int) -> list[str]:
    """Returns copies with one word changed, each another."""
    return [" ".join([*prompt.split()[:-1], f"other{n}"]) for n in range(number)]


def test_one_held_out_prompt_is_enough_to_tell_the_template_from_the_training_rows() -> None:
    assert shares(held_out(templated(1)), [templated(n) for n in range(2, 102)]) == [0.0] * 100


def test_a_prompt_copied_into_three_of_a_thousand_rows_is_found_with_a_template_and_without() -> None:
    for prompt in (text, templated):
        found = shares(held_out(prompt(1)), [*(prompt(n) for n in range(2, 999)), *copies_of(prompt(1), 3)])
        assert [share > 0.5 for share in found] == [False] * 997 + [True] * 3


def test_a_flood_of_copies_of_a_held_out_prompt_is_no_template_however_it_is_typed() -> None:
    copies = [text(1).upper(), text(1).replace(" ", ", "), text(1)] * 300
    assert set(shares(held_out(text(1)), [text(n) for n in range(2, 102)] + copies)[100:]) == {1.0}


def test_nine_different_prompts_are_too_few_to_tell_a_template_and_ten_are_enough() -> None:
    held, *rows = (templated(n) for n in range(10))
    assert min(shares(held_out(held), rows[:8])) > 0.5
    assert max(shares(held_out(held), rows)) == 0.0


def test_a_template_of_less_than_a_tenth_of_all_prompts_is_not_told_from_the_training_rows() -> None:
    rows = [*(templated(n) for n in range(2, 13)), *(text(n) for n in range(13, 101))]
    assert max(shares(held_out(templated(1)), rows)) == 0.0  # 12 of 100
    assert min(shares(held_out(templated(1)), rows + [text(n) for n in range(101, 131)])[:11]) > 0.5  # 12 of 130


def test_an_answers_set_phrases_are_template_where_a_tenth_of_the_prompts_got_them() -> None:
    holdout = HeldOut()
    holdout.add("h", text(1), f"{TEMPLATE} {text(2)}")
    rows = [(text(n), f"{TEMPLATE} {text(1000 + n)}") for n in range(10, 60)]
    found = holdout.overlaps([*rows, (text(99), f"{TEMPLATE} {text(2)}")])
    assert [one.share > 0.5 for one in found] == [False] * 50 + [True]


def test_rows_counted_one_by_one_and_all_at_once_overlap_the_same() -> None:
    at_once, streamed = held_out(templated(1), text(2)), held_out(templated(1), text(2))
    rows = [(templated(n % 20), text(n % 30)) for n in range(60)]
    assert streamed.overlap(*rows[0]).share > 0.5  # as long as none was counted
    for row in rows:
        streamed.count(*row)
    assert [streamed.overlap(*row) for row in rows] == at_once.overlaps(rows)


def test_a_held_out_case_after_training_rows_were_counted_is_refused() -> None:
    holdout = held_out(text(1))
    holdout.count(text(2), None)
    with pytest.raises(ValueError, match="h1 comes after training rows; expected all of the holdout first"):
        holdout.add("h1", text(3))


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


def test_a_template_that_few_prompts_cannot_show_is_named_where_it_leaves_nothing_to_train_on(tmp_path: Path) -> None:
    land(tmp_path, [*(asked(n, templated(n)) for n in (1, 2)), held(3, templated(3))])
    pinned = current_watermark(tmp_path)
    with pytest.raises(TrainingError, match=r"each of 2 rows .* holdout of 1\. A template looks like a copy until 10 "):
        uncontaminated(train_rows(tmp_path, "scribe", pinned), tmp_path, "scribe", pinned, 0.5)


def test_trainer_export_and_command_tell_the_template_from_the_same_rows(tmp_path: Path) -> None:
    settings = Settings(state_dir=str(tmp_path), tasks={"scribe": Task(topics=("logs",))})
    copy = copies_of(templated(1), 1)[0]
    land(settings.gold, [held(1, templated(1)), *(asked(n, templated(n)) for n in range(2, 30)), asked(30, copy)])
    pinned = current_watermark(settings.gold)
    rows = train_rows(settings.gold, "scribe", pinned)
    kept, left_out = uncontaminated(rows, settings.gold, "scribe", pinned, 0.5)
    assert (len(kept), left_out) == (28, 1)
    assert "req-30" not in kept["case_id"].to_pylist()
    found = contamination(settings, "scribe")
    assert [(row.case_id, row.left_out) for row in found.worst] == [("req-30", True)]
    some = Choice(where="case_id IN ('req-2', 'req-3', 'req-30')")  # of all rows the template is told, not of these
    exported = export_gold(settings, "trl", tmp_path / "out", some)
    assert (exported.cases, exported.left_out) == ({"train": 2}, {"contaminated": 1})


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
