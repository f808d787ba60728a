"""What a task's models may be asked and may cost."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from schemas.settings.section import Positive, Role, Section


class Limits(Section, frozen=True):
    """Caps on calls; what is left out is not capped. They hold for all workers together."""

    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None  # prompt and completion
    usd_per_day: Annotated[float, Meta(ge=0)] | None = None  # a day of UTC; 0: nothing may be spent
    calls_in_flight: Positive | None = None


class Budget(Limits, frozen=True):
    """Caps on all roles of a task together, and on each by itself. Where one is hit, cases wait in Kafka."""

    student: Limits = Limits()
    judge: Limits = Limits()
    refiner: Limits = Limits()
    strategist: Limits = Limits()

    def limits(self, role: Role) -> Limits:
        """Returns the caps of one role."""
        chosen: Limits = getattr(self, role)
        return chosen

    def caps_money(self, role: Role) -> bool:
        """Tells whether a role's calls count against a cap in money."""
        return self.usd_per_day is not None or self.limits(role).usd_per_day is not None
