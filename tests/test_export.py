"""Exports of the gold set: which rows, in which shape, and that nothing half-written ever carries the name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from ended_cases import AT_MS, ended, land

from goldstream import cli
from schemas.case import Case, Message
from schemas.chat import strategy_text
from schemas.errors import GoldError
from schemas.gold import current_watermark
from schemas.settings import Settings, Task, Trainer
from schemas.settings.admission import Redact
from schemas.tools import answer_text
from streams.export.formats import FORMATS, Name
from streams.export.pairs import Choice
from streams.export.tables import PAIR_SCHEMA
from streams.export.write import Exported, export_gold
from trainer.contamination import uncontaminated
from trainer.dataset import train_rows

OF = {"type": "object", "properties": {"of": {}}}
TOOL = {"type": "function", "function": {"name": "dose", "description": "", "parameters": OF}}
CALL = {"id": "c1", "type": "function", "function": {"name": "dose", "arguments": '{"of": "metformin"}'}}
ASKED = (
    Message("system", "Be brief."),
    Message("user", "Hello"),
    Message("assistant", "Hello."),
    Message("user", "The dose?"),
    Message("assistant", None, tool_calls=[CALL]),
    Message("tool", "500 mg", tool_call_id="c1"),
)
LONG = "the patient reports a dry cough for two weeks and no fever at night since monday"
STRATEGY = "Mistake: greets first\nGuardrail: answer at once"
THOUGHT = f"<think>\n{STRATEGY}\n</think>\n\n"
AGAIN = {"id": "c1", "type": "function", "function": {"name": "dose", "arguments": '{"of": "aspirin"}'}}  # as templates


def at_once(number: int, **changes: Any) -> Case:
    """Returns a case whose first attempt passed."""
    case = ended(number, **changes)
    first = msgspec.structs.replace(case.attempts[1], round=0, source="student")
    return msgspec.structs.replace(case, attempts=(first,), strategy=None)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A gold set of a corrected case with tools, one that passed at once, a held-out one, and one like it."""
    task = Task(topics=("log",), redact=Redact(kinds=("email",)), trainer=Trainer(max_overlap=0.5))
    settings = Settings(state_dir=str(tmp_path / "state"), tasks={"scribe": task})
    asks = (Message("user", LONG),)
    land(settings.gold, [ended(0, messages=ASKED, tools=(TOOL,)), at_once(1, placeholders=("EMAIL_1", "EMAIL_2"))])
    held = msgspec.structs.replace(at_once(2, messages=asks), split="holdout").ended("holdout", "judge", AT_MS)
    land(settings.gold, [held, ended(3, messages=asks), ended(4, "unresolved"), ended(5, "dead")], partition=1)
    return settings


def export(settings: Settings, name: Name, out: Path, **choice: Any) -> Exported:
    return export_gold(settings, name, out, Choice(**({"pairs": FORMATS[name].pairs} | choice)))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_held_out_and_contaminated_rows_are_left_out_and_counted(settings: Settings, tmp_path: Path) -> None:
    found = export(settings, "trl", tmp_path / "out")
    assert (found.cases, found.pairs) == ({"train": 2}, {"A": 2, "B": 1})
    assert found.left_out == {"contaminated": 1, "holdout": 1}
    written = [(row["case_id"], row["pair"]) for row in lines(tmp_path / "out" / "train.jsonl")]
    assert written == [("req-0", "A"), ("req-0", "B"), ("req-1", "A")]


def test_what_is_left_out_is_what_training_leaves_out(settings: Settings, tmp_path: Path) -> None:
    then = current_watermark(settings.gold)
    rows = train_rows(settings.gold, "scribe", then)
    kept, contaminated = uncontaminated(rows, settings.gold, "scribe", then, 0.5)
    found = export(settings, "trl", tmp_path / "out")
    assert found.left_out["contaminated"] == contaminated == 1
    assert found.cases["train"] == len(kept)


def test_they_come_along_where_they_are_asked_for_the_held_out_ones_as_a_test_split(
    settings: Settings, tmp_path: Path
) -> None:
    found = export(settings, "hf", tmp_path / "out", with_holdout=True, with_contaminated=True)
    assert (found.cases, found.left_out) == ({"test": 1, "train": 3}, {})
    test = pq.read_table(tmp_path / "out" / "data" / "test-00000.parquet").to_pylist()
    assert [(row["case_id"], row["split"]) for row in test] == [("req-2", "test")]


