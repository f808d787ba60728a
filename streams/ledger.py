"""The ledger: a cap in money holds for all workers together, through restarts, kills and rebalances.

gs.ledger has one partition, so its order is the same for everybody. A worker writes entries (schemas.ledger), one key
per day, task, role and run of a worker, each with all that it claims of that day so far: what it spent, reserved for
calls under way, and what it wants for the next calls. Before a call is made, its estimate must fit into what the
worker may use. Why that keeps a cap:

1. A higher claim may be used only once it has been read back, and only as far as all latest claims up to that place
   in the topic, everybody's, are within the cap. The rest is given back by a lower claim.
2. A lower claim is used before it is written: what a worker uses is never more than its latest entry says.
3. So whenever a claim is granted, everything anybody may use is below the claims read until there, which are within
   the cap. Two who ask for the last cent at once are put in order by the topic: the first gets it.

What follows:
- kill -9: the entry stays. What was claimed and not spent counts as spent until the day ends: the calls under way and
  at most 1/40 of the worker's share of what was left and 16 calls, by role. The next run has a key of its own.
- rebalance: claims belong to workers, not to partitions; the share of the partitions that a worker holds says only
  how far ahead it may claim. A call cancelled because its partition went away counts with its whole estimate.
- a worker stopped for hours and continued: it uses what it claimed, of the day that its clock says, and no more.
- clocks that differ: each takes from the day its own clock says, and each day's cap holds by itself. A warning tells.
- compaction keeps the latest entry of each key, and nothing older is ever asked for.
- Kafka away: nothing is granted, and calls go on until what was granted is used.
- a model that answers more tokens than estimated makes the overshoot: the calls in flight, once, since what they cost
  is claimed before the next. Where nobody said what a call cost (a timeout), its whole estimate counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from kafka.errors import KafkaError

from agents.account import SLACK, Account
from agents.budget import Budget, Held
from schemas.errors import BrokerError
from schemas.ledger import Book, Entry, decode_entry, encode_entry
from schemas.settings import ROLES, Role, Settings
from schemas.topics import LEDGER, STAGE_INPUT
from streams.clients import make_consumer, make_producer
from streams.follow import Follower
from streams.topics import cluster_id

log = logging.getLogger(__name__)

WRITE_EVERY_S = 5.0  # what was spent is told this often; a kill loses so much of the report, and nothing of a cap
IDLE_S = 3.0  # then what is claimed and not used is given back
LOOK_EVERY_S = 1.0
HELD_EVERY_S = 20.0  # that cases are still waiting is told again this often


class Ledger:
    """Keeps a worker's budget with everybody else's. `start` it before the first case, `stop` it after the last."""

    def __init__(self, settings: Settings, budget: Budget) -> None:
        self._settings, self._budget = settings, budget
        self._loop = asyncio.get_running_loop()
        self._due = asyncio.Event()
        self._follower = Follower(settings, LEDGER, self._read)
        self._producer: Any = None
        self._task: asyncio.Task[None] | None = None
        self._warned = False

    async def start(self) -> None:
        """Reads the ledger to its end and begins to write. Raises BrokerError where it cannot be read."""
        self._follower.start()
        await asyncio.to_thread(self._follower.wait_ready)
        self._producer = await asyncio.to_thread(
            make_producer,
            self._settings,
            "ledger",
            linger_ms=0,
            max_in_flight_requests_per_connection=1,  # entries of one key must not overtake each other
        )
        self._budget.kept, self._budget.wake = True, self._due.set
        self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """Tells the last of what was spent and gives back the rest."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._producer is not None:
            for account in self._budget.accounts.values():
                if account.seq or account.dirty:
                    await self._write(account, account.spent, closed=True)
            await asyncio.to_thread(self._producer.close, timeout=5)
        await asyncio.to_thread(self._follower.stop)

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), LOOK_EVERY_S)
            self._due.clear()
            today = self._budget.day()
            for key, account in list(self._budget.accounts.items()):
                if account.outstanding is not None:
                    continue
                claimed = self._next_claim(account, today)
                if claimed is not None:
                    await self._write(account, claimed)
                elif account.day < today and not account.reserved and not account.dirty:
                    del self._budget.accounts[key]
            self._budget.book.forget_before(today)

    def _next_claim(self, account: Account, today: str) -> float | None:
        """Returns what an account should claim now, None where there is nothing to write."""
        budget, now = self._budget, self._budget.clock()
        held = self._why_held(account)
        news = (held is None) != (not account.told) or (held is not None and now - account.written_s > HELD_EVERY_S)
        due = news or (account.dirty and now - account.written_s >= WRITE_EVERY_S)
        if not budget.caps(account.task, account.role):
            return account.spent + account.reserved if due else None
        if account.day < today or (now - account.called_s > IDLE_S and not account.short):
            claimed = account.spent + account.reserved
            return claimed if account.usable > claimed + SLACK or account.dirty or news else None
        claimed = account.wants(budget.room(account), budget.share(account.task, account.role))
        if abs(claimed - account.usable) > SLACK:
            return claimed
        return claimed if due else None

    def _why_held(self, account: Account) -> Held | None:
        budget = self._budget
        return budget.why_held(account.task, account.role) if account.day == budget.day() else None

    async def _write(self, account: Account, claimed: float, closed: bool = False) -> None:
        """Produces an entry; the answer comes with `_read`."""
        budget = self._budget
        held = self._why_held(account)
        account.told = held.why if held is not None else ""
        told: dict[str, Any] = {"closed": closed}
        if held is not None and not closed:
            told |= {"held": held.why, "held_since_ms": held.since_ms}
        entry = account.entry(budget.writer, budget.now_ms(), claimed, **told)
        account.written_s, account.outstanding = budget.clock(), entry
        key, value = encode_entry(entry)
        try:
            sent = await asyncio.to_thread(self._producer.send, self._settings.topic(LEDGER), key=key, value=value)
            if closed:
                await asyncio.to_thread(sent.get, 5)
            else:
                sent.add_errback(lambda error: self._loop.call_soon_threadsafe(self._failed, account, entry, error))
        except KafkaError as error:
            self._failed(account, entry, error)

    def _failed(self, account: Account, entry: Entry, error: BaseException) -> None:
        """Lets an entry that did not get through be written anew; should it have, it only claims too much."""
        log.warning("the ledger could not be written (%s); nothing more is granted until it can", type(error).__name__)
        if account.outstanding is entry:
            account.outstanding, account.dirty = None, True

    def _read(self, key: bytes, value: bytes) -> None:
        """Takes a record of the topic, in the follower's thread."""
        try:
            entry = decode_entry(value)
        except msgspec.DecodeError:
            log.warning("an entry of the ledger cannot be read (%d bytes) and is left out", len(value))
            return
        self._loop.call_soon_threadsafe(self._apply, entry)

    def _apply(self, entry: Entry) -> None:
        budget = self._budget
        if entry.day < budget.day() and entry.writer != budget.writer:
            return
        budget.book.apply(entry)
        if entry.writer == budget.writer:
            account = budget.accounts.get((entry.day, entry.task, entry.role))
            if account is not None and account.outstanding is not None and account.outstanding.seq == entry.seq:
                budget.granted(account, entry)
                if account.dirty:
                    self._due.set()
        elif not self._warned and entry.day > budget.day():
            self._warned = True
            log.warning("another worker writes of %s, here it is %s; are the clocks right?", entry.day, budget.day())


