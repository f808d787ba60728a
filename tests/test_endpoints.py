"""Claims about outages inside agents.models: `Endpoints` stands in for the network, all else is the real thing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec
import pytest

from agents.models import PROBE, Completion, Models, calling_for
from schemas.case import Message
from schemas.errors import (
    BadAnswer,
    EndpointHeld,
    EndpointRefused,
    ModelError,
    ModelRefused,
    ModelUnavailable,
    RateLimited,
)
from schemas.settings import Model, Refiner, Refining, Rubric, Rule, Settings, Task, Worker

T = TypeVar("T")


class Endpoints(Models):
    """Models whose calls `behave` answers: it gets (model string, prompt) and returns None or an error."""

    def __init__(self, settings: Settings, behave: Callable[[str, str], Exception | None]) -> None:
        super().__init__(settings)
        self.behave = behave
        self.calls: list[tuple[str, str]] = []

    async def _call(self, role: Any, task: str, model: Model, adapter: str, messages: Any, *more: Any) -> Completion:
        prompt = "probe" if messages == PROBE else messages[-1].text()
        self.calls.append((model.model, prompt))
        await asyncio.sleep(0.001)
        if error := self.behave(model.model, prompt):
            raise error
        return Completion(
            text="ok",
            thinking="",
            model=model.model,
            adapter="",
            prompt_tokens=1,
            completion_tokens=1,
            logprob=None,
            latency_s=0.0,
            cost_usd=0.0,
        )

    @property
    def probes(self) -> int:
        return sum(prompt == "probe" for _, prompt in self.calls)


def settings_of(*models: str, retries: int = 0) -> Settings:
    rubric = Rubric(rules=(Rule(id="kind", text="Be kind."),))
    tasks = {
        f"task{number}": Task(topics=("t",), rubric=rubric, student=Model(model=model, retries=retries, timeout_s=5))
        for number, model in enumerate(models)
    }
    return Settings(tasks=tasks, worker=Worker(breaker_failures=3, breaker_longest_s=0.4))


async def call(models: Models, case: str, task: str = "task0", within_s: float = 2.0) -> str:
    """Calls as a stage does and returns "ok", or what the failure means: "outage", "own" with its reason."""
    calling_for.set(case)
    try:
        deadline = asyncio.get_running_loop().time() + within_s
        await models.complete("student", task, [Message("user", case)], deadline=deadline)
        return "ok"
    except ModelError as error:
        outage_s = await models.outage_s("student", task, case, error)
        return f"own {error.reason}" if outage_s is None else "outage"


async def gather(*calls: Coroutine[Any, Any, str]) -> list[str]:
    """Runs calls each in a context of its own, as the stage's tasks do."""
    return await asyncio.gather(*(asyncio.create_task(one) for one in calls))