def test_choices_narrow_the_rows(settings: Settings, tmp_path: Path) -> None:
    def cases(**choice: Any) -> list[str]:
        export_gold(settings, "trl", tmp_path / "out", Choice(**choice), force=True)
        return list(dict.fromkeys(row["case_id"] for row in lines(tmp_path / "out" / "train.jsonl")))

    assert cases(where="corrected -- the others passed at once") == ["req-0"]
    assert cases(task="scribe", since="2026-09-21", until="2026-09-21", pairs="sft") == ["req-0", "req-1"]
    for choice in ({"task": "other"}, {"since": "2026-09-22"}, {"until": "2026-09-20"}, {"where": "false"}):
        with pytest.raises(GoldError, match="nothing to export: no gold row fits"):
            cases(**choice)


MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"type": "string"},
        "name": {"type": ["string", "null"]},
        "tool_call_id": {"type": ["string", "null"]},
        "tool_calls": {
            "type": ["array", "null"],
            "items": {
                "type": "object",
                "required": ["id", "type", "function"],
                "properties": {
                    "type": {"const": "function"},
                    "function": {
                        "required": ["name", "arguments"],
                        "properties": {"arguments": {"type": "string"}},
                    },
                },
            },
        },
        "reasoning_content": {"type": ["string", "null"]},
        "training": {"type": "boolean"},
        "weight": {"enum": [0, 1]},
    },
    "additionalProperties": False,
}
MESSAGES = {"type": "array", "minItems": 1, "items": MESSAGE}
TURN = {
    "required": ["from", "value"],
    "properties": {"from": {"enum": ["human", "gpt", "function_call", "observation"]}},
}
SHAPES: dict[Name, dict[str, Any]] = {
    "trl": {
        "required": ["prompt", "completion", "chat_template_kwargs"],
        "properties": {
            "prompt": MESSAGES,
            "completion": MESSAGES | {"maxItems": 1},
            "tools": {"type": ["string", "null"]},
            "chat_template_kwargs": {"required": ["enable_thinking"]},
            "case_id": {},
            "pair": {"enum": ["A", "B"]},
        },
        "additionalProperties": False,
    },
    "axolotl": {
        "required": ["messages"],
        "properties": {
            "messages": {"items": MESSAGE | {"required": ["role", "content", "training"]}},
            "tools": {"items": {"properties": {"function": {"properties": {"parameters": {"type": "string"}}}}}},
        },
    },
    "llama-factory": {
        "required": ["conversations", "system", "tools"],
        "properties": {"conversations": {"items": TURN}, "system": {"type": "string"}, "tools": {"type": "string"}},
    },
    "openai": {
        "required": ["messages"],
        "properties": {"messages": MESSAGES, "tools": {"type": "array"}},
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_json_lines_are_of_the_formats_shape(settings: Settings, tmp_path: Path, name: Name) -> None:
    export(settings, name, tmp_path / "out", pairs="rgt")
    rows = lines(tmp_path / "out" / "train.jsonl")
    assert len(rows) == 3
    for row in rows:
        jsonschema.validate(row, SHAPES[name])


def test_trl_has_the_prompt_as_it_was_and_the_strategy_as_reasoning(settings: Settings, tmp_path: Path) -> None:
    export(settings, "trl", tmp_path / "out")
    a, b, _ = lines(tmp_path / "out" / "train.jsonl")
    assert [message["role"] for message in a["prompt"]] == [message.role for message in ASKED]
    assert a["prompt"] == b["prompt"]
    assert a["prompt"][4]["tool_calls"] == [CALL]
    assert (a["prompt"][5]["content"], a["prompt"][5]["tool_call_id"]) == ("500 mg", "c1")
    assert json.loads(a["tools"]) == [TOOL]
    assert a["completion"] == [{"role": "assistant", "content": "42", "tool_calls": None, "reasoning_content": None}]
    assert b["completion"][0]["reasoning_content"] == STRATEGY
    assert [row["chat_template_kwargs"]["enable_thinking"] for row in (a, b)] == [False, True]


def test_the_strategy_is_worded_as_our_own_training_words_it() -> None:
    strategy = ended(0).strategy
    assert strategy is not None
    assert strategy_text(strategy) == STRATEGY


def calls_again(number: int, words: str = "") -> Case:
    """Returns a case whose accepted answer calls a tool."""
    compact = CALL | {"function": {"name": "dose", "arguments": '{"of":"aspirin"}'}}
    case = ended(number, messages=ASKED, tools=(TOOL,))
    last = msgspec.structs.replace(case.attempts[1], text=answer_text(words, (compact,)), tool_calls=(compact,))
    return msgspec.structs.replace(case, attempts=(case.attempts[0], last))


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_that_calls_a_tool_is_a_call_in_every_format(settings: Settings, tmp_path: Path, name: Name) -> None:
    land(settings.gold, [calls_again(7), calls_again(8, "One moment.")])
    found = export(settings, name, tmp_path / "out", pairs="rgt")
    if name in ("parquet", "hf"):
        (path,) = (tmp_path / "out").rglob("*.parquet")
        rows = pq.read_table(path).to_pylist()
    else:
        rows = lines(tmp_path / "out" / "train.jsonl")
    said = [(row.get("completion") or row.get("messages") or row["conversations"])[-1] for row in rows]
    if name == "llama-factory":  # which has no turn of both
        assert found.left_out["words_and_calls"] == 1
        calling = [turn["value"] for turn in said if turn["from"] == "function_call"]
        assert calling == [start + '[{"name":"dose","arguments":{"of":"aspirin"}}]' for start in ("", THOUGHT)]
        return
    calling = [one for one in said if one.get("tool_calls")]
    assert [one["tool_calls"] for one in calling] == [[AGAIN]] * 4
    words = [one["content"].removeprefix(THOUGHT) for one in calling]
    assert words == ["", "", "One moment.", "One moment."]
    assert all("<tool_call>" not in json.dumps(row) for row in said)


def test_axolotl_trains_on_the_last_answer_alone(settings: Settings, tmp_path: Path) -> None:
    export(settings, "axolotl", tmp_path / "out")
    _, b, _ = lines(tmp_path / "out" / "train.jsonl")
    assert [message["training"] for message in b["messages"]] == [False] * 6 + [True]
    assert [message["reasoning_content"] for message in b["messages"]] == [None] * 6 + [STRATEGY]


def test_llama_factory_takes_turns_and_names_its_file(settings: Settings, tmp_path: Path) -> None:
    export(settings, "llama-factory", tmp_path / "out")
    _, b, _ = lines(tmp_path / "out" / "train.jsonl")
    turns = [(turn["from"], turn["value"]) for turn in b["conversations"]]
    assert turns == [
        ("human", "Hello"),
        ("gpt", "Hello."),
        ("human", "The dose?"),
        ("function_call", '[{"name":"dose","arguments":{"of":"metformin"}}]'),
        ("observation", "500 mg"),
        ("gpt", f"<think>\n{STRATEGY}\n</think>\n\n42"),
    ]
    assert b["system"] == "Be brief."
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert (info["out"]["file_name"], info["out"]["formatting"]) == ("train.jsonl", "sharegpt")


def test_a_prompt_that_llama_factory_cannot_hold_is_left_out_and_counted(settings: Settings, tmp_path: Path) -> None:
    land(settings.gold, [ended(6, messages=(Message("user", "a"), Message("user", "b")))])
    found = export(settings, "llama-factory", tmp_path / "out")
    assert (found.cases, found.left_out["no_alternation"]) == ({"train": 2}, 1)
    assert "req-6" not in (tmp_path / "out" / "train.jsonl").read_text()


def test_openai_gets_pair_a_alone_unless_told_and_no_loss_on_what_was_said_before(
    settings: Settings, tmp_path: Path
) -> None:
    assert export(settings, "openai", tmp_path / "out").pairs == {"A": 2}
    first, _ = lines(tmp_path / "out" / "train.jsonl")
    assert [message.get("weight") for message in first["messages"]] == [None, None, 0, None, 0, None, None]
    export(settings, "openai", tmp_path / "rgt", pairs="rgt")
    assert lines(tmp_path / "rgt" / "train.jsonl")[1]["messages"][-1]["content"].startswith("<think>\nMistake:")


def test_a_key_that_is_null_in_most_of_a_file_holds_a_value_near_its_beginning(
    settings: Settings, tmp_path: Path
) -> None:
    plain = [at_once(number, messages=(Message("user", f"{number} " * 2000),)) for number in range(10, 30)]
    land(settings.gold, [*plain, ended(30, messages=ASKED, tools=(TOOL,))], partition=2)
    export(settings, "trl", tmp_path / "out", where="kafka_partition = 2")
    rows = lines(tmp_path / "out" / "train.jsonl")
    assert [row["case_id"] for row in rows[:2]] == ["req-30", "req-30"]
    assert [row["case_id"] for row in rows[2:]] == [f"req-{number}" for number in range(10, 30)]


@pytest.mark.parametrize(("name", "path"), [("parquet", "train.parquet"), ("hf", "data/train-00000.parquet")])
def test_tables_have_fixed_types_and_say_where_a_pair_came_from(
    settings: Settings, tmp_path: Path, name: Name, path: str
) -> None:
    export(settings, name, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / path)
    assert table.schema.equals(PAIR_SCHEMA)
    _, b, last = table.to_pylist()
    assert (b["completion"][0]["reasoning_content"], b["answered_by"], b["corrected"]) == (STRATEGY, "teacher", True)
    assert (last["tools"], last["corrected"], last["accepted_by"]) == (None, False, "verifier:toy")


def test_an_answer_that_holds_think_tags_is_left_out(settings: Settings, tmp_path: Path) -> None:
    case = ended(6)
    tagged = msgspec.structs.replace(case.attempts[1], text="</think>42")
    land(settings.gold, [msgspec.structs.replace(case, attempts=(case.attempts[0], tagged))])
    assert export(settings, "trl", tmp_path / "out").left_out["think_tags"] == 1


def test_one_watermark_gives_the_same_bytes_whatever_came_later(settings: Settings, tmp_path: Path) -> None:
    then = current_watermark(settings.gold)
    first = export(settings, "hf", tmp_path / "a" / "out")
    land(settings.gold, [ended(7), at_once(0, epoch=1)])
    again = export_gold(settings, "hf", tmp_path / "b" / "out", Choice(), then)
    assert first == again
    assert export(settings, "hf", tmp_path / "now").files != first.files


def test_an_export_that_fails_half_way_leaves_nothing(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "exports"
    where = "case_id = 'req-0' OR error('no further')"
    with pytest.raises(GoldError, match="no further"):
        export(settings, "trl", folder / "out", where=where)
    assert list(folder.iterdir()) == []
    export(settings, "trl", folder / "out")
    before = (folder / "out" / "train.jsonl").read_bytes()
    with pytest.raises(GoldError, match="no further"):
        export_gold(settings, "trl", folder / "out", Choice(where=where), force=True)
    assert [path.name for path in folder.iterdir()] == ["out"]
    assert (folder / "out" / "train.jsonl").read_bytes() == before


def test_a_folder_that_is_taken_is_replaced_only_with_force_and_only_where_it_is_an_export(
    settings: Settings, tmp_path: Path
) -> None:
    export(settings, "trl", tmp_path / "out")
    with pytest.raises(GoldError, match="holds an export already"):
        export(settings, "trl", tmp_path / "out")
    export_gold(settings, "openai", tmp_path / "out", Choice(pairs="sft"), force=True)
    assert "prompt" not in lines(tmp_path / "out" / "train.jsonl")[0]
    for path in (tmp_path / "home" / "thesis.txt", tmp_path / "file"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        taken = path.parent if path.parent != tmp_path else path
        with pytest.raises(GoldError, match="not even with --force"):
            export_gold(settings, "trl", taken, Choice(), force=True)
        assert path.read_text() == "mine"


def test_the_card_counts_and_names_what_a_reader_must_know(settings: Settings, tmp_path: Path) -> None:
    export(settings, "hf", tmp_path / "out", with_holdout=True, where="task = 'scribe'")
    card = (tmp_path / "out" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    files = yaml.safe_load(front)["configs"][0]["data_files"]
    assert [(entry["split"], entry["path"]) for entry in files] == [
        ("train", ["data/train-00000.parquet"]),
        ("test", ["data/test-00000.parquet"]),
    ]
    assert all((tmp_path / "out" / path).is_file() for entry in files for path in entry["path"])
    for told in (
        "| train | 2 |",
        "| contaminated | 1 |",
        "| scribe | email |",
        "| email | 1 |",
        "| verifier:toy | 3 |",
        "where: `task = 'scribe'`",
        '{"0":2,"1":4}',
        "add `license:`",
    ):
        assert told in body
    assert "license" not in yaml.safe_load(front)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--where", "nope = 1"], "Expected a condition over the columns"),
        (["--where", "true) ; SELECT (1"], "more than one statement"),
        (["--where", "(("], "is no condition"),
        (["--since", "yesterday"], "no day; expected one such as"),
        (["--as-of", "v0099-abcdef"], "is no watermark"),
    ],
)
def test_a_wrong_choice_is_a_clear_error(settings: Settings, tmp_path: Path, options: list[str], message: str) -> None:
    command = ["gold", "export", str(tmp_path / "out"), "--format", "trl", "--set", f"state_dir={settings.state}"]
    result = CliRunner().invoke(cli, [*command, *options])
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_the_command_prints_what_it_wrote(settings: Settings, tmp_path: Path) -> None:
    command = ["gold", "export", str(tmp_path / "out"), "--format", "trl", "--set", f"state_dir={settings.state}"]
    result = CliRunner().invoke(cli, command)
    assert "3 pairs (2 A, 1 B)" in result.output
    assert "contaminated" in result.output
    again = CliRunner().invoke(cli, [*command, "--force", "--json"])
    assert json.loads(again.output)["cases"] == {"train": 2}
