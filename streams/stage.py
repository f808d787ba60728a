"""One stage of the flow: takes events of a topic, works on N cases at once, acknowledges in offset order.

streams.worker builds one per role and feeds it from a Faust stream. Nothing is acknowledged before its
successor is durably produced, and nothing beyond an unfinished event is ever acknowledged: Faust
commits past holes otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, NamedTuple

import msgspec

from schemas.case import Case, Source, coordinates_id, decode_case, encode_case
from schemas.errors import ModelError, ModelTimeout, RecordError
from schemas.faults import crash_point
from schemas.settings import Role, Settings
from schemas.topics import ACCEPTED, ATTEMPTS, OUTCOMES, REFINE, retry_topic

log = logging.getLogger(__name__)

Handler = Callable[[Case, float], Awaitable[Case]]  # (case, deadline on the loop's clock) -> the case, further on
Produce = Callable[[str, bytes, bytes], Awaitable[None]]  # (topic, key, value), returns once the broker has it
PRODUCE_RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)


class Hop(NamedTuple):
    """Where a case goes next; `topic` is a short name of schemas.topics."""

    topic: str
    case: Case


class Stage:
    """Works on the events of one role's topic.

    `counts` tells what was done: taken, produced per topic, repeated after a rebalance.
    """

    def __init__(
        self,
        role: Role,
        settings: Settings,
        handler: Handler,
        produce: Produce,
        cluster: str,
        generation: Callable[[], int | None],
    ) -> None:
        self.role = role
        self.settings = settings
        self.counts: dict[str, int] = defaultdict(int)
        self.open = asyncio.Event()  # cleared while the stage is paused
        self.open.set()
        self._handler = handler
        self._produce = produce
        self._cluster = cluster
        self._generation = generation  # of the group's assignment; a message carries the one it was fetched under
        self._slots = asyncio.Semaphore(settings.worker.cases_in_flight)
        self._queues: dict[Any, _Queue] = {}
        self._running: dict[tuple[Any, int], _Entry] = {}
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def in_flight(self) -> int:
        """Cases being worked on now."""
        return len(self._running)

    async def run(self, events: AsyncIterator[Any]) -> None:
        """Takes Faust events until cancelled."""
        async for event in events:
            await self.open.wait()
            await self._slots.acquire()
            if event.message.generation_id == self._generation():
                self._take(event)
            else:  # a rebalance passed while it waited for a slot: it is read again, by us or by another
                self._slots.release()

    async def failed(self) -> None:
        """Returns never, or raises the error that must stop this worker."""
        await self._failure

    def assigned(self, partitions: Collection[Any]) -> None:
        """Cancels the work on partitions that others own now."""
        kept = set(partitions)
        for where, entry in list(self._running.items()):
            if entry.tp not in kept and entry.task is not None:
                del self._running[where]
                entry.task.cancel()

    async def stop(self) -> None:
        """Cancels the cases in flight; they are not acknowledged and come again."""
        tasks = [entry.task for entry in self._running.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take(self, event: Any) -> None:
        """Queues an event for acknowledgement and starts its work.

        The queue of a partition belongs to one assignment generation. A first event of a newer one starts it
        afresh: after a rebalance the partition is read again from its commit, in order.
        """
        message = event.message
        tp, offset = message.tp, message.offset
        crash_point(f"{self.role}.after_consume")
        queue = self._queues.get(tp)
        if queue is None or queue.generation != message.generation_id:
            queue = self._queues[tp] = _Queue(message.generation_id)
        entry = self._running.get((tp, offset))
        if entry is not None:
            # Still being worked on since before the rebalance: one call is enough.
            self._slots.release()
            self.counts["rejoined"] += 1
            entry.event = event
        else:
            self.counts["taken"] += 1
            entry = self._running[tp, offset] = _Entry(event, tp, offset)
            entry.task = asyncio.create_task(self._work(entry, event.value))
        queue.entries.append(entry)

    async def _work(self, entry: _Entry, value: bytes | None) -> None:
        """Makes an event's successor, produces it, and acknowledges what is done.

        1. decode and handle, within the event's deadline
        2. produce the successor and wait until the broker confirms it
        3. acknowledge from the head of the partition's queue
        """
        try:
            # 1.
            hop = await self._next_hop(entry, value)
            # 2.
            crash_point(f"{self.role}.before_produce")
            await self._confirmed(hop)
            crash_point(f"{self.role}.after_produce")
            # 3.
            entry.done = True
            self._acknowledge(entry.tp)
        except asyncio.CancelledError:
            pass  # not acknowledged: the next owner, or this one after its restart, does it again
        except BaseException as error:
            # Nothing may be acknowledged past this event: the worker stops, and its restart reads it again.
            if not self._failure.done():
                self._failure.set_exception(error)
        finally:
            if self._running.get((entry.tp, entry.offset)) is entry:
                del self._running[entry.tp, entry.offset]
            self._slots.release()

    def _acknowledge(self, tp: Any) -> None:
        entries = self._queues[tp].entries
        while entries and entries[0].done:
            crash_point(f"{self.role}.before_ack")
            entries.popleft().event.ack()

    async def _next_hop(self, entry: _Entry, value: bytes | None) -> Hop:
        try:
            case = decode_case(value)
        except RecordError as error:
            return Hop(OUTCOMES, self._undecodable(entry, error))
        loop = asyncio.get_running_loop()
        limit_s = self.settings.worker.event_deadline_s
        try:
            # The handler's own deadline lies a little earlier, so that its typed error wins over this net.
            async with asyncio.timeout(limit_s + 1):
                advanced = await self._handler(case, loop.time() + limit_s)
        except TimeoutError as error:
            if not isinstance(error, ModelTimeout):
                error = ModelTimeout(f"the {self.role} took longer than {limit_s:.0f} s")
            return self._after_error(case, error)
        except ModelError as error:
            return self._after_error(case, error)
        except Exception as error:
            log.exception("%s: an agent failed on case %s; it becomes a dead letter", self.role, case.case_id)
            return Hop(OUTCOMES, self._ended(case, "dead", "agent_error", f"{type(error).__name__}: {error}"))
        crash_point(f"{self.role}.after_call")
        return self._fitting(case, next_hop(self.role, _served(advanced), self.settings))

    def _after_error(self, case: Case, error: ModelError) -> Hop:
        """A transient error waits in the next retry topic; the others, and the last, are dead."""
        delays_s = self.settings.worker.retry_delays_s
        if not error.transient or case.retries >= len(delays_s):
            return Hop(OUTCOMES, self._ended(case, "dead", error.reason, str(error)))
        delay_s = delays_s[case.retries]
        waiting = msgspec.structs.replace(
            case, retries=case.retries + 1, retry_stage=self.role, not_before_ms=now_ms() + 1000 * delay_s
        )
        log.warning("%s: %s on case %s, again in %d s", self.role, error.reason, case.case_id, delay_s)
        return Hop(retry_topic(delay_s), waiting)

    def _fitting(self, before: Case, hop: Hop) -> Hop:
        """A case that grew beyond the message limit ends, as it was before it grew."""
        size, limit = len(encode_case(hop.case)), self.settings.kafka.max_message_bytes
        if size <= limit:
            return hop
        detail = f"{size} bytes after the {self.role}; kafka.max_message_bytes is {limit}"
        return Hop(OUTCOMES, self._ended(before, "dead", "too_large", detail))

    def _ended(self, case: Case, kind: Any, reason: str = "", detail: str = "") -> Case:
        return case.ended(kind, self.role, now_ms(), reason, detail)

    def _undecodable(self, entry: _Entry, error: RecordError) -> Case:
        source = Source(cluster=self._cluster, topic=entry.tp.topic, partition=entry.tp.partition, offset=entry.offset)
        case = Case(case_id=coordinates_id(source), task="", split="train", source=source, created_ms=now_ms())
        return self._ended(case, "dead", error.reason, error.detail)

    async def _confirmed(self, hop: Hop) -> None:
        """Produces until the broker confirms; while it is down, the stage waits with everything unacknowledged."""
        key, value = hop.case.case_id.encode(), encode_case(hop.case)
        attempt = 0
        while True:
            try:
                await self._produce(self.settings.topic(hop.topic), key, value)
                self.counts[hop.topic] += 1
                return
            except ConnectionError as error:
                pause_s = PRODUCE_RETRY_S[min(attempt, len(PRODUCE_RETRY_S) - 1)]
                attempt += 1
                log.warning("%s: not confirmed by the broker (%s), again in %.1f s", self.role, error, pause_s)
                await asyncio.sleep(pause_s)


class _Entry:
    """An event being worked on."""

    __slots__ = ("done", "event", "offset", "task", "tp")

    def __init__(self, event: Any, tp: Any, offset: int) -> None:
        self.event = event
        self.tp = tp
        self.offset = offset
        self.done = False
        self.task: asyncio.Task[None] | None = None


class _Queue:
    """Events of one partition in offset order, all read under one assignment generation."""

    __slots__ = ("entries", "generation")

    def __init__(self, generation: int | None) -> None:
        self.generation = generation
        self.entries: deque[_Entry] = deque()


def next_hop(role: Role, case: Case, settings: Settings) -> Hop:
    """Decides where a case goes after a role has worked on it. Pure: the whole flow of DESIGN.md is here."""
    if role in ("student", "refiner"):
        return Hop(ATTEMPTS, case)
    if role == "strategist":
        return Hop(OUTCOMES, case.ended("gold", role, now_ms()))
    verdict = case.attempts[-1].verdict
    if case.split == "holdout":
        return Hop(OUTCOMES, case.ended("holdout", role, now_ms()))
    if verdict is not None and verdict.passed:
        return Hop(ACCEPTED, case)
    if case.rounds >= settings.task(case.task).max_rounds:
        return Hop(OUTCOMES, case.ended("unresolved", role, now_ms(), detail=f"failed after {case.rounds} refinements"))
    return Hop(REFINE, case)


def _served(case: Case) -> Case:
    """Clears the marks of earlier trips through retry topics."""
    return msgspec.structs.replace(case, retries=0, retry_stage="", not_before_ms=0) if case.retries else case


def now_ms() -> int:
    """Returns the time of day in milliseconds since the epoch."""
    return int(time.time() * 1000)
