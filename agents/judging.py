"""Judging many answers at once, outside the stream: what calibration and replay share."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from agents.judge import judge_answer, load_rubric
from agents.models import Models
from agents.outside import PATIENT_S, Purpose, patiently, spending
from agents.panel import seats
from agents.prices import check_prices
from agents.verifiers.reference import Record
from schemas.case import Message, Spend, Verdict
from schemas.errors import BudgetHeld, ModelError
from schemas.settings import Settings

HOPELESS = 5  # so many failures in a row, with nothing judged yet, end it: a key or an address is wrong
READ_TWICE = 2  # a judge is asked again where its verdict cannot be read


class Item(NamedTuple):
    """An answer to judge."""

    messages: Sequence[Message]
    answer: str
    record: Record = None


class Judged(NamedTuple):
    """What became of an item: a verdict, or why there is none."""

    verdict: Verdict | None
    error: str
    spend: Spend


def calls_each(settings: Settings, task: str) -> int:
    """Returns how many model calls an answer may take at most, repetitions after errors aside."""
    chosen = settings.task(task)
    if not chosen.rubric.needs_model:
        return 0
    votes = len(seats(chosen.judge, chosen.panel)) + (chosen.panel.decide == "escalate")
    return votes * READ_TWICE


async def judge_all(
    settings: Settings,
    task: str,
    items: Sequence[Item],
    *,
    at_once: int = 8,
    max_calls: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
    purpose: Purpose,
    wait: bool = False,
) -> list[Judged]:
    """Judges items as the task's judge would; an item that no call is left for stays unjudged.

    The calls count against the task's budget as "judge/<purpose>". A cap of a minute is waited for; where a day's is
    used up the rest stays unjudged, or with `wait` waits for the next day. `progress` is told how many are done. Raises
    the ModelError that keeps everything from being judged, and SettingsError for a model without a price under a cap.
    """
    load_rubric(settings.task(task).rubric)
    if not calls_each(settings, task):
        return await _judge_all(settings, task, items, None, at_once, max_calls, progress, 0.0)
    await asyncio.to_thread(check_prices, settings, ("judge",))
    models = Models(settings)
    try:
        longest_s = math.inf if wait else PATIENT_S
        async with spending(settings, models, purpose):
            return await _judge_all(settings, task, items, models, at_once, max_calls, progress, longest_s)
    finally:
        await models.close()


async def _judge_all(
    settings: Settings,
    task: str,
    items: Sequence[Item],
    models: Models | None,
    at_once: int,
    max_calls: int | None,
    progress: Callable[[int], None],
    longest_s: float,
) -> list[Judged]:
    most = calls_each(settings, task)
    results: list[Judged | None] = [None] * len(items)
    slots = asyncio.Semaphore(at_once)
    calls = reserved = done = failures = 0
    judged = False
    hopeless: ModelError | None = None
    held: BudgetHeld | None = None

    async def one(number: int) -> None:
        nonlocal calls, reserved, done, failures, judged, hopeless, held
        async with slots:
            if hopeless is not None:
                return
            if held is not None:
                results[number] = Judged(None, f"not judged: {held}", Spend())
                return
            if max_calls is not None and calls + reserved + most > max_calls:
                results[number] = Judged(None, "not judged: --max-calls is reached", Spend())
                return
            reserved += most
            item = items[number]

            async def ask(deadline: float) -> tuple[Verdict, Spend]:
                return await judge_answer(
                    settings, models, task, item.messages, item.answer, deadline=deadline, record=item.record
                )

            try:
                verdict, spend = await patiently(ask, settings.worker.event_deadline_s, longest_s)
                results[number] = Judged(verdict, "", spend)
                judged, calls = True, calls + spend.calls
            except BudgetHeld as error:
                held = error
                results[number] = Judged(None, f"not judged: {error}", error.spend or Spend())
            except ModelError as error:
                spend = error.spend or Spend()
                results[number] = Judged(None, f"{error.reason}: {error}", spend)
                calls, failures = calls + max(1, spend.calls), failures + 1
                if not judged and failures >= HOPELESS:
                    hopeless = error
            finally:
                reserved -= most
            done += 1
            progress(done)

    await asyncio.gather(*(one(number) for number in range(len(items))))
    if hopeless is not None:
        raise hopeless
    return [result or Judged(None, "not judged", Spend()) for result in results]


def total_spend(judged: Sequence[Judged]) -> Spend:
    """Returns what all of it cost."""
    total = Spend()
    for one in judged:
        total = total.plus(one.spend)
    return total
