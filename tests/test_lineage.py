"""From rows to adapters and back: both directions say the same, and what was forgotten is left out of the next run."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from toys import STRATEGY, TOY, a_case, a_manifest, add_gold, toy_gold, toy_judge, with_task

from schemas.adapters import AdapterManifest, verify_adapter
from schemas.case import Case, Message, Verdict
from schemas.forgotten import Forgetting
from schemas.lineage import TRAINED_ON, Row, adapters_of, read_trained_on
from schemas.settings import Settings
from streams.forgetting.rows import remember
from streams.lineage import lineage_of, tell_lineage
from trainer.dataset import Example
from trainer.erasure import erase_texts
from trainer.holdout import HOLDOUT
from trainer.lineage import ForgottenMeanwhile, refuse_forgotten, trained_rows, write_trained_on
from trainer.removal import remove
from trainer.report import without_examples
from trainer.service import run_trainer


def of_user(case: Case, user: str) -> Case:
    return msgspec.structs.replace(case, user=user, created_ms=5)


def forget_user(settings: Settings, user: str) -> None:
    remember(settings.gold, [Forgetting(kind="user", key=user, at_ms=10)], "key")


def asking_all(settings: Settings) -> Settings:
    """Returns settings by which the gate asks two cases of one question."""
    return with_task(settings, gate=msgspec.structs.replace(settings.tasks["toy"].gate, max_holdout=5))


def published(settings: Settings, base: Path, version: str, examples: list[Example], **changes: Any) -> None:
    """Puts a version without weights into the registry: lineage asks its manifest and its record alone."""
    folder = settings.adapters / "toy" / version
    folder.mkdir(parents=True)
    write_trained_on(folder, examples)
    manifest = a_manifest(base, version, settings={"epochs": 3}, **changes)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))


def example(case_id: str, pair: Any, copy: int = 0) -> Example:
    return Example(case_id, pair, (1,), (1.0,), 0, copy=copy)


def test_both_directions_agree_and_follow_a_version_that_went_on_from_another(settings: Settings, base: Path) -> None:
    add_gold(settings.gold, [a_case("c1", "red", "stop"), a_case("c2", "red", "stop"), a_case("c3", "red", "stop")])
    first, second, third = "v0001-aaaaaa", "v0002-bbbbbb", "v0003-cccccc"
    published(settings, base, first, [example("c1", "A"), example("c1", "B"), example("c1", "A", 1)])
    published(settings, base, second, [example("c2", "A")], initial=first)
    published(settings, base, third, [example("c2", "A")])
    one, two = lineage_of(settings, "c1")
    assert (one.version, one.pairs, one.epochs, one.inherited_from) == (first, {"A": 2, "B": 1}, 3.0, "")
    assert (two.version, two.inherited_from) == (second, first)
    assert f"through {first}" in tell_lineage("c1", [two])[1]
    assert [one.version for one in lineage_of(settings, "c2")] == [second, third]
    assert lineage_of(settings, "c3") == []
    assert trained_rows(settings, "toy", second) == [
        ("c2", "A", 1, 3.0, "", "in the gold set"),
        ("c1", "A+B", 3, 3.0, first, "in the gold set"),
    ]
    with pytest.raises(RuntimeError, match="no row of case"):
        lineage_of(settings, "c4")


def test_a_version_without_a_record_counts_as_possible_below_its_watermark(settings: Settings, base: Path) -> None:
    published(settings, base, "v0001-aaaaaa", [], watermark={0: 2})
    (settings.adapters / "toy" / "v0001-aaaaaa" / TRAINED_ON).unlink()
    below, above = Row("c1", "toy", "train", (0, 1)), Row("c2", "toy", "train", (0, 2))
    (found,) = adapters_of(settings.adapters, [below, above])
    assert (found.recorded, found.cases) == (False, 1)
    with pytest.raises(ValueError, match="keeps no record"):
        trained_rows(settings, "toy", "v0001-aaaaaa")


def test_the_next_run_leaves_out_what_is_forgotten_and_the_gate_page_loses_its_texts(settings: Settings) -> None:
    toy_gold(settings.gold)
    mine = [of_user(a_case(f"mine-{color}", color, answer, strategy=STRATEGY), "u") for color, answer in TOY.items()]
    add_gold(settings.gold, [*mine, of_user(a_case("mine-holdout", "red", kind="holdout", split="holdout"), "u")])
    settings = asking_all(settings)

    def once() -> AdapterManifest:
        report = run_trainer(settings, stop=threading.Event(), judge=toy_judge, once="toy")
        assert report is not None
        return verify_adapter(settings.adapters / "toy" / report.version)  # the record is among what is verified

    first = once()
    folder = settings.adapters / "toy" / first.version
    trained = {use.case_id for use in read_trained_on(folder) or ()}
    assert {"mine-red", "train-red-0"} <= trained
    assert len(trained) == first.rows
    assert sum(use.times for use in read_trained_on(folder) or ()) == first.pairs
    assert "mine-holdout" in json.loads((settings.adapters / "toy" / HOLDOUT).read_text())
    before = json.loads((folder / "gate.json").read_text())
    page = (folder / "gate.html").read_text()
    assert "mine-holdout" in page

    forget_user(settings, "u")
    assert erase_texts(settings, (), dry_run=True) == erase_texts(settings, ())
    after = (folder / "gate.html").read_text()
    assert "mine-holdout" not in after
    assert "This case was forgotten." in after
    assert "holdout-red" in after
    assert erase_texts(settings, ()).pages == ()  # nothing is left to take out
    assert [one.version for one in lineage_of(settings, "mine-red")] == [first.version]

    second = once()
    again = {use.case_id for use in read_trained_on(settings.adapters / "toy" / second.version) or ()}
    assert again == {case for case in trained if not case.startswith("mine")}
    report = json.loads((settings.adapters / "toy" / second.version / "gate.json").read_text())
    assert (before["cases"], report["cases"]) == (5, 4)
    assert report["holdout_sha256"] != before["holdout_sha256"]


def test_the_page_of_a_gate_during_which_somebody_was_forgotten_shows_nothing_of_theirs(settings: Settings) -> None:
    settings = asking_all(settings)
    toy_gold(settings.gold)
    add_gold(settings.gold, [of_user(a_case("mine-holdout", "red", kind="holdout", split="holdout"), "u")])
    asked = []

    async def judge(messages: Sequence[Message], answer: str) -> Verdict:
        if not asked:
            forget_user(settings, "u")
            assert erase_texts(settings, ()).pages == ()  # as the command does: there is no page yet
        asked.append(answer)
        return await toy_judge(messages, answer)

    report = run_trainer(settings, stop=threading.Event(), judge=judge, once="toy")
    assert report is not None
    folder = settings.adapters / "toy" / report.version
    shown = json.loads((folder / "gate.json").read_text())["examples"]
    assert "mine-holdout" in [example["case_id"] for example in shown]
    page = (folder / "gate.html").read_text()
    assert "This case was forgotten." in page
    assert "mine-holdout" not in page


def test_a_run_that_trained_on_somebody_forgotten_meanwhile_is_not_published(settings: Settings) -> None:
    add_gold(settings.gold, [of_user(a_case("c1", "red", "stop"), "u"), a_case("c2", "red", "stop")])
    refuse_forgotten(settings.gold, "toy", {"c1", "c2"})
    forget_user(settings, "u")
    refuse_forgotten(settings.gold, "toy", {"c2"})
    with pytest.raises(ForgottenMeanwhile, match="1 of the cases"):
        refuse_forgotten(settings.gold, "toy", {"c1", "c2"})


def test_the_record_stays_when_the_weights_are_removed(settings: Settings, base: Path) -> None:
    add_gold(settings.gold, [a_case("c1", "red", "stop")])
    published(settings, base, "v0001-aaaaaa", [example("c1", "A")])
    remove(settings.adapters, "toy", "v0001-aaaaaa")
    (found,) = lineage_of(settings, "c1")
    assert (found.removed, found.pairs) == (True, {"A": 1})


def test_a_hostile_text_cannot_save_a_forgotten_example_nor_take_another_with_it() -> None:
    kept = "<article><h3><span class='badge lost'>lost</span> a&amp;b</h3>&lt;/article&gt; kept</article>"
    gone = "<article><h3><span class='badge lost'>lost</span> a&lt;b</h3>&lt;/article&gt;\nsecret</article>"
    page = f"<p>begin</p>{gone}{kept}<p>end</p>"
    left = without_examples(page, {"a<b"})
    assert "secret" not in left
    assert kept in left
    assert without_examples(page, {"a"}) == page
