"""Near duplicates: what is one, that memory is bounded, and that a restart changes no decision."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from schemas.case import Case, Message, Source
from schemas.settings import Intake, Settings, Task
from schemas.settings import NearDuplicates as Wanted
from streams.admission.minhash import Remembered, signature, similarity
from streams.admission.near_duplicates import NearDuplicates

WORDS = random.Random(1).sample([a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "st", "rk")], 180)


def sentence(seed: int, words: int = 80) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def changed(text: str, words: int) -> str:
    parts = text.split()
    for n in range(words):
        parts[n * len(parts) // max(words, 1)] = "other"
    return " ".join(parts)


def case(name: str, *texts: str, task: str = "toy", partition: int = 0) -> Case:
    source = Source(cluster="c", topic="logs", partition=partition, offset=0)
    messages = (Message("system", "Be kind."), *(Message("user", text) for text in texts))
    return Case(case_id=name, task=task, split="train", source=source, messages=messages)


def made(tmp_path: Path, threshold: float = 0.85, **intake: Any) -> NearDuplicates:
    task = Task(topics=("logs",), near_duplicates=Wanted(threshold=threshold))
    settings = Settings(state_dir=str(tmp_path), intake=Intake(**intake), tasks={"toy": task, "other": task})
    near = NearDuplicates(settings)
    near.load([("logs", 0), ("logs", 1)])
    return near


def decide(near: NearDuplicates, *cases: Case) -> list[bool]:
    """Decides a batch as intake does, up to the point where it produces."""
    found = []
    for one in cases:
        found.append(near.is_duplicate(one))
        if not found[-1]:
            near.admitted(one)
    near.write()
    return found


@pytest.mark.parametrize("changes", [0, 2, 8, 30, 80])
def test_the_estimate_is_near_the_share_two_texts_really_have_in_common(changes: int) -> None:
    one = sentence(1, 300)
    other = changed(one, changes)
    runs = [{text[n : n + 8] for n in range(len(text) - 7)} for text in (one, other)]
    share = len(runs[0] & runs[1]) / len(runs[0] | runs[1])
    assert similarity(signature(one), signature(other)) == pytest.approx(share, abs=0.16)


def test_a_prompt_that_differs_in_a_few_words_or_in_layout_only_is_a_near_duplicate(tmp_path: Path) -> None:
    near, text = made(tmp_path), sentence(2)
    copies = [text, changed(text, 2), text.upper(), text.replace(" ", " \n")]
    assert decide(near, *(case(f"c{n}", copy) for n, copy in enumerate(copies))) == [False, True, True, True]


def test_another_prompt_another_task_and_the_next_turn_are_none(tmp_path: Path) -> None:
    near, text = made(tmp_path), sentence(3)
    others = [case("a", text), case("b", sentence(4)), case("c", text, task="other"), case("d", text, "and then?")]
    assert decide(near, *others) == [False] * 4


def test_off_unless_a_threshold_is_set(tmp_path: Path) -> None:
    near = made(tmp_path, threshold=0.0)
    assert not near
    assert decide(near, case("a", "the same"), case("b", "the same")) == [False, False]
    assert not list(tmp_path.rglob("*.bin"))


def test_a_record_read_again_is_no_duplicate_of_itself_and_a_dropped_one_stays_dropped(tmp_path: Path) -> None:
    """The batch is decided and written, the process dies, and the next one reads it in the opposite order."""
    text = sentence(5)
    batch = [case("first", text), case("copy", changed(text, 1), partition=1)]
    assert decide(made(tmp_path), *batch) == [False, True]
    assert decide(made(tmp_path), *reversed(batch)) == [True, False]


def test_a_prompt_that_was_refused_for_another_reason_makes_no_later_one_a_duplicate(tmp_path: Path) -> None:
    text, near = sentence(6), made(tmp_path)
    assert not near.is_duplicate(case("over the quota", text))
    assert decide(near, case("next day", text)) == [False]


def test_an_entry_that_a_crash_cut_short_costs_itself_and_no_other(tmp_path: Path) -> None:
    text = sentence(7)
    decide(made(tmp_path), case("a", text), case("b", sentence(8)))
    (path,) = tmp_path.rglob("*.bin")
    path.write_bytes(path.read_bytes()[:-10])
    decide(made(tmp_path), case("c", sentence(9)))
    assert decide(made(tmp_path), case("d", text), case("e", sentence(9)), case("f", sentence(8))) == [
        True,
        True,
        False,
    ]


def test_memory_and_file_hold_the_latest_and_no_more(tmp_path: Path) -> None:
    near = made(tmp_path, remembered_prompts=50)
    cases = [case(f"c{n}", sentence(100 + n)) for n in range(2600)]
    assert not any(decide(near, *cases))
    assert decide(near, case("old", sentence(100)), case("new", sentence(100 + 2599))) == [False, True]
    made(tmp_path, remembered_prompts=50)
    (path,) = tmp_path.rglob("*.bin")
    assert path.stat().st_size < 1001 * 300


def test_similar_prompts_are_found_among_many() -> None:
    remembered = Remembered(2000)
    for n in range(2000):
        remembered.add(signature(sentence(n)), 1)
    near = [remembered.most_similar(signature(changed(sentence(n), 2)), 1) for n in range(0, 2000, 100)]
    assert min(near) > 0.8
    assert remembered.most_similar(signature(sentence(5)), group=2) == 0.0


def test_a_full_disk_costs_no_record(tmp_path: Path) -> None:
    near = made(tmp_path)
    (tmp_path / "intake").write_text("a file where the folder should be")
    assert decide(near, case("a", sentence(1)), case("b", sentence(1))) == [False, True]
