"""The families that the exporter shows. Those of Kafka carry the names and labels of kminion under our namespace.

All are gauges: superseding, redriving and erasing lower what the gold set counts, so no rate() of them is meant.
"""

from __future__ import annotations

from schemas.metrics import Family, Gauge

# Kafka, as kminion names it
_PARTITION = ("topic_name", "partition_id")
_GROUP_TOPIC = ("group_id", "topic_name")
HIGH_WATER_MARK = Gauge("goldstream_kafka_topic_partition_high_water_mark", "Partition high water mark.", _PARTITION)
HIGH_WATER_MARK_SUM = Gauge(
    "goldstream_kafka_topic_high_water_mark_sum", "Sum of all the topic's partition high water marks.", ("topic_name",)
)
MEMBERS = Gauge("goldstream_kafka_consumer_group_members", "Members of a group that hold a partition.", ("group_id",))
TOPIC_MEMBERS = Gauge(
    "goldstream_kafka_consumer_group_topic_members",
    "Members of a group that hold a partition of a topic.",
    _GROUP_TOPIC,
)
ASSIGNED = Gauge(
    "goldstream_kafka_consumer_group_topic_assigned_partitions", "Partitions of a topic that a member holds.",
    _GROUP_TOPIC,
)  # fmt: skip
OFFSET_SUM = Gauge(
    "goldstream_kafka_consumer_group_topic_offset_sum", "Sum of the committed offsets of a topic.", _GROUP_TOPIC
)
PARTITION_LAG = Gauge(
    "goldstream_kafka_consumer_group_topic_partition_lag",
    "Messages a group is behind the end of a partition; all of them where it has never committed.",
    (*_GROUP_TOPIC, "partition_id"),
)
TOPIC_LAG = Gauge(
    "goldstream_kafka_consumer_group_topic_lag", "Messages a group is behind on a topic, all partitions.", _GROUP_TOPIC
)

# The same by stage
STAGE_LAG = Gauge("goldstream_stage_lag", "Cases that wait before a stage, all topics it reads.", ("stage",))
STAGE_TREND = Gauge(
    "goldstream_stage_lag_trend", "Cases a second by which it grows, below 0 where it shrinks.", ("stage",)
)
STAGE_AGE = Gauge(
    "goldstream_stage_oldest_record_age_seconds",
    "Age of the oldest record that waits before a stage, 0 where none does; no series where it could not be read.",
    ("stage", "topic"),
)
STAGE_PAUSED = Gauge("goldstream_stage_paused", "1 while an operator has paused a stage.", ("stage",))

# The gold set
CASES = Gauge("goldstream_cases", "Cases that have ended, by where and how.", ("task", "split", "stage", "outcome"))
DEAD = Gauge("goldstream_dead_letters", "Dead cases not redriven, by where and why.", ("task", "stage", "reason"))
UNRESOLVED = Gauge("goldstream_unresolved", "Unresolved cases, by why.", ("task", "reason"))
DROPPED = Gauge("goldstream_dropped", "Records left out, by why.", ("task", "reason"))
GOLD = Gauge("goldstream_gold_rows", "Gold rows; corrected: the first attempt had failed.", ("task", "corrected"))
GOLD_STRATEGY = Gauge("goldstream_gold_rows_with_strategy", "Gold rows that carry a strategy.", ("task",))
GOLD_NEWEST = Gauge(
    "goldstream_gold_newest_timestamp_seconds", "When the newest gold row's case ended, seconds since 1970.", ("task",)
)
REVIEWS = Gauge("goldstream_reviews", "Cases an expert has decided on, by what was decided.", ("task", "decision"))
_ATTEMPT = ("task", "split", "round", "source", "adapter")
JUDGED = Gauge("goldstream_attempts_judged", "Attempts with a verdict, by round and who made them.", _ATTEMPT)
ACCEPTED = Gauge("goldstream_attempts_accepted", "Those that passed.", _ATTEMPT)
VIOLATIONS = Gauge("goldstream_violations", "Violations found, by rule.", ("task", "rule", "severity"))
_CHARGE = ("task", "role", "model")
CASE_CALLS = Gauge("goldstream_cases_model_calls", "Model calls of ended cases, without calls repeated.", _CHARGE)
CASE_TOKENS = Gauge("goldstream_cases_tokens", "Their tokens: prompt and completion.", (*_CHARGE, "kind"))
CASE_COST = Gauge("goldstream_cases_cost_usd", "What they cost, in US dollars.", _CHARGE)
LANDING_FILES = Gauge("goldstream_landing_files", "Landing files that every reader opens.")
DISK_FREE = Gauge("goldstream_gold_disk_free_bytes", "What is left to us of the disk that holds the gold set.")
DISK_SIZE = Gauge("goldstream_gold_disk_size_bytes", "How large that disk is.")

