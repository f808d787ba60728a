"""Records of unknown shapes, mapped by expressions; and the commands that show and propose mappings."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from pipeline import STUB_TASK, openai_record, produce
from steps import Make, command_line, start

from goldstream import cli
from schemas.errors import RecordError, SettingsError
from schemas.settings import Mapping, Settings, load_settings
from streams.reader import Reader
from streams.records import Found, Record

SAMPLES = Path(__file__).parent.parent / "deploy" / "samples"
TURNS = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


def read(mapping: Mapping, body: Any) -> list[Found]:
    return Reader(Settings(map={"t": mapping})).read(json.dumps(body).encode(), (), "t")


def record(mapping: Mapping, body: Any) -> Record:
    (found,) = read(mapping, body)
    assert isinstance(found.record, Record), found
    return found.record


def reason(mapping: Mapping, body: Any) -> RecordError:
    (found,) = read(mapping, body)
    assert isinstance(found.record, RecordError), found
    return found.record


def test_each_canonical_field_can_be_mapped() -> None:
    mapping = Mapping(
        messages="m", completion="c", tools="t", params="p", event_id="ids[0]", ts="at", source="s", trace_id="tr",
        session_id="se", workload="w", user="u", model="mo", usage="us", finish_reason="f", status="st", cost="co",
        feedback="fb",
    )  # fmt: skip
    body = {
        "m": TURNS[:1], "c": "hi", "t": [{"name": "f", "parameters": {}}], "p": {"temperature": 0, "secret": "x"},
        "ids": [17], "at": "2026-11-20T12:00:00Z", "s": "api", "tr": "t1", "se": "s1", "w": "w1", "u": "u1",
        "mo": "big", "us": {"input_tokens": 5, "output_tokens": "7"}, "f": "stop", "st": "OK", "co": "0.25",
        "fb": {"thumb": 1},
    }  # fmt: skip
    found = record(mapping, body)
    assert (found.answer, found.event_id, found.ts_ms, found.source) == ("hi", "17", 1795176000000, "api")
    assert (found.trace_id, found.session_id, found.workload, found.user) == ("t1", "s1", "w1", "u1")
    assert (found.model, found.prompt_tokens, found.completion_tokens) == ("big", 5, 7)
    assert (found.finish_reason, found.cost_usd, found.feedback) == ("stop", 0.25, {"thumb": 1})
    assert found.tools == ({"type": "function", "function": {"name": "f"}},)
    assert (found.params, found.shape) == ({"temperature": 0}, "mapped")


def test_a_prompt_may_be_a_text_with_a_system_prompt_apart() -> None:
    found = record(Mapping(prompt="q", system="s", completion="a"), {"q": "hello", "s": "be brief", "a": "hi"})
    assert [(m.role, m.content) for m in found.messages] == [("system", "be brief"), ("user", "hello")]


def test_turns_are_projected_and_split_before_the_answer() -> None:
    body = {"turns": [{"who": "human", "said": "hello"}, {"who": "ai", "said": "hi"}]}
    found = record(Mapping(messages="turns[].{role: who, content: said}"), body)
    assert ([m.role for m in found.messages], found.answer) == (["user"], "hi")


def test_a_record_of_several_calls_is_taken_apart() -> None:
    body = {"calls": [{"q": "one"}, {"q": 2}, {"q": "three"}]}
    found = read(Mapping(items="calls", prompt="q"), body)
    assert [one.record.reason if isinstance(one.record, RecordError) else "" for one in found] == ["", "wrong_type", ""]
    assert [one.index for one in found] == [0, 1, 2]


def test_a_mapping_adds_to_a_known_shape_and_counts_before_it() -> None:
    body = {"messages": TURNS[:1], "id": "a", "our": {"visit": "v1", "id": "b"}}
    found = record(Mapping(session_id="our.visit", event_id="our.id"), body)
    assert (found.session_id, found.event_id, found.shape) == ("v1", "b", "openai-chat")


def test_known_shapes_beside_mapped_ones_are_still_read() -> None:
    assert record(Mapping(prompt="q"), {"messages": TURNS[:1]}).shape == "openai-chat"


def test_envelopes_come_off_before_a_mapping_is_tried() -> None:
    event = {"specversion": "1.0", "id": "e", "source": "s", "data": {"payload": {"op": "c", "after": {"q": "hello"}}}}
    found = record(Mapping(prompt="q"), event)
    assert (found.shape, found.event_id) == ("cloudevents/debezium/mapped", "s#e")


def test_a_mapping_that_matches_nothing_says_which_expression_and_what_is_there() -> None:
    error = reason(Mapping(prompt="a.q"), {"question": "s3cret"})
    assert error.reason == "no_mapping_match"
    assert "map.prompt 'a.q'" in error.detail
    assert "question" in error.detail
    assert "s3cret" not in error.detail


@pytest.mark.parametrize(
    ("mapping", "body"),
    [
        (Mapping(prompt="length(q)"), {"q": 5}),
        (Mapping(prompt="q"), {"q": 5}),
        (Mapping(prompt="sum(q)"), {"q": ["a"]}),
        (Mapping(messages="q"), {"q": {"a": 1}}),
        (Mapping(prompt="q", system="q2"), {"q": "x", "q2": 5}),
        (Mapping(prompt="sort_by(q, &x)"), {"q": [{"x": 1}, {"x": "a"}]}),
    ],
)
def test_an_expression_that_finds_another_type_is_a_reason(mapping: Mapping, body: Any) -> None:
    assert reason(mapping, body).reason == "wrong_type"


@pytest.mark.parametrize(("status", "well"), [("success", True), (200, True), ("error", False), (500, False)])
def test_a_status_decides_whether_the_call_went_well(status: Any, well: bool) -> None:
    (found,) = read(Mapping(prompt="q", status="s"), {"q": "hello", "s": status})
    assert isinstance(found.record, Record) is well
    assert well or (isinstance(found.record, RecordError) and found.record.reason == "failed_call")


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('[tasks.toy.map]\nprompt = "a..b"', "tasks.toy.map.prompt.*no JMESPath"),
        ('[map.logs]\nprompt = "a b"', "no JMESPath"),
        ('[map.logs]\nprompt = "nothere(a)"', "nothere"),
        ('[map.logs]\nquestion = "a"', "unknown key map.*question"),
        ('[map.logs]\nprompt = "a"\nmessages = "b"', "both messages and prompt"),
        ('[map.logs]\nsystem = "a"', "needs messages or prompt"),
        ('[map.other]\nprompt = "a"', "no task reads the topic other"),
    ],
)
def test_a_mapping_written_wrongly_is_told_when_settings_are_loaded(tmp_path: Path, toml: str, said: str) -> None:
    path = tmp_path / "goldstream.toml"
    path.write_text(f"{STUB_TASK.format(topic='logs', api_base='http://x')}\n{toml}\n")
    with pytest.raises(SettingsError, match=said):
        load_settings(path, environ={})


def test_a_topics_mapping_comes_before_its_tasks(tmp_path: Path) -> None:
    path = tmp_path / "goldstream.toml"
    toml = STUB_TASK.format(topic='logs", "more', api_base="http://x") + '[tasks.toy.map]\nprompt = "a"\n'
    path.write_text(toml + '[map.more]\nprompt = "b"\n')
    settings = load_settings(path, environ={})
    assert [settings.mapping(topic).prompt for topic in ("logs", "more", "none")] == ["a", "b", ""]


# The commands


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["map", *arguments])


def test_every_sample_can_be_looked_at(tmp_path: Path) -> None:
    registry = f"schema_registry.folder={SAMPLES / 'schemas'}"
    for path in sorted(SAMPLES.glob("*.*")):
        result = run("test", str(path), "--json", "--set", registry)
        seen = json.loads(result.stdout)
        assert seen
        assert all(one["becomes"] == "case" or one["means"] for one in seen)
        assert result.exit_code == (0 if any(one["becomes"] == "case" for one in seen) else 1)
        assert run("test", str(path), "--set", registry).exit_code == result.exit_code


def test_what_is_missing_is_told_with_what_follows_from_it(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text('{"messages": [{"role": "user", "content": "hello \\u001b[31m"}]}')
    result = run("test", str(path))
    assert result.exit_code == 0
    assert "openai-chat" in result.output
    assert "missing  event_id: the case is named by its place" in result.output
    assert "\x1b" not in result.output


def test_a_proposed_mapping_reads_what_it_was_made_from(tmp_path: Path) -> None:
    unknown = [json.loads((SAMPLES / "unknown.json").read_text())]
    sharegpt = [
        {"id": n, "conversations": [{"from": "human", "value": f"q {n}"}, {"from": "gpt", "value": "a"}]}
        for n in (1, 2)
    ]
    odd = [{"my-question": f"what is {n}?", "the reply": "so it is", "n": n} for n in range(3)]
    nameless = [{"x1": f"a longer text that asks for {n}", "x2": "a short text"} for n in range(3)]
    for number, bodies in enumerate((unknown, sharegpt, odd, nameless)):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("\n".join(json.dumps(body) for body in bodies))
        printed = run("infer", str(path), "--topic", "my.topic").output
        mapping = msgspec.convert(tomllib.loads(printed)["map"]["my.topic"], Mapping)
        for body in bodies:
            assert record(mapping, body).answer
        assert f"reads {len(bodies)}" in printed


def test_a_mapping_is_proposed_for_what_is_inside_the_envelopes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"payload": {"op": "c", "after": {"id": n, "input": f"q {n}", "output": "a"}}} for n in range(3)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    printed = run("infer", str(path)).output
    mapping = msgspec.convert(tomllib.loads(printed)["map"]["YOUR-TOPIC"], Mapping)
    assert (mapping.prompt, mapping.completion, mapping.event_id) == ("input", "output", "id")
    assert record(mapping, rows[1]).shape == "debezium/mapped"


def test_known_shapes_need_no_mapping_and_hopeless_records_get_none(tmp_path: Path) -> None:
    assert "no mapping is needed" in run("infer", str(SAMPLES / "litellm.json")).output
    path = tmp_path / "none.json"
    path.write_text('{"a": 1, "b": [true]}')
    result = run("infer", str(path))
    assert result.exit_code != 0
    assert "no prompt found" in str(result.output) + str(result.exception)


def test_the_last_records_of_a_topic_are_shown_without_touching_it(make_settings: Make, tmp_path: Path) -> None:
    settings = start(make_settings, "logs-look")
    produce(settings, "logs-look", [*(openai_record(f"q {n}", f"req-{n}") for n in range(5)), b"no JSON"])
    result = command_line(settings, tmp_path, "map", "test", "--topic", "logs-look", "--last", "3", "--json")
    seen = json.loads(result.stdout)
    assert [one["record"] for one in seen] == [f"logs-look[0]@{n}" for n in (3, 4, 5)]
    assert [one["prompt"] for one in seen] == ["q 3", "q 4", ""]
    assert seen[2]["reason"] == "not_json"
    result = command_line(settings, tmp_path, "map", "test", "--topic", "nowhere")
    assert "no topic nowhere" in str(result.exception)
