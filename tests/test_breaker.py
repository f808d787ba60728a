"""Claims about the circuit breaker alone, on a clock of the test's."""

from __future__ import annotations

from typing import TypeVar

from agents.breaker import Breaker

T = TypeVar("T")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_breaker(failures: int = 5, longest_s: float = 60.0) -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker(failures, longest_s, clock, jitter=lambda: 1.0), clock


def test_five_cases_in_a_row_open_it_and_an_answer_between_starts_the_count_anew() -> None:
    breaker, _ = make_breaker()
    for case in "abcd":
        breaker.failed(case)
    breaker.succeeded()
    for case in "abcd":
        breaker.failed(case)
    assert not breaker.is_open
    breaker.failed("e")
    assert breaker.is_open
    assert breaker.wait_s == 1.0


def test_one_case_that_fails_for_ever_never_opens_it() -> None:
    breaker, _ = make_breaker()
    for _ in range(100):
        breaker.failed("poison")
    assert not breaker.is_open


def test_cool_down_doubles_with_each_failed_probe_up_to_its_limit() -> None:
    breaker, clock = make_breaker(failures=1)
    breaker.failed("a")
    waits = []
    for _ in range(8):
        waits.append(breaker.wait_s)
        clock.now += breaker.wait_s
        assert breaker.wait_s == 0
        assert breaker.is_open
        breaker.probe_failed()
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


def test_jitter_shortens_a_cool_down_and_never_lengthens_it() -> None:
    waits = set()
    for _ in range(50):
        breaker = Breaker(1)
        breaker.failed("a")
        waits.add(round(breaker.wait_s, 6))
    assert len(waits) > 10
    assert all(0.45 < wait <= 1.0 for wait in waits)


def test_an_answered_probe_closes_it_and_a_relapse_waits_longer_than_a_new_trouble() -> None:
    breaker, clock = make_breaker(failures=1)
    breaker.failed("a")
    clock.now += 1
    breaker.probe_succeeded()
    assert not breaker.is_open
    clock.now += 0.5
    breaker.failed("b")
    assert breaker.wait_s == 2.0
    clock.now += 2
    breaker.probe_succeeded()
    clock.now += 10
    breaker.failed("c")
    assert breaker.wait_s == 1.0


def test_retry_after_is_honoured_for_rate_limits_and_probes_within_reason() -> None:
    breaker, clock = make_breaker()
    breaker.limited("a", 30)
    assert breaker.wait_s == 30
    breaker.succeeded()  # a call that was under way says nothing about the limit
    breaker.limited("b", 40)
    assert breaker.wait_s == 40
    clock.now += 40
    breaker.probe_failed(90)
    assert breaker.wait_s == 90
    clock.now += 90
    breaker.probe_failed(1e12)
    assert breaker.wait_s == 3600


def test_an_endpoint_that_answers_up_to_its_limit_is_asked_again_soon_each_time() -> None:
    breaker, clock = make_breaker()
    waits = []
    for number in range(6):
        breaker.limited(f"case {number}")
        waits.append(breaker.wait_s)
        clock.now += breaker.wait_s
        breaker.probe_succeeded()
        clock.now += 0.1
        for _ in range(2 if number < 3 else 0):  # from then on nobody but the probe is answered
            breaker.succeeded()
    assert waits == [1.0, 1.0, 1.0, 1.0, 2.0, 4.0]


def test_many_429_at_once_are_one_pause() -> None:
    breaker, _ = make_breaker()
    for number in range(64):
        breaker.limited(f"case-{number}")
    assert breaker.wait_s == 1.0


def test_an_answer_to_an_older_call_ends_an_outage_but_no_rate_limit() -> None:
    down, _ = make_breaker(failures=1)
    down.failed("a")
    down.succeeded()
    assert not down.is_open
    limited, _ = make_breaker()
    limited.limited("a")
    limited.succeeded()
    assert limited.is_open


def test_a_429_is_a_cases_own_only_if_it_comes_again_after_an_answer_and_meets_no_other() -> None:
    breaker, clock = make_breaker()
    breaker.limited("a")
    assert not breaker.limits_only("a")
    clock.now += 1
    breaker.limited("a")
    assert not breaker.limits_only("a"), "nobody was answered between"
    clock.now += 2
    breaker.probe_succeeded()
    clock.now += 1
    breaker.limited("a")
    assert breaker.limits_only("a")
    breaker.limited("b")
    assert not breaker.limits_only("a")
