"""Whether a call may be made now, by the task's caps on requests, tokens and money. Knows no Kafka.

agents.models acquires a reservation before every call for a case and settles it with what the call took; the stage
asks through it whether to take a case at all. streams.ledger keeps the caps in money across workers and restarts; the
caps per minute are split by the share of the partitions that this worker holds.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from agents.account import CALLS_AHEAD, SLACK, Account, Call
from agents.limits import Window
from schemas.case import Spend
from schemas.errors import BudgetHeld, OverBudget
from schemas.ledger import Book, Entry, base_role
from schemas.settings import ROLES, Limits, Role, Settings

log = logging.getLogger(__name__)

DAY_MS = 86_400_000
ASKED_S = 0.05  # until a claim has been answered, about
SETTLED_S = 0.25  # until one of the calls under way has been answered, about
LENT_S, LENT_FRESH_MS = 4.0, 15_000  # what a live worker does not use it gives back within some seconds
PATIENT_S = 5.0  # a case waits so long in place even where other tasks could use its slot
SAY_EVERY_S = 60.0
ALL = ""  # in place of a role: all roles of a task together


class Blocked(NamedTuple):
    """Why a call may not be made, and for how long at least."""

    why: str
    wait_s: float


class Held(NamedTuple):
    """Since when a role of a task takes no cases, and why."""

    why: str
    since_ms: int
    seen_s: float


class Reservation:
    """Leave to make one call. `settle` ends it; what is never settled counts as spent."""

    def __init__(self, budget: Budget, account: Account, call: Call) -> None:
        self._budget, self.account, self.call, self._open = budget, account, call, True

    def settle(self, spend: Spend | None = None, *, free: bool = False, model: str = "") -> None:
        """Notes what the call took; without it all that was reserved, unless it was surely `free`.

        `model` is the one that answered, where it was a fallback.
        """
        if self._open:
            self._open = False
            call = self.call._replace(model=model) if model and model != self.call.model else self.call
            self._budget._settle(self.account, call, spend, free)


class Budget:
    """The caps of all tasks as this process may use them."""

    def __init__(
        self,
        settings: Settings,
        now_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.writer = uuid.uuid4().hex[:12]  # one run of one worker
        self.book = Book()
        self.accounts: dict[tuple[str, str, str], Account] = {}
        self.kept = False  # by a ledger; else the caps in money hold for this process alone
        self.wake: Callable[[], None] = lambda: None  # tells the ledger that a claim is due
        self._settings, self.now_ms, self.clock = settings, now_ms, clock
        self._shares: dict[str, float] = dict.fromkeys(ROLES, 1.0)
        self._windows: dict[tuple[str, str, str], Window] = {}  # (task, role or ALL, "requests" or "tokens")
        self._limited: dict[tuple[str, str], bool] = {}  # see `limits`; settings do not change
        self._in_flight: dict[tuple[str, str], int] = defaultdict(int)
        self._waiting: dict[tuple[str, str], int] = defaultdict(int)
        self._latest: dict[tuple[str, str], Call] = {}
        self._held: dict[tuple[str, str], Held] = {}
        self._said: dict[tuple[str, str, str], float] = {}
        self._today = -1, ""  # days since 1970, and as a date
        self._resize()

    def take_share(self, role: Role, share: float) -> None:
        """Notes which part of a role's partitions this worker holds."""
        self._shares[role] = min(share, 1.0)
        self._resize()

    def share(self, task: str, role: str) -> float:
        """Returns our part of a role's caps; of a task's, the mean over its roles, so that all workers' make one."""
        if role != ALL:
            return self._shares[base_role(role)]
        roles = [role for role in ROLES if self._settings.task(task).model(role).model] or list(ROLES)
        return sum(self._shares[role] for role in roles) / len(roles)

    async def acquire(self, task: str, role: str, call: Call, latest_s: float) -> Reservation:
        """Waits for leave to make a call. Raises BudgetHeld where that is later than `latest_s` on the loop's clock,
        or where the case would keep others waiting; OverBudget for a call that no day's cap allows."""
        loop = asyncio.get_running_loop()
        caps = [cap for cap in self.caps(task, role).values() if cap]
        if caps and call.usd > min(caps) + SLACK:
            raise OverBudget(
                f"{role} of {task}: one call may cost {call.usd:.6g} USD, more than the cap of {min(caps):.6g} a day."
            )
        while True:
            got = self.reserve(task, role, call)
            if isinstance(got, Reservation):
                return got
            late = loop.time() + got.wait_s >= latest_s
            if late or (got.wait_s > PATIENT_S and not self.held(role)):
                raise BudgetHeld(f"{base_role(role)} of {task} is held: {got.why}.", got.wait_s)
            self._waiting[task, role] += 1
            try:
                await asyncio.sleep(min(max(got.wait_s, 0.01), 0.5))
            finally:
                self._waiting[task, role] -= 1

    def reserve(self, task: str, role: str, call: Call) -> Reservation | Blocked:
        """Reserves a call, or says why not."""
        self._latest[task, role] = call
        return self._blocked(task, role, call) or self.admit(task, role, call)

    def limits(self, task: str, role: str) -> bool:
        """Tells whether anything limits a task's calls in this role."""
        known = self._limited.get((task, role))
        if known is None:
            budget = self._settings.task(task).budget
            known = self._limited[task, role] = _any(budget) or _any(budget.limits(base_role(role)))
        return known

    def admit(self, task: str, role: str, call: Call) -> Reservation:
        """Reserves a call without asking."""
        if self.limits(task, role):
            for scope in (base_role(role), ALL):
                self._in_flight[task, scope] += 1
                for unit, amount in (("requests", 1), ("tokens", call.tokens)):
                    if window := self._windows.get((task, scope, unit)):
                        window.use(amount)
        account = self.account(task, role)
        account.reserve(call.usd, self.clock())
        if call.usd and self.caps(task, role) and account.free < call.usd * CALLS_AHEAD / 2:
            self.wake()
        return Reservation(self, account, call)

    def charge(self, task: str, role: str, model: str, spend: Spend) -> None:
        """Notes a call that asked for no leave: a probe."""
        call = Call(model, 0, 0, 0.0)
        account = self.account(task, role)
        account.settle(call, spend)

    def held(self, role: str) -> bool:
        """Tells whether no case of this role should be taken: every task's caps are used up."""
        return bool(self._settings.tasks) and all(self.is_held(task, role) for task in self._settings.tasks)

    def is_held(self, task: str, role: str) -> bool:
        """Tells whether the next call of a task's role would have to wait, and notes since when and why."""
        if not self.limits(task, role):
            return False
        call = self._latest.get((task, role))
        blocked = self._blocked(task, role, call) if call else None
        if blocked is None and self._waiting[task, role]:
            return True
        self._note(task, role, blocked)
        return blocked is not None

    def why_held(self, task: str, role: str) -> Held | None:
        """Returns why cases waited when last asked, some seconds ago at most: caps per minute open and close."""
        held = self._held.get((task, role))
        return held if held and self.clock() - held.seen_s < 10 else None

    def day(self) -> str:
        """Returns today's date, UTC."""
        number = self.now_ms() // DAY_MS
        if number != self._today[0]:  # asked for several times a call; writing a date takes 5 µs
            self._today = number, datetime.fromtimestamp(number * DAY_MS / 1000, UTC).strftime("%Y-%m-%d")
        return self._today[1]

    def account(self, task: str, role: str) -> Account:
        """Returns today's account of a role."""
        key = self.day(), task, role
        account = self.accounts.get(key)
        if account is None:
            account = self.accounts[key] = Account(*key[:2], role)
        return account

    def spent_usd(self, task: str, scope: str = ALL) -> float:
        """Returns USD spent today by a role of a task, or by all: ours, and others' as last read from the ledger."""
        day = self.day()
        ours = [one for one in list(self.accounts.values()) if (one.day, one.task) == (day, task)]
        theirs = [one for one in list(self.book.entries.values()) if (one.day, one.task) == (day, task)]
        return sum(one.spent for one in ours if scope in (ALL, base_role(one.role))) + sum(
            one.spent_usd for one in theirs if scope in (ALL, base_role(one.role)) and one.writer != self.writer
        )

    def room(self, account: Account) -> float:
        """Returns USD that the caps leave beyond what is ours and others' already."""
        return min(self._left(account).values(), default=float("inf"))

    def granted(self, account: Account, entry: Entry) -> None:
        """Takes the answer to a claim: the ledger up to our entry has been read, the entry with it.

        What all writers claim up to there is at most the cap, or the excess is not ours to use: see streams.ledger.
        """
        account.outstanding, account.short = None, 0.0  # who still lacks something says so again
        over = 0.0
        for scope, cap in self.caps(account.task, account.role).items():
            over = max(over, self.book.claimed_usd(entry.day, entry.task, scope) - cap)
        usable = max(entry.claimed_usd - over, min(account.usable, entry.claimed_usd))
        account.usable = usable
        if over > SLACK:
            account.dirty, account.written_s = True, float("-inf")  # give the excess back at once

    def _blocked(self, task: str, account: str, call: Call) -> Blocked | None:
        budget, blocked, role = self._settings.task(task).budget, None, base_role(account)
        for scope, limits in ((role, budget.limits(role)), (ALL, budget)):
            whose = f"all roles of {task}" if scope == ALL else f"the {role} of {task}"
            if limits.calls_in_flight is not None:
                most = max(1, int(limits.calls_in_flight * self.share(task, scope)))
                if self._in_flight[task, scope] >= most:
                    blocked = Blocked(f"{whose} may have {limits.calls_in_flight} calls in flight", ASKED_S)
            for unit, amount in (("requests", 1), ("tokens", call.tokens)):
                window = self._windows.get((task, scope, unit))
                wait_s = window.wait_s(amount) if window else 0.0
                if window and wait_s > (blocked.wait_s if blocked else 0.0):
                    most_a_minute = getattr(limits, f"{unit}_per_minute")
                    blocked = Blocked(f"{whose} may use {most_a_minute} {unit} a minute", wait_s)
        return self._out_of_money(task, account, call) or blocked

    def _out_of_money(self, task: str, role: str, call: Call) -> Blocked | None:
        caps = self.caps(task, role)
        if not caps:
            return None
        account = self.account(task, role)
        if account.fits(call.usd):
            return None
        short = call.usd - account.free
        account.call_usd, room = call.usd, self.room(account)
        asked = account.claimed - account.usable  # for and not granted yet
        if short > room + asked + SLACK:
            account.short = 0.0
            scope = min(caps, key=lambda one: caps[one])
            whose = f"all roles of {task}" if scope == ALL else f"the {base_role(role)} of {task}"
            left = max(room + asked, 0.0)
            why = f"{whose} may spend {caps[scope]:.6g} USD a day, of which {left:.6g} are left unclaimed"
            if self._under_way(account, short - asked):
                return Blocked(f"{why}; calls under way may cost less than is kept for them", SETTLED_S)
            if self._lent(account) > short - room - asked:
                return Blocked(f"{why}; others give back what they do not use", LENT_S)
            left_s = (DAY_MS - self.now_ms() % DAY_MS) / 1000
            return Blocked(f"{why}; the next day begins at 00:00 UTC", left_s)
        if not self.kept:
            account.usable += short
            return None
        account.short = short
        self.wake()
        return Blocked(f"the {base_role(role)} of {task} waits for the ledger to grant {short:.6g} USD", ASKED_S)

    def _left(self, account: Account) -> dict[str, float]:
        """Returns USD that each cap leaves, by its scope."""
        return {
            scope: cap
            - sum(one.claimed for one in self._ours(account, scope))
            - self.book.claimed_usd(account.day, account.task, scope, besides=self.writer)
            for scope, cap in self.caps(account.task, account.role).items()
        }

    def _under_way(self, account: Account, short: float) -> bool:
        """Tells whether what is kept for this worker's calls under way may be enough, should it come back: a call is
        kept what it may take at most, and most take less."""
        return all(
            left + sum(one.reserved for one in self._ours(account, scope)) >= short - SLACK
            for scope, left in self._left(account).items()
        )

    def _ours(self, account: Account, scope: str) -> list[Account]:
        """Returns this worker's accounts of an account's day and task that count against a cap."""
        day, task = account.day, account.task
        return [
            one
            for one in self.accounts.values()
            if (one.day, one.task) == (day, task) and scope in (ALL, base_role(one.role))
        ]

    def _lent(self, account: Account) -> float:
        """Returns USD that other workers and roles claim, have not spent and may soon give back."""
        fresh_ms = self.now_ms() - LENT_FRESH_MS
        return sum(
            entry.claimed_usd - entry.spent_usd
            for entry in self.book.entries.values()
            if (entry.day, entry.task) == (account.day, account.task)
            and (entry.role, entry.writer) != (account.role, self.writer)
            and entry.at_ms > fresh_ms
            and not entry.closed
        )

    def _settle(self, account: Account, call: Call, spend: Spend | None, free: bool) -> None:
        account.settle(call, spend, free)
        if not self.limits(account.task, account.role):
            return
        used = call.tokens if spend is None else spend.prompt_tokens + spend.completion_tokens
        for scope in (base_role(account.role), ALL):
            self._in_flight[account.task, scope] -= 1
            window = self._windows.get((account.task, scope, "tokens"))
            if window and used != call.tokens:
                window.use(used - call.tokens)

    def caps(self, task: str, role: str) -> dict[str, float]:
        """Returns the caps in money that a role's calls count against: its own, and under ALL the task's."""
        budget, role = self._settings.task(task).budget, base_role(role)
        caps = {role: budget.limits(role).usd_per_day, ALL: budget.usd_per_day}
        return {scope: cap for scope, cap in caps.items() if cap is not None}

    def _resize(self) -> None:
        for name, task in self._settings.tasks.items():
            for scope in (*ROLES, ALL):
                limits = task.budget if scope == ALL else getattr(task.budget, scope)
                for unit in ("requests", "tokens"):
                    limit = getattr(limits, f"{unit}_per_minute")
                    if limit is not None:
                        window = self._windows.setdefault((name, scope, unit), Window(self.clock))
                        window.resize(limit * self.share(name, scope))

    def _note(self, task: str, role: str, blocked: Blocked | None) -> None:
        """Says once that a role's cases wait, and once that they go on; caps of a minute once a minute."""
        key, now = (task, role), self.clock()
        before = self._held.get(key)
        if blocked is None or blocked.wait_s in (ASKED_S, SETTLED_S):  # what is under way is no hold
            if before and now - before.seen_s > 10:
                del self._held[key]
                log.warning("%s of %s goes on after %.0f s", role, task, (self.now_ms() - before.since_ms) / 1000)
        else:
            since_ms = before.since_ms if before else self.now_ms()
            self._held[key] = Held(blocked.why, since_ms, now)
            kind = "money" if "USD" in blocked.why else "minute"
            if now - self._said.get((*key, kind), float("-inf")) > (SAY_EVERY_S if kind == "minute" else 3600):
                self._said[*key, kind] = now
                log.warning("%s of %s is held: %s. Its cases wait in Kafka", role, task, blocked.why)


def _any(limits: Limits) -> bool:
    return any(
        value is not None
        for value in (
            limits.requests_per_minute,
            limits.tokens_per_minute,
            limits.usd_per_day,
            limits.calls_in_flight,
        )
    )
