"""Row `calls`: CPU of one model call for a case by the direct path, against litellm.acompletion to the same stub.

Ours is all of `Models.complete` as a worker calls it: caps on requests, tokens and money, breaker, metrics, usage and
cost, the bill. Theirs is the bare call. One process on one core does both in turns; the stub has the other core.
"""

from __future__ import annotations

import asyncio
import os
import time
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from agents.billing import Bill, billed
from agents.models import Models, calling_for
from agents.providers import load_litellm
from bench.row import Result, cores, paired
from bench.stub import Stub
from schemas.case import Message
from schemas.chat import to_chat
from schemas.settings import Budget, Model, Rubric, Rule, Settings, Task

ROUNDS, AT_ONCE = 9, 16
OURS, THEIRS = 2000, 320  # calls of a round, about 0.5 s and 1 s
MESSAGES = (
    Message("system", "You answer patients' questions about their medication. " * 4),
    Message("user", "The patient reports a cough and takes 500 mg of metformin daily. " * 12),
)  # 1 KB
PLENTY = 10**9


def settings_for(api_base: str, **model: Any) -> Settings:
    """Returns a task whose judge is the stub's, with every kind of cap, none of which holds."""
    judge = Model(
        model="hosted_vllm/student", api_base=api_base, input_cost_per_token=1e-9, output_cost_per_token=1e-9, **model
    )
    budget = Budget(usd_per_day=1e6, requests_per_minute=PLENTY, tokens_per_minute=PLENTY, calls_in_flight=PLENTY)
    rubric = Rubric(rules=(Rule(id="please", text="It says please."),))
    return Settings(tasks={"toy": Task(topics=("log",), rubric=rubric, judge=judge, budget=budget)})


async def _many(calls: int, one: Callable[[str], Awaitable[object]]) -> None:
    async def some(caller: int) -> None:
        for number in range(calls // AT_ONCE):
            await one(f"case-{caller}-{number}")

    await asyncio.gather(*map(some, range(AT_ONCE)))


def measure(room: Path) -> Result:
    """Returns how many times the CPU of ours LiteLLM's call takes."""
    warnings.simplefilter("ignore")  # pydantic's, about LiteLLM's types
    mine, others = cores()
    os.sched_setaffinity(0, mine)
    litellm = load_litellm()
    with Stub(core=others) as stub, asyncio.Runner() as runner:
        models = Models(settings_for(stub.api_base))
        asked = {"model": "hosted_vllm/student", "api_base": stub.api_base, "temperature": 0.0, "max_tokens": 1024}

        async def ours(case_id: str) -> None:
            calling_for.set(case_id)
            billed.set(Bill())
            deadline = asyncio.get_running_loop().time() + 45
            await models.complete("judge", "toy", MESSAGES, deadline=deadline)

        async def theirs(case_id: str) -> None:
            await litellm.acompletion(messages=to_chat(MESSAGES), timeout=30.0, **asked)

        def cpu_ms(calls: int, one: Callable[[str], Awaitable[object]]) -> float:
            began = time.process_time()
            runner.run(_many(calls, one))
            return (time.process_time() - began) * 1000 / calls

        ratio = paired(lambda: cpu_ms(THEIRS, theirs), lambda: cpu_ms(OURS, ours), ROUNDS)
        seen = stub.count()
        runner.run(models.close())
    expected = (ROUNDS + 1) * (OURS + THEIRS)
    if seen.answered != expected:
        raise RuntimeError(f"the stub answered {seen.answered} calls; expected {expected}: some were made again.")
    return Result(
        figure=ratio.median,
        low=ratio.low,
        high=ratio.high,
        ours=f"{ratio.theirs:.3f} ms a call",
        theirs=f"{ratio.ours:.2f} ms a call",
        detail={"ours_ms": ratio.theirs, "litellm_ms": ratio.ours, "calls_at_once": AT_ONCE, "rounds": ROUNDS},
    )
