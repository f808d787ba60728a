"""Claims about the ledger: real workers on a real broker, model calls counted by the server that answers them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from factory_settings import process_options
from pipeline import STUB_TASK, outcomes, processes, toy_answer, wait_for
from steps import command_line, put
from stub_models import StubModels

from agents.account import Call
from agents.budget import Blocked, Budget, Reservation
from schemas.case import Case, Message, Source, Spend
from schemas.errors import SettingsError
from schemas.settings import Settings
from schemas.topics import PROMPTS
from streams.cost import cost_report, dearest_rows
from streams.lag import LagReader
from streams.ledger import Ledger, read_ledger
from streams.supervisor import Supervisor
from streams.topics import create_topics

CALL_USD, CALLS = 0.005, 60  # of 5 tokens, which is also the most a call may take
PRICE = """max_tokens = 5
input_cost_per_token = 0.0
output_cost_per_token = 0.001
"""
CAP = f"""[tasks.toy.budget]
usd_per_day = {CALL_USD * CALLS}
"""
CALL = Call("m", 0, 10, 0.02)

Make = Callable[..., Settings]


def capped(make_settings: Make, topic: str, api_base: str, cap: str = CAP) -> Settings:
    toml = STUB_TASK.format(topic=topic, api_base=api_base).replace("retries = 0\n", "retries = 0\n" + PRICE)
    settings = make_settings(toml + cap)
    create_topics(settings)
    return settings


def two_workers(settings: Settings, config: Path, *others: str) -> Supervisor:
    options = process_options(settings, config)
    names = {"worker": "worker", "worker-2": "worker"} | dict(zip(others, others, strict=True))
    return Supervisor(settings, {name: [command, *options] for name, command in names.items()})


def prompt(number: int) -> Case:
    source = Source(cluster="c", topic="log", partition=0, offset=number)
    asked = (Message("user", f"question {number}"),)
    return Case(case_id=f"case-{number}", task="toy", split="train", source=source, messages=asked)


def lag(settings: Settings) -> int:
    with LagReader(settings) as reader:
        lags = reader.by_group()
    return sum(lags[role] for role in ("student", "judge", "refiner", "strategist"))


def unclaimed(settings: Settings, days_ahead: int) -> float:
    """Returns what is left of a day's cap."""
    day = datetime.fromtimestamp(time.time() + 86_400 * days_ahead, UTC).strftime("%Y-%m-%d")
    return CALL_USD * CALLS - read_ledger(settings).claimed_usd(day, "toy")


def told(settings: Settings) -> str:
    return " ".join(entry.held for entry in read_ledger(settings).entries.values())


def test_two_workers_keep_a_cap_through_kill_9_and_go_on_the_next_day(
    make_settings: Make, models: StubModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.answer = lambda request: toy_answer(request)._replace(hang_s=0.05)
    settings = capped(make_settings, "logs-capped", models.api_base)
    config = tmp_path / "goldstream.toml"
    with two_workers(settings, config, "retries") as supervisor:
        supervisor.wait_ready()
        put(settings, PROMPTS, *(prompt(n) for n in range(100)))
        wait_for(lambda: len(models.requests) >= 20, "20 calls", supervisor)
        victim = next(child for child in supervisor.children if child.name == "worker")
        assert victim.process is not None
        os.kill(victim.process.pid, signal.SIGKILL)
        wait_for(lambda: unclaimed(settings, 0) < CALL_USD, "the cap", supervisor)
        wait_for(lambda: "USD a day" in told(settings), "the reason", supervisor)
        assert CALLS / 2 < len(models.requests) <= CALLS
        assert lag(settings) > 0
        assert "is held: all roles of toy may spend 0.3 USD a day" in "".join(c.tail(200) for c in supervisor.children)
    today = len(models.requests)
    monkeypatch.setenv("GOLDSTREAM_CLOCK_OFFSET_S", str(86_400))
    with two_workers(settings, config, "retries") as supervisor:
        wait_for(lambda: unclaimed(settings, 1) < CALL_USD, "the cap of the next day", supervisor)
    assert today < len(models.requests)
    assert len(models.requests) <= 2 * CALLS
    spent = sum(entry.spent_usd for entry in read_ledger(settings).entries.values())
    assert spent <= 2 * CALL_USD * CALLS + 1e-9
    assert spent >= 0.8 * CALL_USD * len(models.requests)


def test_what_was_spent_is_known_to_the_next_run_and_what_was_not_is_given_back(make_settings: Make) -> None:
    cap = "[tasks.toy.budget.judge]\nusd_per_day = 0.10\n"
    settings = capped(make_settings, "logs-runs", "http://127.0.0.1:9", cap)

    async def a_run() -> int:
        budget = Budget(settings)
        ledger = Ledger(settings, budget)
        await ledger.start()
        made = 0
        try:
            deadline = asyncio.get_running_loop().time() + 30
            while made < 2:
                got = budget.reserve("toy", "judge", CALL)
                if isinstance(got, Reservation):
                    got.settle(Spend(1, 10, 5, 0.015, 0.1))
                    made += 1
                elif isinstance(got, Blocked) and got.wait_s > 1:
                    return made
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.02)
            return made
        finally:
            await ledger.stop()

    made = [asyncio.run(a_run()) for _ in range(4)]
    assert made == [2, 2, 2, 0]  # 0.09 spent, and the next might cost 0.02
    assert sum(entry.claimed_usd for entry in read_ledger(settings).entries.values()) == pytest.approx(0.09)


def test_the_report_reconciles_what_was_called_with_what_the_rows_say(
    make_settings: Make, models: StubModels, tmp_path: Path
) -> None:
    models.answer = toy_answer
    settings = capped(make_settings, "logs-report", models.api_base, CAP.replace(str(CALL_USD * CALLS), "100.0"))
    with processes(settings, tmp_path / "goldstream.toml", "worker", "sink") as supervisor:
        supervisor.wait_ready()
        put(settings, PROMPTS, *(prompt(n) for n in range(6)))
        wait_for(lambda: len(outcomes(settings)) == 6, "all outcomes", supervisor)
    asked = command_line(settings, tmp_path, "cost", "--by", "role", "--json")
    assert asked.exit_code == 0, asked.output
    report = json.loads(asked.output)
    assert {row["name"]: (row["calls"], row["rows_calls"]) for row in report["rows"]} == {
        "student": (6, 6),
        "judge": (12, 12),
        "refiner": (6, 6),
        "strategist": (6, 6),
    }
    assert len(models.requests) == 30
    assert report["ledger_usd"] == pytest.approx(report["rows_usd"]) == pytest.approx(30 * CALL_USD)
    assert report["notes"] == [
        "The ledger has 30 calls for 0.15 USD, the rows of ended cases 30 for 0.15 USD. They agree."
    ]
    assert report["gold"][0]["usd_a_row"] == pytest.approx(5 * CALL_USD)
    by_round = cost_report(settings, "round").rows
    assert [(row.name, row.calls) for row in by_round] == [("0", 12), ("1", 18)]
    (dearest, *_) = dearest_rows(settings.gold, 3)
    assert sum(charge["usd"] for charge in dearest["charges"]) == pytest.approx(dearest["usd"])
    for by in ("task", "model", "day", "row"):
        assert command_line(settings, tmp_path, "cost", "--by", by).exit_code == 0
    refused = command_line(settings, tmp_path, "cost", "--since", "yesterday")
    assert isinstance(refused.exception, SettingsError)
