"""Every family that our processes show at /metrics, but for those of the exporter (streams.exporter.families).

Whoever counts imports the family from here. deploy/metrics.md shows each as a scrape; a test compares the names.
"""

from __future__ import annotations

from schemas.case import DEAD_REASONS, DROPPED_REASONS
from schemas.metrics import Counter, Family, Gauge, Histogram

# Intake
INTAKE_RECORDS = Counter(
    "goldstream_intake_records",
    "Prompt records read from the product's topics, by log shape and what became of them; confirmed by the broker.",
    ("topic", "shape", "result", "reason"),
)

# Worker: stages
STAGE_TAKEN = Counter("goldstream_stage_taken", "Cases taken by a stage, those that came again too.", ("stage",))
STAGE_PRODUCED = Counter(
    "goldstream_stage_produced", "Cases a stage has passed on, by the topic they went to.", ("stage", "to")
)
STAGE_IN_FLIGHT = Gauge("goldstream_stage_in_flight", "Cases being worked on now.", ("stage",))
STAGE_HELD = Gauge(
    "goldstream_stage_held", "1 while a stage takes no cases, by why: pause, models, refused or pending.",
    ("stage", "why"),
)  # fmt: skip

# Worker: models
_CALL = ("task", "role", "model")
MODEL_CALLS = Counter(
    "goldstream_model_calls", "Calls made, each try by itself, by what they came to.", (*_CALL, "result")
)
MODEL_SECONDS = Histogram("goldstream_model_call_seconds", "How long calls that were answered took.", _CALL)
MODEL_TOKENS = Counter(
    "goldstream_model_tokens", "Tokens of answers, empty ones too: prompt and completion.", (*_CALL, "kind")
)
MODEL_COST = Counter("goldstream_model_cost_usd", "What answers cost, empty ones too, in US dollars.", _CALL)
MODEL_IN_FLIGHT = Gauge("goldstream_model_calls_in_flight", "Calls waiting for their answer now.", _CALL)
MODEL_ENDPOINTS_HELD = Gauge(
    "goldstream_model_endpoints_held", "Endpoints of a model that get no cases now: they are down or limit us.",
    ("role", "model"),
)  # fmt: skip
_CAP = ("task", "role")
BUDGET_HELD = Gauge("goldstream_budget_held", "1 while a task's budget lets a role make no call.", _CAP)
BUDGET_CAP = Gauge("goldstream_budget_cap_usd", "What a role may spend a day, in US dollars; all: the task.", _CAP)
BUDGET_SPENT = Gauge(
    "goldstream_budget_spent_usd", "What was spent of it today (UTC) by all workers, as this one knows.", _CAP
)

# Retries
RETRIES_WAITING = Gauge("goldstream_retries_waiting", "Cases read that wait for their time, by topic.", ("topic",))
RETRIES_RETURNED = Counter("goldstream_retries_returned", "Cases sent back, by the topic they waited on.", ("topic",))

# Sink
SINK_ROWS = Counter("goldstream_sink_rows", "Rows written and synced, by outcome.", ("outcome",))
SINK_REPEATS = Counter("goldstream_sink_repeats", "Outcomes left out: their case has a row already.")
SINK_FILES = Counter("goldstream_sink_files", "Landing files written, empty ones too.")
SINK_BYTES = Counter("goldstream_sink_bytes", "Bytes of these files.")
SINK_FSYNC = Counter("goldstream_sink_fsync_seconds", "Seconds spent in fsync.")

# Trainer and rollout
TRAINER_RUNS = Counter(
    "goldstream_trainer_runs", "Runs that ended, by how: promote, refuse, undecided, stopped or error.",
    ("task", "result"),
)  # fmt: skip
ROLLOUT_STEPS = Counter(
    "goldstream_rollout_steps", "Things rollout did, servers, switch and guard, by how they ended.",
    ("task", "step", "result"),
)  # fmt: skip

# Every process whose spans are traced
TRACING_SPANS = Counter("goldstream_tracing_spans", "Spans, by result: sent, failed or queue_full.", ("result",))

PROCESS_FAMILIES: dict[str, tuple[Family, ...]] = {
    "intake": (INTAKE_RECORDS,),
    "worker": (
        STAGE_TAKEN, STAGE_PRODUCED, STAGE_IN_FLIGHT, STAGE_HELD,
        MODEL_CALLS, MODEL_SECONDS, MODEL_TOKENS, MODEL_COST, MODEL_IN_FLIGHT,
        MODEL_ENDPOINTS_HELD, BUDGET_HELD, BUDGET_CAP, BUDGET_SPENT,
    ),
    "retries": (RETRIES_WAITING, RETRIES_RETURNED),
    "sink": (SINK_ROWS, SINK_REPEATS, SINK_FILES, SINK_BYTES, SINK_FSYNC),
    "trainer": (
        TRAINER_RUNS, MODEL_CALLS, MODEL_SECONDS, MODEL_TOKENS, MODEL_COST, MODEL_IN_FLIGHT, MODEL_ENDPOINTS_HELD
    ),
    "rollout": (ROLLOUT_STEPS,),
}  # fmt: skip

REASONS = {**DEAD_REASONS, **DROPPED_REASONS}
