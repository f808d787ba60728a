"""What is known of strategies: records of gs.strategies, one partition, kept for ever, never compacted.

Their order in the log decides which wording was first, so that every reader comes to the same library
(agents.strategies.Library). Workers propose, an operator merges and rewords.
"""

from __future__ import annotations

import msgspec


class Proposal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="proposal"):
    """A strategy that no library entry said yet, when it was learned.

    It becomes an entry, or another name of an earlier one whose guardrail is at least `similarity` like its own.
    """

    task: str
    id: str
    mistake: str
    guardrail: str
    rules: tuple[str, ...] = ()  # broken in the case that taught it
    similarity: float
    at_ms: int = 0


class Merge(msgspec.Struct, frozen=True, kw_only=True, tag="merge"):
    """From now on `id` is another name of `into`."""

    task: str
    id: str
    into: str
    by: str
    at_ms: int


class Rewording(msgspec.Struct, frozen=True, kw_only=True, tag="rewording"):
    """From now on an entry has these words; its name stays."""

    task: str
    id: str
    mistake: str
    guardrail: str
    by: str
    at_ms: int


StrategyRecord = Proposal | Merge | Rewording
