"""The estimate: what it says of records, cases, calls and money, and that it leaves no trace."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from ended_cases import ended, land
from pipeline import openai_record, produce
from steps import Make, command_line, start, take_in

from agents.prices import Price
from schemas.case import Case, Message, Source
from schemas.errors import SettingsError
from schemas.settings import Limits, Model, Rubric, Rule, Task
from schemas.settings.budget import Budget
from streams.admission.calls import Measured, longest_s, role_calls
from streams.admission.estimate import estimate, wilson
from streams.clients import make_producer
from streams.lag import LagReader

MODELS: dict[str, Any] = {
    r: Model(model=f"x/{r}", max_tokens=50) for r in ("student", "judge", "refiner", "strategist")
}
TASK = Task(topics=("logs",), max_rounds=2, rubric=Rubric(rules=(Rule(id="a", text="A."),)), **MODELS)


BIG = 'tasks.toy.models=["big"]'


def case(split: Any = "train", **fields: Any) -> Case:
    source = Source(cluster="c", topic="logs", partition=0, offset=0)
    texts: dict[str, Any] = {"messages": (Message("user", "x" * 300),), "production_answer": "y" * 90}
    return Case(case_id="a", task="toy", split=split, source=source, **(texts | fields))


def dollar(model: Model) -> Price | None:
    return Price(0.01, 0.02)


def test_calls_range_from_no_repair_to_all_rounds_and_the_holdout_is_judged_once() -> None:
    calls = {role.role: role.calls for role in role_calls(TASK, [case(), case("holdout")], None, dollar)}
    assert calls == {"student": (1, 1), "judge": (1, 2), "refiner": (0, 1), "strategist": (0, 0.5)}


def test_what_the_gold_set_measured_replaces_the_range() -> None:
    found = role_calls(TASK, [case()], Measured(100, 0.5, 0.4, 1.5), dollar)
    assert [role.calls for role in found] == [(1, 1), (1.5, 1.5), (0.5, 0.5), (0.4, 0.4)]
    assert longest_s(found, 1000, 10, Measured(100, 0.5, 0.4, 1.5), Budget())[0] == pytest.approx(1500 * 1.5 / 10)


def test_tokens_come_from_texts_and_answers_end_at_max_tokens() -> None:
    student = role_calls(TASK, [case()], None, dollar)[0]
    assert (student.prompt_tokens, student.completion_tokens) == (100, 30)
    assert student.usd == (pytest.approx(100 * 0.01 + 30 * 0.02),) * 2
    assert role_calls(TASK, [case(production_answer="y" * 900)], None, dollar)[0].completion_tokens == 50
    logged = role_calls(TASK, [case(production_prompt_tokens=150)], None, dollar)[0]
    assert logged.prompt_tokens == pytest.approx(150)


def test_programs_cost_nothing_and_production_answers_spare_the_student() -> None:
    task = Task(topics=("logs",), first_attempt="production", rubric=Rubric(verifier="m:f", rules=TASK.rubric.rules))
    assert [role.calls for role in role_calls(task, [case()], None, dollar)][:2] == [(0, 0), (0, 0)]


@pytest.mark.parametrize(
    ("budget", "seconds", "bound"),
    [  # 60 cases of 2 calls: 110 and about 800 tokens, 1.6 and some USD
        (Budget(judge=Limits(requests_per_minute=6)), 600, "judge, 6 calls a minute"),
        (Budget(requests_per_minute=6), 1200, "all roles, 6 calls a minute"),
        (Budget(student=Limits(tokens_per_minute=130)), 3600, "student, 130 tokens a minute"),
        (Budget(student=Limits(usd_per_day=48)), 2 * 86_400, "student, 48 USD a day"),
        (Budget(student=Limits(usd_per_day=0)), math.inf, "student, 0 USD a day"),
    ],
)
def test_the_budgets_caps_bound_the_time(budget: Budget, seconds: float, bound: str) -> None:
    task = Task(topics=("logs",), max_rounds=0, rubric=TASK.rubric, **MODELS)
    found = longest_s(role_calls(task, [case()], None, dollar), 60, 64, None, budget)
    assert found == (pytest.approx(seconds), bound)


def test_an_unknown_price_is_unknown_and_not_nothing() -> None:
    assert {role.usd for role in role_calls(TASK, [case()], None, lambda model: None)} == {None}


def test_an_interval_of_a_share_is_wide_for_few() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(9, 10)[0] < 0.6 < wilson(900, 1000)[0] < 0.9 < wilson(900, 1000)[1]


def test_it_counts_a_topic_and_leaves_no_trace(make_settings: Make, tmp_path: Path) -> None:
    settings = start(make_settings, "logs-estimate", "tasks.toy.per_day=30", BIG)
    bodies = [json.loads(openai_record(f"q {n}")) for n in range(60)]
    for n, body in enumerate(bodies):
        body["request"]["model"] = "big" if n % 3 else "small"
    produce(settings, "logs-estimate", [json.dumps(body).encode() for body in bodies])
    found = estimate(settings)
    (topic,), (task,) = found.topics, found.tasks
    assert (topic.to_read, topic.last_day, topic.sampled) == (60, 60, 60)
    assert (task.admitted, task.reasons, task.backlog.cases) == (40, {"no_match": 20}, 30)
    assert [role.usd for role in task.roles] == [None] * 4
    assert estimate(settings, start="latest").tasks[0].backlog.cases == 0
    few = estimate(settings, "toy", "earliest", sample=12)
    assert few.topics[0].sampled < 30
    shown = command_line(settings, tmp_path, "estimate", "--start", "1d", "--set", BIG).output
    assert "no_match" in shown
    assert "no price is known of student" in shown
    with LagReader(settings) as lag:
        assert {row.committed for row in lag.read() if row.group == "intake"} == {-1}
    assert not list(settings.state.rglob("*.bin"))


def test_what_intake_has_read_is_not_to_read_again(make_settings: Make) -> None:
    settings = start(make_settings, "logs-goes-on")
    produce(settings, "logs-goes-on", [openai_record(f"q {n}") for n in range(4)])
    take_in(settings)
    produce(settings, "logs-goes-on", [openai_record(f"q {n}") for n in range(3)])
    found = estimate(settings)
    assert (found.start, found.topics[0].to_read) == ("where intake is", 3)
    assert estimate(settings, start="earliest").topics[0].to_read == 7


def test_the_markers_of_transactions_are_no_records(make_settings: Make) -> None:
    settings = start(make_settings, "logs-in-transactions")
    producer = make_producer(settings, "in-transactions", transactional_id="in-transactions")
    producer.init_transactions()
    for number in range(5):
        producer.begin_transaction()
        producer.send("logs-in-transactions", value=openai_record(f"q {number}"))
        producer.commit_transaction()
    producer.close()
    (topic,) = estimate(settings).topics
    assert (topic.to_read, topic.last_day, topic.sampled) == (5, 5, 5)


def test_finished_cases_make_it_a_number(make_settings: Make) -> None:
    settings = start(make_settings, "logs-measured")
    produce(settings, "logs-measured", [openai_record("q")])
    land(settings.gold, [ended(n, task="toy") for n in range(20)])
    (task,) = estimate(settings).tasks
    assert task.measured == Measured(20, 1.0, 1.0, 0.25)
    assert [role.calls for role in task.roles] == [(1, 1), (2, 2), (1, 1), (1, 1)]


def test_a_wrong_start_or_topic_is_named(make_settings: Make) -> None:
    settings = start(make_settings, "logs-wrong")
    with pytest.raises(SettingsError, match="--start soon: expected latest, earliest"):
        estimate(settings, start="soon")
    with pytest.raises(SettingsError, match="topic logs-of-nobody does not exist"):
        estimate(make_settings('[tasks.a]\ntopics = ["logs-of-nobody"]\n' + _ROLES))


_ROLES = "".join(f'[tasks.a.{role}]\nmodel = "openai/x"\n' for role in MODELS)
_ROLES += '[tasks.a.rubric]\nrules = [{ id = "a", text = "A." }]\n'
