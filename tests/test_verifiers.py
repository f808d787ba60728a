"""Checks that need no model: each finds its own fault, quotes it, and ends in time whatever the answer is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agents.verifiers import MOST_PER_RULE, find, run_checks
from agents.verifiers.python import load_verifier
from schemas.case import Message, Violation
from schemas.errors import SettingsError
from schemas.settings import Rule
from schemas.settings.verifiers import Check, SourceCheck

PROMPT = (
    Message("system", "You write notes for Dr. Jane Okafor. Today is 12 March 2026."),
    Message("user", "Metformin 500 mg twice a day, and two tablets of ramipril. Born 3/4/1980. Weight: 81.5 kg."),
)


def check(**table: Any) -> Check:
    """Returns a check as TOML would configure it."""
    return msgspec.convert(table, Check)  # type: ignore[arg-type, no-any-return]


def hinges(answer: str, **table: Any) -> list[str]:
    found = find(check(**table), PROMPT, answer)
    assert all(one.hinge in answer for one in found)
    assert all(one.why for one in found)
    return [one.hinge for one in found]


NUMBERS = {"items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "number"}}}
OBJECT = {"type": "object", "properties": {"dose": {"type": "number"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("answer", "table", "found"),
    [
        ('{"dose": 5}', {"kind": "json", "schema": OBJECT}, []),
        ('{"dose": "five"}', {"kind": "json", "schema": OBJECT}, ['"five"']),
        ('{"dose": 5, "x": 1}', {"kind": "json", "schema": OBJECT}, [""]),
        ("Here it is: {}", {"kind": "json"}, ["Here it is: {}"]),
        ("```json\n{}\n```", {"kind": "json"}, ["```json\n{}\n```"]),
        ("```json\n{}\n```", {"kind": "json", "code_block": True}, []),
        ('{"a": NaN}', {"kind": "json"}, [""]),
        ('["x"]', {"kind": "json", "schema": NUMBERS}, ['"x"']),
        ("[1, 1.0]", {"kind": "json", "schema": {"uniqueItems": True}}, [""]),
        ('[{"a": 1}, {"a": 2}]', {"kind": "json", "schema": {"uniqueItems": True}}, []),
        ("Sorry, no.", {"kind": "regex", "must_not": ["(?i)sorry"]}, ["Sorry"]),
        ("Sorry, no.", {"kind": "regex", "must_not": ["sorry"], "ignore_case": True}, ["Sorry"]),
        ("Call us.", {"kind": "regex", "must": [r"\bCall\b", r"\d{3}"]}, [""]),
        ("one two three four", {"kind": "length", "max_words": 2}, ["three four"]),
        ("one two", {"kind": "length", "max_words": 2, "min_lines": 1, "max_characters": 7}, []),
        ("one", {"kind": "length", "min_words": 2}, [""]),
        ("a\n\nb\nc", {"kind": "length", "max_lines": 2}, ["c"]),
        ("12345", {"kind": "length", "max_characters": 3}, ["45"]),
        (" Yes.\n", {"kind": "exact", "value": "Yes."}, []),
        ("yes.", {"kind": "exact", "value": "Yes."}, ["yes."]),
        ("yes.", {"kind": "exact", "value": "Yes.", "ignore_case": True}, []),
        ("born 3/4/1980", {"kind": "exact", "prompt_pattern": r"Born (\S+)\.", "answer_pattern": r"born (\S+)"}, []),
        ("born 3/5/1980", {"kind": "exact", "prompt_pattern": r"Born (\S+)\.", "answer_pattern": r"born (\S+)"},
         ["3/5/1980"]),
        ("x", {"kind": "exact", "prompt_pattern": "allergies: (.*)"}, [""]),
        ("That makes 1,000.50 in all.", {"kind": "numeric", "value": 1000.5}, []),
        ("0.1 and 0.2 are 0.3", {"kind": "numeric", "value": 0.3}, []),
        ("It is 82", {"kind": "numeric", "prompt_pattern": r"Weight: (\S+) kg", "tolerance": 0.4}, ["82"]),
        ("It is 82", {"kind": "numeric", "prompt_pattern": r"Weight: (\S+) kg", "relative_tolerance": 0.01}, []),
        ("I do not know", {"kind": "numeric", "value": 3}, [""]),
        ("## Findings\nnone\n**Plan:** rest", {"kind": "sections", "required": ["Findings", "Plan"]}, []),
        ("Plan: rest\nFindings: none", {"kind": "sections", "required": ["Findings", "Plan"]}, ["Findings: none"]),
        ("Findings:\nPlan: rest", {"kind": "sections", "required": ["Findings", "Plan"]}, ["Findings:"]),
        ("Plan: rest", {"kind": "sections", "required": ["Findings", "Plan"]}, [""]),
        ("Hello.\nPlan: rest\n# Extra\nx", {"kind": "sections", "required": ["Plan"], "only": True},
         ["# Extra", "Hello."]),
    ],
)  # fmt: skip
def test_each_check_finds_its_own_fault(answer: str, table: dict[str, Any], found: list[str]) -> None:
    assert hinges(answer, **table) == found


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Metformin 0.5 g 2 times a day, seen by Dr. Okafor on 2026-03-12.", []),
        ("Takes Metformin 850 mg twice.", ["850 mg"]),
        ("Takes metformin 500 mcg twice.", ["500 mcg"]),
        ("Two tablets, that is 2, of ramipril.", []),
        ("He takes Lisinopril and Ramipril.", ["Lisinopril"]),
        ("Seen at Mayo Clinic by Jane.", ["Mayo Clinic"]),
        ("Seen by Dr. Smith.", ["Smith"]),
        ("Born on 4 March 1980 or 3 April 1980.", []),
        ("Seen in March 2026, on March 12th.", []),
        ("Seen on 13 March 2026.", ["13 March 2026"]),
        ("Seen on 12 March 2025.", ["12 March 2025"]),
        ("1. Metformin\n2. Ramipril\n3. Weight 81.5 kg", []),
        ("Current Medication:\nmetformin. You may rest, and I'm sure.", []),
        ("B12 is low, 42 in all.", ["42"]),
    ],
)
def test_only_what_the_conversation_says_may_be_said(answer: str, found: list[str]) -> None:
    assert hinges(answer, kind="from_source") == found


def test_only_the_entities_asked_for_are_looked_at_and_some_may_be_allowed() -> None:
    answer = "He takes Lisinopril 10 mg since 2019."
    assert hinges(answer, kind="from_source", entities=["names"]) == ["Lisinopril"]
    assert hinges(answer, kind="from_source", entities=["numbers"]) == ["2019"], "10 belongs to a dose"
    assert hinges(answer, kind="from_source", allow=["Lisinopril 10 mg, 2019"]) == []


def test_tokens_are_counted_by_the_tokenizer_of_a_model_folder(base: Path) -> None:
    assert hinges("a b c d e f g h", kind="length", max_tokens=1000, tokenizer=str(base)) == []
    (surplus,) = hinges("a b c d e f g h", kind="length", max_tokens=3, tokenizer=str(base))
    assert "a b c d e f g h".endswith(surplus)


def test_violations_are_of_the_rule_that_has_the_check_and_few() -> None:
    rules = [
        Rule(
            id="sourced", text="No numbers of your own.", severity="critical", check=SourceCheck(entities=("numbers",))
        ),
        Rule(id="kind", text="Be kind."),
    ]
    found = run_checks(rules, PROMPT, " ".join(str(number) for number in range(1000, 1100)))
    assert [(v.rule, v.severity) for v in found] == [("sourced", "critical")] * MOST_PER_RULE


HOSTILE = {
    "one long word": "a" * 30_000 + "!",
    "numbers": "1 " * 30_000,
    "dates": "12 March 2026 " * 5_000,
    "names": "Aaa Bbb " * 8_000,
    "list": "1. \n" * 15_000,
    "brackets": "[" * 60_000,
    "objects": '{"a":' * 12_000,
    "twice the same": "[" + "{}," * 20_000 + "{}]",
    "headings": "Plan:\n" * 10_000,
    "spaces": " \n" * 30_000,
}
CHECKS: list[dict[str, Any]] = [
    {"kind": "from_source"},
    {"kind": "sections", "required": ["Plan"], "only": True},
    {"kind": "length", "max_words": 3, "max_lines": 3, "max_characters": 3},
    {"kind": "numeric", "value": 3},
    {"kind": "exact", "prompt_pattern": "(.*)*x", "answer_pattern": r"(\w+\s?)*$"},
    {"kind": "json", "schema": {"uniqueItems": True, "pattern": r"^(\w+\s?)*$"}},
    {"kind": "regex", "must": [r"^(\w|\w\w)+$", r"(.*)*=!"], "must_not": [r"(a|a)+\d"]},
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("table", CHECKS, ids=lambda table: str(table["kind"]))
@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_answer_keeps_a_check_busy(answer: str, table: dict[str, Any]) -> None:
    """The time limit of a search is 0.25 s; without it some of these take longer than the universe has."""
    find(check(**table), [Message("user", answer)], answer)


def test_a_search_without_an_end_is_a_violation_and_no_pass() -> None:
    (found,) = find(check(kind="regex", must_not=[r"(x+x+)+y\b(?<!y)"]), PROMPT, "x" * 5_000)
    assert "was not done" in found.why


def test_schema_keywords_with_patterns_are_bounded_too() -> None:
    schema = {"patternProperties": {r"^(x+x+)+y\b(?<!y)": {}}, "additionalProperties": False}
    (found,) = find(check(kind="json", schema=schema), PROMPT, '{"' + "x" * 5_000 + '": 1}')
    assert "was not done" in found.why


def noisy(messages: Any, answer: str, word: str = "hm") -> list[Violation | str]:
    """A verifier of a user's."""
    return [Violation("whatever", hinge=word, why="it hums"), "it is noisy"] if word in answer else []


