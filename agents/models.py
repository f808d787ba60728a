"""Every model call of Goldstream goes through here, and from here through LiteLLM, or to vLLM past it.

The stages call `Models.complete` with a role and an absolute deadline. Two providers are ours: local/NAME is
the in-process student (agents.local), scripted/NAME a scripted model (agents.scripted). hosted_vllm/NAME is asked
by agents.direct unless only LiteLLM can. Prompts, answers and keys never enter a log or an error text. LiteLLM takes
seconds to import, and nobody does where all models are direct: `warm` does it ahead of the first call.

Calls for a stream's case (`calling_for` is set) pass a circuit breaker per endpoint: role, model and api_base.
While it is open no case is called; a task of ours asks one small question after each cool-down. A case under way
waits in place while all endpoints of its role are held, at most until half its time is gone, else it leaves with
EndpointHeld; `held` tells the stage to take no other, `outage_s` tells whose fault a failure was.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Collection, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from agents.account import Call
from agents.billing import billed
from agents.budget import Budget, Reservation
from agents.completion import Answer, Completion, answer_of, read_completion
from agents.counting import Counted
from agents.direct_request import connects_plainly, goes_direct, takes_messages
from agents.endpoints import PROBE, Endpoint, Endpoints, Key, key_of
from agents.engines import Choose, Engines
from agents.local import LocalEngine
from agents.outside import calling_as
from agents.overdue import Overdue
from agents.prices import expected
from agents.providers import call_engine, carried, failure, load_litellm
from agents.routing import Routes
from agents.traced import outgoing, traced
from schemas.adapters import served_name
from schemas.case import Message, Spend
from schemas.chat import to_chat
from schemas.errors import (
    AdapterError,
    BudgetHeld,
    EndpointHeld,
    ModelError,
    ModelTimeout,
    RateLimited,
    SettingsError,
)
from schemas.settings import ROLES, Model, Role, Settings, Task

if TYPE_CHECKING:
    from agents.direct import Direct

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0  # backoff doubles between them
__all__ = ["PROBE", "Choose", "Completion", "Models", "calling_for"]

calling_for: ContextVar[str] = ContextVar("calling_for", default="")  # the case_id; "" outside the stream stages


class Models:
    """The models of all tasks, with the local engines; one per process.

    `serving(task, case_id)` gives the adapter versions for a case, best first; the base comes after them by itself.
    """

    def __init__(self, settings: Settings, *, serving: Choose = lambda task, case_id: ()) -> None:
        self._settings = settings
        self._engines = Engines(settings, serving)
        self._endpoints = Endpoints(settings.worker, self._ask)
        self._routes = Routes(settings.worker.breaker_longest_s)
        self._direct: Direct | None = None
        self._past_litellm = connects_plainly(os.environ)
        self._overdue = Overdue()
        self._ways: dict[int, _Way] = {}  # by the id of a model, which is kept with it
        self.budget = Budget(settings)

    async def complete(
        self,
        role: Role,
        task: str,
        messages: Sequence[Message],
        *,
        deadline: float,
        response_format: dict[str, Any] | type | None = None,
        thinking: bool = False,
        by: Role | None = None,
        model: Model | None = None,
        told: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Calls the model of a role and returns its answer before `deadline`, a time on the event loop's clock.

        1. The student's adapter is the first that `serving` names and that could be used lately, else the base; the
           completion says which one answered.
        2. A call ends at the model's timeout_s or the deadline, whatever the server does.
        3. A call for a case waits for leave of the task's budget first, and is charged to it whatever comes.
        4. Transient errors are repeated with backoff, or after what Retry-After asks, while that fits the deadline.
        `by` asks another role's model for it, with the student its adapter too; `model` one that is no role's.
        `told` is what of chat completions' parameters goes with it, tools among them.
        Raises RateLimited, ModelUnavailable, ModelTimeout, ModelRefused, BadAnswer or BudgetHeld.
        """
        loop = asyncio.get_running_loop()
        by, case_id, told = by or role, calling_for.get(), told or {}
        model = model or self._settings.task(task).model(by)
        adapter = self._engines.adapter(task, model, case_id) if by == "student" else ""
        endpoint = self._endpoints.get(role, task, model) if case_id else None
        latest = deadline - min(model.timeout_s, (deadline - loop.time()) / 2)  # to begin a call that has a chance
        tries = 0
        failed: ModelError | None = None
        while True:
            if endpoint is not None and endpoint.breaker.is_open and not await self._reopened(endpoint, latest):
                held = f"{endpoint}: not called, it is held for another {endpoint.breaker.wait_s:.0f} s."
                raise failed or _at(endpoint, EndpointHeld(held))
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise ModelTimeout(f"{role} of {task}: the deadline passed before {model.model} could be called.")
            reserved = None
            if case_id or calling_as.get():
                reserved = await self._reserved(role, task, model, messages, latest, told)
                left_s = deadline - loop.time()
            timeout_s = min(self._way(model).longest_s, left_s)
            try:
                span = traced(role, task, model, adapter, messages, tries)
                with Counted(task, role, model.model) as counted, span:
                    call = self._call(
                        role, task, model, adapter, messages, timeout_s, response_format, thinking, by, told
                    )
                    charged = self._charged(call, reserved, role) if reserved else call
                    completion = await self._overdue.within(charged, timeout_s)
                    counted.answered(completion)
                    span.answered(completion)
                if endpoint is not None:
                    self._endpoints.note(endpoint, case_id, None)
                return completion
            except AdapterError as error:
                if not adapter:
                    raise
                adapter = self._engines.fall_back(task, model, case_id, adapter, error)
                continue
            except ModelError as error:
                failed = error
            except TimeoutError:
                failed = ModelTimeout(f"{role} of {task}: {model.model} gave no answer in {timeout_s:.3g} s.")
            if endpoint is not None:
                self._endpoints.note(endpoint, case_id, _at(endpoint, failed))
            pause_s = min(FIRST_PAUSE_S * 2**tries, LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
            if isinstance(failed, RateLimited) and failed.retry_after_s is not None:
                pause_s = failed.retry_after_s
            tries += 1
            if not failed.transient or tries > model.retries or loop.time() + pause_s >= deadline:
                raise failed
            if endpoint is None or not endpoint.breaker.is_open:  # else it waits for the breaker, above
                await asyncio.sleep(pause_s)

    def held(self, role: Role) -> bool:
        """Tells whether no case of this role should be taken: every task's endpoints are down or limit callers, or the
        task's budget is used up. A refiner's are those of its whole chain.

        A task that never calls a model in this role (a judge in code) can always go on.
        """
        tasks = self._settings.tasks.items()
        return bool(tasks) and all(
            self._endpoints.all_held(key_of(role, model) for model in _members(task, role))
            or self.budget.is_held(name, role)
            for name, task in tasks
        )

    async def outage_s(self, role: Role, task: str, case_id: str, error: ModelError) -> float | None:
        """Returns None if a failure is this case's own fault, else the seconds its endpoint or budget stays held."""
        if isinstance(error, BudgetHeld):
            return error.wait_s
        key = Key(*error.endpoint) if error.endpoint else key_of(role, self._settings.task(task).model(role))
        return await self._endpoints.outage_s(key, case_id, error)

    def engine(self, name: str) -> LocalEngine:
        """Returns the engine of [local.NAME]; the first call builds it, which takes seconds."""
        return self._engines.build(name)

    async def warm(self, task: str, roles: Collection[Role] = ROLES) -> None:
        """Imports LiteLLM where a model needs it, loads engines and checks keys, ahead of the first call.

        Raises SettingsError for a missing key, SetupError for a missing model folder.
        """
        asked = self._asked(self._settings.task(task), roles)
        await self._import_for(asked)
        for one in asked:
            _api_key(one)
            provider, _, name = one.model.partition("/")
            if provider == "local":
                await self._engines.get(name)

    def preload(self, task: str) -> None:
        """Begins to load the adapter that now serves a task, where its student runs in process; on the event loop."""
        if task in self._settings.tasks:
            self._engines.preload(task, self._settings.task(task).student)

    async def imported(self) -> None:
        """Imports LiteLLM where a model of any task needs it, so that the seconds this takes are no call's."""
        await self._import_for([one for task in self._settings.tasks.values() for one in self._asked(task, ROLES)])

    async def close(self) -> None:
        """Stops the probes and the engines, and closes all connections."""
        self._endpoints.close()
        await self._engines.close()
        if self._direct is not None:
            await self._direct.close()
        if load_litellm.cache_info().currsize:
            litellm = load_litellm()
            await litellm.close_litellm_async_clients()
            litellm.in_memory_llm_clients_cache.flush_cache()

    def _asked(self, task: Task, roles: Collection[Role]) -> list[Model]:
        """Returns the models that some roles of a task may call, fallbacks too."""
        models = [task.model(role) for role in roles]
        if "judge" in roles:
            models += [*task.panel.judges, task.panel.tie_break]
        return [one for model in models for one in (model, *model.fallbacks) if one.model]

    async def _import_for(self, models: Sequence[Model]) -> None:
        """Imports what calls to these models need, in a thread: it takes seconds."""
        if not (self._past_litellm and all(goes_direct(one) for one in models)):
            await self._engines.made("litellm", load_litellm)

    def _way(self, model: Model) -> _Way:
        """Returns how a model is called: settings do not change, and each call would work it out again."""
        way = self._ways.get(id(model))
        if way is None:
            provider, _, name = model.model.partition("/")
            longest_s = sum(one.timeout_s for one in (model, *model.fallbacks))
            past_litellm = self._past_litellm and goes_direct(model)
            way = self._ways[id(model)] = _Way(model, provider, name, past_litellm, longest_s, _params(model))
        return way

    async def _reopened(self, endpoint: Endpoint, latest: float) -> bool:
        """Waits until an endpoint may be called again; False where other tasks of the role can use the slot."""
        return self.held(endpoint.key.role) and await self._endpoints.reopened(endpoint, latest)

    async def _ask(self, endpoint: Endpoint, timeout_s: float) -> None:
        """Makes the small call of a probe."""
        role = endpoint.key.role
        answer = await self._call(role, endpoint.task, endpoint.probed, "", PROBE, timeout_s, None, False, role)
        self.budget.charge(endpoint.task, role, answer.model, answer.spend())

    async def _reserved(
        self,
        role: Role,
        task: str,
        model: Model,
        messages: Sequence[Message],
        latest: float,
        told: Mapping[str, Any],
    ) -> Reservation:
        """Waits for leave to make a call; raises BudgetHeld or OverBudget."""
        bill = billed.get()
        round = bill.round_of(role) if bill else 0
        account = f"{role}/{purpose}" if (purpose := calling_as.get()) else role
        if not self.budget.limits(task, role):
            return self.budget.admit(task, account, Call(model.model, round, 0, 0.0))
        priced = self._settings.task(task).budget.caps_money(role)
        call = expected(model, messages, round, priced=priced, told=told)
        return await self.budget.acquire(task, account, call, latest)

    async def _charged(self, call: Awaitable[Completion], reserved: Reservation, role: Role) -> Completion:
        """Makes a call and charges it: what it cost, nothing if refused, what was reserved if it was cut short."""
        bill = billed.get()
        try:
            completion = await call
        except (ModelError, AdapterError) as error:
            spend: Spend | None = getattr(error, "spend", None)
            if spend is not None and bill is not None:
                bill.add(role, reserved.call.model, spend)
            reserved.settle(spend, free=not isinstance(error, ModelTimeout))
            raise
        else:
            if bill is not None:
                bill.add(role, completion.model, completion.spend())
            reserved.settle(completion.spend(), model=completion.model)
            return completion
        finally:
            reserved.settle()

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
        by: Role,
        told: Mapping[str, Any] = {},
    ) -> Completion:
        """Makes one call; raises our errors, and AdapterError where the adapter cannot be used."""
        _, provider, name, past_litellm, _, params = self._way(model)
        direct = past_litellm and takes_messages(messages, response_format)
        call = {**params, "messages": messages, "timeout": timeout_s, "num_retries": 0}
        if provider == "local":
            engine = await self._engines.get(name)
            if adapter:
                await self._engines.load_adapter(name, engine, task, adapter)
                call["model"] = f"local/{name}:{served_name(task, adapter)}"
            call_engine.set((engine, thinking, told.get("tools", ())))
        elif provider == "hosted_vllm" and by == "student":
            if adapter:
                call["model"] = f"hosted_vllm/{served_name(task, adapter)}"
            body = dict(call.get("extra_body") or {})
            body["chat_template_kwargs"] = {**body.get("chat_template_kwargs", {}), "enable_thinking": thinking}
            call |= {"extra_body": body, "logprobs": True}
        if provider not in ("local", "scripted"):
            if response_format is not None:
                call["response_format"] = response_format
            call |= carried(told, model, call.get("extra_body"))
        if provider == "hosted_vllm" and (context := outgoing()):
            call["extra_headers"] = {**(call.get("extra_headers") or {}), **context}
        if not direct and not load_litellm.cache_info().currsize:
            await self._engines.made("litellm", load_litellm)
        what, started, asked = f"{role} of {task}: {call['model']}", time.perf_counter(), model
        try:
            if direct:
                answer = await self._connections().ask(call)
            else:
                answer, model = await self._through_litellm(call, model)
        except Exception as error:
            keys = [call.get("api_key", ""), *(_api_key(one) for one in (asked, *asked.fallbacks))]
            raise failure(error, what, adapter, messages, keys) from None
        took_s = time.perf_counter() - started
        return read_completion(answer, model, adapter, took_s, what, offered="tools" in told)

    async def _through_litellm(self, call: dict[str, Any], model: Model) -> tuple[Answer, Model]:
        """Makes a call through LiteLLM; returns the answer and the model that gave it, which may be a fallback."""
        call["messages"] = to_chat(call["messages"])
        if model.fallbacks:
            asked_for = {name: call[name] for name in ("messages", "response_format") if name in call}
            response, model = await self._routes.complete(model, _params, **asked_for)
        else:
            response = await load_litellm().acompletion(**call)
        return answer_of(response), model

    def _connections(self) -> Direct:
        if self._direct is None:
            from agents.direct import Direct  # what trains on a GPU machine may have no aiohttp

            self._direct = Direct()
        return self._direct


