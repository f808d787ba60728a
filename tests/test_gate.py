"""Claims about the gate: who is compared with whom, the two tests, the frozen holdout, and the page that says why."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from toys import (
    COLORS,
    NEW,
    OLD,
    TOY,
    ToyEngine,
    a_case,
    a_manifest,
    a_report,
    add_gold,
    toy_gold,
    toy_judge,
    with_task,
)

from schemas.adapters import Comparison
from schemas.case import Message, Verdict, Violation
from schemas.errors import ModelUnavailable
from schemas.settings import Gate, Settings
from trainer.gate import AnswerCache, Shown, run_gate
from trainer.holdout import HoldoutCase, freeze_holdout, holdout_cases
from trainer.paired import bootstrap, compare, decide, mcnemar
from trainer.report import SHOWN_CHARS, Gated, read_losses, render_page, word_diff

# The tests


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [(0, 0, 1.0), (1, 1, 1.0), (5, 0, 0.0625), (0, 6, 0.03125), (10, 2, 158 / 4096), (2, 10, 158 / 4096)],
)
def test_mcnemar_is_exact(gained: int, lost: int, p_value: float) -> None:
    assert mcnemar(gained, lost) == p_value


def test_the_bootstrap_sees_a_difference_of_its_size_and_sign_and_gives_the_same_figures_twice() -> None:
    dice = random.Random(1)
    noise = [dice.gauss(0, 0.3) for _ in range(200)]
    centred = [value - sum(noise) / 200 for value in noise]
    better, worse = [value + 0.1 for value in centred], [value - 0.1 for value in centred]
    p_value, low, high = bootstrap(better, 10_000, 0.05)
    assert p_value < 0.001
    # The normal interval of a mean: 0.1 +- 1.96 * 0.3 / sqrt(200), give or take the sample's own spread.
    assert (low, high) == pytest.approx((0.1 - 0.042, 0.1 + 0.042), abs=0.01)
    assert bootstrap(worse, 10_000, 0.05)[0] < 0.001
    assert bootstrap(centred, 10_000, 0.05)[0] > 0.9
    assert bootstrap([0.0] * 50, 1000, 0.05) == (1.0, 0.0, 0.0)
    assert bootstrap(better, 10_000, 0.05) == (p_value, low, high)


def test_the_bootstrap_is_wrong_as_often_as_its_significance_says() -> None:
    dice = random.Random(2)
    found = [bootstrap([dice.choice((-1.0, 0.0, 0.0, 1.0)) for _ in range(80)], 1000, 0.05)[0] for _ in range(400)]
    assert 0.02 < sum(p <= 0.05 for p in found) / 400 < 0.09


@pytest.mark.parametrize(
    ("cases", "before", "after", "p_value", "decision"),
    [
        (49, 0, 49, 0.0, "undecided"),
        (50, 10, 20, 0.5, "promote"),
        (50, 10, 12, 0.5, "refuse"),  # a gain of .04 is not above min_gain
        (100, 35, 40, 0.5, "refuse"),  # .40 - .35 is a hair more than .05 only for a computer
        (50, 10, 10, 1.0, "refuse"),
        (50, 20, 10, 0.2, "refuse"),
        (50, 20, 10, 0.01, "refuse"),
    ],
)
def test_gate_decides(cases: int, before: int, after: int, p_value: float, decision: str) -> None:
    counted = Comparison(cases=cases, before=before / cases, after=after / cases, gained=0, lost=0, p_value=p_value)
    found, reason = decide(Gate(min_gain=0.05), counted)
    assert found == decision
    assert reason.startswith("significantly worse") == (p_value == 0.01)


def test_a_margin_below_zero_takes_a_small_loss_unless_it_is_significant() -> None:
    loss = Comparison(cases=100, before=0.50, after=0.49, gained=2, lost=3, p_value=1.0)
    assert decide(Gate(min_gain=-0.02), loss)[0] == "promote"
    assert decide(Gate(), loss)[0] == "refuse"
    assert decide(Gate(min_gain=-0.02), msgspec.structs.replace(loss, p_value=0.01))[0] == "refuse"


def test_graded_scores_decide_where_the_bootstrap_is_chosen() -> None:
    def graded(score: float) -> Verdict:
        return Verdict(passed=score >= 5, score=score, max_score=5, judge="graded")

    ids = [str(n) for n in range(60)]
    before = {i: graded(2) for i in ids}
    after = {i: graded(4 if n % 3 else 1) for n, i in enumerate(ids)}  # nobody passes; the mean rises from 2 to 3
    by_score, by_passes = Gate(test="bootstrap"), Gate(test="mcnemar")
    found = compare(by_score, before, after, ids)
    assert (found.before, found.after, found.score_before) == (0, 0, 0.4)
    assert found.score_after == pytest.approx(0.6)
    assert found.score_low > 0
    assert decide(by_score, found)[0] == "promote"
    assert decide(by_score, compare(by_score, after, before, ids))[1].startswith("significantly worse: mean score")
    assert decide(by_passes, compare(by_passes, before, after, ids))[1].startswith("no gain: pass rate")


# The comparison


def test_gate_compares_both_on_the_same_cases_and_counts_rules(settings: Settings) -> None:
    engine = ToyEngine({NEW: TOY | {"red": "go"}, OLD: dict.fromkeys(TOY, "stop")})
    cache: AnswerCache = {}
    report, _ = run_gate(settings, "toy", engine, COLORS, candidate=NEW, incumbent=OLD, judge=toy_judge, cache=cache)
    assert (report.decision, report.cases, report.before, report.after) == ("promote", 4, 0.25, 0.75)
    assert (report.gained, report.lost, report.p_value) == (3, 1, 0.625)
    assert (report.violations_before, report.violations_after) == ({"exact": 3}, {"exact": 1})
    run_gate(settings, "toy", engine, COLORS, candidate=NEW, incumbent=OLD, judge=toy_judge, cache=cache)
    assert engine.asked == [OLD, NEW]  # the second gate took both from the cache


def test_thinking_is_asked_and_reported_besides_and_decides_nothing(settings: Settings) -> None:
    settings = with_task(settings, gate=Gate(min_holdout=4, thinking=True))
    wrong = dict.fromkeys(TOY, "?")
    engine = ToyEngine({NEW: TOY, "": wrong, f"{NEW} thinking": wrong, " thinking": TOY})
    report, _ = run_gate(settings, "toy", engine, COLORS, candidate=NEW, incumbent="", judge=toy_judge)
    assert (report.decision, report.before, report.after) == ("promote", 0.0, 1.0)
    assert report.thinking is not None
    assert (report.thinking.before, report.thinking.after, report.thinking.lost) == (1.0, 0.0, 4)


def test_gate_without_enough_holdout_asks_nobody(settings: Settings) -> None:
    engine = ToyEngine({})
    report, _ = run_gate(settings, "toy", engine, COLORS[:3], candidate=NEW, incumbent="", judge=toy_judge)
    assert (report.decision, report.cases, engine.asked) == ("undecided", 3, [])
    assert re.search("3 holdout cases.*intake.holdout_share", report.reason)


def test_an_incumbent_that_passes_everything_leaves_nothing_to_gain_and_the_reason_says_so(settings: Settings) -> None:
    report, _ = run_gate(
        settings, "toy", ToyEngine({NEW: TOY, OLD: TOY}), COLORS, candidate=NEW, incumbent=OLD, judge=toy_judge
    )
    assert report.decision == "refuse"
    assert "nothing left to gain" in report.reason


def test_a_case_beyond_the_context_counts_for_neither_and_too_many_are_an_error(settings: Settings) -> None:
    settings = with_task(settings, gate=Gate(min_holdout=3))
    short = {color: answer for color, answer in TOY.items() if color != "blue"}
    engine = ToyEngine({NEW: short, "": dict.fromkeys(TOY, "?")})
    report, _ = run_gate(settings, "toy", engine, COLORS, candidate=NEW, incumbent="", judge=toy_judge)
    assert (report.cases, report.after) == (3, 1.0)
    assert "1 cases could not be judged" in report.reason

    async def judge_is_down(messages: Sequence[Message], answer: str) -> Verdict:
        raise ModelUnavailable("503")

    with pytest.raises(ModelUnavailable, match="only 0 of 4"):
        run_gate(settings, "toy", engine, COLORS, candidate=NEW, incumbent="", judge=judge_is_down)


# The holdout


def test_the_holdout_stays_frozen_grows_at_its_end_and_fills_the_place_of_erased_cases(tmp_path: Path) -> None:
    def some(*numbers: int) -> list[HoldoutCase]:
        return [HoldoutCase(str(n), []) for n in numbers]

    def ids(cases: list[HoldoutCase], limit: int = 5) -> list[str]:
        return [case.case_id for case in freeze_holdout(tmp_path, "toy", cases, limit)]

    first = ids(some(1, 2, 3))
    assert sorted(first) == ["1", "2", "3"]
    grown = ids(some(*range(1, 20)))
    assert (grown[:3], len(grown)) == (first, 5)
    assert ids(some(*range(1, 40))) == grown
    assert ids(some(*range(1, 40)), limit=2) == grown[:2]
    without = ids([case for case in some(*range(1, 40)) if case.case_id != grown[0]])
    assert without[:4] == grown[1:]
    assert len(without) == 5


def test_holdout_cases_are_those_that_ended_as_holdout(tmp_path: Path) -> None:
    toy_gold(tmp_path)
    add_gold(tmp_path, [a_case("dead", "red", kind="dead", split="holdout")])
    assert sorted(case.case_id for case in holdout_cases(tmp_path, "toy")) == sorted(f"holdout-{c}" for c in TOY)


# The report


def test_the_report_as_json_holds_no_text_and_names_the_cases_that_changed(settings: Settings) -> None:
    engine = ToyEngine({NEW: TOY | {"red": "go", "blue": "??"}, OLD: TOY | {"amber": "??", "green": "??", "blue": "?"}})
    report, shown = run_gate(settings, "toy", engine, COLORS, candidate=NEW, incumbent=OLD, judge=toy_judge)
    # Losses and gains in turn, then failures that differ.
    assert [(e.case_id, e.change) for e in report.examples] == [
        ("red", "lost"),
        ("green", "gained"),
        ("amber", "gained"),
        ("blue", "failed"),
    ]
    assert report.examples[0].rules_after == ("exact",)
    assert [(one.before, one.after) for one in shown][:2] == [("stop", "go"), ("??", "go")]
    assert "??" not in msgspec.json.encode(report).decode()
    few = with_task(settings, gate=Gate(min_holdout=4, report_examples=0))
    assert run_gate(few, "toy", engine, COLORS, candidate=NEW, incumbent=OLD, judge=toy_judge).shown == []


class Tags(HTMLParser):
    """Collects what a browser would take for markup, and the text besides."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = [
    "<script>alert(1)</script>",
    "</pre></article></style></body><script src=//evil></script>",
    "\"'><img src=x onerror=alert(1)>",
    "<!-- <b>&lt;i&gt; ]]> &#60;script&#62;",
    "\u202eevil\x00\x1b[31m\ufeff",
    "</title><svg/onload=alert(1)>",
    "<a href='javascript:alert(1)'>x</a>",
]


