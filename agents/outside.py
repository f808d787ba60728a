"""Model calls made outside the stream: a gate's, a replay's, a calibration's. They count against the task's budget.

Their role is told apart in the ledger, as "judge/gate", and its caps are those of the role before the slash. The caps
are shared with workers through the ledger, whose keeper goldstream.py gives (`set_keeper`): agents know no Kafka.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal, TypeVar

from schemas.errors import BudgetHeld

if TYPE_CHECKING:
    from agents.budget import Budget
    from agents.models import Models
    from schemas.settings import Settings

Purpose = Literal["gate", "replay", "calibrate", "test"]
Keeper = Callable[["Settings", "Budget"], AbstractAsyncContextManager[None]]
_T = TypeVar("_T")

SHARE = 0.25  # of the caps a minute, which nobody shares out to who is no worker
PATIENT_S = 120.0  # a cap of a minute is waited for, one of a day is not
LOOK_AGAIN_S = 60.0  # others may give back what they claimed, and a machine that slept knows no day's end

calling_as: ContextVar[str] = ContextVar("calling_as", default="")  # the purpose; "" in the stream, and for probes
_keepers: list[Keeper] = []


def set_keeper(keeper: Keeper) -> None:
    """Gives what keeps a budget with everybody else's while a block runs: streams.ledger.kept."""
    _keepers[:] = [keeper]


@asynccontextmanager
async def spending(settings: Settings, models: Models, purpose: Purpose) -> AsyncIterator[None]:
    """Charges the calls of a block to the budget, under this purpose.

    Raises BrokerError where a cap in money cannot be kept because no Kafka answers.
    """
    from schemas.settings import ROLES

    for role in ROLES:
        models.budget.take_share(role, SHARE)
    await models.imported()
    token = calling_as.set(purpose)
    try:
        if not _keepers:
            yield
            return
        async with _keepers[0](settings, models.budget):
            yield
    finally:
        calling_as.reset(token)


async def patiently(ask: Callable[[float], Awaitable[_T]], within_s: float, longest_s: float = PATIENT_S) -> _T:
    """Returns what `ask(deadline)` does, asked again after a cap that holds it for no longer than `longest_s`.

    Raises BudgetHeld where it is held longer, and whatever `ask` raises.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            return await ask(loop.time() + within_s)
        except BudgetHeld as held:
            if held.wait_s > longest_s:
                raise
            await asyncio.sleep(min(max(held.wait_s, 0.05), LOOK_AGAIN_S))
