"""What the dashboard's page is told again and again, as typed structs; answers.py has the answers of single calls.

`GET /api/state` and the event "state" of `GET /api/events` are a State. Times are ms since 1970, UTC; money is US
dollars; shares run from 0 to 1. A text may come from a model or from a product's user: the page shows it as text.
None means "not known", which is never the same as 0.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What every answer of the API is made of."""


class Problem(Answer, frozen=True, kw_only=True):
    """A part of the state that could not be read; the rest of the state stands."""

    part: Literal["kafka", "gold", "training"]  # without kafka no lag, ledger or serving record is known
    why: str
    since_ms: int  # when it was first missed


# -- the flow ---------------------------------------------------------------------------------------------------------

NodeKind = Literal["source", "topic", "stage", "store", "service", "outcome"]
NodeState = Literal["", "busy", "idle", "paused", "held", "down", "unknown"]
EdgeKind = Literal["flow", "retry", "training"]


class Node(Answer, frozen=True, kw_only=True):
    """A place of the flow. Ids are fixed but for those of source topics.

    source: "source:<topic>". topic: prompts, attempts, refine, accepted, retry (all gs.retry.*), outcomes, adapters.
    stage: intake, student, judge, refiner, strategist, retries, sink. store: gold_set (Parquet), registry.
    service: trainer, gate, rollout. outcome: gold, unresolved, dead, holdout, dropped.
    """

    id: str
    label: str  # the topic's full name, or the node's
    kind: NodeKind
    state: NodeState = ""  # stages and services: busy works, idle waits, held by a budget, down has no member
    note: str = ""  # one line for people: "gpt-5", "37 of 200 corrected rows", "why it is held"
    count: int | None = None  # outcomes: cases; gold_set: gold rows; registry: versions; topics: records ever written


class Edge(Answer, frozen=True, kw_only=True):
    """An arrow. Those from a topic to its reader carry what the reader has yet to read; those to a topic only a rate.

    `rate_per_s` is what was read (from a topic) or written (to one) per second between the last two polls; where two
    stages write one topic (attempts, outcomes, retry), that of each is not known.
    """

    id: str  # "<from>><to>"
    from_: str = msgspec.field(name="from")
    to: str
    kind: EdgeKind = "flow"
    topic: str = ""  # full name; "gs.retry.*" for all delays together
    group: str = ""  # consumer group, by its full name
    lag: int | None = None  # records
    rate_per_s: float | None = None
    trend: float | None = None  # records/s by which lag grows, below 0 where it shrinks
    oldest_s: float | None = None  # age of the oldest record that waits
    members: int | None = None  # clients of the group that hold a partition
    partitions: tuple[PartitionLag, ...] = ()
    note: str = ""


class PartitionLag(Answer, frozen=True, kw_only=True):
    """One partition of an arrow, as `goldstream lag` shows it."""

    topic: str
    partition: int
    end: int
    committed: int | None
    lag: int
    trend: float | None
    oldest_s: float | None
    member: str  # "" for none


class Flow(Answer, frozen=True, kw_only=True):
    """The graph of DESIGN.md with what moves on it."""

    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()
    paused: tuple[str, ...] = ()  # stages an operator has paused
    pausable: tuple[str, ...] = ()


# -- cases ------------------------------------------------------------------------------------------------------------


class Round(Answer, frozen=True, kw_only=True):
    """What became of the attempts of one round; 0 is the first attempt. Of ended cases."""

    round: int
    attempted: int
    judged: int
    passed: int
    refined: int  # failed and rewritten: attempts of the next round
    ended: int  # cases that ended at this round without an attempt that passed


class Funnel(Answer, frozen=True, kw_only=True):
    """How far a task's ended cases went."""

    task: str
    read: int  # records that became or could have become cases, dropped ones too
    dropped: int  # left out at intake
    dead_at_intake: int
    admitted: int
    rounds: tuple[Round, ...]
    gold: int
    unresolved: int
    holdout: int
    dead: int  # after intake


