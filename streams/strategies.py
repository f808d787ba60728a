"""The library of strategies as all workers share it, and what the gold set says of its use.

A worker that meets a new rule writes a proposal to gs.strategies and takes the name that the log gives it: it waits
until it has read its own record back, with all that came before. Two workers that learn the same rule at once write
two proposals; both see the same first one, and both rows carry its name and wording. A proposal whose worker was
killed is an entry without cases. Where the topic does not answer in time, a row keeps its own wording under that
wording's name, which is the same wherever the same words are learned.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from kafka import TopicPartition
from kafka.errors import KafkaError

from agents.strategies import Library, broken_rules, strategy_id
from agents.strategist import is_plain
from schemas.case import Case, Strategy
from schemas.errors import BrokerError, SettingsError
from schemas.settings import Settings
from schemas.strategies import Merge, Proposal, Rewording, StrategyRecord
from schemas.topics import STRATEGIES
from streams.clients import make_producer
from streams.flow import now_ms
from streams.follow import Follower
from streams.gold import open_gold
from streams.lookup import make_reader, read_ranges

log = logging.getLogger(__name__)

NAMED_WITHIN_S = 8.0  # well inside an event's deadline
_WARN_EVERY_S = 60.0

_decoder: msgspec.json.Decoder[StrategyRecord] = msgspec.json.Decoder(StrategyRecord)


class SharedLibrary:
    """The library that strategists of this process ask, kept up to date by a thread. Lives on one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._library = Library()
        self._lock = threading.Lock()  # of the library, held for moments
        self._producing = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._follower = Follower(settings, STRATEGIES, self._apply)
        self._producer: Any = None
        self._warned_at = float("-inf")

    def start(self) -> None:
        """Begins to read what is known."""
        self._follower.start()

    def wait_ready(self) -> None:
        """Waits until everything known so far has been read. Raises BrokerError where the topic cannot be read."""
        self._follower.wait_ready()

    def stop(self) -> None:
        """Ends the thread and the connections."""
        self._follower.stop()
        if self._producer is not None:
            self._producer.close(timeout=2)

    def known(self, case: Case) -> list[Strategy]:
        """Returns the named strategies that a strategist should be shown for this case."""
        wanted = self._settings.task(case.task).strategies
        if not wanted.library:
            return []
        with self._lock:
            return [entry.strategy() for entry in self._library.likely(case, wanted.told)]

    async def name(self, case: Case, strategy: Strategy) -> Strategy:
        """Returns the strategy under the name and wording it was first given, here or by any other worker.

        1. what is known already
        2. a full library: its own wording
        3. a proposal, and what the log makes of it
        """
        task, wanted = case.task, self._settings.task(case.task).strategies
        own = strategy_id(task, strategy.mistake, strategy.guardrail)
        unnamed = msgspec.structs.replace(strategy, id=own)
        if not wanted.library:
            return unnamed
        rules = broken_rules(case)
        # 1.
        with self._lock:
            entry = self._library.find(task, own)
            entry = entry or self._library.alike(task, strategy.guardrail, rules, wanted.similarity)
            is_full = len(self._library.entries(task)) >= wanted.limit
        if entry is not None:
            return entry.strategy(strategy.model)
        # 2.
        if is_full:
            self._warn(f"task {task} has {wanted.limit} strategies, and a new one keeps its own wording: see "
                       "`goldstream strategies list`, merge some, or raise strategies.limit")  # fmt: skip
            return unnamed
        # 3.
        proposal = Proposal(
            task=task,
            id=own,
            mistake=strategy.mistake,
            guardrail=strategy.guardrail,
            rules=tuple(sorted(rules)),
            similarity=wanted.similarity,
            at_ms=now_ms(),
        )
        try:
            await self._proposed(proposal)
        except (KafkaError, BrokerError, TimeoutError) as error:
            self._warn(f"a strategy of task {task} keeps its own wording: the library's topic did not confirm it "
                       f"({type(error).__name__})")  # fmt: skip
            return unnamed
        with self._lock:
            entry = self._library.find(task, own)
        return entry.strategy(strategy.model) if entry is not None else unnamed

    async def _proposed(self, proposal: Proposal) -> None:
        """Writes a proposal unless one of the same words is under way, and waits until it has been read back."""
        key = (proposal.task, proposal.id)
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = self._loop.create_future()
            try:
                async with asyncio.timeout(NAMED_WITHIN_S):
                    await asyncio.to_thread(self._send, proposal)
            except BaseException:
                self._forget(key)
                raise
        async with asyncio.timeout(NAMED_WITHIN_S):
            await asyncio.shield(waiting)

    def _send(self, record: StrategyRecord) -> None:
        with self._producing:
            if self._producer is None:
                self._producer = make_producer(self._settings, "strategies", max_block_ms=int(1000 * NAMED_WITHIN_S))
        _send(self._producer, self._settings, record)

    def _apply(self, key: bytes, value: bytes) -> None:
        record = read_record(value)
        if record is None:
            log.error("a record on the topic of strategies cannot be read and is ignored")
            return
        with self._lock:
            self._library.apply(record)
        if isinstance(record, Proposal):
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                self._loop.call_soon_threadsafe(self._forget, (record.task, record.id))

    def _forget(self, key: tuple[str, str]) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _warn(self, text: str) -> None:
        if time.monotonic() - self._warned_at > _WARN_EVERY_S:
            self._warned_at = time.monotonic()
            log.warning("strategist: %s", text)


