"""Claims about calls past LiteLLM: to the same server they ask the same and come to the same as calls through it.

What differs is named here, with the reason. `both` asks one server twice, each way; raw_replies has the answers,
test_direct_connections how they connect.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench.stub import Stub
from factory_settings import role_tables
from pydantic import BaseModel
from raw_replies import A_CALL, KEY, PROMPT, REPLIES, USAGE, Raw, RawServer, a_choice, body, http, refused

from agents.completion import MOST_TOKENS
from agents.direct import ANSWER_BYTES
from agents.models import Completion, Models
from agents.prices import price_of
from schemas.case import Message
from schemas.settings import Model, Role, Rubric, Rule, Settings, Task

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:litellm.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pydantic.*"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]
ASK = [Message("system", "You write notes."), Message("user", PROMPT)]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"additionalProperties": False}}}
CHEAP = {"input_cost_per_token": 0.5, "output_cost_per_token": 2.0}


class Both:
    """One server, asked past LiteLLM and through it."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.runner = asyncio.Runner()
        self.server = RawServer()
        self.url = self.runner.run(self.server.start(tls))
        self.answered(REPLIES["plain"], direct=False)  # whatever the first call of a process costs

    def close(self) -> None:
        self.runner.run(self.server.stop())
        self.runner.close()

    def ask(
        self, direct: bool, role: Role = "student", messages: list[Message] = ASK, within_s: float = 10.0,
        api_base: str = "", told: dict[str, Any] | None = None, response_format: Any = None, **model: Any,
    ) -> Completion | Exception:  # fmt: skip
        """Makes one call as a worker does; returns what it came to."""
        fields = CHEAP | {"model": "hosted_vllm/m", "api_base": api_base or f"{self.url}/v1", "retries": 0} | model
        models = Models(settings_for(Model(direct=direct, **fields)))

        async def run() -> Completion | Exception:
            deadline = asyncio.get_running_loop().time() + within_s
            more = {"told": told, "response_format": response_format}
            try:
                return await models.complete(role, "toy", messages, deadline=deadline, **more)  # type: ignore[arg-type]
            except Exception as error:
                return error
            finally:
                await models.close()

        return self.runner.run(run())

    def answered(self, reply: Raw, direct: bool, **how: Any) -> Completion | Exception:
        """Makes one call that is answered with `reply`."""
        self.server.reply = reply
        self.server.requests.clear()
        return self.ask(direct, **how)

    def asked(self, direct: bool, **how: Any) -> list[Any]:
        """Returns what a call asks the server for: lines of requests, headers and bodies."""
        self.answered(REPLIES["plain"], direct, **how)
        return [request_of(*request) for request in self.server.requests]


def settings_for(model: Model) -> Settings:
    rubric = Rubric(rules=(Rule(id="short", text="Be short."),))
    task = Task(topics=("t",), rubric=rubric, student=model, judge=model, refiner=model, strategist=model)
    return Settings(tasks={"toy": task})


_MAY_DIFFER = ("connection", "content-length", "host", "user-agent")


def request_of(head: str, sent: bytes) -> Any:
    """Returns a request without what may differ: who asks, where, how the JSON is written, what HTTP implies."""
    line, *lines = head.strip().splitlines()
    pairs = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)}
    headers = {name: value for name, value in pairs.items() if name not in _MAY_DIFFER}
    return line, headers, json.loads(sent)


def outcome(result: Completion | Exception) -> Any:
    """Returns what a call came to without how long it took: the completion, or all of an error but its words."""
    if isinstance(result, Completion):
        return [(name, nearly(getattr(result, name))) for name in Completion.__struct_fields__ if name != "latency_s"]
    spend = getattr(result, "spend", None)
    return (
        type(result).__name__,
        getattr(result, "reason", ""),
        getattr(result, "transient", None),
        nearly(getattr(result, "retry_after_s", None)),
        spend and msgspec.structs.replace(spend, model_s=0.0),
    )


