"""The worker process: the stream agents on Faust, one app and consumer group per role.

Groups are named after the role (gs.student, gs.judge ...), so roles can be split over processes and
merged again without losing their place. `goldstream worker` runs it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import faust
from aiokafka.errors import BrokerResponseError, KafkaError, MessageSizeTooLargeError, RecordListTooLargeError
from faust.exceptions import ProducerSendError
from mode.utils.logging import get_logger

from agents.budget import Budget
from agents.judge import judge, load_verifier
from agents.models import Choose, Models, calling_for
from agents.prices import check_prices
from agents.refiner import refine
from agents.strategist import distil
from agents.student import attempt
from schemas.case import Case
from schemas.commands import read_pause
from schemas.errors import ModelError, WriteRefused
from schemas.kafka import bootstrap_servers, sasl_password
from schemas.settings import ROLES, Role, Settings
from schemas.topics import ADAPTERS, COMMANDS, STAGE_INPUT
from streams.clients import METADATA_MAX_AGE_MS, client_name
from streams.departures import Departures
from streams.draining import Raw, Transport
from streams.flow import now_ms
from streams.follow import Follower
from streams.forgetting.following import Remembered
from streams.ledger import Ledger, partition_counts
from streams.measuring import show_budget, show_stages
from streams.partitioning import partition_of
from streams.serving import Serving
from streams.stage import BATCH_BYTES, Stage
from streams.strategies import SharedLibrary
from streams.topics import cluster_id
from streams.tracing import trace_hops
from streams.watchdog import Membership, Watchdog

log = logging.getLogger(__name__)
get_logger("aiokafka").setLevel(logging.WARNING)
get_logger("kafka.admin._groups").setLevel(logging.ERROR)  # the watchdog's looks: it cannot read Faust's metadata

LINGER_S = 0.04  # a hop beside seconds of model time; a tenth of the requests
Act = Callable[..., Awaitable[Case]]  # (case, settings, models, deadline=) -> the case, further on
_AGENTS: dict[Role, Act] = {"student": attempt, "judge": judge, "refiner": refine}


def group_id(settings: Settings, role: str) -> str:
    """Returns the consumer group of a role, or of intake and sink."""
    return settings.topic(role)


async def run_worker(
    settings: Settings,
    roles: Iterable[Role],
    stop: asyncio.Event,
    ready: Callable[[], None] = lambda: None,
    make_models: Callable[[Settings, Choose], Models] = lambda settings, serving: Models(settings, serving=serving),
) -> None:
    """Runs the agents of `roles` until `stop` is set. `make_models` lets a benchmark stand in for the models.

    1. know which adapters serve, what is paused and who is forgotten, before the first call
    2. import and load what the models need, so that the first case does not pay for it
    3. start a Faust app per role
    4. on stop, let the cases in flight end for worker.drain_s and cancel the others; what is acknowledged is
       committed. It takes drain_s and 10 s at most
    Raises the error of a case that could not be turned into a hop: a restart reads it again.
    """
    roles = tuple(roles)
    for task in settings.tasks.values():
        if task.rubric.verifier:
            load_verifier(task.rubric.verifier)
    loop = asyncio.get_running_loop()
    serving, stages = Serving(), dict[str, Stage]()
    paused: dict[str, bool] = {}

    def command(key: bytes, value: bytes) -> None:
        pause = read_pause(key, value)
        if pause is None:
            return
        paused[pause.stage] = pause.paused
        loop.call_soon_threadsafe(_apply_pauses, stages, paused)

    # 1.
    if any(task.budget.caps_money(role) for task in settings.tasks.values() for role in roles):
        await asyncio.to_thread(check_prices, settings, roles)  # a mistake in the settings is told without Kafka too
    cluster = await asyncio.to_thread(cluster_id, settings)  # says at once where no Kafka answers
    followers = [Follower(settings, ADAPTERS, serving.apply), Follower(settings, COMMANDS, command)]
    remembered = Remembered(settings).start()
    for follower in followers:
        follower.start()
    for wait_ready in (*(follower.wait_ready for follower in followers), remembered.wait_ready):
        await asyncio.to_thread(wait_ready)
    is_shared = "strategist" in roles and any(task.strategies.library for task in settings.tasks.values())
    library = SharedLibrary(settings) if is_shared else None
    if library is not None:
        library.start()
        await asyncio.to_thread(library.wait_ready)
    # 2.
    models = make_models(settings, serving.versions)
    budget = models.budget = Budget(settings, now_ms)
    partitions = await asyncio.to_thread(partition_counts, settings)
    for role in ROLES:
        budget.take_share(role, 0.0)
    ledger = Ledger(settings, budget)
    for name in settings.tasks:
        await models.warm(name, roles)  # the first case must not wait for an import
        models.preload(name)
    serving.changed = lambda task: loop.call_soon_threadsafe(models.preload, task)
    # 3.
    apps: list[Any] = []
    departures = Departures(LINGER_S)
    watchdog = Watchdog(
        settings,
        [Membership(group_id(settings, r), client_name(r), [settings.topic(STAGE_INPUT[r])]) for r in roles],
    )
    try:
        await ledger.start()
        for role in roles:
            act = functools.partial(distil, names=library) if role == "strategist" else _AGENTS[role]
            app, stage = _build(
                role,
                settings,
                models,
                cluster,
                act,
                remembered.covers,
                departures,
                lambda: apps[0].producer,  # all roles share one, and its requests
                partitions[role],
            )
            apps.append(app)
            stages[role] = stage
        _apply_pauses(stages, paused)
        show_stages(stages)
        show_budget(settings, budget)
        for app in apps:
            await app.start()
            app.sensors.remove(app.monitor)  # Faust's own, which nobody reads; ours are in streams.measuring
        log.info("working on %s", ", ".join(roles))
        watchdog.start()
        ready()
        await _first(
            stop.wait(),
            _ailing(watchdog),
            *(stage.failed() for stage in stages.values()),
            *(_crashed(app) for app in apps),
        )
    finally:
        # 4.
        drain_s = settings.worker.drain_s if stop.is_set() else 0.0  # after a failure nothing may go on
        await _ended(drain_s + 1, [stage.stop(drain_s) for stage in stages.values()])
        await _ended(5, [ledger.stop(), *(app.stop() for app in apps)])
        threads = [
            watchdog.stop,
            remembered.stop,
            *(follower.stop for follower in followers),
            *([library.stop] if library else []),
        ]
        await _ended(3, [models.close(), *(asyncio.to_thread(stop) for stop in threads)])


def _build(
    role: Role,
    settings: Settings,
    models: Models,
    cluster: str,
    act: Act,
    forgets: Callable[[Case], bool],
    departures: Departures,
    producer: Callable[[], Any],
    partitions: int = 1,
) -> tuple[Any, Stage]:
    app = faust.App(
        group_id(settings, role),
        broker=[f"kafka://{address}" for address in bootstrap_servers(settings)],
        broker_credentials=_credentials(settings),
        datadir=str(settings.state / "faust"),
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        stream_wait_empty=False,  # a rebalance must not wait for model calls
        stream_buffer_maxsize=4 * settings.worker.cases_in_flight,
        broker_max_poll_records=2 * settings.worker.cases_in_flight,
        broker_max_poll_interval=7 * 24 * 3600,  # a paused stage keeps its partitions
        broker_commit_interval=0.5,  # bounds what a kill repeats
        broker_session_timeout=30,
        broker_heartbeat_interval=3,
        consumer_auto_offset_reset="earliest",
        producer_max_request_size=settings.kafka.max_message_bytes + 100_000,
        producer_max_batch_size=BATCH_BYTES,
        producer_linger=0,  # our messages leave together
        producer_partitioner=partition_of,
        broker_client_id=client_name(role),
        consumer_metadata_max_age_ms=METADATA_MAX_AGE_MS,
    )
    app.transport = Transport(app.conf.broker_consumer, app)

    async def produce(topic: str, key: bytes, value: bytes) -> None:
        await departures.next()
        try:
            if stage.tracing is None:
                await producer().send_and_wait(topic, key, value, None, None, None)
            else:
                with stage.tracing.sending(topic, key) as headers:
                    await producer().send_and_wait(topic, key, value, None, None, headers)
        except (ProducerSendError, KafkaError) as error:
            raise undelivered(error) from error

    async def handle(case: Case, deadline: float) -> Case:
        calling_for.set(case.case_id)
        return await act(case, settings, models, deadline=deadline)

    async def outage_s(case: Case, error: ModelError) -> float | None:
        return await models.outage_s(role, case.task, case.case_id, error)

    stage = Stage(
        role,
        settings,
        handle,
        produce,
        cluster,
        lambda: app.consumer_generation_id,
        lambda: models.held(role),
        outage_s,
        any(models.budget.limits(task, role) for task in settings.tasks),
        forgets,
    )
    stage.tracing = trace_hops(settings, role)
    topic = app.topic(settings.topic(STAGE_INPUT[role]), schema=Raw())

    @app.agent(topic, name=role)  # type: ignore[untyped-decorator]
    async def agent(stream: Any) -> None:
        await stage.run(stream.noack().events())

    @app.on_partitions_assigned.connect  # type: ignore[untyped-decorator]
    async def on_assigned(app: Any, assigned: Any, **kwargs: Any) -> None:
        stage.assigned(assigned)
        models.budget.take_share(role, len(assigned) / partitions)

    return app, stage


def undelivered(error: Exception) -> Exception:
    """Returns what a failed produce means: WriteRefused where the broker said no, else ConnectionError."""
    cause = error.__cause__ if isinstance(error, ProducerSendError) and error.__cause__ else error
    name = type(cause).__name__
    if isinstance(cause, MessageSizeTooLargeError | RecordListTooLargeError):
        return WriteRefused(name, too_large=True)
    if isinstance(cause, BrokerResponseError) and not cause.retriable:
        return WriteRefused(name)
    return ConnectionError(name)


def _credentials(settings: Settings) -> Any:
    kafka = settings.kafka
    if kafka.security_protocol == "PLAINTEXT":
        return None
    import ssl

    context = ssl.create_default_context(cafile=kafka.ssl_cafile or None)
    if kafka.security_protocol == "SSL":
        return faust.SSLCredentials(context)
    return faust.SASLCredentials(
        username=kafka.sasl_username,
        password=sasl_password(settings),
        mechanism=kafka.sasl_mechanism,
        ssl_context=context if kafka.security_protocol == "SASL_SSL" else None,
    )


def _apply_pauses(stages: dict[str, Stage], paused: dict[str, bool]) -> None:
    for name, stage in stages.items():
        stage.paused = paused.get(name, False)


async def _ended(limit_s: float, stops: Iterable[Awaitable[Any]]) -> None:
    """Waits for what is being stopped, side by side; what hangs is left behind, for the process ends anyway."""
    tasks = [asyncio.ensure_future(stop) for stop in stops]
    if not tasks:
        return
    done, late = await asyncio.wait(tasks, timeout=limit_s)
    for task in done:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("while stopping: %s: %s", type(error).__name__, error)
    for task in late:
        log.warning("%s did not stop within %.0f s", getattr(task.get_coro(), "__qualname__", "something"), limit_s)
        task.cancel()


async def _crashed(app: Any) -> None:
    """Raises the error that crashed a Faust app; returns never otherwise."""
    await app._crashed.wait()
    raise app._crash_reason or RuntimeError("the Faust app stopped without a reason")


async def _ailing(watchdog: Watchdog) -> None:
    """Raises once the watchdog finds that this process holds nothing although its group is stable."""
    while True:
        watchdog.check()
        await asyncio.sleep(1)


async def _first(*waits: Awaitable[Any]) -> None:
    """Waits for the first of several to return or raise, and cancels the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
