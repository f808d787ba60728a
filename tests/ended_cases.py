"""Toys for tests of the gold set: ended cases, the records that carry them, and a landed gold set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from schemas.case import Attempt, Case, Message, OutcomeKind, Source, Spend, Strategy, Verdict, Violation, encode_case
from schemas.settings import Sink as SinkSettings
from streams.landing import LandingChain
from streams.partition_writer import PartitionWriter

AT_MS = 1_790_000_000_000
GREETING = Violation("no_greeting", "major", "Hello", "it greets", "leave it out")


class FakeRecord(NamedTuple):
    """What the sink looks at in a Kafka record."""

    offset: int
    value: bytes | None
    timestamp: int = AT_MS


def ended(number: int, kind: OutcomeKind = "gold", **changes: Any) -> Case:
    """Returns a case that failed once, was refined and passed; `number` makes its id and its source offset."""
    failed = Verdict(passed=False, score=1, max_score=2, violations=(GREETING,), judge="verifier:toy")
    passed = Verdict(passed=True, score=2, max_score=2, judge="verifier:toy")
    case = Case(
        case_id=f"req-{number}",
        task="scribe",
        split="train",
        source=Source(cluster="c", topic="logs", partition=0, offset=number),
        body_sha256=f"body of {number}",
        created_ms=AT_MS,
        messages=(Message("system", "Be brief."), Message("user", f"question {number}")),
        attempts=(
            Attempt(round=0, source="student", text="Hello, 42", model="m", adapter="v0001-abcdef", verdict=failed),
            Attempt(round=1, source="refiner", text="42", model="teacher", verdict=passed),
        ),
        strategy=Strategy("greets first", "answer at once"),
        spend=Spend(calls=4, prompt_tokens=100, completion_tokens=20, cost_usd=0.5, model_s=1.0),
    )
    reason = str(changes.pop("reason", ""))
    return msgspec.structs.replace(case, **changes).ended(kind, "strategist", AT_MS, reason)


def records(cases: Iterable[Case], start: int = 0) -> list[FakeRecord]:
    """Returns the records of consecutive offsets that carry the cases."""
    return [FakeRecord(offset, encode_case(case)) for offset, case in enumerate(cases, start)]


def writer(gold: Path, partition: int = 0, **settings: Any) -> PartitionWriter:
    """Returns a writer at the tip of the partition's chain, or at 0."""
    chain = LandingChain(gold, partition)
    sink = SinkSettings(**({"rows_per_file": 1000, "seconds_per_file": 3600.0} | settings))
    return PartitionWriter(chain, start=chain.tip or 0, cluster="c", topic="gs.outcomes", settings=sink)


def land(gold: Path, cases: Iterable[Case], partition: int = 0) -> int | None:
    """Writes the cases as the next file of the partition's chain and returns the new tip."""
    target = writer(gold, partition)
    for record in records(cases, target.start):
        target.add(record)
    return target.flush()