def run(models: Models, work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` with pauses a tenth as long."""

    async def closing() -> T:
        try:
            return await work
        finally:
            await models.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.breaker.FIRST_S", 0.1)
        patch.setattr("agents.models.FIRST_PAUSE_S", 0.01)
        return asyncio.run(closing())


def test_in_an_outage_only_probes_are_sent_and_nobody_is_blamed() -> None:
    down = True
    models = Endpoints(settings_of("m/a"), lambda model, prompt: ModelUnavailable("no") if down else None)

    async def work() -> None:
        nonlocal down
        assert await gather(*(call(models, f"c{n}") for n in range(20))) == ["outage"] * 20
        assert models.held("student")
        before = len(models.calls)
        assert await gather(*(call(models, f"d{n}", within_s=0.05) for n in range(20))) == ["outage"] * 20
        await asyncio.sleep(1.0)
        sent = models.calls[before:]
        assert {prompt for _, prompt in sent} == {"probe"}
        assert 2 <= len(sent) <= 8, "a probe per cool-down"
        waiting = [asyncio.create_task(call(models, f"e{n}")) for n in range(8)]
        await asyncio.sleep(0.1)
        down = False
        assert await asyncio.gather(*waiting) == ["ok"] * 8, "cases under way wait in place"
        assert not models.held("student")

    run(models, work())


def test_a_lone_case_is_not_blamed_for_an_outage() -> None:
    models = Endpoints(settings_of("m/a"), lambda model, prompt: ModelUnavailable("no"))
    assert run(models, call(models, "only")) == "outage"
    assert models.calls == [("m/a", "only"), ("m/a", "probe")]


def test_a_poison_case_is_blamed_and_opens_nothing_with_and_without_others() -> None:
    def behave(model: str, prompt: str) -> Exception | None:
        return ModelUnavailable("500") if prompt == "poison" else None

    models = Endpoints(settings_of("m/a", retries=2), behave)

    async def work() -> list[str]:
        results = [await call(models, "poison")]
        results += await gather(*(call(models, name) for name in ("a", "poison", "b", "poison", "c")))
        assert not models.held("student")
        return results

    own = "own model_unavailable"
    assert run(models, work()) == [own, "ok", own, "ok", own, "ok"]
    assert models.probes == 1, "where others are answered nobody needs to ask"


def test_a_case_that_is_always_limited_is_blamed_in_the_end_and_a_limit_of_all_is_nobodys_fault() -> None:
    def behave(model: str, prompt: str) -> Exception | None:
        return RateLimited("429") if prompt == "poison" else None

    models = Endpoints(settings_of("m/a"), behave)

    async def poison() -> list[str]:
        return [await call(models, "poison"), await call(models, "poison")]

    assert run(models, poison()) == ["outage", "own model_rate_limited"]

    limited = Endpoints(settings_of("m/a"), lambda model, prompt: RateLimited("429", 0.3))

    async def everyone() -> None:
        for _ in range(3):
            assert set(await gather(*(call(limited, f"c{n}", within_s=0.2) for n in range(10)))) == {"outage"}

    run(limited, everyone())
    assert len(limited.calls) <= 10, "one burst, then nobody calls before Retry-After"


def test_retry_after_holds_cases_in_place_and_no_call_is_made_before() -> None:
    until = time.monotonic() + 0.4
    models = Endpoints(
        settings_of("m/a", retries=1),
        lambda model, prompt: RateLimited("429", 0.4) if time.monotonic() < until else None,
    )

    async def work() -> None:
        assert await gather(*(call(models, f"c{n}") for n in range(5))) == ["ok"] * 5

    run(models, work())
    assert len(models.calls) == 5 + 1 + 5, "a burst, one probe, the same five"


def test_a_broken_task_holds_its_own_cases_and_the_stage_only_if_no_task_is_left() -> None:
    down = {"m/a"}
    models = Endpoints(
        settings_of("m/a", "m/b"), lambda model, prompt: ModelUnavailable("no") if model in down else None
    )

    async def work() -> None:
        await gather(*(call(models, f"a{n}") for n in range(5)))
        assert not models.held("student")
        before = len(models.calls)
        assert await call(models, "a9") == "outage"
        assert all(prompt == "probe" for _, prompt in models.calls[before:])
        assert await call(models, "b", "task1") == "ok"
        down.add("m/b")
        await gather(*(call(models, f"b{n}", "task1") for n in range(5)))
        assert models.held("student")
        assert not models.held("judge")

    run(models, work())


def test_the_refiner_is_held_where_every_member_of_its_chain_is() -> None:
    down = {"m/student"}
    models = Endpoints(
        settings_of("m/student"), lambda model, prompt: ModelUnavailable("no") if model in down else None
    )
    task = models._settings.tasks["task0"]
    chain = (Refiner(by="student", rounds=1), Refiner(by="teacher"))
    task = msgspec.structs.replace(task, refiner=Model(model="m/teacher", retries=0), refining=Refining(chain=chain))
    both = msgspec.structs.replace(models._settings, tasks={"task0": task})
    alone = msgspec.structs.replace(task, refiner=Model(), refining=Refining(chain=(Refiner(by="student"),)))

    async def refine(case: str, **by: Any) -> str:
        calling_for.set(case)
        try:
            deadline = asyncio.get_running_loop().time() + 2
            await models.complete("refiner", "task0", [Message("user", case)], deadline=deadline, **by)
            return "ok"
        except ModelError:
            return "failed"

    async def work() -> None:
        models._settings = both
        await gather(*(refine(f"s{n}", by="student") for n in range(5)))
        assert not models.held("refiner"), "cases whose turn is the teacher's go on"
        models._settings = msgspec.structs.replace(both, tasks={"task0": alone})
        assert models.held("refiner"), "with the student alone there is nobody left"
        models._settings = both
        down.add("m/teacher")
        await gather(*(refine(f"t{n}") for n in range(5)))
        assert models.held("refiner")

    run(models, work())


def test_a_key_that_expires_holds_the_cases_but_a_refusal_of_one_case_ends_it() -> None:
    refusals: dict[str, Exception] = {"everyone": EndpointRefused("401")}

    def behave(model: str, prompt: str) -> Exception | None:
        return refusals.get("everyone") or refusals.get(prompt)

    models = Endpoints(settings_of("m/a"), behave)

    async def work() -> None:
        assert await call(models, "a") == "outage"
        refusals.clear()
        await asyncio.sleep(0.3)
        assert await call(models, "a") == "ok"
        refusals["odd"] = ModelRefused("400")
        refusals["bad"] = BadAnswer("?")
        assert await call(models, "odd") == "own model_refused"
        assert await call(models, "bad") == "own bad_answer"

    run(models, work())


def test_outside_the_stream_stages_there_is_no_breaker() -> None:
    models = Endpoints(settings_of("m/a"), lambda model, prompt: ModelUnavailable("no"))

    async def work() -> None:
        deadline = asyncio.get_running_loop().time() + 1
        for _ in range(10):
            with pytest.raises(ModelUnavailable) as caught:
                await models.complete("student", "task0", [Message("user", "x")], deadline=deadline)
            assert not isinstance(caught.value, EndpointHeld)

    run(models, work())
    assert len(models.calls) == 10
