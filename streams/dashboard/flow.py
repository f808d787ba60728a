"""The graph of the factory with what moves on it: from two readings of the backlog, pure.

Topics are places of their own, so that every record is counted on one arrow: what a reader has yet to read lies between
the topic and the reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from schemas.commands import PAUSABLE
from schemas.settings import ROLES, Settings
from schemas.topics import ACCEPTED, ADAPTERS, ATTEMPTS, OUTCOMES, PROMPTS, REFINE, STAGE_INPUT
from streams.backlog import Backlog
from streams.dashboard.state import Edge, EdgeKind, Flow, Node, NodeState, PartitionLag

OURS = (PROMPTS, ATTEMPTS, REFINE, ACCEPTED)
RETRY, RETRY_TOPICS = "retry", "retry.*"  # node id, and how all of them together are named
ENDS = ("gold", "unresolved", "dead", "holdout", "dropped")

# Who writes what; where two write one topic, how much is whose is not known.
WRITES: tuple[tuple[str, str, EdgeKind, str], ...] = (
    ("intake", PROMPTS, "flow", ""),
    ("intake", OUTCOMES, "flow", "dropped, undecodable"),
    ("student", ATTEMPTS, "flow", ""),
    ("judge", ACCEPTED, "flow", "passed"),
    ("judge", REFINE, "flow", "failed"),
    ("judge", OUTCOMES, "flow", "rounds spent, holdout"),
    ("refiner", ATTEMPTS, "flow", ""),
    ("strategist", OUTCOMES, "flow", ""),
    *((role, RETRY, "retry", "") for role in ROLES),
    *(("retries", topic, "retry", "") for topic in OURS),
)


class Reading(NamedTuple):
    """One reading of the backlog."""

    at_s: float  # of a clock that only goes forward
    rows: Sequence[Backlog]


class Around(NamedTuple):
    """What the flow shows beside the backlog."""

    paused: frozenset[str] = frozenset()
    held: Mapping[str, str] = {}  # stage -> why it takes no case
    ends: Mapping[str, int] = {}  # outcome -> cases
    gold_note: str = ""
    services: Mapping[str, tuple[NodeState, str]] = {}  # trainer, gate, rollout -> state, note
    training_notes: Mapping[str, str] = {}  # edge id -> note
    versions: int | None = None
    serving: str = ""  # note of gs.adapters


def build_flow(settings: Settings, now: Reading | None, before: Reading | None, around: Around) -> Flow:
    """Returns the graph; without a reading, because no Kafka answers, with everything about topics unknown."""
    written = _written(now, before)
    edges = [*_reads(settings, now, before), *_writes(settings, written), *_rest(settings, around)]
    return Flow(
        nodes=tuple(_nodes(settings, now, edges, around)),
        edges=tuple(edges),
        paused=tuple(stage for stage in PAUSABLE if stage in around.paused),
        pausable=PAUSABLE,
    )


def source_id(topic: str) -> str:
    """Returns the node id of a product's topic."""
    return f"source:{topic}"


def _reads(settings: Settings, now: Reading | None, before: Reading | None) -> list[Edge]:
    edges = [_read(settings, source_id(t), "intake", (t,), t, now, before) for t in settings.source_topics()]
    for role, topic in STAGE_INPUT.items():
        name = settings.topic(topic)
        edges.append(_read(settings, topic, role, (name,), name, now, before))
    retries = tuple(dict.fromkeys(row.topic for row in now.rows if row.group == "retries")) if now else ()
    edges.append(_read(settings, RETRY, "retries", retries, settings.topic(RETRY_TOPICS), now, before, "retry"))
    name = settings.topic(OUTCOMES)
    edges.append(_read(settings, OUTCOMES, "sink", (name,), name, now, before))
    return edges


def _read(
    settings: Settings,
    from_: str,
    to: str,
    topics: tuple[str, ...],
    shown: str,
    now: Reading | None,
    before: Reading | None,
    kind: EdgeKind = "flow",
) -> Edge:
    """Returns the arrow from topics to the group that reads them."""
    edge = Edge(id=f"{from_}>{to}", from_=from_, to=to, kind=kind, topic=shown, group=settings.topic(to))
    if now is None:
        return edge
    rows = [row for row in now.rows if row.group == to and row.topic in topics]
    if not rows:
        return edge
    trends = [row.trend for row in rows if row.trend is not None]
    ages = [row.oldest_s for row in rows if row.oldest_s is not None]
    return Edge(
        id=edge.id,
        from_=from_,
        to=to,
        kind=kind,
        topic=shown,
        group=edge.group,
        lag=sum(row.lag for row in rows),
        rate_per_s=_rate(rows, now, before),
        trend=round(sum(trends), 2) if trends else None,
        oldest_s=round(max(ages), 1) if ages else None,
        members=len({row.member for row in rows if row.member}),
        partitions=tuple(
            PartitionLag(
                topic=row.topic,
                partition=row.partition,
                end=row.end,
                committed=row.committed,
                lag=row.lag,
                trend=None if row.trend is None else round(row.trend, 2),
                oldest_s=None if row.oldest_s is None else round(row.oldest_s, 1),
                member=row.member,
            )
            for row in rows
        ),
    )


