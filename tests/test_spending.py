"""Claims about calls outside the stream: a gate's, a replay's, a calibration's count against the task's budget."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from judged_cases import FAILED, toy
from pipeline import STUB_TASK
from steps import command_line, put, sink_all
from stub_models import Reply, StubModels
from toys import COLORS, TOY, ToyEngine

from agents.judging import Item, judge_all
from agents.models import Models
from agents.outside import patiently, spending
from schemas.case import Message
from schemas.errors import BudgetHeld, SettingsError
from schemas.settings import ROLES, Budget, Gate, Kafka, Limits, Model, Rubric, Rule, Settings, Task
from streams.topics import create_topics
from streams.worker import run_worker
from trainer.gate import run_gate

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:litellm.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pydantic.*"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]
Make = Callable[..., Settings]
CALL_USD = 0.01  # the stub answers 5 tokens, which is also the most a call may take
PRICES = {"max_tokens": 5, "input_cost_per_token": 0.0, "output_cost_per_token": CALL_USD / 5}
LOVED = '{"violations": []}'


def priced(models: StubModels, calls: float, **limits: Any) -> Settings:
    """Returns settings without Kafka whose task may spend so many calls a day."""
    judge = Model(model="hosted_vllm/judge", api_base=models.api_base, retries=0, **PRICES)
    task = Task(
        topics=("log",),
        rubric=Rubric(rules=(Rule(id="kind", text="Be kind."),)),
        judge=judge,
        budget=Budget(usd_per_day=calls * CALL_USD, judge=Limits(**limits)),
        gate=Gate(min_holdout=4, max_holdout=4),
    )
    return Settings(tasks={"toy": task})


@pytest.fixture(autouse=True)
def _no_ledger(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Lets the caps hold for this process alone, but where a test asks for Kafka."""
    if "make_settings" not in request.fixturenames:
        monkeypatch.setattr("agents.outside._keepers", [])


def test_a_calibration_stops_at_the_days_cap_and_says_so(models: StubModels) -> None:
    models.answer = lambda request: Reply(LOVED)
    items = [Item([Message("user", "?")], f"answer {n}") for n in range(6)]
    done = asyncio.run(judge_all(priced(models, 3.5), "toy", items, at_once=1, purpose="calibrate"))
    assert [one.error for one in done[:3]] == [""] * 3
    assert [one.verdict is not None for one in done] == [True] * 3 + [False] * 3
    assert "may spend 0.035 USD a day" in done[-1].error
    assert len(models.requests) == 3