class Used(NamedTuple):
    """One strategy of a task and its use in the gold set."""

    task: str
    id: str
    cases: int
    rules: list[str]  # broken by the failed attempts of these cases, the most frequent first
    mistake: str
    guardrail: str
    first_seen: datetime | None
    last_seen: datetime | None
    other_names: list[str]
    wordings: int  # different wordings in rows; rows written before a merge or rewording keep theirs


def list_strategies(settings: Settings, task: str | None = None) -> list[Used]:
    """Returns the strategies of a task or of all, the most used first: what the library knows, and what rows hold.

    Raises BrokerError where no Kafka answers.
    """
    library = read_library(settings)
    found: dict[tuple[str, str], _Use] = {}
    for name in library.tasks() if task is None else [task]:
        for entry in library.entries(name):
            found[name, entry.id] = _Use(entry.mistake, entry.guardrail)
    with open_gold(settings.gold) as connection:
        rows = connection.execute(_USES, {"task": task}).fetchall()
    for row_task, name, mistake, guardrail, cases, rules, first, last in rows:
        known = library.find(row_task, name or strategy_id(row_task, mistake, guardrail))
        own = known.id if known is not None else name or strategy_id(row_task, mistake, guardrail)
        use = found.setdefault((row_task, own), _Use(mistake, guardrail))
        use.add(cases, rules, (mistake, guardrail), first, last)
    listed = [
        Used(name, own, use.cases, use.by_frequency(), use.mistake, use.guardrail, use.first, use.last,
             library.other_names(name, own), len(use.wordings))
        for (name, own), use in found.items()
    ]  # fmt: skip
    return sorted(listed, key=lambda used: (used.task, -used.cases, used.id))


def merge_strategies(settings: Settings, task: str, name: str, into: str, by: str) -> None:
    """Makes a strategy another name of a second, whose name new rows carry. Raises SettingsError for unknown ones."""
    library = read_library(settings)
    kept, given_up = _entry(library, task, into), _entry(library, task, name)
    if kept.id == given_up.id:
        raise SettingsError(f"{name} and {into} are the same strategy of task {task} already.")
    _write(settings, Merge(task=task, id=given_up.id, into=kept.id, by=by, at_ms=now_ms()))


