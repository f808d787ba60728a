"""What the cases of a task will ask of its models: calls, tokens and money by role. Pure.

Tokens are estimated from texts, at the ratio that the sample's own logged usage shows, else at 3 bytes a token. The
prompts of judge, refiner and strategist are built as those roles build them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from agents.prices import BYTES_A_TOKEN, Price
from agents.prompts import judge_messages, refiner_messages, strategist_messages
from agents.student import carried_over, production_attempt
from schemas.case import Attempt, Case, Message, Verdict, Violation
from schemas.settings import ROLES, Budget, Limits, Model, Role, Task

VERDICT_TOKENS, STRATEGY_TOKENS = 120, 60  # of an answer, assumed: two violations with why and fix; two sentences
CALL_S = 2.0  # of one model call, assumed where none was measured


class Measured(msgspec.Struct, frozen=True):
    """What the gold set says of a task's train cases so far."""

    cases: int
    rounds: float  # refinements a case
    strategies: float  # a case
    call_s: float


class RoleCalls(msgspec.Struct, frozen=True, kw_only=True):
    """One role, for one case on average: the least and the most it is called, and what that takes."""

    role: Role
    model: str
    calls: tuple[float, float]
    prompt_tokens: float  # of one call
    completion_tokens: float
    usd: tuple[float, float] | None  # None: nobody knows the model's price


def role_calls(
    task: Task, sample: Sequence[Case], measured: Measured | None, price_of: Callable[[Model], Price | None]
) -> list[RoleCalls]:
    """Returns what an admitted case asks of each role, by the sample; without a sample, nothing."""
    if not sample:
        return []
    held = sum(case.split == "holdout" for case in sample) / len(sample)
    bytes_a_token = _bytes_a_token(sample)
    answers = [len(a.encode("utf-8", "replace")) for case in sample if (a := production_attempt(case).text)]
    answer_tokens = sum(answers) / bytes_a_token / len(answers) if answers else math.inf
    rounds = _range(measured.rounds if measured else None, task.max_rounds)
    strategies = _range(measured.strategies if measured else None, 1 if task.max_rounds else 0)
    train = 1 - held
    opinions = task.panel.votes * (1 + len(task.panel.judges))
    logged = sum(task.first_attempt == "production" and bool(production_attempt(case).text) for case in sample)
    student = 1 - logged / len(sample)
    judged = [1 + train * n for n in rounds]
    calls: dict[Role, tuple[float, float]] = {
        "student": (student, student),
        "judge": (judged[0] * opinions, judged[1] * opinions) if task.rubric.needs_model else (0.0, 0.0),
        "refiner": (train * rounds[0], train * rounds[1]),
        "strategist": (train * strategies[0], train * strategies[1]),
    }
    found = []
    for role in ROLES:
        model = task.model(role)
        longest = {"judge": VERDICT_TOKENS, "strategist": STRATEGY_TOKENS}.get(role, answer_tokens)
        prompt = _mean_tokens(role, task, sample[:50], bytes_a_token) if calls[role][1] else 0.0
        completion = min(longest, model.max_tokens)
        price = price_of(model) if calls[role][1] else Price(0.0, 0.0)
        one = None if price is None else prompt * price.prompt + completion * price.completion
        found.append(
            RoleCalls(
                role=role,
                model=model.model,
                calls=calls[role],
                prompt_tokens=prompt,
                completion_tokens=completion,
                usd=None if one is None else (calls[role][0] * one, calls[role][1] * one),
            )
        )
    return found


def longest_s(
    roles: Sequence[RoleCalls], cases: float, at_once: int, measured: Measured | None, budget: Budget
) -> tuple[float, str]:
    """Returns how long so many cases take at most, and what bounds it: the calls at once, or a cap of the budget."""
    call_s = measured.call_s if measured and measured.call_s else CALL_S
    said = "measured" if measured and measured.call_s else "assumed"
    bounds = [(0.0, "nothing is called")]
    for role in roles:
        seconds = cases * role.calls[1] * call_s / at_once
        bounds.append((seconds, f"{role.role}, {at_once} at once at {call_s:.1f} s a call ({said})"))
        bounds += _caps(role.role, [role], cases, budget.limits(role.role))
    return max(bounds + _caps("all roles", roles, cases, budget))


def _caps(name: str, roles: Sequence[RoleCalls], cases: float, limits: Limits) -> list[tuple[float, str]]:
    """Returns (seconds, what caps) for each cap on so many cases' calls of some roles."""
    calls = cases * sum(role.calls[1] for role in roles)
    tokens = cases * sum(role.calls[1] * (role.prompt_tokens + role.completion_tokens) for role in roles)
    usd = cases * sum(role.usd[1] for role in roles if role.usd is not None)
    found = []
    for needed, cap, period_s, unit in (
        (calls, limits.requests_per_minute, 60, "calls a minute"),
        (tokens, limits.tokens_per_minute, 60, "tokens a minute"),
        (usd, limits.usd_per_day, 86_400, "USD a day"),
    ):
        if cap is not None and needed > 0:
            found.append((needed * period_s / cap if cap else math.inf, f"{name}, {cap:,g} {unit}"))
    return found


def _range(measured: float | None, most: float) -> tuple[float, float]:
    return (0.0, float(most)) if measured is None else (measured, measured)


def _bytes_a_token(sample: Sequence[Case]) -> float:
    used = [case for case in sample if case.production_prompt_tokens]
    tokens = sum(case.production_prompt_tokens for case in used)
    if tokens < 100:
        return float(BYTES_A_TOKEN)
    ratio = sum(_bytes(case.messages) for case in used) / tokens
    return ratio if 0.5 <= ratio <= 10 else float(BYTES_A_TOKEN)  # a count of other things, such as images


def _mean_tokens(role: Role, task: Task, sample: Sequence[Case], bytes_a_token: float) -> float:
    return sum(_bytes(_prompt(role, task, case)) for case in sample) / len(sample) / bytes_a_token


def _prompt(role: Role, task: Task, case: Case) -> Sequence[Message]:
    if role == "student":
        told = carried_over(case, task.carry_over)
        return (*case.messages, *([Message("system", msgspec.json.encode(told).decode())] if told else []))
    answer = production_attempt(case).text
    if role == "judge":
        return judge_messages(case.messages, answer, task.rubric, case.tools)
    rule = task.rubric.rules[0].id
    verdict = Verdict(passed=False, score=0, max_score=1, judge="", violations=(Violation(rule, why="." * 120),))
    failed = Attempt(round=0, source="student", text=answer, model="", verdict=verdict)
    if role == "refiner":
        return refiner_messages(case, failed, task.rubric)
    return strategist_messages(msgspec.structs.replace(case, attempts=(failed,)), task.rubric)


def _bytes(messages: Sequence[Message]) -> int:
    return sum(len(message.text().encode("utf-8", "replace")) for message in messages)
