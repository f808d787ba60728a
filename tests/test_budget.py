"""Claims about budgets: caps per minute and per day on clocks of the test's, and calls that wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
import pytest

from agents.account import Call
from agents.budget import Blocked, Budget, Reservation
from agents.limits import Window
from schemas.case import Spend
from schemas.errors import BudgetHeld, OverBudget
from schemas.ledger import Entry
from schemas.settings import Budget as Caps
from schemas.settings import Limits, Model, Rubric, Rule, Settings, Task

T = TypeVar("T")
DAY_S = 86_400
CALL = Call("m", 0, 100, 0.02)


class Clock:
    """A clock for both: seconds that go on, and the time of day."""

    def __init__(self, now: float = 1_700_000_000 // DAY_S * DAY_S + 3600.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def now_ms(self) -> int:
        return int(self.now * 1000)


def settings_of(budget: Caps, model: Model | None = None, *tasks: str) -> Settings:
    model = model or Model(model="hosted_vllm/m", input_cost_per_token=0.0, output_cost_per_token=1e-5)
    task = Task(
        topics=("t",),
        rubric=Rubric(rules=(Rule(id="kind", text="Be kind."),)),
        student=model,
        judge=model,
        refiner=model,
        strategist=model,
        budget=budget,
    )
    return Settings(tasks=dict.fromkeys(tasks or ("toy",), task))


def budget_of(caps: Caps, *tasks: str) -> tuple[Budget, Clock]:
    clock = Clock()
    return Budget(settings_of(caps, None, *tasks), clock.now_ms, clock), clock


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def test_no_minute_holds_more_than_the_limit_whatever_the_pace() -> None:
    clock = Clock()
    window = Window(clock)
    window.resize(30)
    made: list[float] = []
    for _ in range(3000):
        if window.wait_s(1) == 0:
            window.use(1)
            made.append(clock.now)
        clock.now += 0.1
    assert len(made) > 120
    assert max(sum(at - 60 < other <= at for other in made) for at in made) == 30


def test_a_window_says_when_there_is_room_again() -> None:
    clock = Clock()
    window = Window(clock)
    window.resize(10)
    clock.now += 120
    window.use(10)
    wait_s = window.wait_s(1)
    assert 60 <= wait_s <= 61
    clock.now += wait_s
    assert window.wait_s(1) == 0


def test_a_restart_is_no_way_around_a_limit_per_minute() -> None:
    clock = Clock()
    made = 0
    for _ in range(10):
        window = Window(clock)
        window.resize(60)
        for _ in range(30):
            if window.wait_s(1) == 0:
                window.use(1)
                made += 1
            clock.now += 0.1
    assert made <= 10 * (1 + 3)  # in 30 s, by ten processes one after the other


def test_one_use_larger_than_the_limit_goes_through_alone() -> None:
    clock = Clock()
    window = Window(clock)
    window.resize(100)
    clock.now += 120
    assert window.wait_s(500) == 0
    window.use(500)
    assert window.wait_s(1) > 59


def test_a_worker_has_its_part_of_a_limit_by_the_partitions_it_holds() -> None:
    budget, clock = budget_of(Caps(judge=Limits(requests_per_minute=40)))
    budget.take_share("judge", 0.25)
    clock.now += 120
    assert sum(isinstance(budget.reserve("toy", "judge", CALL), Reservation) for _ in range(40)) == 10
    assert budget.held("judge")
    held = budget.why_held("toy", "judge")
    assert held is not None
    assert held.why == "the judge of toy may use 40 requests a minute"
    assert not budget.held("student")


def test_a_cap_on_all_roles_is_shared_by_them_and_by_workers_with_some_of_them() -> None:
    caps = Caps(requests_per_minute=40)
    only_students, only_judges = budget_of(caps)[0], budget_of(caps)[0]
    for budget, role in ((only_students, "student"), (only_judges, "judge")):
        for other in ("student", "judge", "refiner", "strategist"):
            budget.take_share(other, 1.0 if other == role else 0.0)
    assert only_students.share("toy", "") + only_judges.share("toy", "") == 0.5


def test_tokens_are_reserved_by_estimate_and_settled_by_usage() -> None:
    budget, clock = budget_of(Caps(tokens_per_minute=1000))
    clock.now += 120
    first = budget.reserve("toy", "judge", Call("m", 0, 900, 0.0))
    assert isinstance(first, Reservation)
    assert isinstance(budget.reserve("toy", "student", Call("m", 0, 200, 0.0)), Blocked)
    first.settle(Spend(1, 90, 10, 0.0, 0.1))
    assert isinstance(budget.reserve("toy", "student", Call("m", 0, 200, 0.0)), Reservation)


def test_calls_in_flight_are_limited_and_each_that_ends_lets_another_in() -> None:
    budget, _ = budget_of(Caps(refiner=Limits(calls_in_flight=2)))
    first, second = (budget.reserve("toy", "refiner", CALL) for _ in range(2))
    assert isinstance(first, Reservation)
    assert isinstance(second, Reservation)
    assert isinstance(budget.reserve("toy", "refiner", CALL), Blocked)
    second.settle(Spend(1, 1, 1, 0.0, 0.0))
    assert isinstance(budget.reserve("toy", "refiner", CALL), Reservation)


def test_money_is_reserved_settled_and_back_the_next_day() -> None:
    budget, clock = budget_of(Caps(usd_per_day=0.10))
    made = 0
    while isinstance(got := budget.reserve("toy", "judge", CALL), Reservation):
        got.settle(Spend(1, 90, 10, 0.015, 0.1))
        made += 1
    assert made == 6  # 0.09 spent, and the next might cost 0.02
    assert "may spend 0.1 USD a day" in got.why
    assert got.wait_s == DAY_S - 3600
    assert budget.held("judge")
    clock.now += got.wait_s
    assert not budget.held("judge")
    assert isinstance(budget.reserve("toy", "judge", CALL), Reservation)


def test_a_call_cut_short_counts_with_all_that_was_reserved_and_a_refused_one_with_nothing() -> None:
    budget, _ = budget_of(Caps(usd_per_day=0.10))
    cut, refused = (budget.reserve("toy", "judge", CALL) for _ in range(2))
    assert isinstance(cut, Reservation)
    assert isinstance(refused, Reservation)
    cut.settle()
    refused.settle(free=True)
    account = budget.account("toy", "judge")
    assert (account.spent, account.reserved) == (pytest.approx(0.02), 0.0)
    (line,) = account.entry("w", 0, 0.1).lines
    assert (line.calls, line.unknown_calls, line.unknown_usd) == (0, 1, 0.02)


def test_one_task_out_of_money_holds_no_other() -> None:
    clock = Clock()
    settings = settings_of(Caps(usd_per_day=0.03), None, "poor", "rich")
    rich = msgspec.structs.replace(settings.tasks["rich"], budget=Caps())
    settings = msgspec.structs.replace(settings, tasks=settings.tasks | {"rich": rich})
    budget = Budget(settings, clock.now_ms, clock)

    async def claim() -> str:
        loop = asyncio.get_running_loop()
        (await budget.acquire("poor", "judge", CALL, loop.time() + 60)).settle()  # it cost all that was kept
        with pytest.raises(BudgetHeld) as caught:
            await budget.acquire("poor", "judge", CALL, loop.time() + 1e6)
        return str(caught.value)

    assert "of which 0.01 are left" in run(claim())
    assert budget.is_held("poor", "judge")
    assert not budget.held("judge")


def test_what_is_kept_for_calls_under_way_is_waited_for_and_not_the_next_day() -> None:
    budget, _ = budget_of(Caps(usd_per_day=0.05))
    first, second = budget.reserve("toy", "judge", CALL), budget.reserve("toy", "judge", CALL)
    assert isinstance(first, Reservation)
    assert isinstance(second, Reservation)
    third = budget.reserve("toy", "judge", CALL)
    assert isinstance(third, Blocked)
    assert (third.wait_s < 1, "calls under way" in third.why) == (True, True)
    first.settle(Spend(calls=1, prompt_tokens=1, completion_tokens=1, cost_usd=0.001))
    assert isinstance(budget.reserve("toy", "judge", CALL), Reservation)
    second.settle(None)  # it took all that was kept
    spent = budget.reserve("toy", "judge", CALL)
    assert isinstance(spent, Blocked)
    assert spent.wait_s < 1, "another is under way"


def test_a_roles_cap_does_not_wait_for_the_calls_of_other_roles() -> None:
    budget, _ = budget_of(Caps(judge=Limits(usd_per_day=0.03)))
    assert isinstance(budget.reserve("toy", "student", CALL), Reservation)
    call = budget.reserve("toy", "judge", CALL)
    assert isinstance(call, Reservation)
    call.settle(None)
    blocked = budget.reserve("toy", "judge", CALL)
    assert isinstance(blocked, Blocked)
    assert "the next day begins" in blocked.why


def test_a_call_that_no_day_allows_ends_its_case() -> None:
    budget, _ = budget_of(Caps(judge=Limits(usd_per_day=0.10)))

    async def claim() -> None:
        await budget.acquire("toy", "judge", Call("m", 0, 9, 0.2), asyncio.get_running_loop().time() + 9)

    with pytest.raises(OverBudget, match=r"one call may cost 0\.2 USD, more than the cap of 0\.1"):
        run(claim())


class Topic:
    """The ledger's topic: an order of entries that every budget reads, some later than others."""

    def __init__(self, *budgets: Budget) -> None:
        self.budgets, self.entries = budgets, list[Entry]()
        self.read = dict.fromkeys((budget.writer for budget in budgets), 0)
        for budget in budgets:
            budget.kept = True

    def write(self, budget: Budget) -> None:
        """Writes what the budget wants to claim, as streams.ledger does, but answers nobody yet."""
        account = budget.account("toy", "judge")
        if account.outstanding is None:
            claimed = account.wants(budget.room(account), 1.0)
            if account.dirty or claimed != account.usable:
                account.outstanding = account.entry(budget.writer, 0, claimed)
                self.entries.append(account.outstanding)

    def deliver(self, budget: Budget, count: int = 10**9) -> None:
        """Lets a budget read up to `count` more entries."""
        for entry in self.entries[self.read[budget.writer] :][:count]:
            self.read[budget.writer] += 1
            budget.book.apply(entry)
            account = budget.account("toy", "judge")
            if entry.writer == budget.writer and account.outstanding is entry:
                budget.granted(account, entry)


