"""How cases move and rest: Kafka, intake, workers, the sink."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from schemas.settings.section import ROLES, Positive, Role, Seconds, Section, Share, VariableName


class Kafka(Section, frozen=True):
    """How every client of ours reaches Kafka, and the topics it makes there."""

    bootstrap_servers: str = "local"  # "local": the broker of `goldstream broker start`
    topic_prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,80}$")] = "gs."
    partitions: Positive = 4  # of our own topics; that of gs.outcomes is fixed once it exists
    replication: Positive = 1
    retention_hours: Positive = 168
    max_message_bytes: Positive = 1_000_000  # a case larger than this is dead with reason too_large
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str = ""
    sasl_password_env: VariableName = "GOLDSTREAM_SASL_PASSWORD"  # name of the variable, never the secret
    ssl_cafile: str = ""  # PEM file of the authority that signed the brokers' certificates; "": the system's


class Intake(Section, frozen=True):
    """What is read from the product's log topics."""

    # "latest", "earliest", a time such as "2026-11-01T00:00" (UTC), or how far back: "7d", "12h", "30m". A partition
    # that has been read from keeps its position whatever this says.
    start_at: str = "latest"
    holdout_share: Share = 0.1
    split_key: str = "goldstream"  # keys the hash that decides train or holdout; keep it once chosen
    max_record_bytes: Positive = 1_000_000
    poll_records: Positive = 500
    remembered_prompts: Positive = 100_000  # that a process compares new ones with, for near_duplicates; 430 bytes each


class Worker(Section, frozen=True):
    """How many cases a stage works on at once, and for how long."""

    cases_in_flight: Positive = 64
    event_deadline_s: Annotated[float, Meta(gt=0, lt=60)] = 45.0  # all calls of one event; under the rebalance timeout
    # What SIGTERM leaves the calls in flight to end; longer ones are cancelled and made again.
    drain_s: Annotated[float, Meta(ge=0, le=300)] = 8.0
    retry_delays_s: tuple[Positive, ...] = (10, 60, 600)  # one gs.retry.<delay>s topic each, tried in order
    breaker_failures: Positive = 5  # cases in a row that must fail before a model counts as down and its cases wait
    breaker_longest_s: Seconds = 60.0  # a model that is down is asked at least this often whether it is back
    stages: tuple[Role, ...] = ROLES


class Sink(Section, frozen=True):
    """When outcomes become a Parquet file."""

    rows_per_file: Positive = 5000
    seconds_per_file: Seconds = 15.0  # every file costs each reader half a millisecond, until compaction
