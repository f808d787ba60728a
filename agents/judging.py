"""Judging many answers at once, outside the stream: what calibration and replay share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from agents.judge import judge_answer, load_rubric
from agents.models import Models
from agents.panel import seats
from agents.verifiers.reference import Record
from schemas.case import Message, Spend, Verdict
from schemas.errors import ModelError
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
    models: Models | None = None,
) -> list[Judged]:
    """Judges items as the task's judge would; an item that no call is left for stays unjudged.

    `progress` is told how many are done. Raises the ModelError that keeps everything from being judged.
    """
    load_rubric(settings.task(task).rubric)
    most = calls_each(settings, task)
    mine = models is None and most > 0
    models = Models(settings) if mine else models
    results: list[Judged | None] = [None] * len(items)
    slots, loop = asyncio.Semaphore(at_once), asyncio.get_running_loop()
    calls = reserved = done = failures = 0
    judged = False
    hopeless: ModelError | None = None

    async def one(number: int) -> None:
        nonlocal calls, reserved, done, failures, judged, hopeless
        async with slots:
            if hopeless is not None:
                return
            if max_calls is not None and calls + reserved + most > max_calls:
                results[number] = Judged(None, "not judged: --max-calls is reached", Spend())
                return
            reserved += most
            deadline = loop.time() + settings.worker.event_deadline_s
            item = items[number]
            try:
                verdict, spend = await judge_answer(
                    settings, models, task, item.messages, item.answer, deadline=deadline, record=item.record
                )
                results[number] = Judged(verdict, "", spend)
                judged, calls = True, calls + spend.calls
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

    try:
        await asyncio.gather(*(one(number) for number in range(len(items))))
    finally:
        if mine and models is not None:
            await models.close()
    if hopeless is not None:
        raise hopeless
    return [result or Judged(None, "not judged", Spend()) for result in results]


def total_spend(judged: Sequence[Judged]) -> Spend:
    """Returns what all of it cost."""
    total = Spend()
    for one in judged:
        total = total.plus(one.spend)
    return total