def a_page(base: Path, hostile: str, **changes: object) -> str:
    violation = Violation("exact", hinge=hostile, why=hostile)
    messages = [Message("user", hostile), Message("assistant", [{"type": "text", "text": hostile}])]
    shown = Shown(hostile, "lost", messages, f"same {hostile} old", f"same {hostile} new", [], [violation])
    report = a_report(NEW, reason=hostile, judge=hostile, rubric=hostile, violations_before={hostile: 3}, **changes)
    manifest = a_manifest(base, NEW, settings={"recipe": hostile}, revision=hostile)
    history = [Gated(OLD, 0.2, 0.4, "promote"), Gated(NEW, 0.4, 0.5, "refuse")]
    return render_page(report, manifest, losses=[3.0, 2.0, 1.5], history=history, shown=[shown])


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_never_becomes_markup_and_is_there_to_be_read(base: Path, hostile: str) -> None:
    plain, page = Tags(a_page(base, "harmless")), Tags(a_page(base, hostile))
    assert {"script", "img", "a", "iframe", "link"}.isdisjoint(page.tags)
    kinds = {tag for tag in page.tags if tag not in ("del", "ins")}
    assert kinds == {tag for tag in plain.tags if tag not in ("del", "ins")}
    assert page.tags.count("article") == page.tags.count("details") == 1
    assert page.attributes == plain.attributes
    readable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in hostile)
    assert readable in page.text
    assert not re.search("[\u202e\x00\x1b]", a_page(base, hostile))


