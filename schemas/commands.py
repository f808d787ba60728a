"""What an operator asks of running processes: records on gs.commands, keyed by stage, the latest counts."""

from __future__ import annotations

import msgspec

from schemas.settings import ROLES

PAUSABLE = ("intake", *ROLES)


class Pause(msgspec.Struct, frozen=True):
    """Whether a stage takes new work. Cases in flight are finished either way."""

    stage: str
    paused: bool
    at_ms: int
