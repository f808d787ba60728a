"""Making our topics and looking at them, with kafka-python's admin client.

`goldstream topics plan|create`, `goldstream up` and the tests call it. Nothing is ever shrunk or
deleted; a topic that differs from the plan is reported, not changed.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from schemas.errors import BrokerError
from schemas.settings import Settings
from schemas.topics import TopicPlan, topic_plan
from streams.clients import make_admin


class TopicState(NamedTuple):
    """One planned topic and what the broker has."""

    plan: TopicPlan
    exists: bool
    partitions: int
    differs: str  # what is not as planned, "" where all is


def connect_admin(settings: Settings, timeout_s: float = 8.0) -> Any:
    """Returns a connected admin client; raises BrokerError where no Kafka answers within `timeout_s`."""
    return make_admin(settings, timeout_s)


def cluster_id(settings: Settings) -> str:
    """Returns the cluster's own id, which goes into identities of records that carry none."""
    admin = connect_admin(settings)
    try:
        return str(admin.describe_cluster()["cluster_id"])
    finally:
        admin.close()


def topic_states(settings: Settings) -> list[TopicState]:
    """Returns every planned topic beside what exists."""
    admin = connect_admin(settings)
    try:
        plans = topic_plan(settings)
        names = set(admin.list_topics())
        known = [plan.name for plan in plans if plan.name in names]
        found = {t["name"]: len(t["partitions"]) for t in admin.describe_topics(known)} if known else {}
        return [_state(plan, found) for plan in plans]
    finally:
        admin.close()


def create_topics(settings: Settings, timeout_s: float = 30.0) -> list[TopicState]:
    """Creates the planned topics that are missing and waits until the broker lists them all."""
    missing = [state.plan for state in topic_states(settings) if not state.exists]
    if missing:
        admin = connect_admin(settings)
        try:
            new = [NewTopic(p.name, p.partitions, p.replication, topic_configs=p.config) for p in missing]
            admin.create_topics(new, timeout_ms=int(timeout_s * 1000))
        except TopicAlreadyExistsError:
            pass  # another process was faster; both wanted the same
        except KafkaError as error:
            raise BrokerError(f"topics could not be created: {error}. `goldstream topics plan` shows them.") from error
        finally:
            admin.close()
    deadline = time.monotonic() + timeout_s
    while True:
        states = topic_states(settings)
        if all(state.exists for state in states):
            return states
        if time.monotonic() > deadline:
            absent = [state.plan.name for state in states if not state.exists]
            raise BrokerError(f"after {timeout_s:.0f} s the broker still does not list {absent}; check its log.")
        time.sleep(0.2)


def ensure_source_topic(settings: Settings, topic: str, partitions: int = 2) -> None:
    """Creates a product's log topic where it does not exist, for those who begin before the product does."""
    admin = connect_admin(settings)
    try:
        large = {"max.message.bytes": "10485760"}  # so that a test can log what intake must refuse
        admin.create_topics([NewTopic(topic, partitions, settings.kafka.replication, topic_configs=large)])
    except TopicAlreadyExistsError:
        pass
    finally:
        admin.close()


def _state(plan: TopicPlan, found: dict[str, int]) -> TopicState:
    partitions = found.get(plan.name, 0)
    exists = plan.name in found
    differs = exists and partitions != plan.partitions
    return TopicState(plan, exists, partitions, f"has {partitions}, planned {plan.partitions}" if differs else "")
