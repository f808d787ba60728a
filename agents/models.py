"""Every model call of Goldstream goes through here, and from here through LiteLLM.

The stages call `Models.complete` with a role and an absolute deadline. Two providers are ours: local/NAME is
the in-process student (agents.local), scripted/NAME a scripted model (agents.scripted). Prompts, answers and
keys never enter a log or an error text. LiteLLM takes seconds to import: `warm` does it ahead of the first call.

Calls for a stream's case (`calling_for` is set) pass a circuit breaker per endpoint: role, model and api_base.
While it is open no case is called; a task of ours asks one small question after each cool-down. A case under way
waits in place while all endpoints of its role are held, at most until half its time is gone, else it leaves with
EndpointHeld; `held` tells the stage to take no other, `outage_s` tells whose fault a failure was.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from agents.breaker import Breaker
from agents.local import LocalEngine
from agents.providers import OURS, call_engine, failure, load_litellm
from schemas.adapters import adapter_folder, served_name
from schemas.case import Attempt, Message, Spend
from schemas.chat import split_thinking, to_chat
from schemas.errors import (
    AdapterError,
    BadAnswer,
    EndpointHeld,
    EndpointRefused,
    ModelError,
    ModelTimeout,
    RateLimited,
    SettingsError,
    SetupError,
)
from schemas.settings import ROLES, Model, Role, Settings

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0  # backoff doubles between them
FORGIVE_S = 30.0  # an adapter that could not be used is tried again after this long
ADAPTERS_KEPT = 3  # per task and engine: serving, its canary's, and one that calls under way still use
PROBE_S = 10.0  # what a probe may take
PROBE = (Message("user", "Say ok."),)
_T = TypeVar("_T")

Choose = Callable[[str, str], Sequence[str]]  # (task, case id) -> adapter versions to try, best first; "" is the base
calling_for: ContextVar[str] = ContextVar("calling_for", default="")  # the case_id; "" outside the stream stages


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A model's answer and what it took to get it."""

    text: str  # without thinking
    thinking: str
    model: str  # the model string of the settings, without adapter
    adapter: str  # version that answered, "" for the base
    prompt_tokens: int
    completion_tokens: int
    logprob: float | None  # summed over the completion, nats; where the server tells it
    latency_s: float  # of the successful call
    cost_usd: float

    def spend(self) -> Spend:
        """Returns the call as an entry of a case's spend."""
        return Spend(1, self.prompt_tokens, self.completion_tokens, self.cost_usd, self.latency_s)

    def attempt(self, source: Literal["student", "refiner"], round: int) -> Attempt:
        """Returns the answer as an attempt at a case."""
        return Attempt(
            round=round,
            source=source,
            text=self.text,
            model=self.model,
            adapter=self.adapter,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            logprob=self.logprob,
            latency_s=self.latency_s,
            cost_usd=self.cost_usd,
        )


