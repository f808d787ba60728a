"""Where a case goes next: the whole flow of DESIGN.md in one pure function. streams.stage asks it after each role."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from agents.chain import Stop, next_step
from schemas.case import Case
from schemas.settings import Role, Settings
from schemas.topics import ACCEPTED, ATTEMPTS, OUTCOMES, REFINE

_CLOCK_OFFSET_MS = 1000 * int(os.environ.get("GOLDSTREAM_CLOCK_OFFSET_S", "0"))  # a wrong clock, for fault tests


class Hop(NamedTuple):
    """Where a case goes next; `topic` is a short name of schemas.topics."""

    topic: str
    case: Case


def next_hop(role: Role, case: Case, settings: Settings) -> Hop:
    """Decides where a case goes after a role has worked on it."""
    if role in ("student", "refiner"):
        return Hop(ATTEMPTS, case)
    if role == "strategist":
        return Hop(OUTCOMES, case.ended("gold", role, now_ms()))
    verdict = case.attempts[-1].verdict
    if case.split == "holdout":
        return Hop(OUTCOMES, case.ended("holdout", role, now_ms()))
    if verdict is not None and verdict.passed:
        return Hop(ACCEPTED, case)
    step = next_step(case, settings.task(case.task))
    if isinstance(step, Stop):
        return Hop(OUTCOMES, case.ended("unresolved", role, now_ms(), step.reason, step.detail))
    return Hop(REFINE, case)


def now_ms() -> int:
    """Returns the time of day in milliseconds since the epoch."""
    return int(time.time() * 1000) + _CLOCK_OFFSET_MS
