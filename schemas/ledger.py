"""What a worker writes of its spending: an entry per day, task, role and worker on the compacted topic gs.ledger.

An entry holds all of that day so far and replaces the writer's one before. streams.ledger writes them and says why
a cap holds; `goldstream cost` adds them up.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import msgspec

from schemas.settings.section import Role


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one model was asked for in one round, and what came of it."""

    model: str
    round: int = 0
    calls: int = 0  # that were answered
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    unknown_calls: int = 0  # cut short: what they cost nobody said
    unknown_usd: float = 0.0  # what they may have cost, which counts as spent


def base_role(role: str) -> Role:
    """Returns the role whose caps hold for an entry: "judge" for "judge/gate", the calls of a gate."""
    return cast(Role, role.partition("/")[0])


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A writer's spending on one task and role on one day."""

    day: str  # of UTC, 2026-11-30
    task: str
    role: str
    writer: str  # one run of one worker
    seq: int
    at_ms: int
    claimed_usd: float = 0.0  # taken out of the caps: spent, reserved for calls under way, and what comes next
    lines: tuple[Line, ...] = ()
    held: str = ""  # why no case is taken now
    held_since_ms: int = 0
    closed: bool = False  # the writer has ended in order

    @property
    def key(self) -> Key:
        """What the entry is about: later ones of the same key replace it."""
        return Key(self.day, self.task, self.role, self.writer)

    @property
    def spent_usd(self) -> float:
        """What the calls cost, those of unknown cost at what was reserved for them."""
        return sum(line.cost_usd + line.unknown_usd for line in self.lines)


class Key(NamedTuple):
    """What an entry is about."""

    day: str
    task: str
    role: str
    writer: str


class Book:
    """The latest entry of each key, from entries in the order of the topic."""

    def __init__(self) -> None:
        self.entries: dict[Key, Entry] = {}

    def apply(self, entry: Entry) -> None:
        """Takes an entry in; an older one than known is a repetition."""
        known = self.entries.get(entry.key)
        if known is None or entry.seq >= known.seq:
            self.entries[entry.key] = entry

    def claimed_usd(self, day: str, task: str, role: str = "", besides: str = "") -> float:
        """Returns what is taken out of a cap: a role's, or a task's; without what the writer `besides` took."""
        return sum(
            entry.claimed_usd
            for entry in self.entries.values()
            if (entry.day, entry.task) == (day, task)
            and role in ("", base_role(entry.role))
            and entry.writer != besides
        )

    def forget_before(self, day: str) -> None:
        """Drops the days before, which no cap asks for any more."""
        self.entries = {key: entry for key, entry in self.entries.items() if key.day >= day}


def encode_entry(entry: Entry) -> tuple[bytes, bytes]:
    """Returns an entry as key and value of a record."""
    return "|".join(entry.key).encode(), msgspec.json.encode(entry)


def decode_entry(value: bytes) -> Entry:
    """Reads an entry; raises msgspec.DecodeError for anything else."""
    return msgspec.json.decode(value, type=Entry)