def reword_strategy(settings: Settings, task: str, name: str, mistake: str, guardrail: str, by: str) -> None:
    """Gives a strategy new words, its name stays. Raises SettingsError for an unknown one, or words that may not be."""
    entry = _entry(read_library(settings), task, name)
    words = Strategy(mistake.strip() or entry.mistake, guardrail.strip() or entry.guardrail)
    if not is_plain(words):
        raise SettingsError(
            "a strategy is short plain text that the student is trained to think: at most 400 characters together, "
            "without markup, links, roles or orders to set instructions aside. Word it so."
        )
    _write(settings, Rewording(
        task=task, id=entry.id, mistake=words.mistake, guardrail=words.guardrail, by=by, at_ms=now_ms()
    ))  # fmt: skip


def read_library(settings: Settings) -> Library:
    """Returns the library as its topic now says. Raises BrokerError where no Kafka answers."""
    library = Library()
    topic = settings.topic(STRATEGIES)
    with closing(make_reader(settings)) as reader:
        try:
            tps = [TopicPartition(topic, p) for p in sorted(reader.partitions_for_topic(topic) or ())]
            starts, ends = reader.beginning_offsets(tps), reader.end_offsets(tps)
        except KafkaError as error:
            raise BrokerError(f"{topic} cannot be read: {error!r}. `goldstream doctor`, then try again.") from error
        for found in read_ranges(reader, {tp: (starts[tp], ends[tp]) for tp in tps}):
            record = read_record(found.value)
            if record is not None:
                library.apply(record)
    return library


def read_record(value: bytes | None) -> StrategyRecord | None:
    """Reads a record of gs.strategies; None for what is none."""
    try:
        return _decoder.decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _entry(library: Library, task: str, name: str) -> Any:
    entry = library.find(task, name)
    if entry is None:
        known = len(library.entries(task))
        raise SettingsError(
            f"task {task} has no strategy {name} in its library of {known}. `goldstream strategies list --task {task}` "
            "shows them."
        )
    return entry


def _write(settings: Settings, record: StrategyRecord) -> None:
    producer = make_producer(settings, "strategies")
    try:
        _send(producer, settings, record)
    except KafkaError as error:
        raise BrokerError(f"the broker did not confirm it: {error!r}. Run it again.") from error
    finally:
        producer.close(timeout=5)


def _send(producer: Any, settings: Settings, record: StrategyRecord) -> None:
    key = f"{record.task}/{record.id}".encode()
    producer.send(settings.topic(STRATEGIES), key=key, value=msgspec.json.encode(record)).get(timeout=NAMED_WITHIN_S)


class _Use:
    """What rows say of one strategy."""

    def __init__(self, mistake: str, guardrail: str) -> None:
        self.mistake, self.guardrail = mistake, guardrail
        self.cases = 0
        self.rules: dict[str, int] = {}
        self.wordings: set[tuple[str, str]] = set()
        self.first: datetime | None = None
        self.last: datetime | None = None

    def add(self, cases: int, rules: Iterable[str], wording: tuple[str, str], first: datetime, last: datetime) -> None:
        """Adds the rows of one wording."""
        self.cases += cases
        for rule in rules:
            self.rules[rule] = self.rules.get(rule, 0) + 1
        self.wordings.add(wording)
        self.first = first if self.first is None else min(self.first, first)
        self.last = last if self.last is None else max(self.last, last)

    def by_frequency(self) -> list[str]:
        """Returns the broken rules, the most frequent first."""
        return sorted(self.rules, key=lambda rule: (-self.rules[rule], rule))


_USES = """
SELECT task, strategy_id, strategy_mistake, strategy_guardrail, count(*) AS cases,
       flatten(list(list_distinct(flatten([[v.rule for v in a.violations] for a in attempts if a.passed = false])))),
       min(ended_at), max(ended_at)
FROM gold
WHERE strategy_guardrail <> '' AND ($task IS NULL OR task = $task)
GROUP BY task, strategy_id, strategy_mistake, strategy_guardrail
"""