class Models:
    """The models of all tasks, with the local engines; one per process.

    `serving(task, case_id)` gives the adapter versions for a case, best first; the base comes after them by itself.
    """

    def __init__(self, settings: Settings, *, serving: Choose = lambda task, case_id: ()) -> None:
        self._settings, self._serving = settings, serving
        self._engines: dict[str, LocalEngine] = {}
        self._building = threading.Lock()
        self._making: dict[str, asyncio.Task[Any]] = {}
        self._loaded: dict[tuple[str, str], list[str]] = {}  # (engine, task) -> versions, oldest first
        self._unusable: dict[tuple[str, str], float] = {}  # (task, version) -> when it failed
        self._endpoints: dict[_Key, _Endpoint] = {}
        self._troubled: set[_Key] = set()  # endpoints whose breaker is open

    async def complete(
        self,
        role: Role,
        task: str,
        messages: Sequence[Message],
        *,
        deadline: float,
        response_format: dict[str, Any] | type | None = None,
        thinking: bool = False,
    ) -> Completion:
        """Calls the model of a role and returns its answer before `deadline`, a time on the event loop's clock.

        1. The student's adapter is the first that `serving` names and that could be used lately, else the base; the
           completion says which one answered.
        2. A call ends at the model's timeout_s or the deadline, whatever the server does.
        3. Transient errors are repeated with backoff, or after what Retry-After asks, while that fits the deadline.
        Raises RateLimited, ModelUnavailable, ModelTimeout, ModelRefused or BadAnswer.
        """
        loop = asyncio.get_running_loop()
        model = self._settings.task(task).model(role)
        adapter = self._adapter(task, model) if role == "student" else ""
        case_id = calling_for.get()
        endpoint = self._endpoint(role, task, model) if case_id else None
        latest = deadline - min(model.timeout_s, (deadline - loop.time()) / 2)  # to begin a call that has a chance
        tries = 0
        failed: ModelError | None = None
        while True:
            if endpoint is not None and endpoint.breaker.is_open and not await self._reopened(endpoint, latest):
                held = f"{endpoint}: not called, it is held for another {endpoint.breaker.wait_s:.0f} s."
                raise failed or EndpointHeld(held)
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise ModelTimeout(f"{role} of {task}: the deadline passed before {model.model} could be called.")
            timeout_s = min(model.timeout_s, left_s)
            try:
                async with asyncio.timeout(timeout_s):
                    completion = await self._call(
                        role, task, model, adapter, messages, timeout_s, response_format, thinking
                    )
                if endpoint is not None:
                    self._note(endpoint, case_id, None)
                return completion
            except AdapterError as error:
                if not adapter:
                    raise
                adapter = self._fall_back(task, model, adapter, error)
                continue
            except ModelError as error:
                failed = error
            except TimeoutError:
                failed = ModelTimeout(f"{role} of {task}: {model.model} gave no answer in {timeout_s:.3g} s.")
            if endpoint is not None:
                self._note(endpoint, case_id, failed)
            pause_s = min(FIRST_PAUSE_S * 2**tries, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
            if isinstance(failed, RateLimited) and failed.retry_after_s is not None:
                pause_s = failed.retry_after_s
            tries += 1
            if not failed.transient or tries > model.retries or loop.time() + pause_s >= deadline:
                raise failed
            if endpoint is None or not endpoint.breaker.is_open:  # else it waits for the breaker, above
                await asyncio.sleep(pause_s)

    def held(self, role: Role) -> bool:
        """Tells whether no case of this role should be taken: every task's endpoint is down or limits its callers.

        A task that never calls a model in this role (a judge in code) can always go on.
        """
        if not self._troubled:
            return False
        tasks = self._settings.tasks.items()
        return all(_key(role, task.model(role)) in self._troubled for _, task in tasks)

    async def outage_s(self, role: Role, task: str, case_id: str, error: ModelError) -> float | None:
        """Returns None if a failure is this case's own fault, else the seconds its endpoint stays held.

        It is the case's fault only where the endpoint answers others: it has done so a moment ago, or it answers a
        probe now. So nobody is blamed for an outage, however few cases there are, and a case that breaks a healthy
        server ends. A 429 is a limit, unless it meets this case alone and again and again.
        """
        endpoint = self._endpoints.get(_key(role, self._settings.task(task).model(role)))
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

    def engine(self, name: str) -> LocalEngine:
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

    async def warm(self, task: str) -> None:
        """Imports LiteLLM, loads the engines of a task and checks its keys, ahead of the first call.

        Raises SettingsError for a missing key, SetupError for a missing model folder.
        """
        await self._made("litellm", load_litellm)
        for role in ROLES:
            model = self._settings.task(task).model(role)
            _api_key(model)
            provider, _, name = model.model.partition("/")
            if provider == "local":
                await self._engine(name)

    async def close(self) -> None:
        """Stops the probes and the engines, and closes LiteLLM's connections."""
        for endpoint in self._endpoints.values():
            for task in (endpoint.recovering, endpoint.probing):
                if task is not None:
                    task.cancel()
        for engine in self._engines.values():
            await asyncio.to_thread(engine.close)
        self._engines.clear()
        if load_litellm.cache_info().currsize:
            litellm = load_litellm()
            await litellm.close_litellm_async_clients()
            litellm.in_memory_llm_clients_cache.flush_cache()

    def _endpoint(self, role: Role, task: str, model: Model) -> _Endpoint:
        key = _key(role, model)
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            worker = self._settings.worker
            breaker = Breaker(worker.breaker_failures, worker.breaker_longest_s)
            endpoint = self._endpoints[key] = _Endpoint(key, task, model, breaker)
        return endpoint

    async def _reopened(self, endpoint: _Endpoint, latest: float) -> bool:
        """Waits until an endpoint may be called again.

        Returns False where that is later than `latest`, or where other tasks of the role can use the slot.
        """
        at = asyncio.get_running_loop().time() + endpoint.breaker.wait_s
        if at >= latest or not self.held(endpoint.key.role):
            return False
        try:
            async with asyncio.timeout_at(latest):
                await endpoint.closed.wait()
        except TimeoutError:
            return False
        return True

    def _note(self, endpoint: _Endpoint, case_id: str, error: ModelError | None) -> None:
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

    def _follow(self, endpoint: _Endpoint, error: Exception | None = None) -> None:
        """Does what a change of the breaker asks for: holds or frees the cases, and has probes sent."""
        troubled = endpoint.key in self._troubled
        if endpoint.breaker.is_open and not troubled:
            self._troubled.add(endpoint.key)
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
            endpoint.closed.set()
            if endpoint.recovering is not None and endpoint.recovering is not asyncio.current_task():
                endpoint.recovering.cancel()
            log.warning("%s answers again, after %.1f s", endpoint, time.monotonic() - endpoint.since)

    async def _recover(self, endpoint: _Endpoint) -> None:
        """Sends a probe after each cool-down until one is answered."""
        while endpoint.breaker.is_open:
            if wait_s := endpoint.breaker.wait_s:
                await asyncio.sleep(wait_s)
            else:
                await self._probe(endpoint)

    async def _probe(self, endpoint: _Endpoint) -> bool:
        """Asks an endpoint something small, once for all who want to know; tells whether it answered."""
        if endpoint.probing is None:
            endpoint.probing = asyncio.create_task(self._ask(endpoint))
        return await asyncio.shield(endpoint.probing)

    async def _ask(self, endpoint: _Endpoint) -> bool:
        key, model = endpoint.key, msgspec.structs.replace(endpoint.model, max_tokens=1)
        timeout_s = min(model.timeout_s, PROBE_S)
        failed: Exception | None = None
        try:
            async with asyncio.timeout(timeout_s):
                await self._call(key.role, endpoint.task, model, "", PROBE, timeout_s, None, False)
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

    async def _call(
        self,
        role: Role,
        task: str,
        model: Model,
        adapter: str,
        messages: Sequence[Message],
        timeout_s: float,
        response_format: dict[str, Any] | type | None,
        thinking: bool,
    ) -> Completion:
        """Makes one call; raises our errors, and AdapterError where the adapter cannot be used."""
        imported = load_litellm.cache_info().currsize
        litellm = load_litellm() if imported else await self._made("litellm", load_litellm)
        provider, _, name = model.model.partition("/")
        call = dict(model.extra) | {
            "model": model.model,
            "messages": to_chat(messages),
            "temperature": model.temperature,
            "max_tokens": model.max_tokens,
            "timeout": timeout_s,
            "num_retries": 0,
            "max_retries": 0,
        }
        if provider == "local":
            engine = await self._engine(name)
            if adapter:
                await self._load_adapter(name, engine, task, adapter)
                call["model"] = f"local/{name}:{served_name(task, adapter)}"
            call_engine.set((engine, thinking))
        elif provider == "hosted_vllm" and role == "student":
            if adapter:
                call["model"] = f"hosted_vllm/{served_name(task, adapter)}"
            body = dict(call.get("extra_body") or {})
            body["chat_template_kwargs"] = {**body.get("chat_template_kwargs", {}), "enable_thinking": thinking}
            call |= {"extra_body": body, "logprobs": True}
        if provider not in ("local", "scripted"):
            if response_format is not None:
                call["response_format"] = response_format
            if model.api_base:
                call["api_base"] = model.api_base
            if key := _api_key(model):
                call["api_key"] = key
        started = time.perf_counter()
        try:
            response = await litellm.acompletion(**call)
        except Exception as error:
            raise failure(error, f"{role} of {task}: {call['model']}", adapter, messages, _api_key(model)) from None
        return _completion(
            response, model, adapter, time.perf_counter() - started, f"{role} of {task}: {call['model']}"
        )

    async def _engine(self, name: str) -> LocalEngine:
        if name not in self._engines:
            await self._made(f"engine {name}", lambda: self.engine(name))
        return self._engines[name]

    async def _load_adapter(self, name: str, engine: LocalEngine, task: str, version: str) -> None:
        """Loads a version from the registry unless it is there; unloads the oldest of those no longer used."""
        served = served_name(task, version)
        if served in engine.adapters():
            return
        folder = adapter_folder(self._settings.adapters, task, version)
        await self._made(f"adapter {name} {served}", lambda: engine.load_adapter(served, folder))
        loaded = self._loaded.setdefault((name, task), [])
        if version not in loaded:
            loaded.append(version)
        while len(loaded) > ADAPTERS_KEPT:
            engine.unload_adapter(served_name(task, loaded.pop(0)))

    async def _made(self, key: str, make: Callable[[], _T]) -> _T:
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

    def _adapter(self, task: str, model: Model) -> str:
        """Returns the version to ask for: the best that has not failed lately, "" for the base."""
        if not model.model.startswith(("local/", "hosted_vllm/")):
            return ""
        choices = self._serving(task, calling_for.get())
        return next((version for version in choices if self._is_usable(task, version)), "")

    def _fall_back(self, task: str, model: Model, version: str, error: AdapterError) -> str:
        """Notes that a version cannot be used and returns the one to use instead."""
        known = not self._is_usable(task, version)
        self._unusable[task, version] = time.monotonic()
        chosen = self._adapter(task, model)
        if not known:  # else as many warnings as calls in flight
            log.warning("task %s: adapter %s cannot be used, %s serves: %s", task, version, chosen or "the base", error)
        return chosen

    def _is_usable(self, task: str, version: str) -> bool:
        return time.monotonic() - self._unusable.get((task, version), float("-inf")) > FORGIVE_S


class _Key(NamedTuple):
    """What makes two calls go to the same endpoint."""

    role: Role
    model: str
    api_base: str


def _key(role: Role, model: Model) -> _Key:
    return _Key(role, model.model, model.api_base)


class _Endpoint:
    """An endpoint with its breaker and the tasks that ask whether it is back."""

    def __init__(self, key: _Key, task: str, model: Model, breaker: Breaker) -> None:
        self.key, self.task, self.model, self.breaker = key, task, model, breaker
        self.closed = asyncio.Event()  # set while cases may be called
        self.closed.set()
        self.since = 0.0  # when it was opened
        self.recovering: asyncio.Task[None] | None = None
        self.probing: asyncio.Task[bool] | None = None

    def __str__(self) -> str:
        return f"{self.key.role}: {self.key.model}"


def _completion(response: Any, model: Model, adapter: str, latency_s: float, what: str) -> Completion:
    """Reads a response; raises BadAnswer where it holds no answer."""
    hidden = getattr(response, "_hidden_params", None) or {}
    ours = hidden.get(OURS)
    if isinstance(ours, Exception):
        raise ours
    if not response.choices:
        raise BadAnswer(f"{what} answered without choices; expected one.")
    choice = response.choices[0]
    content = (choice.message.content or "").encode("utf-8", "replace").decode()  # a lone surrogate fits no message
    thinking, text = split_thinking(content)
    if not text:
        raise BadAnswer(
            f"{what} answered with empty content (finish reason {choice.finish_reason}). "
            "If it spent max_tokens on thinking, raise max_tokens or turn thinking off."
        )
    usage = getattr(response, "usage", None)
    prompt_tokens, completion_tokens = getattr(usage, "prompt_tokens", 0), getattr(usage, "completion_tokens", 0)
    listed = getattr(getattr(choice, "logprobs", None), "content", None)
    return Completion(
        text=text,
        thinking=thinking or getattr(choice.message, "reasoning_content", None) or "",
        model=model.model,
        adapter=adapter,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        logprob=ours if ours is not None or not listed else sum(token.logprob for token in listed),
        latency_s=latency_s,
        cost_usd=_cost_usd(model, prompt_tokens, completion_tokens, hidden.get("response_cost")),
    )


def _cost_usd(model: Model, prompt_tokens: int, completion_tokens: int, known: float | None) -> float:
    """Returns the cost by the settings' prices, else LiteLLM's own figure, else 0 for a model it does not know."""
    if model.input_cost_per_token is None and model.output_cost_per_token is None:
        return known or 0.0
    return prompt_tokens * (model.input_cost_per_token or 0.0) + completion_tokens * (
        model.output_cost_per_token or 0.0
    )


def _api_key(model: Model) -> str:
    if not model.api_key_env:
        return ""
    key = os.environ.get(model.api_key_env, "")
    if not key:
        raise SettingsError(f"{model.model} takes its key from {model.api_key_env}, which is not set. Export it.")
    return key