def _rate(rows: Sequence[Backlog], now: Reading, before: Reading | None) -> float | None:
    """Returns the records a group has committed a second since the reading before."""
    if before is None or now.at_s <= before.at_s:
        return None
    then = {(row.group, row.topic, row.partition): row.committed for row in before.rows}
    known = [(row, then.get((row.group, row.topic, row.partition))) for row in rows]
    read = [row.committed - old for row, old in known if row.committed is not None and old is not None]
    return round(max(sum(read), 0) / (now.at_s - before.at_s), 2) if read else None


def _written(now: Reading | None, before: Reading | None) -> dict[str, float]:
    """Returns the records written to each topic a second since the reading before."""
    if now is None or before is None or now.at_s <= before.at_s:
        return {}
    then = {(row.topic, row.partition): row.end for row in before.rows}
    sums: dict[str, int] = {}
    for (topic, partition), end in {(row.topic, row.partition): row.end for row in now.rows}.items():
        sums[topic] = sums.get(topic, 0) + max(end - then.get((topic, partition), end), 0)
    return {topic: round(records / (now.at_s - before.at_s), 2) for topic, records in sums.items()}


def _writes(settings: Settings, written: Mapping[str, float]) -> list[Edge]:
    writers = [topic for _, topic, kind, _ in WRITES if kind == "flow"]
    edges = []
    for stage, topic, kind, note in WRITES:
        name = settings.topic(RETRY_TOPICS if topic == RETRY else topic)
        rate = written.get(name) if kind == "flow" and writers.count(topic) == 1 else None
        edges.append(
            Edge(id=f"{stage}>{topic}", from_=stage, to=topic, kind=kind, topic=name, rate_per_s=rate, note=note)
        )
    return edges


def _rest(settings: Settings, around: Around) -> list[Edge]:
    def edge(from_: str, to: str, kind: EdgeKind = "flow", topic: str = "") -> Edge:
        name = f"{from_}>{to}"
        return Edge(id=name, from_=from_, to=to, kind=kind, topic=topic, note=around.training_notes.get(name, ""))

    adapters = settings.topic(ADAPTERS)
    return [
        edge("sink", "gold_set"),
        *(edge("gold_set", end) for end in ENDS),
        edge("gold_set", "trainer", "training"),
        edge("trainer", "gate", "training"),
        edge("gate", "registry", "training"),
        edge("registry", "rollout", "training"),
        edge("rollout", ADAPTERS, "training", adapters),
        edge(ADAPTERS, "student", "training", adapters),
    ]


def _nodes(settings: Settings, now: Reading | None, edges: Sequence[Edge], around: Around) -> list[Node]:
    ends = {(row.topic, row.partition): row.end for row in now.rows} if now else {}
    known = {topic for topic, _ in ends}

    def records(*topics: str) -> int | None:
        return sum(end for (topic, _), end in ends.items() if topic in topics) if known & set(topics) else None

    retries = [settings.topic(f"{RETRY}.{delay}s") for delay in settings.worker.retry_delays_s]
    nodes = [
        Node(
            id=source_id(topic),
            label=topic,
            kind="source",
            count=records(topic),
            note="" if now is None or topic in known else "there is no such topic",
        )
        for topic in settings.source_topics()
    ]
    for topic in (*OURS, OUTCOMES):
        nodes.append(Node(id=topic, label=settings.topic(topic), kind="topic", count=records(settings.topic(topic))))
    nodes.append(Node(id=RETRY, label=settings.topic(RETRY_TOPICS), kind="topic", count=records(*retries)))
    nodes.append(Node(id=ADAPTERS, label=settings.topic(ADAPTERS), kind="topic", note=around.serving))
    for stage in ("intake", *ROLES, "retries", "sink"):
        nodes.append(_stage(settings, stage, [edge for edge in edges if edge.to == stage and edge.group], around))
    gold = around.ends.get("gold")
    nodes.append(Node(id="gold_set", label="gold set", kind="store", note=around.gold_note, count=gold))
    for end in ENDS:
        nodes.append(Node(id=end, label=end, kind="outcome", count=around.ends.get(end) if around.ends else None))
    nodes.append(Node(id="registry", label="registry", kind="store", count=around.versions))
    for service in ("trainer", "gate", "rollout"):
        state, note = around.services.get(service, ("unknown", ""))
        nodes.append(Node(id=service, label=service, kind="service", state=state, note=note))
    return nodes


def _stage(settings: Settings, stage: str, edges: Sequence[Edge], around: Around) -> Node:
    lags = [edge.lag for edge in edges if edge.lag is not None]
    models = ""
    if stage in ROLES:
        named = (task.model(stage).model for task in settings.tasks.values())
        models = ", ".join(dict.fromkeys(name for name in named if name))
    state: NodeState = "idle"
    if not lags:
        state = "unknown"
    elif not any(edge.members for edge in edges):
        state = "down"
    elif stage in around.paused:
        state = "paused"
    elif stage in around.held:
        state = "held"
    elif any(lags) or any(edge.rate_per_s for edge in edges):
        state = "busy"
    note = {"held": around.held.get(stage, ""), "down": "nobody reads for it"}.get(state, models)
    return Node(id=stage, label=stage, kind="stage", state=state, note=note)
