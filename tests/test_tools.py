"""Calls of tools from the log to the trained tokens: offered, answered, judged, repaired, trained as served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stub_models import Reply, StubModels
from tiny import CALLING_TEMPLATE, make_tiny_model
from toys import add_gold, with_task

from agents.expert import Decision, decided_case
from agents.judge import judge, judge_answer
from agents.local import LocalEngine
from agents.models import Models
from agents.prompts import read_fences
from agents.refiner import refine
from agents.student import attempt, carried_over
from agents.verifiers.tool_calls import check_calls
from schemas.case import Attempt, Case, Message, Source, Verdict
from schemas.chat import render_answer, render_prompt, split_thinking
from schemas.outcomes import outcome_row, outcome_table
from schemas.record import case_record
from schemas.settings import CarryOver, LocalModel, Model, Rubric, Rule, Settings, Task
from schemas.settings.verifiers import ToolCallsCheck
from schemas.tools import answer_text, answer_words, read_answer, template_tools
from trainer.dataset import build_examples
from trainer.gate import offered_tools, run_gate
from trainer.holdout import HoldoutCase, holdout_cases

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:litellm.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pydantic.*"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "mg": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Finds a dose.", "parameters": SCHEMA}}


def a_call(arguments: str = '{"name": "metformin"}', name: str = "look_up", id: str = "call_1") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def a_case(**fields: Any) -> Case:
    source = Source(cluster="c", topic="t", partition=0, offset=0)
    known: dict[str, Any] = {
        "messages": (Message("user", "What is the dose of metformin?"),),
        "tools": (TOOL,),
        "params": {"tool_choice": "auto", "temperature": 0.9},
    }
    return Case(case_id="x", task="toy", split="train", source=source, **(known | fields))


def calling(*calls: dict[str, Any], text: str | None = None) -> Reply:
    message = {"role": "assistant", "content": text, "tool_calls": list(calls) or None}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return Reply(raw=json.dumps(body).encode())


def toy(model: Model, **task: Any) -> Settings:
    rules = (Rule(id="kind", text="be kind"),)
    known = {"topics": ("log",), "rubric": Rubric(rules=rules), "student": model, "judge": model, "refiner": model}
    return Settings(tasks={"toy": Task(**(known | task))})


async def asked(settings: Settings, act: Any, case: Case) -> Case:
    models = Models(settings)
    try:
        done: Case = await act(case, settings, models, deadline=asyncio.get_running_loop().time() + 20)
        return done
    finally:
        await models.close()


@pytest.mark.parametrize(("provider", "direct"), [("openai", True), ("hosted_vllm", True), ("hosted_vllm", False)])
def test_a_students_call_offers_the_tools_and_its_answer_keeps_the_calls(
    models: StubModels, provider: str, direct: bool
) -> None:
    models.answer = lambda request: calling(a_call('{"name":  "metformin"}', id="call_9"), text="Let me see.")
    settings = toy(Model(model=f"{provider}/m", api_base=models.api_base, extra={"api_key": "none"}, direct=direct))
    (first,) = asyncio.run(asked(settings, attempt, a_case())).attempts
    (request,) = models.requests
    assert request["tools"] == [TOOL]  # additionalProperties as well, which LiteLLM takes out for vLLM
    assert (request["tool_choice"], request["temperature"]) == ("auto", 0.0)
    assert first.tool_calls == (a_call('{"name":  "metformin"}', id="call_9"),)
    assert (
        first.text == 'Let me see.\n<tool_call>\n{"name": "look_up", "arguments": {"name": "metformin"}}\n</tool_call>'
    )
    assert answer_words(first.text, first.tool_calls) == "Let me see."


@pytest.mark.parametrize("direct", [True, False])
def test_an_answer_of_calls_alone_is_an_answer_and_calls_left_in_the_text_are_read(
    models: StubModels, direct: bool
) -> None:
    settings = toy(Model(model="hosted_vllm/m", api_base=models.api_base, direct=direct))
    models.answer = lambda request: calling(a_call())
    (alone,) = asyncio.run(asked(settings, attempt, a_case())).attempts
    models.answer = lambda request: Reply(
        '<think>hm</think>\n<tool_call>{"name":"look_up","arguments":{"mg":5}}</tool_call>'
    )
    (read,) = asyncio.run(asked(settings, attempt, a_case())).attempts
    assert alone.text.startswith("<tool_call>")
    assert read.tool_calls == (a_call('{"mg": 5}'),)
    (plain,) = asyncio.run(asked(settings, attempt, a_case(tools=()))).attempts  # nobody offered a tool: it is text
    assert plain.tool_calls == ()
    assert "tools" not in models.requests[-1]
    assert "tool_choice" not in models.requests[-1]


def test_settings_decide_what_of_the_products_call_is_repeated() -> None:
    params = {"tool_choice": {"type": "any"}, "response_format": {"type": "json_object"}, "temperature": 0.9, "stop": 1}
    case = a_case(params=params)
    assert carried_over(case, CarryOver()) == {
        "tools": [TOOL], "tool_choice": "required", "response_format": {"type": "json_object"}
    }  # fmt: skip
    assert carried_over(case, CarryOver(tools=False)) == {"response_format": {"type": "json_object"}}
    assert carried_over(case, CarryOver(tools=False, params=("temperature",))) == {"temperature": 0.9}
    assert carried_over(a_case(tools=(), params={"response_format": "odd"}), CarryOver()) == {}
    named = {"type": "tool", "name": "look_up"}  # as Anthropic's log has it
    told = carried_over(a_case(params={"tool_choice": named}), CarryOver())
    assert told["tool_choice"] == {"type": "function", "function": {"name": "look_up"}}


def test_the_products_calls_are_attempt_0_where_the_task_says_so() -> None:
    settings = toy(Model(model="scripted/none"), first_attempt="production")
    case = a_case(production_tool_calls=(a_call(),), production_model="gpt")
    (first,) = asyncio.run(asked(settings, attempt, case)).attempts
    assert (first.source, first.model, first.tool_calls) == ("production", "gpt", (a_call(),))
    assert first.text == answer_text("", (a_call(),))


def test_judge_and_refiner_are_shown_tools_and_calls_and_the_refiner_writes_calls(models: StubModels) -> None:
    settings = toy(Model(model="hosted_vllm/m", api_base=models.api_base))
    bad = Attempt(
        round=0, source="student", text=answer_text("", (a_call("{}"),)), model="m", tool_calls=(a_call("{}"),)
    )
    told = '{"violations": [{"rule": "kind", "hinge": "\\"arguments\\": {}", "why": "no name", "fix": "name it"}]}'
    models.answer = lambda request: Reply(told)
    judged = asyncio.run(asked(settings, judge, a_case(attempts=(bad,))))
    sections = read_fences(models.requests[-1]["messages"][1]["content"])
    assert json.loads(sections["tools"]) == [TOOL]
    assert sections["draft"] == bad.text
    assert judged.attempts[0].verdict is not None
    assert judged.attempts[0].verdict.violations[0].hinge == '"arguments": {}'
    models.answer = lambda request: Reply('<tool_call>\n{"name": "look_up", "arguments": {"name": "x"}}\n</tool_call>')
    refined = asyncio.run(asked(settings, refine, judged)).attempts[-1]
    assert refined.tool_calls == (a_call('{"name": "x"}'),)
    assert "tools" not in models.requests[-1]  # shown as data, not offered


def test_an_experts_edit_holds_calls_too() -> None:
    passed = Verdict(passed=True, score=1, max_score=1, judge="j")
    case = a_case(attempts=(Attempt(round=0, source="student", text="5", model="m", verdict=passed),)).ended(
        "gold", "judge", 1
    )
    edit = Decision(decision="edit", by="ann", text=answer_text("", (a_call(),)))
    assert decided_case(case, edit, 1, False).attempts[-1].tool_calls == (a_call(),)


@pytest.mark.parametrize(
    ("answer", "check", "why"),
    [
        (answer_text("", (a_call(),)), ToolCallsCheck(), None),
        (answer_text("", (a_call('{"name": "x", "mg": 5}'),)), ToolCallsCheck(required=True, most=1), None),
        ("500 mg", ToolCallsCheck(), None),
        ("500 mg", ToolCallsCheck(required=True), "calls no tool"),
        (answer_text("", (a_call(name="drop"),)), ToolCallsCheck(), "'drop' is no tool"),
        (answer_text("", (a_call(),)), ToolCallsCheck(only=("other",)), "'look_up' is no tool"),
        (answer_text("", (a_call("{}"),)), ToolCallsCheck(), "'name' is a required property"),
        (answer_text("", (a_call('{"name": "x", "dose": 5}'),)), ToolCallsCheck(), "'dose' is not expected"),
        (answer_text("", (a_call('{"name": '),)), ToolCallsCheck(), "not JSON"),
        (answer_text("", (a_call("[1]"),)), ToolCallsCheck(), "no JSON object"),
        ('<tool_call>{"name": "look_up", </tool_call>', ToolCallsCheck(), "not one JSON object"),
        ("<tool_call>", ToolCallsCheck(), "not one JSON object"),
        (answer_text("", (a_call(), a_call())), ToolCallsCheck(most=1), "makes 2 calls"),
    ],
)
def test_a_check_objects_to_calls_that_could_not_be_made(answer: str, check: ToolCallsCheck, why: str | None) -> None:
    settings = toy(Model(), rubric=Rubric(rules=(Rule(id="calls", text="call well", check=check),)))
    verdict, _ = asyncio.run(
        judge_answer(settings, None, "toy", a_case().messages, answer, deadline=0, record=case_record(a_case()))
    )
    assert verdict.passed is (why is None)
    assert why is None or why in verdict.violations[0].why
    assert all(violation.hinge in answer for violation in verdict.violations)


def test_schemas_of_strangers_cannot_hang_the_check_or_fetch_anything() -> None:
    for schema in (
        {"type": "object", "properties": {"name": {"pattern": "(a+)+$"}}},
        {"$ref": "http://192.0.2.1/schema"},
        {"type": "objekt"},
    ):
        tool = {"function": {"name": "look_up", "parameters": schema}}
        answer = answer_text("", (a_call(json.dumps({"name": "a" * 40 + "!"})),))
        assert check_calls(ToolCallsCheck(), answer, {"tools": [tool]})


def test_reading_back_what_was_written_gives_the_same_and_takes_time_in_proportion() -> None:
    for calls in ((a_call(),), (a_call('{"a": "</tool_call>"}'), a_call("{}", "f", "call_2")), ()):
        text = answer_text("See:", calls)
        assert read_answer(text) == (text, calls)
        assert answer_words(text, calls) == "See:"
    assert read_answer("<tool_call>" * 100_000)[1] == ()
    assert len(read_answer(answer_text("", (a_call("{}"),)) * 20_000)[1]) == 20_000


@pytest.fixture(scope="module")
def calling_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a template that knows tools."""
    folder = make_tiny_model(tmp_path_factory.mktemp("calling") / "tiny", context=1024)
    (folder / "chat_template.jinja").write_text(CALLING_TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def engine(calling_base: Path) -> Iterator[LocalEngine]:
    made = LocalEngine(calling_base, threads=1)
    yield made
    made.close()


def gold_of(case: Case, *calls: dict[str, Any], words: str = "") -> Case:
    passed = Verdict(passed=True, score=1, max_score=1, judge="j")
    told = Attempt(
        round=0, source="student", text=answer_text(words, calls), model="m", tool_calls=calls, verdict=passed
    )
    return msgspec.structs.replace(case, attempts=(told,)).ended("gold", "judge", 1)


def test_training_has_the_tokens_of_serving(engine: LocalEngine) -> None:
    """The prompt's tokens are those the engine was asked with; the answer's are those it would write."""
    tokenizer = engine._tokenizer
    earlier = (
        Message("user", "Dose?"),
        Message("assistant", None, tool_calls=[a_call()]),
        Message("tool", "500 mg", tool_call_id="call_1"),
        Message("user", "And of aspirin?"),
    )
    case = a_case(messages=earlier, tools=({"name": "look_up", "parameters": SCHEMA},))  # flat: another vendor's log
    second = a_call('{"name":"aspirin"}', id="call_2")
    rows = outcome_table([outcome_row(gold_of(case, second, words="One moment."), 0, 0)])
    (example,) = build_examples(rows, tokenizer, recipe="isft", strategy_weight=1.0, max_length=1024).examples
    told = carried_over(case, CarryOver())
    request = engine._request(case.messages, "", 0.0, 8, False, None, lambda result: None, told["tools"])
    assert list(example.input_ids[: example.prompt_tokens]) == request.ids
    answered = tokenizer.decode(list(example.input_ids[example.prompt_tokens :]))
    assert answered == (
        'One moment.\n<tool_call>\n{"name": "look_up", "arguments": {"name": "aspirin"}}\n</tool_call><|im_end|>'
    )
    assert read_answer(answered.removesuffix("<|im_end|>"))[1] == (a_call('{"name": "aspirin"}'),)
    prompt = tokenizer.decode(request.ids)
    assert '"look_up"' in prompt
    assert '{"name": "look_up", "arguments": {"name": "metformin"}}' in prompt


def test_without_tools_in_the_settings_training_leaves_them_out_as_serving_does(engine: LocalEngine) -> None:
    rows = outcome_table([outcome_row(gold_of(a_case(), words="500 mg"), 0, 0)])
    with_tools, without = (
        build_examples(rows, engine._tokenizer, recipe="isft", strategy_weight=1.0, max_length=1024, tools=tools)
        for tools in (True, False)
    )
    bare = engine._request(a_case().messages, "", 0.0, 8, False, None, lambda result: None)
    assert list(without.examples[0].input_ids[: without.examples[0].prompt_tokens]) == bare.ids
    assert with_tools.examples[0].prompt_tokens > without.examples[0].prompt_tokens


def test_a_base_whose_template_knows_no_calls_leaves_such_answers_out_and_counts_them(tokenizer: Any) -> None:
    cases = [gold_of(a_case(), a_call()), gold_of(a_case(), words="500 mg")]
    rows = outcome_table([outcome_row(msgspec.structs.replace(c, case_id=str(n)), 0, n) for n, c in enumerate(cases)])
    data = build_examples(rows, tokenizer, recipe="isft", strategy_weight=1.0, max_length=512)
    assert (data.skipped, data.cases) == ({"no_call_template": 1}, 1)


def test_local_models_and_the_gate_offer_the_tools_of_each_prompt(
    calling_base: Path, engine: LocalEngine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_with: list[str] = []
    request = engine._request

    def noting(messages: Any, *arguments: Any, **more: Any) -> Any:
        made = request(messages, *arguments, **more)
        asked_with.append(engine._tokenizer.decode(made.ids))
        return made

    monkeypatch.setattr(engine, "_request", noting)
    settings = with_task(settings, student=Model(model="local/tiny", max_tokens=4))
    held = [
        msgspec.structs.replace(a_case(tools=tools), case_id=str(n), split="holdout")
        for n, tools in enumerate([(TOOL,), ()] * 2)
    ]
    add_gold(settings.gold, [case.ended("holdout", "judge", 1) for case in held])
    cases = holdout_cases(settings.gold, "toy")
    assert [bool(tools) for tools in offered_tools(settings.task("toy"), cases)] == [True, False] * 2

    async def says_yes(messages: Any, answer: str) -> Verdict:
        return Verdict(passed=True, score=1, max_score=1, judge="j")

    run_gate(settings, "toy", engine, cases, candidate="", incumbent="", judge=says_yes)
    assert sum("look_up" in prompt for prompt in asked_with) == len(asked_with) // 2 > 0


def test_an_answer_is_rendered_as_the_template_closes_a_turn(engine: LocalEngine) -> None:
    tools = template_tools([TOOL])
    text = render_answer(engine._tokenizer, a_case().messages, Message("assistant", "", tool_calls=[a_call()]), tools)
    assert text == answer_text("", (a_call(),))
    assert render_prompt(engine._tokenizer, a_case().messages, False, tools).endswith("</think>\n\n")


def test_a_local_students_calls_reach_the_attempt(calling_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = answer_text("", (a_call(),))
    monkeypatch.setattr(LocalEngine, "_generation", _says(LocalEngine._generation, written))
    settings = msgspec.structs.replace(
        toy(Model(model="local/tiny", max_tokens=2)), local={"tiny": LocalModel(path=str(calling_base), threads=1)}
    )
    (first,) = asyncio.run(asked(settings, attempt, a_case())).attempts
    assert first.tool_calls == (a_call(),)


def _says(real: Any, text: str) -> Any:
    return lambda self, request: msgspec.structs.replace(real(self, request), text=text)


def test_a_holdout_case_knows_its_tools() -> None:
    assert offered_tools(toy(Model()).task("toy"), [HoldoutCase("x", [], case_record(a_case()))]) == [[TOOL]]
    hidden = toy(Model(), carry_over=CarryOver(tools=False)).task("toy")
    assert offered_tools(hidden, [HoldoutCase("x", [], case_record(a_case()))]) == [[]]


def test_json_that_speaks_of_think_tags_is_an_answer_as_a_whole() -> None:
    told = '{"violations": [{"rule": "a", "hinge": "</think>"}]}'
    assert split_thinking(told) == ("", told)
    assert split_thinking("{hm}</think>\n\nfine") == ("{hm}", "fine")
