"""What the calls of one case cost at one hop, whoever makes them and however they end.

streams.stage opens a bill before the handler runs; agents.models writes every answered call on it, also one whose
answer cannot be used and one of a handler that fails afterwards.
"""

from __future__ import annotations

from contextvars import ContextVar

import msgspec

from schemas.case import Case, Charge, Spend
from schemas.settings import Role


class Bill:
    """The calls of one case at one stage."""

    def __init__(self, round: int = 0) -> None:
        self.round = round  # of the case's last attempt
        self._charges: dict[tuple[str, str, int], Charge] = {}

    def add(self, role: Role, model: str, spend: Spend) -> None:
        """Writes a call down."""
        key = role, model, self.round_of(role)
        old = self._charges.get(key)
        total = spend if old is None else _spend_of(old).plus(spend)
        self._charges[key] = Charge(
            role=role,
            model=model,
            round=key[2],
            calls=total.calls,
            prompt_tokens=total.prompt_tokens,
            completion_tokens=total.completion_tokens,
            cost_usd=total.cost_usd,
            model_s=total.model_s,
        )

    def round_of(self, role: Role) -> int:
        """Returns the round that a role's call belongs to: a refiner makes the attempt of the next."""
        return self.round + 1 if role == "refiner" else self.round

    def on(self, case: Case, after: Case) -> Case:
        """Returns `after`, what the hop made of `case`, with the bill on it.

        Where nothing is on the bill the agent's own count stands: models of tests answer without one.
        """
        if not self._charges:
            return after
        spend = case.spend
        for charge in self._charges.values():
            spend = spend.plus(_spend_of(charge))
        return msgspec.structs.replace(after, spend=spend, charges=(*case.charges, *self._charges.values()))


billed: ContextVar[Bill | None] = ContextVar("billed", default=None)


def _spend_of(charge: Charge) -> Spend:
    return Spend(charge.calls, charge.prompt_tokens, charge.completion_tokens, charge.cost_usd, charge.model_s)