@asynccontextmanager
async def kept(settings: Settings, budget: Budget) -> AsyncIterator[None]:
    """Keeps a budget with everybody else's while a block runs outside the stream (agents.outside).

    Without a cap in money the calls go on where no Kafka answers, and are not in the ledger; with one, BrokerError.
    """
    try:
        await asyncio.to_thread(cluster_id, settings)  # says at once where no Kafka answers
        ledger = Ledger(settings, budget)
        await ledger.start()
    except BrokerError as error:
        if any(task.budget.caps_money(role) for task in settings.tasks.values() for role in ROLES):
            raise
        log.warning("these calls are not counted in the ledger: %s", error)
        yield
        return
    try:
        yield
    finally:
        await ledger.stop()


def read_ledger(settings: Settings, timeout_s: float = 60.0) -> Book:
    """Returns the whole ledger as it is now; raises BrokerError where no Kafka answers."""
    from kafka import TopicPartition

    from streams.lookup import read_ranges

    book = Book()
    consumer = make_consumer(settings)
    try:
        topic = settings.topic(LEDGER)
        tps = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        if not tps:
            return book
        starts, ends = consumer.beginning_offsets(tps), consumer.end_offsets(tps)
        for record in read_ranges(consumer, {tp: (starts[tp], ends[tp]) for tp in tps}):
            if record.value is not None:
                book.apply(decode_entry(record.value))
        return book
    finally:
        consumer.close()


def partition_counts(settings: Settings) -> Mapping[Role, int]:
    """Returns how many partitions each role's topic has, the planned number where it does not exist yet."""
    consumer = make_consumer(settings)
    try:
        return {
            role: len(consumer.partitions_for_topic(settings.topic(topic)) or ()) or settings.kafka.partitions
            for role, topic in STAGE_INPUT.items()
        }
    finally:
        consumer.close()