def test_two_workers_that_want_the_last_of_a_cap_at_once_are_put_in_order_by_the_topic() -> None:
    caps = Caps(judge=Limits(usd_per_day=0.03))
    one, two = budget_of(caps)[0], budget_of(caps)[0]
    topic = Topic(one, two)
    for budget in (one, two):
        assert isinstance(budget.reserve("toy", "judge", CALL), Blocked)
        topic.write(budget)
    for budget in (two, one):
        topic.deliver(budget)
    assert isinstance(one.reserve("toy", "judge", CALL), Reservation)
    assert isinstance(two.reserve("toy", "judge", CALL), Blocked)


@pytest.mark.parametrize("seed", range(30))
def test_a_cap_holds_whatever_the_order_in_which_workers_write_read_call_and_die(seed: int) -> None:
    import random

    rng = random.Random(seed)
    caps = Caps(judge=Limits(usd_per_day=1.0))
    workers = [budget_of(caps)[0] for _ in range(3)]
    topic = Topic(*workers)
    running: list[tuple[Budget, Reservation]] = []
    paid = possible = 0.0
    for _ in range(1500):
        worker = rng.choice(workers)
        act = rng.random()
        if act < 0.4:
            got = worker.reserve("toy", "judge", Call("m", 0, 9, rng.choice((0.01, 0.02, 0.05))))
            if isinstance(got, Reservation):
                running.append((worker, got))
        elif act < 0.6:
            topic.write(worker)
        elif act < 0.8:
            topic.deliver(worker, rng.randrange(5))
        elif act < 0.99 and running:
            _, reservation = running.pop(rng.randrange(len(running)))
            usd = reservation.call.usd * rng.random()
            paid += usd
            reservation.settle(Spend(1, 1, 1, usd, 0.0))
        elif act >= 0.99:  # killed: its calls were made all the same, and a new run takes its place
            number = workers.index(worker)
            possible += sum(reservation.call.usd for owner, reservation in running if owner is worker)
            running = [(owner, reservation) for owner, reservation in running if owner is not worker]
            workers[number] = new = budget_of(caps)[0]
            topic.read[new.writer] = 0
            new.kept = True
            topic.deliver(new)
        at_most = paid + possible + sum(reservation.call.usd for _, reservation in running)
        assert at_most <= 1.0 + 1e-6
    assert paid > 0.3


