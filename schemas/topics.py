"""The table of our own topics: what flows on each and how long it stays.

streams.topics makes them; everyone names them through `Settings.topic`.
"""

from __future__ import annotations

from typing import NamedTuple

from schemas.settings import Role, Settings

PROMPTS, ATTEMPTS, REFINE, ACCEPTED, OUTCOMES = "prompts", "attempts", "refine", "accepted", "outcomes"
ADAPTERS, COMMANDS, STRATEGIES, LEDGER = "adapters", "commands", "strategies", "ledger"
FORGOTTEN = "forgotten"
LEDGER_DAYS = 400  # for which `goldstream cost` can tell what was spent

STAGE_INPUT: dict[Role, str] = {
    "student": PROMPTS,
    "judge": ATTEMPTS,
    "refiner": REFINE,
    "strategist": ACCEPTED,
}


class TopicPlan(NamedTuple):
    """One topic as it should exist on the broker."""

    name: str
    partitions: int
    replication: int
    config: dict[str, str]
    carries: str


def retry_topic(delay_s: int) -> str:
    """Returns the short name of the topic whose records wait `delay_s` seconds."""
    return f"retry.{delay_s}s"


def topic_plan(settings: Settings) -> list[TopicPlan]:
    """Returns every topic of ours with partitions, replication and retention, in the order of the flow."""
    kafka = settings.kafka
    flow = {
        "retention.ms": str(kafka.retention_hours * 3_600_000),
        "max.message.bytes": str(kafka.max_message_bytes + 100_000),
    }
    # Outcomes are rebuilt into Parquet from here after a disaster: they stay four times as long.
    outcomes = flow | {"retention.ms": str(4 * kafka.retention_hours * 3_600_000)}
    forever = {"retention.ms": "-1", "retention.bytes": "-1"}  # compaction would change which wording came first
    latest = {"cleanup.policy": "compact", "segment.ms": "3600000", "min.cleanable.dirty.ratio": "0.1"}
    ledger = {"cleanup.policy": "compact,delete", "retention.ms": str(LEDGER_DAYS * 86_400_000)}

    # We always wait for all replicas in sync; that two are makes the loss of any one broker lose nothing.
    safe = {"min.insync.replicas": "2"} if kafka.replication >= 3 else {}

    def plan(name: str, config: dict[str, str], carries: str, partitions: int = kafka.partitions) -> TopicPlan:
        return TopicPlan(settings.topic(name), partitions, kafka.replication, config | safe, carries)

    return [
        plan(PROMPTS, flow, "admitted cases, for the student"),
        plan(ATTEMPTS, flow, "attempts, for the judge"),
        plan(REFINE, flow, "failed attempts, for the refiner"),
        plan(ACCEPTED, flow, "passed attempts, for the strategist"),
        *(plan(retry_topic(s), flow, f"cases that wait {s} s for a model") for s in settings.worker.retry_delays_s),
        plan(OUTCOMES, outcomes, "how each case ended, for the sink"),
        plan(ADAPTERS, latest, "which adapter serves each task", 1),
        plan(COMMANDS, latest, "pause and resume", 1),
        plan(LEDGER, latest | ledger, "what calls cost, by day, task, role and worker", 1),
        plan(FORGOTTEN, latest, "who and what is forgotten, as keyed hashes", 1),
        plan(STRATEGIES, forever, "strategies as they were learned, merged and reworded", 1),
    ]
