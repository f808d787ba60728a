"""Claims about model access: errors and deadlines against a real HTTP server, adapters, costs, scripted models."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from aiohttp import web
from tiny import make_tiny_adapter, make_tiny_model

from agents.models import Completion, Models
from agents.prompts import (
    judge_messages,
    read_fences,
    refiner_messages,
    strategist_messages,
    verdict_schema,
)
from schemas.adapters import served_name
from schemas.case import Attempt, Case, Message, Source, Verdict, Violation
from schemas.errors import (
    BadAnswer,
    ModelRefused,
    ModelTimeout,
    ModelUnavailable,
    RateLimited,
    SettingsError,
)
from schemas.settings import LocalModel, Model, Rubric, Rule, Settings, Task

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:litellm.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pydantic.*"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]
T = TypeVar("T")
ASK = [Message("system", "You write notes."), Message("user", "the patient takes metformin")]
KEY = "sk-very-secret-key"
GOOD = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "stub",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": "<think>hm</think>\n\nfine"},
            "logprobs": {"content": [{"token": t, "logprob": -0.5, "bytes": None, "top_logprobs": []} for t in "abc"]},
        }
    ],
    "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
}


def answer(content: str | None) -> dict[str, Any]:
    return GOOD | {
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}]
    }


def refusal(status: int, message: str = "no", **headers: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status, headers=headers)


class Stub:
    """An OpenAI-compatible server in a thread of its own; it plays `script` and then answers well."""

    def __init__(self) -> None:
        self.script: deque[web.Response | str] = deque()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.missing: set[str] = set()
        self.direct = True  # how it is called: past LiteLLM
        self._closing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = self._run(self._start())

    async def _start(self) -> str:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        if body["model"] in self.missing:
            return refusal(404, f"The model `{body['model']}` does not exist.")
        step = self.script.popleft() if self.script else web.json_response(GOOD)
        if isinstance(step, web.Response):
            return step
        if step == "hang":
            await self._closing.wait()
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "500"})
        await response.prepare(request)
        await response.write(b'{"id": "1", "choi')
        assert request.transport is not None
        request.transport.abort()
        return response

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._run(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture(params=[True, False], ids=["direct", "litellm"])
def stub(request: pytest.FixtureRequest) -> Iterator[Stub]:
    stub = Stub()
    stub.direct = request.param
    yield stub
    stub.close()


RUBRIC = Rubric(rules=(Rule(id="short", text="Be short."), Rule(id="kind", text="Be kind.", severity="critical")))


def settings_for(model: Model, state: Path = Path("."), **local: LocalModel) -> Settings:
    task = Task(topics=("t",), rubric=RUBRIC, student=model, judge=model, refiner=model, strategist=model)
    return Settings(state_dir=str(state), local=local, tasks={"toy": task})


def call(
    settings: Settings, role: Any = "judge", *, adapter: str = "", within_s: float = 10.0, **more: Any
) -> Completion:
    """Makes one call the way a worker does."""

    async def run() -> Completion:
        models = Models(settings, serving=lambda task, case_id: (adapter,))
        await models.warm("toy")
        try:
            deadline = asyncio.get_running_loop().time() + within_s
            return await models.complete(role, "toy", more.pop("messages", ASK), deadline=deadline, **more)
        finally:
            await models.close()

    return asyncio.run(run())


def vllm(stub: Stub, **fields: Any) -> Settings:
    return settings_for(Model(model="hosted_vllm/stub", api_base=stub.url, direct=stub.direct, **fields))


def test_answer_carries_text_thinking_usage_and_the_configured_cost(stub: Stub) -> None:
    got = call(vllm(stub, input_cost_per_token=0.5, output_cost_per_token=2.0))
    assert (got.text, got.thinking, got.model, got.adapter) == ("fine", "hm", "hosted_vllm/stub", "")
    assert (got.prompt_tokens, got.completion_tokens, got.cost_usd) == (10, 3, 11.0)
    spend = got.spend()
    assert (spend.calls, spend.prompt_tokens, spend.completion_tokens, spend.cost_usd) == (1, 10, 3, 11.0)
    assert 0 < spend.model_s < 10


def test_unknown_model_costs_nothing_and_a_known_one_its_list_price(stub: Stub) -> None:
    assert call(vllm(stub)).cost_usd == 0.0
    known = settings_for(Model(model="openai/gpt-4o-mini", api_base=stub.url, extra={"api_key": "x"}))
    assert call(known).cost_usd > 0


def test_student_asks_for_its_adapter_without_thinking_and_with_logprobs(stub: Stub) -> None:
    got = call(vllm(stub), "student", adapter="v0007-3fa9c2d1")
    assert stub.requests[0]["model"] == served_name("toy", "v0007-3fa9c2d1") == "toy-v0007-3fa9c2d1"
    assert stub.requests[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert stub.requests[0]["logprobs"] is True
    assert (got.model, got.adapter, got.logprob) == ("hosted_vllm/stub", "v0007-3fa9c2d1", -1.5)
    call(vllm(stub), "judge", adapter="v0007-3fa9c2d1", response_format=verdict_schema(RUBRIC))
    assert stub.requests[1]["model"] == "stub"
    schema = stub.requests[1]["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["violations"]["items"]["properties"]["rule"]["enum"] == ["short", "kind"]


def test_adapter_the_server_does_not_know_falls_back_to_the_base(stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    stub.missing = {"toy-v0007-3fa9c2d1"}
    got = call(vllm(stub, retries=0), "student", adapter="v0007-3fa9c2d1")
    assert (got.text, got.adapter, stub.requests[-1]["model"]) == ("fine", "", "stub")
    assert "v0007-3fa9c2d1 cannot be used" in caplog.text
    stub.missing.add("stub")
    with pytest.raises(ModelRefused):
        call(vllm(stub), "student")


def test_failing_adapter_falls_back_to_the_incumbent_and_not_to_the_base(stub: Stub) -> None:
    serving = ("v0001-aaaaaaaa", "")

    async def run() -> list[str]:
        nonlocal serving
        models = Models(vllm(stub), serving=lambda task, case_id: serving)
        deadline = asyncio.get_running_loop().time() + 10
        used = [(await models.complete("student", "toy", ASK, deadline=deadline)).adapter]
        serving = ("v0002-bbbbbbbb", "v0001-aaaaaaaa")
        used += [(await models.complete("student", "toy", ASK, deadline=deadline)).adapter for _ in range(2)]
        await models.close()
        return used

    stub.missing = {"toy-v0002-bbbbbbbb"}
    assert asyncio.run(run()) == ["v0001-aaaaaaaa"] * 3
    assert len(stub.requests) == 4, "the missing adapter is not asked for at every call"


def test_500_then_200_is_answered_by_the_second_try(stub: Stub) -> None:
    stub.script.extend([refusal(500)])
    assert call(vllm(stub, retries=1)).text == "fine"
    assert len(stub.requests) == 2


def test_500_beyond_every_retry_is_unavailable(stub: Stub) -> None:
    stub.script.extend([refusal(500), refusal(503)])
    with pytest.raises(ModelUnavailable):
        call(vllm(stub, retries=1))
    assert len(stub.requests) == 2, "nobody adds retries of its own"


def test_429_waits_as_long_as_retry_after_asks(stub: Stub) -> None:
    stub.script.append(refusal(429, **{"Retry-After": "1"}))
    started = time.monotonic()
    assert call(vllm(stub, retries=1)).text == "fine"
    assert 1.0 <= time.monotonic() - started < 8


def test_429_that_asks_for_more_than_the_time_left_is_raised_at_once(stub: Stub) -> None:
    stub.script.append(refusal(429, **{"Retry-After": "120"}))
    with pytest.raises(RateLimited) as caught:
        call(vllm(stub))
    assert caught.value.retry_after_s == 120
    assert len(stub.requests) == 1


def test_429_without_retry_after_backs_off_and_ends_as_rate_limited(stub: Stub) -> None:
    stub.script.extend([refusal(429), refusal(429)])
    with pytest.raises(RateLimited) as caught:
        call(vllm(stub, retries=1))
    assert caught.value.retry_after_s is None
    assert len(stub.requests) == 2


def test_hanging_server_costs_no_more_than_the_deadline(stub: Stub) -> None:
    call(vllm(stub))  # whatever the first call of a process costs is not measured
    stub.script.extend(["hang"] * 3)
    started = time.monotonic()
    with pytest.raises(ModelTimeout):
        call(vllm(stub), within_s=1.0)
    assert time.monotonic() - started < 2.5


def test_hanging_server_is_asked_again_after_the_models_own_timeout(stub: Stub) -> None:
    stub.script.append("hang")
    assert call(vllm(stub, timeout_s=0.5, retries=1)).text == "fine"


def test_connection_reset_mid_answer_and_truncated_json_are_unavailable(stub: Stub) -> None:
    for step in ("reset", web.Response(body=b'{"id": "1", "choi', content_type="application/json")):
        stub.script.append(step)
        with pytest.raises(ModelUnavailable):
            call(vllm(stub, retries=0))


def test_empty_content_and_missing_choices_are_bad_answers(stub: Stub) -> None:
    for body in (answer(""), answer(None), answer("<think>only thoughts"), GOOD | {"choices": []}):
        stub.script.append(web.json_response(body))
        with pytest.raises(BadAnswer):
            call(vllm(stub))
    assert len(stub.requests) == 4, "a bad answer is not transient"


def test_400_is_refused_without_a_second_try_or_a_quote_of_the_prompt(
    stub: Stub, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    for text, told in (("max_tokens is too large", True), (f"cannot parse: {ASK[1].content}", False)):
        stub.script.append(refusal(400, text))
        with pytest.raises(ModelRefused) as caught:
            call(vllm(stub))
        assert (text in str(caught.value)) is told
    assert len(stub.requests) == 2
    out, err = capfd.readouterr()
    assert "metformin" not in caplog.text + out + err


def test_key_comes_from_the_environment_and_is_in_no_error_or_log(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(SettingsError, match="TOY_KEY"):
        call(vllm(stub, api_key_env="TOY_KEY"))
    monkeypatch.setenv("TOY_KEY", KEY)
    stub.script.append(refusal(401, f"wrong key {KEY}"))
    with pytest.raises(ModelRefused) as caught:
        call(vllm(stub, api_key_env="TOY_KEY"))
    assert stub.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value) + caplog.text


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "base")


def test_local_student_loads_its_adapter_from_the_registry(base: Path, tmp_path: Path) -> None:
    settings = settings_for(Model(model="local/tiny", max_tokens=12), tmp_path, tiny=LocalModel(path=str(base)))
    version = "v0001-abcdef12"
    make_tiny_adapter(settings.adapters / "toy" / version, base, version)
    plain, tuned = call(settings, "student"), call(settings, "student", adapter=version)
    assert (plain.adapter, tuned.adapter, tuned.model) == ("", version, "local/tiny")
    assert plain.text != tuned.text
    assert plain.prompt_tokens > 0 < plain.completion_tokens
    assert plain.logprob is not None
    assert plain.logprob < 0
    assert plain.cost_usd == 0
    assert call(settings, "refiner", adapter=version).text == plain.text
    weights = settings.adapters / "toy" / version / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    broken = call(settings, "student", adapter=version)
    assert (broken.text, broken.adapter) == (plain.text, "")


def test_local_prompt_beyond_the_context_is_refused(base: Path) -> None:
    settings = settings_for(Model(model="local/tiny"), tiny=LocalModel(path=str(base)))
    with pytest.raises(ModelRefused, match="context of 512"):
        call(settings, "student", messages=[Message("user", "y" * 700)])


def failed_case(draft: str) -> Case:
    verdict = Verdict(passed=False, score=0, max_score=2, judge="j", violations=(Violation("short", hinge="x"),))
    attempts = (
        Attempt(round=0, source="student", text="first", model="m", verdict=verdict),
        Attempt(round=1, source="refiner", text=draft, model="m", verdict=verdict),
    )
    source = Source(cluster="c", topic="t", partition=0, offset=0)
    return Case(case_id="a", task="toy", split="train", source=source, messages=tuple(ASK), attempts=attempts)


def test_sections_of_a_prompt_read_back_as_they_went_in() -> None:
    case = failed_case("some draft\nof two lines")
    sections = read_fences(refiner_messages(case, case.attempts[-1], RUBRIC)[1].text())
    assert sections["draft"] == "some draft\nof two lines"
    assert msgspec.json.decode(sections["conversation"], type=list[Message]) == ASK
    assert msgspec.json.decode(sections["violations"])[0]["rule"] == "short"
    sections = read_fences(strategist_messages(case, RUBRIC)[1].text())
    assert msgspec.json.decode(sections["drafts"]) == ["first", "some draft\nof two lines"]
    assert [v["attempt"] for v in msgspec.json.decode(sections["violations"])] == [0, 1]


def test_prompts_of_a_role_are_the_same_up_to_the_data() -> None:
    one, two = (judge_messages([Message("user", text)], "draft", RUBRIC) for text in ("first", "second"))
    assert one[0] == two[0]
    up_to_the_data = [messages[1].text().partition("The data follows")[0] for messages in (one, two)]
    assert up_to_the_data[0] == up_to_the_data[1] != ""


def test_a_fence_code_is_never_used_twice() -> None:
    codes = {judge_messages(ASK, "", RUBRIC)[1].text().partition("<<<conversation ")[2][:16] for _ in range(20)}
    assert len(codes) == 20


def test_scripted_models_answer_the_prompts_of_their_role_and_refuse_others() -> None:
    from agents.scribe.rules import RULES

    case = failed_case("Diagnoses: flu\nMedications: none\nSymptoms: none")
    rubric = Rubric(rules=tuple(Rule(id=rule.id, text=rule.text) for rule in RULES))
    refined = call(
        settings_for(Model(model="scripted/scribe-refiner")), messages=refiner_messages(case, case.attempts[-1], rubric)
    )
    assert refined.text
    assert refined.cost_usd == 0
    with pytest.raises(BadAnswer, match="cannot read its prompt"):
        call(settings_for(Model(model="scripted/scribe-refiner")), messages=ASK)
    with pytest.raises(ModelRefused, match="scribe-strategist"):
        call(settings_for(Model(model="scripted/nobody")))