class Bucket(Answer, frozen=True, kw_only=True):
    """First attempts of one adapter whose cases ended within [at_ms, at_ms + Passing.bucket_ms)."""

    at_ms: int
    judged: int
    passed: int


class AdapterLine(Answer, frozen=True, kw_only=True):
    """One adapter's pass rate over time."""

    adapter: str  # version, "base", or "production" where the product's own answer was the first attempt
    judged: int
    passed: int
    buckets: tuple[Bucket, ...]


class Mark(Answer, frozen=True, kw_only=True):
    """A promotion or rollback, to be drawn over the pass rate."""

    at_ms: int
    kind: Literal["promotion", "rollback"]
    version: str  # that should serve from then on, "base" for none
    previous: str
    by: str  # gate, hand or guard
    reason: str


class Passing(Answer, frozen=True, kw_only=True):
    """How often first attempts pass, by adapter and time."""

    task: str
    bucket_ms: int
    from_ms: int  # of the first and the last bucket
    to_ms: int
    lines: tuple[AdapterLine, ...]  # newest adapter last; at most 12, older ones together as "older"
    marks: tuple[Mark, ...]


class Outcomes(Answer, frozen=True, kw_only=True):
    """How a task's cases ended."""

    task: str  # "" for records that no task took
    gold: int = 0
    corrected: int = 0  # of the gold: the first attempt had failed
    with_strategy: int = 0  # of the gold
    expert: int = 0  # decided on by an expert
    unresolved: int = 0
    dead: int = 0
    holdout: int = 0
    dropped: int = 0
    newest_ms: int | None = None
    unresolved_reasons: dict[str, int] = {}
    dropped_reasons: dict[str, int] = {}


class Violation(Answer, frozen=True, kw_only=True):
    """How often a rule was broken, by round."""

    task: str
    rule: str
    severity: str
    by_round: dict[int, int]


# -- cost -------------------------------------------------------------------------------------------------------------


class CostPoint(Answer, frozen=True, kw_only=True):
    """What the cases cost that ended within a bucket, and the gold rows they became."""

    at_ms: int
    usd: float
    gold: int


class TaskCost(Answer, frozen=True, kw_only=True):
    """What a task's gold takes."""

    task: str
    usd: float  # of its ended cases
    gold_rows: int
    usd_per_gold_row: float | None  # everything spent on ended cases, over the gold rows
    usd_in_row: float | None  # mean of the gold rows' own spend
    bucket_ms: int
    over_time: tuple[CostPoint, ...]


class RoleCost(Answer, frozen=True, kw_only=True):
    """What one model was asked for in one role, by the rows of ended cases."""

    task: str
    role: str
    model: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float


class Budget(Answer, frozen=True, kw_only=True):
    """A cap; for one in money also how it stands today (UTC)."""

    task: str
    role: str  # "all roles" for the task's own
    cap: Literal["usd_per_day", "requests_per_minute", "tokens_per_minute", "calls_in_flight"]
    limit: float
    spent: float | None = None
    reserved: float | None = None  # for calls under way and the next
    left: float | None = None


class Held(Answer, frozen=True, kw_only=True):
    """A role that takes no cases now, and why: a budget is used up, or a model is down."""

    task: str
    role: str
    why: str
    since: str  # "2026-11-21 16:20:00 UTC"


class Cost(Answer, frozen=True, kw_only=True):
    """Money. The ledger also has calls of cases under way and calls repeated after a crash."""

    tasks: tuple[TaskCost, ...] = ()
    roles: tuple[RoleCost, ...] = ()
    budgets: tuple[Budget, ...] = ()
    held: tuple[Held, ...] = ()
    ledger_usd: float | None = None
    rows_usd: float = 0.0


# -- training ---------------------------------------------------------------------------------------------------------


