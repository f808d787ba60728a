"""How far each consumer group of ours is behind, and the operator's pause, resume and drain."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
from kafka import TopicPartition
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    KafkaError,
    NotCoordinatorError,
)
from kafka.structs import OffsetAndMetadata

from schemas.commands import PAUSABLE, Pause
from schemas.errors import BrokerError, SettingsError
from schemas.settings import Settings
from schemas.topics import COMMANDS, OUTCOMES, STAGE_INPUT, retry_topic
from streams.clients import make_consumer, make_producer
from streams.flow import now_ms
from streams.topics import connect_admin

logging.getLogger("kafka.admin._groups").setLevel(logging.ERROR)  # it cannot read Faust's metadata, nor need it

MOVING_S, ASK_AGAIN_S = 20.0, 0.2  # a broker that has just started, or took groups over, loads them for a moment
MOVING = (CoordinatorLoadInProgressError, NotCoordinatorError)
_T = TypeVar("_T")


class Lag(NamedTuple):
    """One partition as a group sees it. `committed` is -1 where the group never committed."""

    group: str
    topic: str
    partition: int
    end: int
    committed: int
    lag: int


def group_topics(settings: Settings) -> dict[str, list[str]]:
    """Returns the consumer groups of ours and the topics each reads, in the order of the flow."""
    groups = {"intake": settings.source_topics()}
    groups |= {role: [settings.topic(topic)] for role, topic in STAGE_INPUT.items()}
    groups["retries"] = [settings.topic(retry_topic(s)) for s in settings.worker.retry_delays_s]
    groups["sink"] = [settings.topic(OUTCOMES)]
    return groups


class LagReader:
    """Reads lag over one connection. Use as a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __enter__(self) -> LagReader:
        self._admin = connect_admin(self._settings)
        self._consumer = make_consumer(self._settings)
        return self

    def __exit__(self, *error: object) -> None:
        self._consumer.close()
        self._admin.close()

    def read(self) -> list[Lag]:
        """Returns one row per group, topic and partition; topics that do not exist are left out.

        Committed offsets are read before the ends, so that lag is never reported smaller than it was.
        """
        rows = []
        try:
            for group, topics in group_topics(self._settings).items():
                committed = self._committed(self._settings.topic(group))
                tps = [
                    TopicPartition(t, p) for t in topics for p in sorted(self._consumer.partitions_for_topic(t) or ())
                ]
                ends = self._consumer.end_offsets(tps) if tps else {}
                starts = self._consumer.beginning_offsets(tps) if tps else {}
                for tp in tps:
                    offset = committed.get(tp, -1)
                    behind = ends[tp] - (offset if offset >= 0 else starts[tp])
                    rows.append(Lag(group, tp.topic, tp.partition, ends[tp], offset, max(behind, 0)))
        except KafkaError as error:
            raise BrokerError(
                f"lag could not be read: {error}. Is the broker up? `goldstream broker status`"
            ) from error
        return rows

    def by_group(self) -> dict[str, int]:
        """Returns the lag of each group, all partitions together."""
        total = dict.fromkeys(group_topics(self._settings), 0)
        for row in self.read():
            total[row.group] += row.lag
        return total

    def members(self, groups: Iterable[str]) -> dict[str, dict[tuple[str, int], str]]:
        """Returns group -> (topic, partition) -> client id of the member that holds it."""
        names = [self._settings.topic(group) for group in groups]
        described = once_loaded(lambda: self._admin.describe_groups(names))
        return {
            group: assignments(described.get(self._settings.topic(group), {}).get("members") or ()) for group in groups
        }

    def _committed(self, group: str) -> dict[Any, int]:
        try:
            told = once_loaded(lambda: self._admin.list_group_offsets({group: None}))
        except CoordinatorNotAvailableError:
            return {}  # a fresh cluster: no group has ever committed
        found: dict[Any, OffsetAndMetadata] = told.get(group, {})
        return {tp: committed.offset for tp, committed in found.items()}


def once_loaded(
    ask: Callable[[], _T], within_s: float = MOVING_S, passing: tuple[type[KafkaError], ...] = MOVING
) -> _T:
    """Returns what `ask` does, asked again while the broker that knows a group changes or is still loading it."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return ask()
        except passing:
            if time.monotonic() > deadline:
                raise
            time.sleep(ASK_AGAIN_S)


def assignments(members: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], str]:
    """Returns (topic, partition) -> client id, from kafka-python's description of a group's members."""
    return {
        (assigned["topic"], partition): member["client_id"]
        for member in members
        for assigned in (member["member_assignment"] or {}).get("assigned_partitions", ())
        for partition in assigned["partitions"]
    }


def set_paused(settings: Settings, stage: str, paused: bool) -> None:
    """Tells every process whether `stage` takes new work; returns once the broker has the command."""
    if stage not in PAUSABLE:
        raise SettingsError(f"{stage!r} cannot be paused; expected one of {', '.join(PAUSABLE)}.")
    producer = make_producer(settings, "commands")
    try:
        record = msgspec.json.encode(Pause(stage, paused, now_ms()))
        producer.send(settings.topic(COMMANDS), key=stage.encode(), value=record).get(timeout=20)
    except KafkaError as error:
        raise BrokerError(f"the command was not confirmed by the broker: {error}") from error
    finally:
        producer.close(timeout=5)


def drain(
    settings: Settings,
    stage: str | None,
    timeout_s: float,
    progress: Callable[[dict[str, int]], None] = lambda lag: None,
) -> bool:
    """Waits until nothing is left to do, and pauses what would bring more. Returns False after `timeout_s`.

    Without a stage: intake is paused, and every stage works off its topic. With one: that stage works off
    its own topic and is then paused.
    """
    if stage is None:
        set_paused(settings, "intake", True)
    elif stage not in PAUSABLE:
        raise SettingsError(f"{stage!r} cannot be drained; expected one of {', '.join(PAUSABLE)}.")
    watched = [g for g in group_topics(settings) if g != "intake"] if stage is None else [stage]
    deadline = time.monotonic() + timeout_s
    quiet = 0
    with LagReader(settings) as reader:
        # Twice in a row: between two hops a case is for a moment in no group's lag.
        while quiet < 2:
            lag = reader.by_group()
            progress(lag)
            quiet = quiet + 1 if not any(lag[group] for group in watched) else 0
            if time.monotonic() > deadline:
                return False
            time.sleep(0.5)
    if stage is not None:
        set_paused(settings, stage, True)
    return True
