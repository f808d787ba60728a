"""Claims about calls under a budget: what they are charged, who stands in, what they are expected to cost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stub_models import Reply, StubModels
from test_budget import DAY_S, run, settings_of

from agents.account import Call
from agents.billing import Bill, billed
from agents.models import Models, calling_for
from agents.prices import check_prices, expected, price_of
from agents.providers import load_litellm
from schemas.case import Message
from schemas.errors import BadAnswer, BudgetHeld, SettingsError
from schemas.settings import Budget as Caps
from schemas.settings import Limits, Model, load_settings


def ask(models: Models, role: Any = "judge", within_s: float = 5.0) -> Coroutine[Any, Any, Any]:
    async def call() -> Any:
        calling_for.set("case-1")
        deadline = asyncio.get_running_loop().time() + within_s
        return await models.complete(role, "toy", [Message("user", "hello")], deadline=deadline)

    return call()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:litellm.*")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:pydantic.*")
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
class TestCalls:
    """Through agents.models to a real server, past LiteLLM and through it; the stub counts 10 and 5 tokens a call."""

    @pytest.fixture(autouse=True, params=[True, False], ids=["direct", "litellm"])
    def way(self, request: pytest.FixtureRequest) -> None:
        self.direct = request.param
        load_litellm()  # takes seconds, on a busy machine more than a call may

    def model(self, stub: StubModels, **options: Any) -> Model:
        prices = {"input_cost_per_token": 1e-3, "output_cost_per_token": 1e-3, "direct": self.direct}
        return Model(**({"model": "hosted_vllm/m", "api_base": stub.api_base, "max_tokens": 5} | prices | options))

    def test_a_call_is_charged_to_its_bill_and_account_and_one_without_leave_is_not_made(
        self, models: StubModels
    ) -> None:
        calls = Models(settings_of(Caps(judge=Limits(usd_per_day=0.05)), self.model(models, retries=0)))

        async def work() -> Bill:
            bill = Bill(round=1)
            billed.set(bill)
            try:
                await ask(calls)
                await ask(calls)
                with pytest.raises(BudgetHeld) as caught:
                    await ask(calls)
                outage_s = await calls.outage_s("judge", "toy", "case-1", caught.value)
                assert outage_s is not None
                assert 0 < outage_s <= DAY_S
            finally:
                await calls.close()
            return bill

        bill = run(work())
        assert len(models.requests) == 2
        (charge,) = bill._charges.values()
        assert (charge.role, charge.model, charge.round, charge.calls) == ("judge", "hosted_vllm/m", 1, 2)
        assert charge.cost_usd == pytest.approx(0.03)
        assert calls.budget.account("toy", "judge").spent == pytest.approx(0.03)
        assert calls.held("judge")
        assert not calls.held("refiner")

    def test_an_answer_that_cannot_be_used_is_paid_for(self, models: StubModels) -> None:
        models.answer = lambda request: Reply(" ")
        calls = Models(settings_of(Caps(usd_per_day=1.0), self.model(models)))

        async def work() -> None:
            try:
                with pytest.raises(BadAnswer):
                    await ask(calls)
            finally:
                await calls.close()

        run(work())
        assert calls.budget.account("toy", "judge").spent == pytest.approx(0.015)

    def test_a_fallback_answers_for_a_model_that_fails_and_is_charged_at_its_own_price(
        self, models: StubModels
    ) -> None:
        models.answer = lambda request: Reply(status=500) if request["model"] == "down" else Reply()
        spare = self.model(models, model="hosted_vllm/spare", input_cost_per_token=0.0, output_cost_per_token=2e-3)
        model = self.model(models, model="hosted_vllm/down", fallbacks=(spare,))
        calls = Models(settings_of(Caps(usd_per_day=10.0), model))

        async def work() -> list[Any]:
            try:
                return [await ask(calls) for _ in range(8)]
            finally:
                await calls.close()

        answers = run(work())
        assert {answer.model for answer in answers} == {"hosted_vllm/spare"}
        assert answers[0].cost_usd == pytest.approx(0.01)
        asked = [request["model"] for request in models.requests]
        assert asked.count("spare") == 8
        assert asked.count("down") < 8  # it cools down
        assert not calls.held("judge")

    def test_where_all_that_stand_in_fail_too_the_breaker_decides(self, models: StubModels) -> None:
        models.answer = lambda request: Reply(status=500)
        spare = self.model(models, model="hosted_vllm/spare")
        settings = settings_of(Caps(), self.model(models, fallbacks=(spare,), retries=0))
        settings = msgspec.structs.replace(
            settings, worker=msgspec.structs.replace(settings.worker, breaker_failures=1, breaker_longest_s=0.2)
        )
        calls = Models(settings)

        async def work() -> None:
            try:
                with pytest.raises(Exception, match="judge of toy"):
                    await ask(calls)
                assert calls.held("judge")
                models.answer = lambda request: Reply()
                assert (await ask(calls)).text == "ok"
            finally:
                await calls.close()

        run(work())


def test_a_call_is_expected_to_cost_its_prompt_by_its_bytes_and_the_longest_answer_of_the_dearest() -> None:
    spare = Model(model="b", input_cost_per_token=0.0, output_cost_per_token=1.0, max_tokens=100)
    model = Model(model="a", input_cost_per_token=1.0, output_cost_per_token=0.0, max_tokens=10, fallbacks=(spare,))
    call = expected(model, [Message("user", "x" * 300)], 2, priced=True)
    assert call == Call("a", 2, 116 + 100, 116.0)


def test_a_model_without_a_known_price_under_a_cap_is_a_mistake_that_names_the_two_settings() -> None:
    unknown = Model(model="hosted_vllm/mine")
    with pytest.raises(SettingsError, match="set input_cost_per_token and output_cost_per_token"):
        check_prices(settings_of(Caps(judge=Limits(usd_per_day=1.0)), unknown))
    check_prices(settings_of(Caps(requests_per_minute=5), unknown))
    check_prices(settings_of(Caps(usd_per_day=1.0), Model(model="scripted/scribe-judge")))
    assert price_of(Model(model="gpt-4o-mini")) == (1.5e-07, 6e-07)


TASK = """
[tasks.toy]
topics = ["log"]
rubric.rules = [{ id = "kind", text = "Be kind." }]
student.model = "hosted_vllm/m"
strategist.model = "hosted_vllm/m"
refiner.model = "hosted_vllm/m"
"""
PRICED = 'judge = { model = "m", max_tokens = 100, input_cost_per_token = 0.0, output_cost_per_token = 0.01'


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        (
            'judge = { model = "m", input_cost_per_token = 1.0 }\nbudget.usd_per_day = 5.0',
            "output_cost_per_token is mis",
        ),
        (PRICED + " }\nbudget.judge.usd_per_day = 0.5", "one answer of max_tokens 100 may cost 1 USD"),
        (PRICED + ", fallbacks = [{ temperature = 0.5 }] }", r"judge\.fallbacks\[0\] has no model"),
        (PRICED + ', fallbacks = [{ model = "local/tiny" }] }', "neither has fallbacks nor is one"),
        (
            PRICED + ', fallbacks = [{ model = "a", api_base = "http://u:p@host" }] }',
            "Secrets are never allowed in URLs",
        ),
        ('judge.model = "m"\nstudent.fallbacks = [{ model = "a" }]', r"student\.fallbacks: the student has none"),
        ('judge.model = "m"\nbudget.requests_per_minute = 0', "budget.requests_per_minute: Expected `int` >= 1"),
        ('judge.model = "m"\nbudget.usd_a_day = 5', r"unknown key tasks.*budget\.usd_a_day"),
    ],
)
def test_mistakes_in_budgets_and_fallbacks_are_named(tmp_path: Path, toml: str, told: str) -> None:
    path = tmp_path / "goldstream.toml"
    path.write_text(TASK + toml)
    with pytest.raises(SettingsError, match=told):
        load_settings(path, environ={})
