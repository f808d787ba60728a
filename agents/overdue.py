"""One timer for all that a process waits for with a deadline: asyncio.timeout's, one for each, cost more than reading
the case from its message. agents.models uses it for calls, streams.stage for events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

_T = TypeVar("_T")


class _Timed:
    """One wait; `end` is on the loop's clock."""

    __slots__ = ("before", "end", "is_over", "task")

    def __init__(self, task: asyncio.Task[Any], end: float) -> None:
        self.task, self.end, self.is_over = task, end, False
        self.before = task.cancelling()  # cancellations that others have asked for


class Overdue:
    """Cancels what takes too long, and says so with TimeoutError, as asyncio.timeout does."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waits: set[_Timed] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def within(self, work: Awaitable[_T], limit_s: float) -> _T:
        """Returns what `work` returns, awaited in the present task; raises TimeoutError where it takes too long."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # timers belong to one
            self._loop, self._waits, self._timer = loop, set(), None
        task = asyncio.current_task(loop)
        assert task is not None
        waits, wait = self._waits, _Timed(task, loop.time() + limit_s)
        waits.add(wait)
        if self._timer is None or wait.end < self._timer.when():
            self._set(wait.end)
        try:
            return await work
        except asyncio.CancelledError:
            if wait.is_over and task.uncancel() <= wait.before:  # else others want its end too
                raise TimeoutError from None
            raise
        finally:
            waits.discard(wait)

    def _set(self, end: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        assert self._loop is not None
        self._timer = self._loop.call_at(end, self._cancel)

    def _cancel(self) -> None:
        """Ends what is due, and sets the timer for the next; usually that which it was set for is done long since."""
        assert self._loop is not None
        now, self._timer = self._loop.time(), None
        for wait in self._waits:
            if wait.end <= now and not wait.is_over:
                wait.is_over = True
                wait.task.cancel()
        if left := [wait.end for wait in self._waits if not wait.is_over]:
            self._set(min(left))