def test_a_function_of_ones_own_takes_options_and_its_violations_are_of_its_rule() -> None:
    rule = Rule(
        id="quiet", text="Be quiet.", check=check(kind="python", function=f"{__name__}:noisy", options={"word": "la"})
    )
    assert run_checks([rule], PROMPT, "hm") == []
    found = run_checks([rule], PROMPT, "la la")
    assert [(v.rule, v.hinge, v.why, v.fix) for v in found] == [
        ("quiet", "la", "it hums", "Be quiet."),
        ("quiet", "", "it is noisy", "Be quiet."),
    ]


def test_an_installed_package_names_its_functions_in_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rules_of_mine.py").write_text("def verify(messages, answer):\n    return ['no']\n")
    info = tmp_path / "rules_of_mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rules-of-mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[goldstream.verifiers]\nmine = rules_of_mine:verify\n")
    monkeypatch.syspath_prepend(tmp_path)
    load_verifier.cache_clear()
    try:
        assert [one.why for one in find(check(kind="python", function="mine"), PROMPT, "x")] == ["no"]
    finally:
        load_verifier.cache_clear()
        sys.modules.pop("rules_of_mine", None)


@pytest.mark.parametrize("name", ["nowhere:verify", "nothing-installed", f"{__name__}:missing"])
def test_a_function_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load_verifier(name)


def test_a_function_that_returns_something_else_is_told_what_to_return() -> None:
    with pytest.raises(SettingsError, match=r"returned a int.*Violation"):
        find(check(kind="python", function=f"{__name__}:numbers"), PROMPT, "x")


def numbers(messages: Any, answer: str) -> list[Any]:
    return [1]