class _Way(NamedTuple):
    """How a model is called, whatever is asked."""

    model: Model
    provider: str
    name: str  # with the provider
    past_litellm: bool
    longest_s: float  # of one call, fallbacks included
    params: dict[str, Any]  # see _params


def _members(task: Task, role: Role) -> list[Model]:
    """Returns the models that a case of this role may be taken to."""
    if role != "refiner":
        return [task.model(role)]
    return [task.student if step.by == "student" else task.refiner for step in task.refining.chain]


def _params(model: Model) -> dict[str, Any]:
    """Returns what LiteLLM is told of a model on every call."""
    told = dict(model.extra) | {
        "model": model.model,
        "temperature": model.temperature,
        "max_tokens": model.max_tokens,
        "max_retries": 0,
    }
    if not model.model.startswith(("local/", "scripted/")):
        if model.api_base:
            told["api_base"] = model.api_base
        if key := _api_key(model):
            told["api_key"] = key
    return told


def _at(endpoint: Endpoint, error: ModelError) -> ModelError:
    """Returns an error that says which endpoint it met."""
    error.endpoint = endpoint.key
    return error


def _api_key(model: Model) -> str:
    if not model.api_key_env:
        return ""
    key = os.environ.get(model.api_key_env, "")
    if not key:
        raise SettingsError(f"{model.model} takes its key from {model.api_key_env}, which is not set. Export it.")
    return key