def nearly(value: Any) -> Any:
    """Returns a number without what passes between two calls; the seconds until a date run on."""
    return repr(round(value, -2) if value > 10**6 else value) if isinstance(value, float) else value


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    made = Both()
    yield made
    made.close()


@pytest.mark.parametrize("name", REPLIES)
def test_every_answer_comes_to_the_same_both_ways(both: Both, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KEY", KEY)
    how = {"within_s": 0.5 if name.startswith("hangs") else 10.0, "api_key_env": "TOY_KEY"}
    through = both.answered(REPLIES[name], direct=False, **how)
    calls = len(both.server.requests)
    past = both.answered(REPLIES[name], direct=True, **how)
    assert outcome(past) == outcome(through)
    assert len(both.server.requests) == calls
    assert "user-agent: goldstream" in both.server.requests[0][0].lower()
    for error in (past, through):
        assert isinstance(error, Completion) or not re.search(f"metformin|patient|{KEY}", str(error))


def test_what_reads_more_or_otherwise_than_litellm_is_this(both: Both) -> None:
    token = http(body(a_choice(logprobs={"content": [{"token": "x", "logprob": -0.5}]})))  # neither bytes nor others
    assert outcome(both.answered(token, direct=False))[0] == "ModelUnavailable"
    assert both.answered(token, direct=True).logprob == -0.5  # type: ignore[union-attr]

    digits = http(json.dumps(body()).encode()[:-1] + b', "unread": ' + b"1" * 5000 + b"}")  # more than Python reads
    assert outcome(both.answered(digits, direct=False))[0] == "ModelUnavailable"
    assert both.answered(digits, direct=True).text == "fine"  # type: ignore[union-attr]

    unnamed = http(body(a_choice({"role": "assistant", "content": None, "tool_calls": [A_CALL | {"id": None}]})))
    ids = [both.answered(unnamed, direct).tool_calls[0]["id"] for direct in (True, False)]  # type: ignore[union-attr]
    assert [len(one) for one in ids] == [36, 36], "each makes one up"
    assert ids[0] != ids[1]

    # Some models of OpenAI's wrote several calls as one of a tool that nobody offered; LiteLLM takes it apart.
    several = {"tool_uses": [{"recipient_name": "functions.f", "parameters": {}}]}
    odd = {
        "id": "c",
        "type": "function",
        "function": {"name": "multi_tool_use.parallel", "arguments": json.dumps(several)},
    }
    said = http(body(a_choice({"role": "assistant", "content": None, "tool_calls": [odd]})))
    names = [both.answered(said, direct).tool_calls[0]["function"]["name"] for direct in (True, False)]  # type: ignore[union-attr]
    assert names == ["multi_tool_use.parallel", "f"]


@pytest.mark.parametrize(
    "words", ["rate limit reached", "Request timed out", "Request too large", "A timeout occurred"]
)
def test_a_status_says_what_went_wrong_where_litellm_goes_by_words_that_may_be_the_prompts(
    both: Both, words: str
) -> None:
    for status in (400, 401, 404, 500):
        plain, worded = (outcome(both.answered(refused(status, text), direct=True)) for text in ("no", words))
        assert plain == worded
        assert outcome(both.answered(refused(status, words), direct=False))[0] in ("RateLimited", "ModelTimeout")


MESSAGES = {
    "texts": ASK,
    "parts": [Message("user", [{"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": ""}])],
    "parts of an assistant": [Message("assistant", [{"type": "text", "text": t} for t in "ab"]), *ASK],
    "no parts": [Message("user", []), Message("assistant", [])],
    "calls": [
        *ASK,
        Message("assistant", None, tool_calls=[A_CALL, A_CALL | {"index": 1}]),
        Message("tool", [{"type": "text", "text": "5 mg"}], tool_call_id="call_1", name="f"),
    ],
    "roles": [Message("developer", "a", name="x"), Message("", "b"), Message("function", "c", name="f"), *ASK],
    "nothing": [Message("user"), Message("user", "")],
    "any language": [Message("user", "süß 漢字 😀 \0")],
    "half an emoji": [Message("user", "a\ud800")],
}  # fmt: skip
EXTRA: list[dict[str, Any]] = [
    {"top_k": 5, "min_p": 0.1, "top_p": 0.9, "seed": 3, "stop": list("abcde"), "frequency_penalty": 0.1},
    {"stop": "x", "n": 1, "logprobs": False, "top_logprobs": 0, "logit_bias": {"1": 2}, "max_completion_tokens": 5},
    {"chat_template_kwargs": {"a": 1}},
    {"extra_body": {"min_p": 1, "model": "z", "temperature": 1, "chat_template_kwargs": {"z": 1}}, "min_p": 0},
    {"extra_headers": {"X-Team": "a"}, "api_key": "k2", "structured_outputs": {"regex": "a"}},
    {"tool_choice": "auto", "parallel_tool_calls": False, "reasoning_effort": "low"},
    {"temperature": 2, "max_tokens": 3, "timeout": 1, "max_retries": 5, "num_retries": 4, "drop_params": True},
    {"n": None, "seed": None, "top_k": None, "response_format": {"type": "json_object"}, "extra_body": {"a": None}},
]  # fmt: skip
TOLD: list[dict[str, Any]] = [
    {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
    {"tool_choice": "auto", "temperature": None},
    {"response_format": {"type": "json_object"}, "temperature": 0.9, "top_p": 0.5, "max_tokens": 7, "stop": ["."] * 5},
    {"max_tokens": 99_999, "seed": 4},
]  # fmt: skip
CALLS: dict[str, dict[str, Any]] = {
    **{f"student asks {name}": {"messages": messages} for name, messages in MESSAGES.items()},
    **{f"judge asks {name}": {"messages": messages, "role": "judge"} for name, messages in MESSAGES.items()},
    **{f"extra {', '.join(extra)}": {"extra": extra} for extra in EXTRA},
    **{f"student told {', '.join(told)}": {"told": told} for told in TOLD},
    **{f"refiner told {', '.join(told)}": {"told": told, "role": "refiner"} for told in TOLD},
    "a schema": {"role": "judge", "response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
    "without a price": {"input_cost_per_token": None, "output_cost_per_token": None},
    **{f"at {path!r}": {"path": path} for path in ("", "/", "/v1/", "/v1/chat/completions/", "/v1?a=1", "/ä b", "/V1")},
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_every_call_asks_for_the_same_both_ways(both: Both, name: str) -> None:
    how = dict(CALLS[name])
    if (path := how.pop("path", None)) is not None:
        how["api_base"] = both.url + path
    past, through = both.asked(True, **how), both.asked(False, **how)
    assert past == through != []
    both.asked(True, **how)
    assert "user-agent: goldstream" in both.server.requests[0][0].lower()


def test_what_only_litellm_can_do_stays_with_it(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    class Verdict(BaseModel):
        passed: bool

    def goes_past(direct: bool = True, **how: Any) -> bool:
        both.asked(direct, **how)
        return "user-agent: goldstream" in both.server.requests[0][0].lower()

    picture = [Message("user", [{"type": "image_url", "image_url": "http://example.com/a.png"}])]
    spare = Model(model="hosted_vllm/spare", api_base=f"{both.url}/v1")
    extras: list[dict[str, Any]] = [
        {"thinking": {"type": "enabled", "budget_tokens": 500}}, {"user": "me"}, {"metadata": {"a": "b"}},
        {"headers": {"X-B": "1"}}, {"allowed_openai_params": ["user"]}, {"unheard_of": 1},
        {"extra_headers": {"Authorization": "Basic x"}},
    ]  # fmt: skip
    assert goes_past()
    assert not goes_past(direct=False)
    assert not goes_past(model="openai/m", extra={"api_key": "none"})
    assert not goes_past(fallbacks=(spare,))
    assert not goes_past(messages=picture)
    assert not goes_past(role="judge", response_format=Verdict)
    assert [extra for extra in extras if goes_past(extra=extra)] == []
    monkeypatch.setenv("SSL_VERIFY", "False")  # how LiteLLM is told to connect
    assert not goes_past()


def test_an_answer_beyond_the_bound_is_not_read_nor_unpacked_to_its_end(both: Both) -> None:
    long = b'{"choices": [' + b" " * ANSWER_BYTES
    for reply in (http(long), http(gzip.compress(long), headers=["Content-Encoding: gzip"])):
        told = outcome(both.answered((reply, "close"), direct=True))
        assert told[:3] == ("BadAnswer", "bad_answer", False)
    error = both.answered((http(long, "500 No"), "close"), direct=True)
    assert outcome(error)[0] == "ModelUnavailable"
    assert len(str(error)) < 500


def test_no_count_of_tokens_is_negative_or_beyond_reason(both: Both) -> None:
    for direct in (True, False):
        got = both.answered(http(body(usage=USAGE | {"prompt_tokens": -5, "completion_tokens": 10**30})), direct)
        assert (got.prompt_tokens, got.completion_tokens) == (0, MOST_TOKENS)  # type: ignore[union-attr]


def test_700_calls_are_in_flight_at_once_and_a_closed_pool_opens_again_in_another_event_loop() -> None:
    with Stub(latency_s=0.5) as stub:
        models = Models(settings_for(Model(model="hosted_vllm/m", api_base=stub.api_base)))

        async def many() -> None:
            deadline = asyncio.get_running_loop().time() + 30
            await asyncio.gather(*(models.complete("judge", "toy", ASK, deadline=deadline) for _ in range(700)))
            await models.close()

        asyncio.run(many())
        asyncio.run(many())
        seen = stub.count()
    assert (seen.answered, seen.peak) == (1400, 700)


def test_a_worker_whose_models_are_direct_never_imports_litellm(tmp_path: Path) -> None:
    code = """
        import asyncio, sys
        from pathlib import Path
        from agents.models import Models
        from agents.prices import check_prices
        from schemas.case import Message
        from schemas.settings import load_settings
        import streams.worker

        settings = load_settings(Path("goldstream.toml"), [], environ={})
        check_prices(settings)

        async def run():
            models = Models(settings)
            await models.warm("toy")
            await models.imported()
            deadline = asyncio.get_running_loop().time() + 20
            answer = await models.complete("judge", "toy", [Message("user", "hi")], deadline=deadline)
            await models.close()
            print(answer.text, "litellm" in sys.modules)

        asyncio.run(run())
    """
    with Stub() as stub:
        prices = {"input_cost_per_token": 0, "output_cost_per_token": 0}
        roles = role_tables("toy", model="hosted_vllm/judge", api_base=stub.api_base, **prices)
        rules = '[tasks.toy.rubric]\nrules = [{ id = "short", text = "be short" }]\n'
        budget = "[tasks.toy.budget]\nusd_per_day = 5.0\n"
        (tmp_path / "goldstream.toml").write_text(f'[tasks.toy]\ntopics = ["log"]\n{roles}{rules}{budget}')
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
    assert done.stdout.strip() == '{"violations": []} False', done.stderr


def test_litellm_lists_no_price_for_servers_of_ones_own() -> None:
    """Else calls past it would cost nothing where calls through it cost something: see agents.prices."""
    listed = resources.files("litellm").joinpath("model_prices_and_context_window_backup.json").read_text("utf-8")
    assert '"gpt-4o-mini"' in listed
    assert '"hosted_vllm/' not in listed
    assert price_of(Model(model="hosted_vllm/Qwen/Qwen3-8B")) is None