class TrainerState(Answer, frozen=True, kw_only=True):
    """What a task's trainer does, and what would start its next run."""

    task: str
    state: Literal["off", "never ran", "idle", "training", "gating"]
    version: str = ""  # that is being made
    step: int = 0
    steps: int = 0
    loss: float | None = None
    corrected: int = 0  # new corrected rows
    needed: int = 0  # that start a run
    last_run_ms: int | None = None
    updated_ms: int | None = None
    error: str = ""


class GateFigures(Answer, frozen=True, kw_only=True):
    """What the gate found."""

    decision: Literal["promote", "refuse", "undecided"]
    reason: str
    cases: int
    before: float  # incumbent's pass rate on the holdout
    after: float
    gained: int
    lost: int
    p_value: float
    test: str
    incumbent: str  # "base" for none
    promotion: str  # the setting then: auto, manual, shadow
    at_ms: int


# serves: workers are told to use it. canary: kept on a share of the cases. coming: promoted, rollout is bringing it.
# waits: passed the gate, and a person must promote it. served: promoted earlier. passed: but a later one serves.
VersionState = Literal[
    "serves", "canary", "coming", "waits", "served", "passed", "refused", "undecided", "not gated", "removed"
]


class Version(Answer, frozen=True, kw_only=True):
    """One adapter version."""

    version: str
    state: VersionState
    base: str
    rows: int
    pairs: int
    created_ms: int
    gate: GateFigures | None
    report: bool  # GET /api/adapters/TASK/VERSION/report has a page
    can_promote: bool  # it is there, and should not serve already
    needs_force: bool  # the gate did not pass it
    live_judged: int = 0  # first attempts in production
    live_passed: int = 0


class Adapters(Answer, frozen=True, kw_only=True):
    """A task's adapters, newest version first, and what the servers do."""

    task: str
    serving: str  # version, "base", or "" where nothing has been announced yet
    since_ms: int | None
    previous: str
    canary_share: float
    wanted: str  # what should serve by the promotion log
    promotions: int  # length of the promotion log: sent back with a command, which is refused if it has grown
    can_roll_back: bool
    roll_back_to: str  # what a rollback would bring back
    servers: dict[str, str]  # address of a vLLM server -> "serves", "asleep" or what is wrong
    watch: str  # what the live guard last found
    errors: dict[str, str]  # by step of rollout
    versions: tuple[Version, ...]
    commands: tuple[CommandState, ...]  # asked of rollout lately, newest first


class CommandState(Answer, frozen=True, kw_only=True):
    """A promotion or rollback that was asked for, and what became of it."""

    id: str
    action: Literal["promote", "rollback"]
    version: str
    by: str
    reason: str
    at_ms: int
    result: Literal["asked", "done", "refused"]  # asked: rollout has not answered yet
    detail: str = ""


# -- letters and reviews ----------------------------------------------------------------------------------------------


class DeadGroup(Answer, frozen=True, kw_only=True):
    """Dead letters of one kind."""

    task: str
    stage: str
    reason: str
    means: str
    letters: int
    newest_ms: int | None = None


class ReviewState(Answer, frozen=True, kw_only=True):
    """How many cases wait for an expert, and how far experts agree with the judge."""

    waiting_unresolved: int = 0
    waiting_accepted: int = 0  # the sample
    decisions: int = 0
    agreement: float | None = None
    low: float | None = None
    high: float | None = None
    kappa: float | None = None
    note: str = ""


class State(Answer, frozen=True, kw_only=True):
    """The whole page but for single cases."""

    at_ms: int  # when something last changed
    prefix: str  # of our topics
    tasks: tuple[str, ...]
    refresh_s: float
    problems: tuple[Problem, ...] = ()
    flow: Flow = Flow()
    funnels: tuple[Funnel, ...] = ()
    passing: tuple[Passing, ...] = ()
    outcomes: tuple[Outcomes, ...] = ()
    violations: tuple[Violation, ...] = ()
    cost: Cost = Cost()
    trainers: tuple[TrainerState, ...] = ()
    adapters: tuple[Adapters, ...] = ()
    dead: tuple[DeadGroup, ...] = ()
    review: ReviewState = ReviewState()
