"""One poller for all pages: started by the first that looks, stopped a while after the last has gone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import msgspec

from schemas.settings import Settings
from streams.dashboard.poller import Poller
from streams.dashboard.state import CommandState, State

IDLE_S = 30.0  # after which nobody is taken to look any more
PING_S = 5.0


class Live:
    """What pages look at; belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._poller: Poller | None = None
        self._starting = asyncio.Lock()
        self._pages: set[asyncio.Queue[bytes]] = set()
        self._looked = 0.0
        self._watching: asyncio.Task[None] | None = None

    async def state(self) -> State:
        """Returns the state as it is now."""
        poller = await self._awake()
        return await asyncio.to_thread(poller.newest)

    async def states(self) -> AsyncIterator[bytes]:
        """Yields the state as JSON, at once and whenever it has changed; b"" where nothing was new for a moment.

        A page that is slow to take them misses those in between.
        """
        poller = await self._awake()
        page: asyncio.Queue[bytes] = asyncio.Queue(1)
        self._pages.add(page)
        try:
            told = msgspec.json.encode(await asyncio.to_thread(poller.newest))
            yield told
            while True:
                self._looked = time.monotonic()
                try:
                    data = await asyncio.wait_for(page.get(), min(PING_S, 2 * self._settings.dashboard.refresh_s))
                except TimeoutError:
                    data = b""
                if data != told:  # the first state may have been queued besides
                    yield data
                    told = data or told
        finally:
            self._pages.discard(page)

    async def commands(self, task: str) -> tuple[CommandState, ...]:
        """Returns what was asked of rollout for a task, the newest first."""
        return (await self._awake()).announced.commands(task)

    async def stop(self) -> None:
        """Stops the poller."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        async with self._starting:
            await self._sleep()

    async def _awake(self) -> Poller:
        self._looked = time.monotonic()
        async with self._starting:
            if self._poller is None:
                loop = asyncio.get_running_loop()

                def tell(data: bytes) -> None:
                    loop.call_soon_threadsafe(self._spread, data)

                self._poller = Poller(self._settings, tell).start()
                if self._watching is None or self._watching.done():
                    self._watching = asyncio.create_task(self._watch())
            return self._poller

    async def _watch(self) -> None:
        """Stops the poller once nobody has looked for a while."""
        while self._poller is not None:
            await asyncio.sleep(1.0)
            if not self._pages and time.monotonic() - self._looked > IDLE_S:
                async with self._starting:
                    await self._sleep()

    async def _sleep(self) -> None:
        poller, self._poller = self._poller, None
        if poller is not None:
            await asyncio.to_thread(poller.stop)

    def _spread(self, data: bytes) -> None:
        for page in self._pages:
            if page.full():
                page.get_nowait()
            page.put_nowait(data)