def test_what_nobody_asks_for_any_more_is_not_claimed_again() -> None:
    budget = budget_of(Caps(judge=Limits(usd_per_day=10.0)))[0]
    topic = Topic(budget)
    assert isinstance(budget.reserve("toy", "judge", CALL), Blocked)
    for _ in range(20):
        topic.write(budget)
        topic.deliver(budget)
    assert budget.account("toy", "judge").usable <= 0.02 * 18


def test_an_answer_that_costs_more_than_expected_is_claimed_before_the_next_call() -> None:
    budget = budget_of(Caps(judge=Limits(usd_per_day=0.10)))[0]
    topic = Topic(budget)
    assert isinstance(budget.reserve("toy", "judge", CALL), Blocked)
    topic.write(budget)
    topic.deliver(budget)
    got = budget.reserve("toy", "judge", CALL)
    assert isinstance(got, Reservation)
    got.settle(Spend(1, 1, 1, 0.09, 0.0))
    topic.write(budget)
    assert topic.entries[-1].claimed_usd == pytest.approx(0.09)
    topic.deliver(budget)
    assert isinstance(budget.reserve("toy", "judge", CALL), Blocked)


def test_a_cap_of_nothing_lets_nothing_be_called_that_costs_anything() -> None:
    budget, _ = budget_of(Caps(usd_per_day=0.0))
    assert isinstance(budget.reserve("toy", "judge", CALL), Blocked)
    assert isinstance(budget.reserve("toy", "judge", Call("m", 0, 100, 0.0)), Reservation)