def test_the_page_is_self_contained_and_forbids_itself_to_load_or_run_anything(base: Path) -> None:
    page = a_page(base, "harmless")
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert not re.search(r"https?://|url\(|@import|src=", page)


def test_the_page_shows_curve_rules_versions_and_what_happens_next(base: Path) -> None:
    thinking = Comparison(cases=4, before=0.1, after=0.9, gained=3, lost=0, p_value=0.25)
    page = Tags(a_page(base, "harmless", promotion="shadow", thinking=thinking))
    assert page.tags.count("svg") == 2
    assert page.tags.count("polyline") == 1
    assert page.tags.count("circle") == 2
    for said in ("thinking on", "90.0%", "Shadow: it would have been promoted", "v0001", "McNemar", "3 steps"):
        assert said in page.text
    empty = Tags(render_page(a_report(NEW, decision="undecided"), a_manifest(base, NEW)))
    assert "svg" not in empty.tags
    assert "What served before keeps serving." in empty.text


def test_the_diff_marks_the_words_that_differ_and_long_texts_are_cut_with_a_note(base: Path) -> None:
    before, after = word_diff("give 5 mg daily", "give 50 mg daily")
    assert (before, after) == ("give <del>5</del> mg daily", "give <ins>50</ins> mg daily")
    assert word_diff("<b>", "<b>") == ("&lt;b&gt;", "&lt;b&gt;")
    assert word_diff("x " * 2000, "y") == ("x " * 2000, "y")  # too long to compare word by word
    page = a_page(base, "z" * (SHOWN_CHARS + 5))
    assert "more characters are not shown" in page


def test_a_broken_line_of_the_loss_log_costs_that_point_alone(tmp_path: Path) -> None:
    (tmp_path / "steps.jsonl").write_text('{"step": 1, "loss": 2.5}\nnot json\n{"step": 3}\n{"step": 4, "loss": 1.5}\n')
    assert read_losses(tmp_path) == [2.5, 1.5]
    assert read_losses(tmp_path / "missing") == []
