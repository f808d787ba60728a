"""Faust's way from Kafka to a stream as our workers use it: a message is handed on without a task of its own, and as it
came. streams.worker uses it.

Stock Faust starts four tasks for every message, so that a rebalance can interrupt one that waits for room in a stream's
buffer, and cancels three of them. A message that finds room, as nearly all do, waits for nothing: it is handed on at
once. One that has to wait takes Faust's own way, from where it stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import faust
from faust.transport import consumer
from faust.transport.drivers import aiokafka
from mode.services import Service, WaitResults


class _NoTables:
    """Faust draws a table of the offsets at each commit, for a line that only its developers' log shows."""

    @staticmethod
    def logtable(*rows: Any, **options: Any) -> str:
        """Draws nothing."""
        return ""


consumer.terminal = _NoTables


class HandsOn(Service):  # type: ignore[misc]  # Faust's types are not complete
    """A service of Faust's that waits only where there is something to wait for."""

    async def wait_first(self, *waits: Any, timeout: Any = None) -> Any:  # noqa: ASYNC109 - mode's name
        """Returns once the first of `waits` is done, or this service stops, as mode's Service does.

        The first is begun here: if it ends without waiting, nothing else is.
        """
        handing_on = waits[0]
        if timeout is not None or len(waits) != 2 or not all(map(asyncio.iscoroutine, waits)):
            return await super().wait_first(*waits, timeout=timeout)
        try:
            waits_for = handing_on.send(None)
        except StopIteration as end:
            waits[1].close()
            return WaitResults([handing_on], [end.value], False)
        except BaseException:
            waits[1].close()
            raise
        return await super().wait_first(_Begun(handing_on, waits_for), waits[1])

    async def sleep(self, n: float) -> None:
        """Sleeps for `n` seconds, or until this service stops; for none, it lets others go on, as Faust does between
        two batches, without the task and the timer that mode needs to wait."""
        await (super().sleep(n) if n else asyncio.sleep(0))


class _Begun:
    """A coroutine that has run up to its first wait; awaited, it goes on from there."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> None:
        self._coroutine, self._waits_for = coroutine, waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        waits_for = self._waits_for
        while True:
            try:
                try:
                    found = yield waits_for
                except BaseException as error:
                    waits_for = self._coroutine.throw(error)
                else:
                    waits_for = self._coroutine.send(found)
            except StopIteration as end:
                return end.value


class Consumer(HandsOn, aiokafka.Consumer):  # type: ignore[misc]
    """Faust's consumer."""


class Raw(faust.Schema):  # type: ignore[misc]
    """Events with the bytes of their messages: no codec is asked, for streams.stage decodes what it takes."""

    def compile(self, app: Any, **callbacks: Any) -> Callable[..., Awaitable[Any]]:
        """Returns what makes an event of a message."""
        event = app.conf.Event

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return event(app, message.key, message.value, message.headers, message)

        return decode


class Transport(aiokafka.Transport):  # type: ignore[misc]
    """Faust's way to Kafka with our consumer."""

    Consumer = Consumer
