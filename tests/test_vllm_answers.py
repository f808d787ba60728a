"""Claims about what the real vLLM server answers, on the CPU; `make test-full` runs them, `make test` does not.

The model is random: whatever structure its answers have, the server has enforced.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import msgspec
import pytest
from real_vllm import Server, free_port
from tiny import CALLING_TEMPLATE, make_tiny_model

from agents.judge import judge
from agents.models import Completion, Models
from agents.prompts import judge_messages, read_json, strategist_messages, strategy_schema, verdict_schema
from agents.strategist import _ModelStrategy
from agents.student import attempt, carried_over
from agents.verdict import read_vote
from agents.verifiers.tool_calls import check_calls
from schemas.case import Attempt, Case, Message, Source, Strategy, Verdict, Violation
from schemas.chat import render_prompt
from schemas.errors import BadAnswer, ModelError
from schemas.record import case_record
from schemas.settings import CarryOver, Model, Panel, Rubric, Rule, Scale, Settings, Task
from schemas.settings.verifiers import ToolCallsCheck

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:litellm.*"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]
CONTEXT, ANSWER = 8192, 3000
ARGUMENTS = {
    "type": "object",
    "properties": {"dose": {"type": "integer", "minimum": 0, "maximum": 9}, "unit": {"enum": ["mg", "g"]}},
    "required": ["dose", "unit"],
    "additionalProperties": False,
}
TOOLS = ({"type": "function", "function": {"name": "look_up", "parameters": ARGUMENTS, "strict": True}},)
RUBRIC = Rubric(
    rules=(Rule(id="kind", text="Be kind."), Rule(id="short", text="At most two sentences.")),
    scale=Scale(lowest=1, highest=5),
    pass_mark=4,
)


class World:
    """The server, and the settings of a task that asks it for everything."""

    def __init__(self, folder: Path) -> None:
        self.base = make_tiny_model(folder / "tiny", context=CONTEXT)
        (self.base / "chat_template.jinja").write_text(CALLING_TEMPLATE)
        port = free_port()
        told = ["--model", str(self.base), "--served-model-name", "tiny", "--enable-lora", "--max-lora-rank", "8"]
        told += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
        told += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
        self.server = Server(told, port, folder / "vllm.log", CONTEXT)
        self.root = f"http://127.0.0.1:{port}"
        model = Model(
            model="hosted_vllm/tiny", api_base=f"{self.root}/v1", max_tokens=ANSWER, temperature=1.3, timeout_s=200
        )
        task = Task(topics=("log",), rubric=RUBRIC, student=model, judge=model, refiner=model, strategist=model)
        self.settings = Settings(tasks={"toy": msgspec.structs.replace(task, panel=Panel(votes=3))})

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = Request(self.root + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=200) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("vllm"))
    try:
        world.server.start()
        world.server.wait_ready()
        yield world
    finally:
        world.server.kill(signal.SIGTERM)


def a_case(**fields: Any) -> Case:
    source = Source(cluster="c", topic="t", partition=0, offset=0)
    known: dict[str, Any] = {"messages": (Message("user", "How much?"),), "tools": TOOLS}
    return Case(case_id="x", task="toy", split="train", source=source, **(known | fields))


async def with_models(settings: Settings, act: Any) -> Any:
    models = Models(settings)
    try:
        return await act(models, asyncio.get_running_loop().time() + 600)
    finally:
        await models.close()


def refused_if_half_an_emoji(text: str) -> contextlib.AbstractContextManager[Any]:
    """Expects BadAnswer for what JSON allows and no message of ours may hold: a random model writes it at times."""
    half = re.search("[\ud800-\udfff]", json.dumps(json.loads(text), ensure_ascii=False))
    return pytest.raises(BadAnswer) if half else contextlib.nullcontext()


def test_the_server_renders_tools_into_the_tokens_that_training_has(world: World) -> None:
    """The body is what agents.models sends: tools in one form, thinking off."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.base, local_files_only=True)
    call = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": '{"dose":5,"unit":"mg"}'}}
    messages = [Message("user", "How much?"), Message("assistant", None, tool_calls=[call])]
    messages += [Message("tool", "5 mg", tool_call_id="c"), Message("user", "And now?")]
    told = carried_over(a_case(messages=tuple(messages)), CarryOver())
    body = {
        "model": "tiny",
        "messages": msgspec.to_builtins(messages),
        "tools": told["tools"],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    ours = tokenizer(render_prompt(tokenizer, messages, False, told["tools"]), add_special_tokens=False)["input_ids"]
    assert world.post("/tokenize", body)["tokens"] == ours
    assert '"look_up"' in tokenizer.decode(ours)


def test_a_judges_schema_is_enforced_by_the_server_and_read_by_us(world: World) -> None:
    async def ask(models: Models, deadline: float) -> list[Any]:
        prompt = judge_messages(a_case().messages, "Wait an hour.", RUBRIC)
        one = world.settings.tasks["toy"].judge
        calls = [
            models.complete("judge", "toy", prompt, deadline=deadline, response_format=how, model=one)
            for how in (*[verdict_schema(RUBRIC)] * 8, None)
        ]
        return await asyncio.gather(*calls)

    *bound, free = asyncio.run(with_models(world.settings, ask))
    whole = [answer for answer in bound if answer.completion_tokens < ANSWER]  # a random model may not come to an end
    assert whole
    for answer in whole:
        told = json.loads(answer.text)
        assert set(told) == {"violations", "score"}
        assert {violation["rule"] for violation in told["violations"]} <= {"kind", "short"}
        graded = answer.text.rpartition('"score"')[0] + '"score": 3}'  # a range is no part of the schema
        with refused_if_half_an_emoji(graded):
            assert read_vote(graded, RUBRIC, "Wait an hour.").grade == 3
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(free.text)


def test_a_case_judged_by_the_real_server_has_a_verdict(world: World) -> None:
    plain = msgspec.structs.replace(RUBRIC, scale=None, pass_mark=None)
    task = msgspec.structs.replace(world.settings.tasks["toy"], rubric=plain, panel=Panel())
    settings = msgspec.structs.replace(world.settings, tasks={"toy": task})
    case = a_case(attempts=(Attempt(round=0, source="student", text="Wait an hour.", model="m"),))

    async def judged(models: Models, deadline: float) -> Case:
        for _ in range(5):  # a random model's answer may be longer than max_tokens
            try:
                return await judge(case, settings, models, deadline=deadline)
            except BadAnswer:
                continue
        raise AssertionError("no verdict in five tries")

    verdict = asyncio.run(with_models(settings, judged)).attempts[0].verdict
    assert verdict is not None
    assert (verdict.judge, verdict.kind, verdict.max_score) == ("hosted_vllm/tiny", "model", 2)


def test_a_strategists_schema_is_enforced_too(world: World) -> None:
    bad = Verdict(passed=False, score=0, max_score=2, violations=(Violation("kind"),), judge="j")
    case = a_case(attempts=(Attempt(round=0, source="student", text="No.", model="m", verdict=bad),))
    known = [Strategy("was rude", "say please", "", "s-0123456789")]

    async def ask(models: Models, deadline: float) -> list[Any]:
        prompt = strategist_messages(case, RUBRIC, known)
        how = strategy_schema(known)
        return await asyncio.gather(
            *(models.complete("strategist", "toy", prompt, deadline=deadline, response_format=how) for _ in range(6))
        )

    whole = [one for one in asyncio.run(with_models(world.settings, ask)) if one.completion_tokens < ANSWER]
    assert whole
    for answer in whole:
        assert json.loads(answer.text)["same_as"] in ("", "s-0123456789")
        with refused_if_half_an_emoji(answer.text):
            assert read_json(answer.text, _ModelStrategy).same_as in ("", "s-0123456789")


def test_a_student_that_must_call_a_tool_calls_one_and_our_check_sees_what_the_server_lets_through(
    world: World,
) -> None:
    """vLLM 0.32 enforces the name, and not the schema of the arguments."""
    case = a_case(params={"tool_choice": "required"})

    async def answered(models: Models, deadline: float) -> Case:
        return await attempt(case, world.settings, models, deadline=deadline)

    (first,) = asyncio.run(with_models(world.settings, answered)).attempts
    assert first.tool_calls[0]["function"]["name"] == "look_up"
    found = check_calls(ToolCallsCheck(required=True), first.text, case_record(case))
    assert all(finding.why.startswith("look_up: ") for finding in found)


def test_calls_past_litellm_come_to_the_same_as_calls_through_it(world: World) -> None:
    """Greedy, one after another: text, tokens, log-probability, calls, how it ended, errors."""
    cold = msgspec.structs.replace(world.settings.tasks["toy"].student, temperature=0.0, max_tokens=40, retries=0)
    tools: dict[str, Any] = {"tools": list(TOOLS), "tool_choice": "required"}

    async def asked(direct: bool) -> list[Any]:
        model = msgspec.structs.replace(cold, direct=direct)
        task = Task(topics=("log",), rubric=RUBRIC, student=model, judge=model)
        models = Models(Settings(tasks={"toy": task}), serving=lambda task, case_id: ("v0009-missing",))
        deadline = asyncio.get_running_loop().time() + 600
        known = [Message("user", "How much?"), Message("assistant", "5 mg"), Message("user", "süß 漢字 😀?")]
        calls: list[dict[str, Any]] = [
            {"role": "student", "messages": known},  # its adapter is not known there: the base answers
            {"role": "judge", "messages": known, "response_format": verdict_schema(RUBRIC)},
            {"role": "judge", "messages": known, "told": tools},
            {"role": "judge", "messages": [Message("user", "long " * CONTEXT)]},
            {"role": "judge", "messages": known, "model": msgspec.structs.replace(model, model="hosted_vllm/none")},
            {"role": "judge", "messages": known, "model": msgspec.structs.replace(model, extra={"top_k": "x"})},
        ]
        came: list[Any] = []
        for call in calls:
            try:
                answer = await models.complete(task="toy", deadline=deadline, **call)
            except ModelError as error:
                came.append((type(error), error.transient))
                continue
            calls_made = [one["function"] for one in answer.tool_calls]
            came.append(msgspec.structs.replace(answer, latency_s=0.0, tool_calls=calls_made))
        await models.close()
        return came

    past, through = asyncio.run(asked(direct=True)), asyncio.run(asked(direct=False))
    assert past == through
    assert [isinstance(one, Completion) for one in past] == [True, True, True, False, False, False]
    assert past[0].adapter == ""
    assert past[0].logprob < 0
