"""What each process of ours may do on a Kafka with an authorizer: no more than it needs.

`goldstream topics acls` prints it, and tests/test_kafka_acls.py runs every process with exactly that. Names are
literal: a rule for all of gs.* would let every process write everywhere. The trainer works on files, and charges what
its gate asks the judge to the ledger.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from schemas.errors import SettingsError
from schemas.kafka import LOCAL
from schemas.settings import ROLES, Settings
from schemas.topics import (
    ADAPTERS,
    COMMANDS,
    FORGOTTEN,
    LEDGER,
    OUTCOMES,
    PROMPTS,
    STAGE_INPUT,
    STRATEGIES,
    retry_topic,
    topic_plan,
)

Resource = Literal["topic", "group", "cluster"]
PRINCIPALS = (
    "topics",
    "intake",
    "worker",
    "retries",
    "sink",
    "trainer",
    "rollout",
    "exporter",
    "dashboard",
    "operator",
)
STAGES = tuple(STAGE_INPUT.values())


class Access(NamedTuple):
    """One resource and what a principal may do with it. Read and Write imply Describe."""

    resource: Resource
    name: str
    operations: tuple[str, ...]


def accesses(settings: Settings, process: str) -> list[Access]:
    """Returns what a process needs, topics first; raises SettingsError for a process that does not exist."""
    if process not in PRINCIPALS:
        raise SettingsError(f"there is no process {process!r} that uses Kafka; expected one of {', '.join(PRINCIPALS)}")
    ours = [plan.name for plan in topic_plan(settings)]
    retries = tuple(retry_topic(delay) for delay in settings.worker.retry_delays_s)
    groups = [*ROLES, "intake", "retries", "sink"]
    match process:
        case "topics":
            made = [*ours, *settings.source_topics()]
            return [Access("topic", name, ("Create", "Describe", "DescribeConfigs")) for name in made]
        case "intake":
            reads = [*settings.source_topics(), *_named(settings, COMMANDS, FORGOTTEN)]
            return _access(settings, reads, (PROMPTS, OUTCOMES), ["intake"])
        case "worker":
            reads = _named(settings, *STAGES, ADAPTERS, COMMANDS, FORGOTTEN, LEDGER, STRATEGIES)
            writes = (*STAGES[1:], OUTCOMES, *retries, LEDGER, STRATEGIES)  # nothing becomes a prompt again here
            return _access(settings, reads, writes, ROLES)
        case "retries":
            return _access(settings, _named(settings, *retries, FORGOTTEN), (*STAGES, OUTCOMES), ["retries"])
        case "sink":
            return _access(settings, _named(settings, OUTCOMES, FORGOTTEN), (), ["sink"])
        case "trainer":
            return _access(settings, _named(settings, LEDGER), (LEDGER,), [])
        case "rollout":
            return _access(settings, _named(settings, ADAPTERS, COMMANDS), (ADAPTERS, COMMANDS), [])
        case "exporter":
            # It looks at how old the oldest record is that waits, which only reading tells.
            return _access(settings, [*settings.source_topics(), *ours], (), [], describes=groups)
        case "dashboard":
            # Redriving puts a case back before its stage; reviews, what they decide, among the outcomes.
            writes = (*STAGES, OUTCOMES, COMMANDS, STRATEGIES)
            return _access(settings, [*settings.source_topics(), *ours], writes, [], describes=groups)
        case _:  # who types commands: pausing, forgetting, redriving, renaming strategies
            writes = (*STAGES, OUTCOMES, COMMANDS, FORGOTTEN, LEDGER, STRATEGIES, ADAPTERS)
            return _access(settings, [*settings.source_topics(), *ours], writes, [], describes=groups)


def kafka_acls(settings: Settings, processes: Sequence[str], principal: str, command_config: str) -> Iterator[str]:
    """Gives a kafka-acls command for each resource and principal. `principal` is a pattern with {process}."""
    address = settings.kafka.bootstrap_servers
    base = ["kafka-acls.sh", "--bootstrap-server", "HOST:PORT" if address == LOCAL else address]
    base += ["--command-config", command_config, "--add"]
    for process in processes:
        for access in accesses(settings, process):
            words = [*base, "--allow-principal", f"User:{principal.format(process=process)}"]
            for operation in access.operations:
                words += ["--operation", operation]
            words += ["--cluster"] if access.resource == "cluster" else [f"--{access.resource}", access.name]
            yield shlex.join(words)


def _named(settings: Settings, *names: str) -> list[str]:
    return [settings.topic(name) for name in names]


def _access(
    settings: Settings,
    reads: Sequence[str],
    writes: Sequence[str],
    joins: Sequence[str],
    describes: Sequence[str] = (),
) -> list[Access]:
    """`reads` are full names, `writes`, `joins` and `describes` short ones: topics, and groups joined or looked at."""
    operations: dict[str, tuple[str, ...]] = dict.fromkeys(reads, ("Read",))
    for name in map(settings.topic, writes):
        operations[name] = (*operations.get(name, ()), "Write")
    found = [Access("topic", name, allowed) for name, allowed in operations.items()]
    found += [Access("group", settings.topic(name), ("Read",)) for name in joins]
    return found + [Access("group", settings.topic(name), ("Describe",)) for name in describes]