# Trainer, gate, rollout
TRAINER_STATE = Gauge("goldstream_trainer_state", "1 for the state a task's trainer is in.", ("task", "state"))
TRAINER_STEP = Gauge("goldstream_trainer_step", "Step of the run under way or the last.", ("task",))
TRAINER_STEPS = Gauge("goldstream_trainer_steps", "Steps of that run.", ("task",))
TRAINER_LOSS = Gauge("goldstream_trainer_loss", "Loss of its last step.", ("task",))
TRAINER_ROWS = Gauge("goldstream_trainer_corrected_rows", "Corrected rows that came since the last run.", ("task",))
TRAINER_NEEDED = Gauge("goldstream_trainer_corrected_rows_needed", "Those that start a run.", ("task",))
TRAINER_FAILED = Gauge("goldstream_trainer_failed", "1 where the last run ended with an error.", ("task",))
TRAINER_LAST = Gauge(
    "goldstream_trainer_last_run_timestamp_seconds", "When the last run began, seconds since 1970.", ("task",)
)
GATE_DECISION = Gauge(
    "goldstream_gate_decision", "1 for what the gate said of a version.", ("task", "version", "decision")
)
GATE_PASS_RATE = Gauge(
    "goldstream_gate_pass_rate", "Pass rate on the holdout, before (incumbent) and after (candidate).",
    ("task", "version", "side"),
)  # fmt: skip
_GATE = ("task", "version")
GATE_CASES = Gauge("goldstream_gate_cases", "Holdout cases asked.", _GATE)
GATE_P = Gauge("goldstream_gate_p_value", "P value of the gate's test, two-sided.", _GATE)
GATE_REFUSED = Gauge(
    "goldstream_gate_refused_in_a_row", "Versions that the gate has refused since one passed.", ("task",)
)
GATE_TIME = Gauge("goldstream_gate_timestamp_seconds", "When the gate spoke, seconds since 1970.", _GATE)
ADAPTER_INFO = Gauge(
    "goldstream_adapter_info", "1 for the adapter that serves a task, with the one before and the fallback.",
    ("task", "version", "previous", "fallback"),
)  # fmt: skip
ADAPTER_CANARY = Gauge("goldstream_adapter_canary_share", "Share of cases left on the one before.", ("task",))
ADAPTER_SINCE = Gauge(
    "goldstream_adapter_since_timestamp_seconds", "Since when it serves so, seconds since 1970.", ("task",)
)
ROLLOUT_PENDING = Gauge("goldstream_rollout_pending", "1 while another version should serve than does.", ("task",))
ROLLOUT_SERVERS = Gauge("goldstream_rollout_servers", "vLLM servers: serves, asleep or failing.", ("task", "state"))
ROLLOUT_FAILING = Gauge("goldstream_rollout_failing", "1 for a step of rollout that fails.", ("task", "step"))

# The exporter itself
UP = Gauge("goldstream_exporter_up", "1 where the last reading succeeded.", ("reading",))
READ_S = Gauge("goldstream_exporter_reading_seconds", "How long the last reading took.", ("reading",))
READ_AT = Gauge(
    "goldstream_exporter_reading_timestamp_seconds", "When the last good reading ended, seconds since 1970.",
    ("reading",),
)  # fmt: skip

LAG_FAMILIES: tuple[Gauge, ...] = (
    HIGH_WATER_MARK, HIGH_WATER_MARK_SUM, MEMBERS, TOPIC_MEMBERS, ASSIGNED, OFFSET_SUM, PARTITION_LAG, TOPIC_LAG,
    STAGE_LAG, STAGE_TREND, STAGE_AGE,
)  # fmt: skip
GOLD_FAMILIES: tuple[Gauge, ...] = (
    CASES, DEAD, UNRESOLVED, DROPPED, GOLD, GOLD_STRATEGY, GOLD_NEWEST, REVIEWS, JUDGED, ACCEPTED, VIOLATIONS,
    CASE_CALLS, CASE_TOKENS, CASE_COST, LANDING_FILES, DISK_FREE, DISK_SIZE,
)  # fmt: skip
TRAINING_FAMILIES: tuple[Gauge, ...] = (
    TRAINER_STATE, TRAINER_STEP, TRAINER_STEPS, TRAINER_LOSS, TRAINER_ROWS, TRAINER_NEEDED, TRAINER_FAILED,
    TRAINER_LAST, GATE_DECISION, GATE_PASS_RATE, GATE_CASES, GATE_P, GATE_TIME, GATE_REFUSED,
    ROLLOUT_PENDING, ROLLOUT_SERVERS, ROLLOUT_FAILING,
)  # fmt: skip
TOPIC_FAMILIES: tuple[Gauge, ...] = (STAGE_PAUSED, ADAPTER_INFO, ADAPTER_CANARY, ADAPTER_SINCE)
FAMILIES: tuple[Family, ...] = (
    *LAG_FAMILIES, *GOLD_FAMILIES, *TRAINING_FAMILIES, *TOPIC_FAMILIES, UP, READ_S, READ_AT
)  # fmt: skip
