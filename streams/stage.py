"""One stage of the flow: takes events of a topic, works on N cases at once, acknowledges in offset order.

streams.worker builds one per role and feeds it from a Faust stream. Nothing is acknowledged before its
successor is durably produced, and nothing beyond an unfinished event is ever acknowledged: Faust
commits past holes otherwise.

When something cannot go on, the stage takes no new events; lag grows in Kafka, memory does not:
- an operator's pause, until it is lifted; cases in flight are finished
- the models of its role are held (agents.models), or its budget is used up (agents.budget): cases in flight wait in
  place, or return through a retry topic without a mark against them, since that is nobody's fault
- the broker refuses a successor: its event stays unacknowledged, a log line a minute says what to do
- too much is done and not acknowledged because one event takes long
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import traceback
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from agents.billing import Bill, billed
from agents.overdue import Overdue
from schemas.case import Case, Source, coordinates_id, decode_case, encode_case
from schemas.errors import ModelError, ModelTimeout, RecordError, WriteRefused
from schemas.faults import crash_point
from schemas.forgotten import bare_case
from schemas.settings import Role, Settings
from schemas.topics import OUTCOMES, retry_topic
from streams.flow import Hop, next_hop, now_ms
from streams.pending import Entry, Pending

if TYPE_CHECKING:
    from streams.tracing.hops import Hops

log = logging.getLogger(__name__)

Handler = Callable[[Case, float], Awaitable[Case]]  # (case, deadline on the loop's clock) -> the case, further on
Produce = Callable[[str, bytes, bytes], Awaitable[None]]  # (topic, key, value), returns once the broker has it;
# raises ConnectionError where it may have it later, WriteRefused where it says no
Outage = Callable[[Case, ModelError], Awaitable[float | None]]  # -> seconds it lasts, None: the case is to blame
PRODUCE_RETRY_S = (0.2, 0.5, 1.0, 2.0, 5.0)
REFUSED_RETRY_S = 5.0
ALARM_EVERY_S = 60.0
GATE_POLL_S = 0.1
MODELS_LOOK_S = 0.005  # whether models are held is asked this often at most, where no budget counts each case
BATCH_BYTES = 16_384  # of the producer: a larger record is sent alone, so it alone can be what is too large
PENDING_PER_SLOT = 64  # events taken and not acknowledged; what a hole may pile up behind it


async def _never_out(case: Case, error: ModelError) -> None:
    return None


class Stage:
    """Works on the events of one role's topic.

    `models_held()` tells whether no case should be taken now; `outage_s` whether a failure is an outage's.
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
        models_held: Callable[[], bool] = lambda: False,
        outage_s: Outage = _never_out,
        one_by_one: bool = False,
        forgets: Callable[[Case], bool] = lambda case: False,
    ) -> None:
        self.role = role
        self.settings = settings
        self.counts: dict[str, int] = defaultdict(int)
        self.paused = False  # by an operator
        self.tracing: Hops | None = None  # where it is on
        self._handler = handler
        self._produce = produce
        self._cluster = cluster
        self._generation = generation  # of the group's assignment; a message carries the one it was fetched under
        self._models_held = models_held
        self._outage_s = outage_s
        self._one_by_one = one_by_one  # each case asks for its share of a budget before the next is taken
        self._forgets = forgets  # whether a case is forgotten: it ends here, without its text
        self._slots = asyncio.Semaphore(settings.worker.cases_in_flight)
        self._leaving = asyncio.Semaphore(settings.worker.cases_in_flight)  # done, and not yet confirmed by the broker
        self._pending = Pending(role, generation)
        self._running: dict[tuple[Any, int], Entry] = {}
        self._pending_limit = PENDING_PER_SLOT * settings.worker.cases_in_flight
        self._refused = 0  # cases whose successor the broker refuses
        self._draining, self._alarm_at = False, 0.0
        self._loop = asyncio.get_running_loop()
        self._overdue = Overdue()
        self._models_were_held, self._look_again = False, 0.0
        self._failure: asyncio.Future[None] = self._loop.create_future()

    @property
    def in_flight(self) -> int:
        """Cases being worked on now."""
        return len(self._running)

    @property
    def held_by(self) -> tuple[str, ...]:
        """Why no event is taken now; empty where one may be. The reasons are independent of each other."""
        held = (self.paused, self._models_held(), self._refused > 0, self._pending.count >= self._pending_limit)
        return tuple(why for why, holds in zip(("pause", "models", "refused", "pending"), held, strict=True) if holds)

    async def run(self, events: AsyncIterator[Any]) -> None:
        """Takes Faust events until cancelled."""
        async for event in events:
            await self._slots.acquire()
            try:
                while self._is_held():  # noqa: ASYNC110 - for reasons that change in four places
                    await asyncio.sleep(GATE_POLL_S)
            except BaseException:
                self._slots.release()
                raise
            if event.message.generation_id == self._generation():
                self._take(event)
                if self._one_by_one:
                    await asyncio.sleep(0)
            else:  # a rebalance passed while it waited: it is read again, by us or by another
                self._slots.release()

    async def failed(self) -> None:
        """Returns never, or raises the error that must stop this worker."""
        await self._failure

    def assigned(self, partitions: Collection[Any]) -> None:
        """Cancels the work on partitions that others own now, and drops what is never acknowledged any more."""
        kept = set(partitions)
        self._pending.assigned(kept)
        for where, entry in list(self._running.items()):
            if entry.tp not in kept and entry.task is not None:
                del self._running[where]
                entry.task.cancel()

    async def stop(self, drain_s: float = 0.0) -> None:
        """Takes nothing more, gives the cases in flight `drain_s` to end, and cancels the others, which come again.

        One slow call keeps everything done behind it in its partition unacknowledged: cancelled at once, it would
        cost the calls of all of them again.
        """
        self._draining = True
        tasks = [entry.task for entry in self._running.values() if entry.task is not None]
        if tasks and drain_s > 0:
            await asyncio.wait(tasks, timeout=drain_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_held(self) -> bool:
        full = self._pending.count >= self._pending_limit
        if self.paused or self._draining or self._refused > 0 or full:
            return True
        now = self._loop.time()
        if self._one_by_one or self._models_were_held or now >= self._look_again:
            self._models_were_held, self._look_again = self._models_held(), now + MODELS_LOOK_S
        return self._models_were_held

    def _take(self, event: Any) -> None:
        """Queues an event for acknowledgement and starts its work.

        The queue of a partition belongs to one assignment generation. A first event of a newer one starts it
        afresh: after a rebalance the partition is read again from its commit, in order. What is still being worked
        on, or was done, is not done again.
        """
        message = event.message
        tp, offset = message.tp, message.offset
        crash_point(f"{self.role}.after_consume")
        pending = self._pending
        queue = pending.queues.get(tp)
        if queue is None or queue.generation != message.generation_id:
            queue = pending.restarted(tp, message.generation_id, offset)
        entry = self._running.get((tp, offset))
        known = False
        if entry is not None:
            # Still being worked on since before the rebalance: one call is enough.
            self._slots.release()
            self.counts["rejoined"] += 1
            entry.event = event
        elif queue.known and queue.knows(offset, message.timestamp):
            # Done before the rebalance, and not committed: its successor is on the broker.
            self._slots.release()
            self.counts["rejoined"] += 1
            entry, known = Entry(event, tp, offset), True
        else:
            self.counts["taken"] += 1
            entry = self._running[tp, offset] = Entry(event, tp, offset)
            entry.task = asyncio.create_task(self._work(entry, event.value))
        queue.entries.append(entry)
        pending.count += 1
        if known:
            pending.done(entry)

    async def _work(self, entry: Entry, value: bytes | None) -> None:
        """Makes an event's successor, produces it, and acknowledges what is done.

        1. decode and handle, within the event's deadline; of what is forgotten before or meanwhile, nothing is left
        2. produce the successor and wait until the broker confirms it; meanwhile another event has its slot, for a
           model need not wait for Kafka
        3. acknowledge from the head of the partition's queue
        """
        has_slot = True
        try:
            # 1.
            before, hop = await self._next_hop(entry, value)
            if before is not None and self._forgets(hop.case):
                before, hop = None, self._forgotten(hop.case)
            # 2.
            hop = self._noted(before, hop)
            async with self._leaving:
                has_slot = False
                self._slots.release()
                crash_point(f"{self.role}.before_produce")
                await self._confirmed(before, hop)
            crash_point(f"{self.role}.after_produce")
            # 3.
            self._pending.done(entry)
        except asyncio.CancelledError:
            pass  # not acknowledged: the next owner, or this one after its restart, does it again
        except BaseException as error:
            # Nothing may be acknowledged past this event: the worker stops, and its restart reads it again.
            if not self._failure.done():
                self._failure.set_exception(error)
        finally:
            if self.tracing is not None:
                self.tracing.end(entry.done)
            if self._running.get((entry.tp, entry.offset)) is entry:
                del self._running[entry.tp, entry.offset]
            if has_slot:
                self._slots.release()

    async def _next_hop(self, entry: Entry, value: bytes | None) -> tuple[Case | None, Hop]:
        """Returns the case as it came, None for what is none, and where it goes."""
        try:
            case = self._begun(decode_case(value), entry)
        except RecordError as error:
            return None, Hop(OUTCOMES, self._begun(self._undecodable(entry, error), entry))
        if self._forgets(case):
            return None, self._forgotten(case)
        bill = Bill(case.rounds)
        billed.set(bill)
        limit_s = self.settings.worker.event_deadline_s
        try:
            # The handler's own deadline lies a little earlier, so that its typed error wins over this net.
            advanced = await self._overdue.within(self._handler(case, self._loop.time() + limit_s), limit_s + 1)
        except TimeoutError as error:
            if not isinstance(error, ModelTimeout):
                error = ModelTimeout(f"the {self.role} took longer than {limit_s:.0f} s")
            return case, await self._after_error(bill.on(case, case), error)
        except ModelError as error:
            return case, await self._after_error(bill.on(case, case), error)
        except Exception as error:
            where = _where(error)
            log.error("%s: an agent failed on case %s, a dead letter now: %s", self.role, case.case_id, where)
            return case, self._dead(bill.on(case, case), "agent_error", where)
        crash_point(f"{self.role}.after_call")
        return case, next_hop(self.role, _served(bill.on(case, advanced)), self.settings)

    def _begun(self, case: Case, entry: Entry) -> Case:
        if self.tracing is not None:
            self.tracing.begin(case, entry.event.message)
        return case

    def _noted(self, before: Case | None, hop: Hop) -> Hop:
        return hop if self.tracing is None else Hop(hop.topic, self.tracing.decided(before, hop.topic, hop.case))

    async def _after_error(self, case: Case, error: ModelError) -> Hop:
        """Decides what a failed model call means for a case.

        - an outage or a limit of the model: it waits in a retry topic and comes back as it was, however often
        - its own, transient: it waits in the next retry topic; after the last it is dead
        - its own, for good: dead
        """
        delays_s = self.settings.worker.retry_delays_s
        outage_s = await self._outage_s(case, error)
        if outage_s is not None:
            self.counts["outage"] += 1
            delay_s = next((d for d in delays_s if d >= outage_s), max(delays_s))
            retries = case.retries
            log.info("%s: case %s waits %d s for its model (%s)", self.role, case.case_id, delay_s, error.reason)
        elif not error.transient or case.retries >= len(delays_s):
            return self._dead(case, error.reason, str(error))
        else:
            delay_s = delays_s[case.retries]
            retries = case.retries + 1
            log.warning("%s: %s on case %s, again in %d s", self.role, error.reason, case.case_id, delay_s)
        due_ms = now_ms() + 1000 * delay_s
        waiting = msgspec.structs.replace(case, retries=retries, retry_stage=self.role, not_before_ms=due_ms)
        return Hop(retry_topic(delay_s), waiting)

    def _dead(self, case: Case, reason: str, detail: str) -> Hop:
        return Hop(OUTCOMES, self._ended(case, "dead", reason, detail))

    def _ended(self, case: Case, kind: Any, reason: str = "", detail: str = "") -> Case:
        return case.ended(kind, self.role, now_ms(), reason, detail)

    def _forgotten(self, case: Case) -> Hop:
        self.counts["forgotten"] += 1
        return Hop(OUTCOMES, bare_case(case, self.role, now_ms()))

    def _undecodable(self, entry: Entry, error: RecordError) -> Case:
        source = Source(cluster=self._cluster, topic=entry.tp.topic, partition=entry.tp.partition, offset=entry.offset)
        case = Case(case_id=coordinates_id(source), task="", split="train", source=source, created_ms=now_ms())
        return self._ended(case, "dead", error.reason, error.detail)

    async def _confirmed(self, before: Case | None, hop: Hop) -> None:
        """Produces until the broker confirms; until then the event stays unacknowledged.

        - larger than our limit, or too large for the topic: the case ends as it was `before` it grew
        - not confirmed: produced again
        - refused all the same: the stage is held and an alarm raised until the broker accepts it
        """
        key, value = hop.case.case_id.encode(), encode_case(hop.case)
        limit = self.settings.kafka.max_message_bytes
        if len(value) > limit and before is not None:
            detail = f"{len(value)} bytes after the {self.role}; kafka.max_message_bytes is {limit}"
            hop, before = self._noted(before, self._dead(before, "too_large", detail)), None
            value = encode_case(hop.case)
        attempt, refused = 0, False
        try:
            while True:
                try:
                    await self._produce(self.settings.topic(hop.topic), key, value)
                    self.counts[hop.topic] += 1
                    return
                except WriteRefused as error:
                    if error.too_large and before is not None and len(value) > BATCH_BYTES:
                        detail = f"{len(value)} bytes after the {self.role}; {hop.topic} refuses them ({error})"
                        hop, before = self._noted(before, self._dead(before, "too_large", detail)), None
                        value = encode_case(hop.case)
                        continue
                    if not refused:
                        refused = True
                        self._refused += 1
                    self._alarm(hop, len(value), error)
                    pause_s = REFUSED_RETRY_S * random.uniform(0.5, 1.5)  # else they meet in a batch again
                except ConnectionError as error:
                    pause_s = PRODUCE_RETRY_S[min(attempt, len(PRODUCE_RETRY_S) - 1)]
                    attempt += 1
                    log.warning("%s: not confirmed by the broker (%s), again in %.1f s", self.role, error, pause_s)
                await asyncio.sleep(pause_s)
        finally:
            if refused:
                self._refused -= 1

    def _alarm(self, hop: Hop, size: int, error: WriteRefused) -> None:
        now = time.monotonic()
        if now < self._alarm_at:
            return
        self._alarm_at = now + ALARM_EVERY_S
        topic = self.settings.topic(hop.topic)
        remedy = (
            f"raise max.message.bytes of {topic} above {size + 1000}"
            if error.too_large
            else f"let this client write to {topic}, or create it"
        )
        log.error(
            "%s is held: the broker refuses case %s on %s (%s). Nothing is lost and nothing acknowledged; it goes on "
            "by itself once you %s.",
            self.role,
            hop.case.case_id,
            topic,
            error,
            remedy,
        )


def _where(error: Exception) -> str:
    """Returns an error's kind and where it was raised. Its text is not told: it may quote the case."""
    frames = reversed(traceback.extract_tb(error.__traceback__)[-3:])
    return f"{type(error).__name__} in " + ", from ".join(
        f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})" for frame in frames
    )


def _served(case: Case) -> Case:
    """Clears the marks of earlier trips through retry topics."""
    return msgspec.structs.replace(case, retries=0, retry_stage="", not_before_ms=0) if case.retry_stage else case
