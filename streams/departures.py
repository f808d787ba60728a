"""Messages that leave together: what a stage sends within some milliseconds goes to the broker in one request.

aiokafka lets each partition linger by itself, so that a request would carry one partition's messages. In a worker the
messages of all roles leave together, through one producer.
"""

from __future__ import annotations

import asyncio


class Departures:
    """The next time at which messages leave, at most `every_s` away; the first to wait for it sets it."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._waiting: list[asyncio.Future[None]] = []

    async def next(self) -> None:
        """Returns when messages leave. All who wait go on in one turn of the loop, before anything is sent."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_later(self._every_s, self._leave)
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _leave(self) -> None:
        leaving, self._waiting = self._waiting, []
        for turn in leaving:
            if not turn.done():  # its case was cancelled
                turn.set_result(None)