def midnight_after(calls: int, models: StubModels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the budgets' clock stand just before midnight until so many calls were answered, and then go on."""
    began: list[float] = []

    def answer(request: dict[str, Any]) -> Reply:
        if len(models.requests) == calls:
            began.append(time.monotonic())
        return Reply(LOVED)

    def now() -> float:
        return 1_763_769_600 - 0.3 + (time.monotonic() - began[0] if began else 0.0)  # 2025-11-22, 00:00 UTC

    models.answer = answer
    monkeypatch.setattr("agents.budget.time", SimpleNamespace(time=now, monotonic=time.monotonic))


def test_a_calibration_told_to_wait_goes_on_when_the_next_day_begins(
    models: StubModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    midnight_after(2, models, monkeypatch)
    items = [Item([Message("user", "?")], f"answer {n}") for n in range(4)]
    done = asyncio.run(judge_all(priced(models, 2.5), "toy", items, at_once=1, purpose="calibrate", wait=True))
    assert [(one.verdict is not None, one.error) for one in done] == [(True, "")] * 4
    assert len(models.requests) == 4


def test_an_unknown_price_under_a_cap_is_told_before_anything_is_called_or_kafka_is_asked(models: StubModels) -> None:
    settings = priced(models, 3)
    bare = Model(model="hosted_vllm/judge", api_base=models.api_base)
    task = msgspec.structs.replace(settings.tasks["toy"], judge=bare)
    settings = msgspec.structs.replace(settings, tasks={"toy": task}, kafka=Kafka(bootstrap_servers="127.0.0.1:1"))
    item = Item([Message("user", "?")], "answer")
    with pytest.raises(SettingsError, match="set input_cost_per_token"):
        asyncio.run(judge_all(settings, "toy", [item], purpose="calibrate"))
    with pytest.raises(SettingsError, match="set input_cost_per_token"):
        asyncio.run(run_worker(settings, ROLES, asyncio.Event(), lambda: None))
    assert not models.requests


def test_what_holds_for_a_moment_is_waited_for_and_a_day_is_not() -> None:
    asked: list[float] = []

    async def ask(deadline: float) -> str:
        asked.append(deadline)
        if len(asked) == 1:
            raise BudgetHeld("a minute's", 0.01)
        if len(asked) == 3:
            raise BudgetHeld("a day's", 9999.0)
        return "done"

    assert asyncio.run(patiently(ask, 1.0)) == "done"
    with pytest.raises(BudgetHeld, match="a day's"):
        asyncio.run(patiently(ask, 1.0))


def test_the_judges_own_cap_holds_for_a_gates_calls_under_a_name_of_their_own(models: StubModels) -> None:
    settings = priced(models, 100, usd_per_day=2.5 * CALL_USD)

    async def run() -> Models:
        access = Models(settings)
        async with spending(settings, access, "gate"):
            for _ in range(2):
                await access.complete("judge", "toy", [Message("user", "?")], deadline=soon())
            with pytest.raises(BudgetHeld, match="the judge of toy may spend"):
                await access.complete("judge", "toy", [Message("user", "?")], deadline=soon())
        await access.complete("judge", "toy", [Message("user", "?")], deadline=soon())
        await access.close()
        return access

    budget = asyncio.run(run()).budget
    ((_, task, role),) = budget.accounts
    assert (task, role) == ("toy", "judge/gate")
    assert budget.spent_usd("toy", "judge") == pytest.approx(2 * CALL_USD)


def test_a_gate_that_the_budget_breaks_off_goes_on_with_what_it_has_judged(models: StubModels, tmp_path: Path) -> None:
    """Each side answers four cases; three calls are paid for in the first try, the other five in the second."""
    models.answer = lambda request: Reply(LOVED)
    few, many = (msgspec.structs.replace(priced(models, calls), state_dir=str(tmp_path)) for calls in (3.5, 100))
    answers = {"": dict.fromkeys(TOY, "no"), "v0002-abcdef02": dict(TOY)}
    judged: Any = {}
    with pytest.raises(BudgetHeld, match="It goes on by itself"):
        run_gate(few, "toy", _Told(answers), COLORS, candidate="v0002-abcdef02", incumbent="", judged=judged)
    assert len(models.requests) == 3
    report, _ = run_gate(many, "toy", _Told(answers), COLORS, candidate="v0002-abcdef02", incumbent="", judged=judged)
    assert (report.cases, len(models.requests)) == (4, 8)


def soon() -> float:
    return asyncio.get_running_loop().time() + 9


class _Told(ToyEngine):
    """Answers from a table, whatever adapter lies on disk."""

    def __init__(self, answers: dict[str, dict[str, str]]) -> None:
        super().__init__("sha")
        self.told = answers

    def load_adapter(self, name: str, folder: Path) -> None:
        self.now = name

    def generate_batch(self, prompts: Any, *, adapter: str, **more: Any) -> Any:
        return [msgspec.defstruct("Made", [("text", str)])(self.told[adapter][p[-1].text()]) for p in prompts]


def with_failed(make_settings: Make, models: StubModels, topic: str, calls_a_day: float) -> Settings:
    """Returns settings with the money for so many calls a day, and a gold set of four cases that failed."""
    prices = "".join(f"{name} = {value}\n" for name, value in PRICES.items())
    toml = STUB_TASK.format(topic=topic, api_base=models.api_base).replace("retries = 0\n", "retries = 0\n" + prices)
    settings = make_settings(toml + f"[tasks.toy.budget]\nusd_per_day = {calls_a_day * CALL_USD}\n")
    create_topics(settings)
    put(settings, "outcomes", *(toy(n, FAILED) for n in range(4)))
    sink_all(settings)
    return settings


def test_replays_and_calibrations_stand_in_the_ledger_and_share_its_cap(
    make_settings: Make, models: StubModels, tmp_path: Path
) -> None:
    models.answer = lambda request: Reply(LOVED)
    settings = with_failed(make_settings, models, "logs-spending", calls_a_day=5.5)
    replayed = command_line(settings, tmp_path, "replay", "--json", "--at-once", "1")
    assert replayed.exit_code == 0, replayed.output
    assert json.loads(replayed.stdout)["judged"] == 4
    examples = [json.dumps({"prompt": "?", "answer": str(n), "passed": True}) for n in range(3)]
    (tmp_path / "labels.jsonl").write_text("\n".join(examples))
    calibrated = command_line(
        settings, tmp_path, "judge", "calibrate", str(tmp_path / "labels.jsonl"), "--at-once", "1"
    )
    assert "2 could not be judged: not judged: judge of toy is held: all roles of toy may spend" in calibrated.output
    told = json.loads(command_line(settings, tmp_path, "cost", "--by", "role", "--json").stdout)
    assert {row["name"]: row["calls"] for row in told["rows"] if row["calls"]} == {
        "judge/replay": 4,
        "judge/calibrate": 1,
    }
    assert "5 calls for 0.05 USD were made for gates, replays" in told["notes"][-1]


def test_a_replay_told_to_wait_goes_on_with_the_ledgers_next_day(
    make_settings: Make, models: StubModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = with_failed(make_settings, models, "logs-midnight", calls_a_day=2.5)
    midnight_after(2, models, monkeypatch)
    replayed = command_line(settings, tmp_path, "replay", "--json", "--at-once", "1", "--wait")
    assert replayed.exit_code == 0, replayed.output
    assert json.loads(replayed.stdout)["judged"] == 4
    assert len(models.requests) == 4
