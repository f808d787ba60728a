"""Rubrics in settings and in files of their own: what is read, and what each mistake is answered with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_settings import TASK, load

from schemas.errors import SettingsError
from schemas.settings.rubric_file import read_rubric

RULES = '[[rules]]\nid = "a"\ntext = "A."\n'
RULE_LINE = 'rules = [{ id = "a", text = "A.", points = 2 }, { id = "b", text = "B." }]'


def rule(check: str) -> str:
    """Returns a rubric whose only rule has this check."""
    return f"{RULES}check = {{ {check} }}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no rules"),
        (
            "scale = { highest = 10 }\n" + RULES,
            "says nowhere which grade passes. Add pass_mark, for example pass_mark = 8",
        ),
        ("scale = { highest = 10 }\npass_mark = 11\n" + RULES, "above 0 and at most 10, the scale's end"),
        ("scale = { lowest = 1, highest = 5 }\npass_mark = 1\n" + RULES, "above 1 and at most 5"),
        ("scale = { lowest = 5, highest = 1 }\npass_mark = 3\n" + RULES, "runs from 5 to 1; expected upwards"),
        ('pass_mark = 4\nscale = { highest = 5, levels = { "6" = "?" } }\n' + RULES, "'6' is no grade from 0 to 5"),
        ("pass_mark = 2\n" + RULES, "at most 1, the sum of the rules' points"),
        (RULES + "severe = true", "unknown key rules[0].severe"),
        (rule('kind = "magic"'), "expected one of json, regex, length, exact"),
        (rule("max_words = 3"), "missing required field `kind`"),
        (rule('kind = "length", max_wrds = 3'), "unknown key rules[0].check.max_wrds"),
        (rule('kind = "length"'), "expected a limit such as max_words"),
        (rule('kind = "length", min_words = 5, max_words = 3'), "min_words is 5, above max_words, 3"),
        (rule('kind = "length", max_tokens = 5'), "set tokenizer to a model folder"),
        (rule('kind = "regex"'), "expected patterns in must or must_not"),
        (rule("kind = 'regex', must = ['(']"), "'(' is no regular expression"),
        (rule('kind = "exact"'), "expected one of value, prompt_pattern and record"),
        (rule('kind = "numeric", value = 3, prompt_pattern = "x"'), "expected one of value, prompt_pattern and record"),
        (rule('kind = "exact", record = "feedback.["'), "is no JMESPath expression"),
        (rule('kind = "sections", required = []'), "rules[0].check.required"),
        (rule('kind = "from_source", entities = ["people"]'), "rules[0].check.entities"),
        (rule('kind = "python", function = ""'), "function is empty"),
        (rule("kind = 'json', schema = '{\"type\"'"), "schema is not JSON"),
        (rule('kind = "json", schema = { type = "thing" }'), "its schema is no JSON Schema"),
        (rule("kind = 'json', schema = '{\"$ref\": \"http://x/y.json\"}'"), "which is not in it. Nothing is fetched"),
        (rule("kind = 'json', schema = '{\"$ref\": \"#/$defs/none\"}'"), "which is not in it"),
        (rule('kind = "json", schema = { patternProperties = {}, unevaluatedProperties = false }'), "bounded time"),
        (rule('kind = "json", schema_file = "none.json"'), "none.json cannot be read"),
        ("rules = 3", "rules: Expected `array`"),
        ("[[rules", "cannot be read"),
        (TASK, "expected a rubric alone"),
    ],
)
def test_each_mistake_in_a_rubric_is_named_with_what_to_write(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rubric.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_rubric(path)
    assert says in str(caught.value)


def test_a_rubric_without_a_scale_or_a_pass_mark_asks_for_every_rule(tmp_path: Path) -> None:
    rubric = load(tmp_path, TASK).task("toy").rubric
    assert (rubric.mark, rubric.max_score) == (3, 3)


@pytest.mark.parametrize("named", ['rubric = "rubrics/toy.toml"', 'rubric = { file = "rubrics/toy.toml" }'])
def test_a_rubric_in_a_file_is_the_same_as_one_in_the_settings(tmp_path: Path, named: str) -> None:
    inline = load(tmp_path, TASK).task("toy").rubric
    (tmp_path / "rubrics").mkdir()
    (tmp_path / "rubrics" / "toy.toml").write_text(RULE_LINE)
    by_file = load(tmp_path, TASK.partition("[tasks.toy.rubric]")[0] + named).task("toy").rubric
    assert by_file == inline
    assert by_file.version() == inline.version()


def test_keys_beside_a_file_override_it(tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(RULE_LINE)
    text = TASK.partition("[tasks.toy.rubric]")[0] + 'rubric = { file = "toy.toml", pass_mark = 2 }'
    assert load(tmp_path, text).task("toy").rubric.mark == 2
    assert load(tmp_path, text, "tasks.toy.rubric.pass_mark=1").task("toy").rubric.mark == 1


def test_a_file_that_is_not_there_is_named_in_full(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml does not exist"):
        load(tmp_path, TASK.partition("[tasks.toy.rubric]")[0] + 'rubric = "none.toml"')


def test_a_json_schema_comes_from_toml_text_or_a_file_and_counts_for_the_version(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps({"type": "object"}))
    path = tmp_path / "rubric.toml"
    found = []
    for check in ('schema = { type = "object" }', 'schema = \'{"type": "object"}\'', 'schema_file = "schema.json"'):
        path.write_text(rule(f'kind = "json", {check}'))
        found.append(read_rubric(path).version())
    assert len(set(found)) == 1
    (tmp_path / "schema.json").write_text(json.dumps({"type": "array"}))
    assert read_rubric(path).version() not in found


@pytest.mark.parametrize(
    ("panel", "says"),
    [
        ("panel = { votes = 3 }", "judge.temperature is 0"),
        ("panel = { judges = [{}] }", "panel.judges[0].model is missing"),
        ('panel = { judges = [{ model = "openai/y" }], decide = "escalate" }', "panel.tie_break.model"),
        ('panel = { decide = "escalate", tie_break = { model = "openai/z" } }', "one vote is never a tie"),
        ('panel = { judges = [{ model = "openai/y" }], tie_break = { model = "openai/z" } }', "only asked with decide"),
        ('panel = { judges = [{ model = "openai/y", api_base = "http://user:pw@x/v1" }] }', "never allowed in URLs"),
    ],
)
def test_a_panel_that_cannot_work_is_refused(tmp_path: Path, panel: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, TASK.replace("judge = {", panel + "\njudge = {"))
    assert says in str(caught.value)
    assert "pw" not in str(caught.value)


def test_a_rubric_of_checks_alone_needs_no_judge(tmp_path: Path) -> None:
    text = TASK.replace('judge = { model = "openai/x" }', "")
    with pytest.raises(SettingsError, match="a check for every rule"):
        load(tmp_path, text)
    checked = text.replace(RULE_LINE, 'rules = [{ id = "a", text = "A.", check = { kind = "json" } }]')
    assert not load(tmp_path, checked).task("toy").rubric.needs_model
