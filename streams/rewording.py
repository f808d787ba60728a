"""Rows take the name and words that the library has for their strategy now: `goldstream strategies apply`.

A merge or a rewording holds for new rows; this writes those that came before anew, each at its next epoch, so that
they are trained on in today's words. It is a decision like an expert's (streams.review): of two at once the first in
the log stands, and what lost is found by running it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from kafka.errors import KafkaError

from agents.strategies import Library, strategy_id
from agents.strategist import leaks
from schemas.case import Case, Strategy, encode_case
from schemas.errors import BrokerError
from schemas.rows import row_case
from schemas.settings import Settings
from schemas.topics import OUTCOMES
from streams.clients import make_producer
from streams.gold import open_gold
from streams.strategies import read_library

_BATCH = 200  # rows at a time; bounds the memory their texts take


class Applied(NamedTuple):
    """What became of one strategy in the rows that carried it otherwise."""

    task: str
    id: str
    cases: int


def apply_library(settings: Settings, task: str | None = None, dry_run: bool = False) -> list[Applied]:
    """Writes the rows anew whose strategy has another name or other words today; returns how many of each.

    Words that would give a row's answer away are not used in it; it takes the name alone. Returns once the broker has
    confirmed all. Raises BrokerError where it does not: run again, it goes on where it was.
    """
    library = read_library(settings)
    counts: dict[tuple[str, str], int] = {}
    producer = None if dry_run else make_producer(settings, "strategies")
    waiting: list[Any] = []
    try:
        for partition, case in _outdated(settings, library, task):
            assert case.strategy is not None
            key = (case.task, case.strategy.id)
            counts[key] = counts.get(key, 0) + 1
            if producer is not None:
                topic, value = settings.topic(OUTCOMES), encode_case(case)
                waiting.append(producer.send(topic, key=case.case_id.encode(), value=value, partition=partition))
        for sent in waiting:
            sent.get(timeout=30)
    except KafkaError as error:
        raise BrokerError(f"not all rows were confirmed: {error!r}. Run it again: it goes on where it was.") from error
    finally:
        if producer is not None:
            producer.close(timeout=5)
    return [Applied(*key, number) for key, number in sorted(counts.items())]


def renamed(case: Case, library: Library) -> Case | None:
    """Returns a case with its strategy as the library has it, at the next epoch; None where nothing changes."""
    old = case.strategy
    if old is None:
        return None
    entry = library.find(case.task, old.id or strategy_id(case.task, old.mistake, old.guardrail))
    if entry is None:
        return None
    new = entry.strategy(old.model)
    if leaks(new, case):
        new = Strategy(old.mistake, old.guardrail, old.model, entry.id)
    return msgspec.structs.replace(case, strategy=new, epoch=case.epoch + 1) if new != old else None


def _outdated(settings: Settings, library: Library, task: str | None) -> Iterator[tuple[int, Case]]:
    """Yields (partition of gs.outcomes, case) for every gold row that is to be written anew."""
    with open_gold(settings.gold) as connection:
        result = connection.execute(_ROWS, {"task": task})
        names = [column[0] for column in result.description or []]
        while rows := result.fetchmany(_BATCH):
            for values in rows:
                row = dict(zip(names, values, strict=True))
                case = renamed(row_case(row), library)
                if case is not None:
                    yield row["kafka_partition"], case


_ROWS = "SELECT * FROM gold WHERE strategy_guardrail <> '' AND ($task IS NULL OR task = $task)"
