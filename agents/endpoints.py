"""The endpoints that cases are called at, each with its circuit breaker and the probes that ask whether it is back.

agents.models asks here before it calls and tells here what came of it. An endpoint is a role's model at an address:
while its breaker is open no case is called; a task of ours sends one probe after each cool-down.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

import msgspec

from agents.breaker import Breaker
from schemas.case import Message
from schemas.errors import EndpointHeld, EndpointRefused, ModelError, RateLimited
from schemas.measures import MODEL_ENDPOINTS_HELD
from schemas.settings import Model, Role, Worker

log = logging.getLogger(__name__)

PROBE_S = 10.0  # what a probe may take
PROBE = (Message("user", "Say ok."),)


class Key(NamedTuple):
    """What makes two calls go to the same endpoint."""

    role: Role
    model: str
    api_base: str


def key_of(role: Role, model: Model) -> Key:
    """Returns the endpoint that a role's calls to a model go to."""
    return Key(role, model.model, model.api_base)


class Endpoint:
    """An endpoint with its breaker and the tasks that ask whether it is back."""

    def __init__(self, key: Key, task: str, model: Model, breaker: Breaker) -> None:
        self.key, self.task, self.model, self.breaker = key, task, model, breaker
        self.probed = msgspec.structs.replace(model, max_tokens=1)  # what a probe asks
        self.closed = asyncio.Event()  # set while cases may be called
        self.closed.set()
        self.since = 0.0  # when it was opened
        self.recovering: asyncio.Task[None] | None = None
        self.probing: asyncio.Task[bool] | None = None

    def __str__(self) -> str:
        return f"{self.key.role}: {self.key.model}"


Ask = Callable[[Endpoint, float], Awaitable[None]]  # (endpoint, seconds) -> answered, or raises a ModelError


class Endpoints:
    """All endpoints of a process. `ask` makes the small call of a probe."""

    def __init__(self, worker: Worker, ask: Ask) -> None:
        self._worker, self._ask_model = worker, ask
        self._known: dict[Key, Endpoint] = {}
        self._troubled: set[Key] = set()  # endpoints whose breaker is open

    def get(self, role: Role, task: str, model: Model) -> Endpoint:
        """Returns the endpoint of a role's model; the task that asks first lends its settings to the probes."""
        key = key_of(role, model)
        endpoint = self._known.get(key)
        if endpoint is None:
            breaker = Breaker(self._worker.breaker_failures, self._worker.breaker_longest_s)
            endpoint = self._known[key] = Endpoint(key, task, model, breaker)
            MODEL_ENDPOINTS_HELD.add(role, model.model, by=0)
        return endpoint

    def is_held(self, key: Key) -> bool:
        """Tells whether an endpoint is down or limits its callers."""
        return key in self._troubled

    def all_held(self, keys: Iterable[Key]) -> bool:
        """Tells whether none of these endpoints may be called."""
        return bool(self._troubled) and all(key in self._troubled for key in keys)

    async def reopened(self, endpoint: Endpoint, latest: float) -> bool:
        """Waits until an endpoint may be called again; returns False where that is later than `latest`."""
        if asyncio.get_running_loop().time() + endpoint.breaker.wait_s >= latest:
            return False
        try:
            async with asyncio.timeout_at(latest):
                await endpoint.closed.wait()
        except TimeoutError:
            return False
        return True

    def note(self, endpoint: Endpoint, case_id: str, error: ModelError | None) -> None:
        """Tells the breaker what a call came to."""
        breaker = endpoint.breaker
        if isinstance(error, RateLimited):
            breaker.limited(case_id, error.retry_after_s)
        elif error is not None and (error.transient or isinstance(error, EndpointRefused)):
            breaker.failed(case_id)
        else:
            breaker.succeeded()
        if breaker.is_open or self._troubled:
            self._follow(endpoint, error)

    async def outage_s(self, key: Key, case_id: str, error: ModelError) -> float | None:
        """Returns None if a failure is this case's own fault, else the seconds its endpoint stays held.

        It is the case's fault only where the endpoint answers others: it has done so a moment ago, or it answers a
        probe now. So nobody is blamed for an outage, however few cases there are, and a case that breaks a healthy
        server ends. A 429 is a limit, unless it meets this case alone and again and again.
        """
        endpoint = self._known.get(key)
        if endpoint is None or not (error.transient or isinstance(error, EndpointRefused)):
            return None
        breaker = endpoint.breaker
        if isinstance(error, RateLimited):  # never probed: Retry-After holds for probes too
            return None if breaker.limits_only(case_id) else breaker.wait_s
        if breaker.is_open or isinstance(error, EndpointHeld):
            return breaker.wait_s
        if breaker.answered_lately and error.transient:  # a key may have expired since: a refusal is always checked
            return None
        return None if await self._probe(endpoint) else breaker.wait_s

    def close(self) -> None:
        """Stops the probes."""
        for endpoint in self._known.values():
            for task in (endpoint.recovering, endpoint.probing):
                if task is not None:
                    task.cancel()

    def _follow(self, endpoint: Endpoint, error: Exception | None = None) -> None:
        """Does what a change of the breaker asks for: holds or frees the cases, and has probes sent."""
        troubled = endpoint.key in self._troubled
        if endpoint.breaker.is_open and not troubled:
            self._troubled.add(endpoint.key)
            MODEL_ENDPOINTS_HELD.add(endpoint.key.role, endpoint.key.model)
            endpoint.closed.clear()
            endpoint.since = time.monotonic()
            endpoint.recovering = asyncio.create_task(self._recover(endpoint))
            log.warning(
                "%s is held (%s): its cases wait, it is asked again in %.1f s",
                endpoint,
                type(error).__name__,
                endpoint.breaker.wait_s,
            )
        elif troubled and not endpoint.breaker.is_open:
            self._troubled.discard(endpoint.key)
            MODEL_ENDPOINTS_HELD.add(endpoint.key.role, endpoint.key.model, by=-1)
            endpoint.closed.set()
            if endpoint.recovering is not None and endpoint.recovering is not asyncio.current_task():
                endpoint.recovering.cancel()
            log.warning("%s answers again, after %.1f s", endpoint, time.monotonic() - endpoint.since)

    async def _recover(self, endpoint: Endpoint) -> None:
        """Sends a probe after each cool-down until one is answered."""
        while endpoint.breaker.is_open:
            if wait_s := endpoint.breaker.wait_s:
                await asyncio.sleep(wait_s)
            else:
                await self._probe(endpoint)

    async def _probe(self, endpoint: Endpoint) -> bool:
        """Asks an endpoint something small, once for all who want to know; tells whether it answered."""
        if endpoint.probing is None:
            endpoint.probing = asyncio.create_task(self._ask(endpoint))
        return await asyncio.shield(endpoint.probing)

    async def _ask(self, endpoint: Endpoint) -> bool:
        timeout_s = min(endpoint.model.timeout_s, PROBE_S)
        failed: Exception | None = None
        try:
            async with asyncio.timeout(timeout_s):
                await self._ask_model(endpoint, timeout_s)
        except EndpointRefused as error:
            failed = error
        except ModelError as error:
            failed = error if error.transient else None  # an answer that we do not like is an answer
        except Exception as error:
            failed = error
        finally:
            endpoint.probing = None
        if failed is None:
            endpoint.breaker.probe_succeeded()
        else:
            endpoint.breaker.probe_failed(failed.retry_after_s if isinstance(failed, RateLimited) else None)
        self._follow(endpoint, failed)
        return failed is None
