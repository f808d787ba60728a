"""One timer for all cases that a stage works on: a timer for each costs more than reading the case from its message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

_T = TypeVar("_T")


class Overdue:
    """Cancels what takes longer than `limit_s`, the same for all, and says so with TimeoutError."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._ends: dict[asyncio.Task[Any], float] = {}  # on the loop's clock; the first to begin is the first to end
        self._cancelled: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def within(self, work: Awaitable[_T]) -> _T:
        """Returns what `work` returns, awaited in the present task; raises TimeoutError where it takes too long."""
        task = asyncio.current_task()
        assert task is not None
        end = self._ends[task] = self._loop.time() + self._limit_s
        if self._timer is None:
            self._timer = self._loop.call_at(end, self._cancel)
        try:
            return await work
        except asyncio.CancelledError:
            if task in self._cancelled and task.uncancel() == 0:  # else others want its end too
                raise TimeoutError from None
            raise
        finally:
            del self._ends[task]
            self._cancelled.discard(task)

    def _cancel(self) -> None:
        now = self._loop.time()
        self._timer = None
        for task, end in self._ends.items():
            if end > now:
                self._timer = self._loop.call_at(end, self._cancel)
                return
            if task not in self._cancelled:
                self._cancelled.add(task)
                task.cancel()
