"""What one worker has spent on one task and role on one day, and what of a cap it holds for it. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from schemas.case import Spend
from schemas.ledger import Entry, Line

SLACK = 1e-9  # USD; sums of many small floats
CALLS_AHEAD = 16  # a claim covers about this many calls, so that no call waits for the broker
SHARE_AHEAD = 0.025  # and no more of what is left than this part of our own share: it is lost to the day by a kill


class Call(NamedTuple):
    """What a call is expected to take at most."""

    model: str
    round: int
    tokens: int
    usd: float


class Account:
    """One day's spending of this worker on a role of a task.

    `usable` is what the caps have granted us; spent and reserved together stay below it. It is raised when our claim
    has been read back from the ledger, and lowered before the lower claim is written.
    """

    def __init__(self, day: str, task: str, role: str) -> None:
        self.day, self.task, self.role = day, task, role
        self.usable = self.spent = self.reserved = 0.0  # USD
        self.short = 0.0  # USD that the last call would have needed beyond `usable`
        self.call_usd = 0.0  # of the latest estimate
        self.outstanding: Entry | None = None  # written, not yet read back
        self.dirty = False  # there is more to tell than was written
        self.called_s = self.written_s = float("-inf")
        self.seq = 0
        self.told = ""  # why no case is taken, as last written
        self._lines: dict[tuple[str, int], Line] = {}

    @property
    def free(self) -> float:
        """USD that may still be reserved."""
        return self.usable - self.spent - self.reserved

    @property
    def claimed(self) -> float:
        """USD that the caps must count as ours."""
        return max(self.usable, self.spent, self.outstanding.claimed_usd if self.outstanding else 0.0)

    def fits(self, usd: float) -> bool:
        """Tells whether a call may be reserved."""
        return usd <= self.free + SLACK

    def reserve(self, usd: float, at_s: float) -> None:
        """Takes a call's estimate out of what is free."""
        self.reserved += usd
        self.call_usd, self.called_s, self.short = usd, at_s, 0.0

    def settle(self, call: Call, spend: Spend | None, free: bool = False) -> None:
        """Puts what a call cost in the place of its reservation.

        `spend` is None where nobody said: the whole reservation counts as spent, unless the call was surely `free`.
        """
        self.reserved -= call.usd
        if abs(self.reserved) < SLACK:
            self.reserved = 0.0
        if spend is None and free:
            return
        key = call.model, call.round
        line = self._lines.get(key) or Line(model=call.model, round=call.round)
        if spend is None:
            line = msgspec.structs.replace(
                line, unknown_calls=line.unknown_calls + 1, unknown_usd=line.unknown_usd + call.usd
            )
        else:
            line = msgspec.structs.replace(
                line,
                calls=line.calls + spend.calls,
                prompt_tokens=line.prompt_tokens + spend.prompt_tokens,
                completion_tokens=line.completion_tokens + spend.completion_tokens,
                cost_usd=line.cost_usd + spend.cost_usd,
            )
        self._lines[key] = line
        self.spent += call.usd if spend is None else spend.cost_usd
        self.dirty = True

    def wants(self, room: float, share: float) -> float:
        """Returns the claim to write next, given what the caps leave beyond ours; what we have where none is due."""
        low = self.call_usd > 0 and self.free < self.call_usd * CALLS_AHEAD / 2
        if self.spent > self.usable + SLACK:  # a call cost more than it was expected to
            return self.spent + self.reserved
        if not (self.short or low) or self.short > room + SLACK:
            return self.usable
        ahead = min(self.call_usd * CALLS_AHEAD, SHARE_AHEAD * share * room)
        return self.usable + min(max(self.short, 0.0) + max(ahead - max(self.free, 0.0), 0.0), max(room, 0.0))

    def entry(self, writer: str, at_ms: int, claimed: float, **told: object) -> Entry:
        """Returns the next entry of the ledger; what is claimed less than before is unusable from now on."""
        self.seq += 1
        self.usable = min(self.usable, claimed)
        self.dirty = False
        return msgspec.convert(
            {
                "day": self.day,
                "task": self.task,
                "role": self.role,
                "writer": writer,
                "seq": self.seq,
                "at_ms": at_ms,
                "claimed_usd": claimed,
                "lines": tuple(self._lines.values()),
                **told,
            },
            Entry,
        )
