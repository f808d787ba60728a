"""The in-process students: building their engines, loading the adapters that serve, and which version to ask for.

agents.models keeps one `Engines` per process. What is slow runs in a thread, once for all who wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from agents.local import LocalEngine
from schemas.adapters import adapter_folder, served_name
from schemas.errors import AdapterError, SettingsError, SetupError
from schemas.settings import Model, Settings

log = logging.getLogger(__name__)

FORGIVE_S = 30.0  # an adapter that could not be used is tried again after this long
ADAPTERS_KEPT = 3  # per task and engine: serving, its canary's, and one that calls under way still use
_T = TypeVar("_T")

Choose = Callable[[str, str], Sequence[str]]  # (task, case id) -> adapter versions to try, best first; "" is the base


class Engines:
    """The engines of [local.NAME] and the adapters they hold."""

    def __init__(self, settings: Settings, serving: Choose) -> None:
        self._settings, self._serving = settings, serving
        self._engines: dict[str, LocalEngine] = {}
        self._building = threading.Lock()
        self._making: dict[str, asyncio.Task[Any]] = {}
        self._loaded: dict[tuple[str, str], list[str]] = {}  # (engine, task) -> versions, oldest first
        self._unusable: dict[tuple[str, str], float] = {}  # (task, version) -> when it failed
        self._preloading: set[asyncio.Task[None]] = set()

    def build(self, name: str) -> LocalEngine:
        """Returns the engine of [local.NAME]; the first call builds it, which takes seconds."""
        with self._building:
            if name not in self._engines:
                if name not in self._settings.local:
                    known = ", ".join(sorted(self._settings.local)) or "none"
                    raise SettingsError(f"there is no [local.{name}] in goldstream.toml; known: {known}.")
                local = self._settings.local[name]
                path = Path(local.path)
                if not path.is_dir():
                    raise SetupError(f"local.{name}.path: {path} is no folder; expected a model in Hugging Face form.")
                self._engines[name] = LocalEngine(path, max_batch=local.max_batch, threads=local.threads)
            return self._engines[name]

    async def get(self, name: str) -> LocalEngine:
        """Returns an engine, built in a thread where it is not there yet."""
        if name not in self._engines:
            await self.made(f"engine {name}", lambda: self.build(name))
        return self._engines[name]

    async def load_adapter(self, name: str, engine: LocalEngine, task: str, version: str) -> None:
        """Loads a version from the registry unless it is there; unloads the oldest of those no longer used."""
        served = served_name(task, version)
        if served in engine.adapters():
            return
        folder = adapter_folder(self._settings.adapters, task, version)
        await self.made(f"adapter {name} {served}", lambda: engine.load_adapter(served, folder))
        loaded = self._loaded.setdefault((name, task), [])
        if version not in loaded:
            loaded.append(version)
        while len(loaded) > ADAPTERS_KEPT:
            engine.unload_adapter(served_name(task, loaded.pop(0)))

    def preload(self, task: str, model: Model) -> None:
        """Begins to load the version that serves now where its engine is here, so that no call waits for it."""
        provider, _, name = model.model.partition("/")
        engine, version = self._engines.get(name), self.adapter(task, model, "")
        if provider != "local" or engine is None or not version:
            return

        async def load() -> None:
            with suppress(AdapterError, OSError):  # the first call that asks for it falls back, and says so
                await self.load_adapter(name, engine, task, version)

        loading = asyncio.create_task(load())
        self._preloading.add(loading)
        loading.add_done_callback(self._preloading.discard)

    def adapter(self, task: str, model: Model, case_id: str) -> str:
        """Returns the version to ask for: the best that has not failed lately, "" for the base."""
        if not model.model.startswith(("local/", "hosted_vllm/")):
            return ""
        choices = self._serving(task, case_id)
        return next((version for version in choices if self._is_usable(task, version)), "")

    def fall_back(self, task: str, model: Model, case_id: str, version: str, error: AdapterError) -> str:
        """Notes that a version cannot be used and returns the one to use instead."""
        known = not self._is_usable(task, version)
        self._unusable[task, version] = time.monotonic()
        chosen = self.adapter(task, model, case_id)
        if not known:  # else as many warnings as calls in flight
            log.warning("task %s: adapter %s cannot be used, %s serves: %s", task, version, chosen or "the base", error)
        return chosen

    async def made(self, key: str, make: Callable[[], _T]) -> _T:
        """Runs something slow in a thread, once for all who wait for it; a waiter's timeout leaves it running."""
        if key not in self._making:
            making = asyncio.create_task(asyncio.to_thread(make))
            self._making[key] = making

            def forget(done: asyncio.Task[_T]) -> None:
                self._making.pop(key, None)
                if not done.cancelled():
                    done.exception()  # seen, even when every waiter has given up

            making.add_done_callback(forget)
        made: asyncio.Task[_T] = self._making[key]
        return await asyncio.shield(made)

    async def close(self) -> None:
        """Stops every engine."""
        for loading in self._preloading:
            loading.cancel()
        for engine in self._engines.values():
            await asyncio.to_thread(engine.close)
        self._engines.clear()

    def _is_usable(self, task: str, version: str) -> bool:
        return time.monotonic() - self._unusable.get((task, version), float("-inf")) > FORGIVE_S
