"""Calibration: figures of a judge against experts' labels, and what they are taken for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from agents.calibration import Example, calibrate, kappa, kappa_interval, share
from goldstream import cli
from schemas.case import Message, Verdict, Violation
from schemas.errors import LabelError
from schemas.settings import Rubric, Rule
from schemas.settings.verifiers import LengthCheck
from streams.labelled import read_examples

RUBRIC = Rubric(rules=(Rule(id="short", text="At most two words.", check=LengthCheck(max_words=2)),))


def example(passed: bool, *violated: str) -> Example:
    return Example("line 1", (Message("user", "?"),), "!", passed, frozenset(violated))


def verdict(passed: bool, *broken: str) -> Verdict:
    violations = tuple(Violation(rule) for rule in broken)
    return Verdict(passed=passed, score=0, max_score=1, judge="m", violations=violations)


def counted(both: int, judge_only: int, expert_only: int, neither: int) -> Any:
    """Returns the calibration of a judge with these cells."""
    cells = [(both, True, True), (judge_only, True, False), (expert_only, False, True), (neither, False, False)]
    pairs = [(judge, expert) for count, judge, expert in cells for _ in range(count)]
    return calibrate([example(expert) for _, expert in pairs], [verdict(judge) for judge, _ in pairs])


def test_kappa_is_that_of_the_textbook() -> None:
    assert kappa([20, 5, 10, 15]) == pytest.approx(0.4)  # Cohen's example: 50 cases, 0.7 agree, 0.5 by chance
    assert kappa([45, 15, 25, 15]) == pytest.approx(0.1304, abs=1e-4)
    assert kappa([50, 0, 0, 50]) == 1
    assert kappa([50, 0, 0, 0]) is None, "who never fails anything agrees by chance as well"


def test_an_interval_holds_the_true_kappa_about_as_often_as_it_says() -> None:
    import numpy as np

    rng = np.random.default_rng(5)
    truth = [0.35, 0.1, 0.1, 0.45]
    exact = kappa([35, 10, 10, 45])
    assert exact is not None
    held = 0
    for cells in rng.multinomial(80, truth, size=200):
        low, high = kappa_interval([int(count) for count in cells])
        held += low <= exact <= high
    assert 180 <= held <= 200


def test_full_agreement_on_few_examples_is_no_certainty() -> None:
    few, many = counted(6, 0, 0, 6), counted(100, 0, 0, 100)
    assert few.kappa == many.kappa == 1
    assert few.kappa_low < many.kappa_low < 1
    assert (few.decision, many.decision) == ("unclear", "good")
    assert "at least 10 of each" in few.reason


def test_a_judge_is_good_bad_or_not_yet_known() -> None:
    assert counted(90, 5, 5, 100).decision == "good"
    bad = counted(60, 40, 10, 60)
    assert bad.decision == "bad"
    assert "it passes what experts fail" in bad.reason
    assert counted(30, 6, 6, 30).decision == "unclear"
    assert counted(190, 2, 2, 5).decision == "unclear", "too few that experts fail"


def test_confusion_and_shares_tell_bad_answers_that_would_become_gold() -> None:
    found = counted(40, 5, 10, 45)
    assert (found.passed_both, found.passed_judge_only, found.passed_expert_only, found.failed_both) == (40, 5, 10, 45)
    assert (found.agreement.value, found.false_passes.value, found.false_failures.value) == (0.85, 0.1, 0.2)
    assert found.false_passes.of == 50
    assert share(0, 0).value is None
    assert share(5, 50).low == pytest.approx(0.0434, abs=1e-3)
    assert share(5, 50).high == pytest.approx(0.2136, abs=1e-3)


def test_each_rule_has_precision_and_recall_where_rules_were_labelled() -> None:
    unlabelled = Example("line 9", (Message("user", "?"),), "!", False, None)
    examples = [example(False, "a"), example(False, "a", "b"), example(True), unlabelled, example(False, "a")]
    verdicts = [verdict(False, "a"), verdict(False, "a"), verdict(False, "b"), verdict(False, "b"), None]
    found = calibrate(examples, verdicts)
    rules = {one.rule: (one.both, one.judge_only, one.expert_only, one.precision, one.recall) for one in found.rules}
    assert rules == {"a": (2, 0, 0, 1.0, 1.0), "b": (0, 1, 1, 0.0, 0.0)}
    assert (found.examples, found.unjudged) == (5, 1)


# Files


def test_examples_are_read_from_jsonl_and_parquet_alike(tmp_path: Path) -> None:
    records = [
        {"messages": [{"role": "user", "content": "Q"}], "answer": "A", "passed": True, "violated": []},
        {"messages": [{"role": "user", "content": "R"}], "answer": "B", "passed": False, "violated": ["short"]},
        {"messages": [{"role": "user", "content": "S"}], "answer": "C", "passed": True, "violated": None},
    ]
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    lines.write_text("\n\n".join(json.dumps(record) for record in records))
    pq.write_table(pa.Table.from_pylist(records), table)
    first, second = read_examples(lines, RUBRIC), read_examples(table, RUBRIC)
    assert [one[1:] for one in first] == [one[1:] for one in second]
    assert first[1] == Example(f"{lines}, line 3", (Message("user", "R"),), "B", False, frozenset({"short"}))
    assert first[2].violated is None
    assert len(read_examples(lines, RUBRIC, limit=2)) == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"prompt": "Q", "answer": "A", "pass', "line 2: not JSON"),
        ("[1]", "line 2: found no object"),
        ('{"prompt": "Q", "passed": true}', "messages and answer are needed"),
        ('{"messages": "Q", "answer": "A", "passed": true}', "messages: Expected `array`"),
        ('{"prompt": "Q", "answer": "A"}', "passed is None"),
        ('{"prompt": "Q", "answer": "A", "passed": "yes"}', "passed is 'yes'"),
        ('{"prompt": "Q", "answer": "A", "passed": true, "violated": "short"}', "expected a list of rule ids"),
        ('{"prompt": "Q", "answer": "A", "passed": true, "violated": ["long"]}', "it has short"),
    ],
)
def test_a_bad_example_is_named_with_its_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "Q", "answer": "A", "passed": true}\n' + line)
    with pytest.raises(LabelError) as caught:
        read_examples(path, RUBRIC)
    assert says in str(caught.value)


def test_files_that_hold_nothing_or_no_parquet_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "a.parquet").write_text("nothing")
    for name, says in (("a.jsonl", "holds no examples"), ("a.parquet", "cannot be read as Parquet")):
        with pytest.raises(LabelError, match=says):
            read_examples(tmp_path / name, RUBRIC)


# The commands


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "goldstream.toml"
    models = "".join(f'{role}.model = "scripted/scribe-judge"\n' for role in ("student", "refiner", "strategist"))
    rules = 'rules = [{ id = "short", text = "Two words.", check = { kind = "length", max_words = 2 } }]'
    path.write_text(
        f'state_dir = "{tmp_path / "state"}"\n[tasks.toy]\ntopics = ["logs"]\n{models}[tasks.toy.rubric]\n{rules}\n'
    )
    return path


@pytest.mark.parametrize(("wrong", "code", "says"), [(0, 0, "good enough"), (20, 1, "not good enough")])
def test_calibrate_ends_with_what_the_judge_is_worth(
    config: Path, tmp_path: Path, wrong: int, code: int, says: str
) -> None:
    labelled = tmp_path / "labelled.jsonl"
    records = [
        {"prompt": "?", "answer": "a b" if number % 2 else "a b c", "passed": bool(number % 2) is (number >= wrong)}
        for number in range(40)
    ]
    labelled.write_text("\n".join(json.dumps(record) for record in records))
    arguments = ["judge", "calibrate", str(labelled), "--config", str(config)]
    shown = CliRunner().invoke(cli, arguments)
    assert (shown.exit_code, says in shown.stdout) == (code, True)
    told = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert told["calibration"]["agreement"]["value"] == 1 - wrong / 40
    assert len(told["differing"]) == wrong


def test_one_answer_is_judged_from_standard_input(config: Path) -> None:
    arguments = ["judge", "test", "--config", str(config)]
    shown = CliRunner().invoke(cli, arguments, input='{"prompt": "?", "answer": "a b c"}', catch_exceptions=False)
    assert "FAILED with 0 of 1, pass mark 1 (the default: every point)" in shown.stdout
    told = CliRunner().invoke(cli, [*arguments, "--json"], input='{"prompt": "?", "answer": "a b"}')
    assert json.loads(told.stdout)["verdict"]["passed"] is True
