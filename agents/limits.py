"""How much may be asked within a minute: a window that slides over the last 60 s. Pure, the clock is an argument."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

MINUTE_S = 60


class Window:
    """Counts what was used within the last minute against a limit.

    - In no 60 s is more used than the limit; one use larger than it goes through where nothing else was used.
    - Room that is new to this process (its start, a larger share after a rebalance) comes evenly over a minute, for
      others may have used it within the last: a restart is no way around a limit.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.limit = 0.0
        self._used = 0.0
        self._bins: deque[tuple[int, float]] = deque()  # (second, amount), oldest first

    def resize(self, limit: float) -> None:
        """Changes the limit; what it grows by counts as used, spread over the last minute, but for its last 60th."""
        grown = limit - self.limit
        self.limit = limit
        if grown > 0:
            now = int(self._clock())
            amounts = dict(self._bins)
            each = grown / MINUTE_S
            for second in range(now - MINUTE_S + 1, now):
                amounts[second] = amounts.get(second, 0.0) + each
            self._bins = deque(sorted(amounts.items()))
            self._used = sum(amount for _, amount in self._bins)
            self._leave_room(1.0)

    def wait_s(self, amount: float) -> float:
        """Returns the seconds until this amount fits, 0 where it does."""
        now = self._clock()
        self._expire(now)
        excess = self._used + amount - self.limit
        if excess <= 1e-9 or self._used <= 1e-9:
            return 0.0
        for second, used in self._bins:
            excess -= used
            if excess <= 1e-9:
                return max(second + MINUTE_S + 1 - now, 0.0)
        return max(self._bins[-1][0] + MINUTE_S + 1 - now, 0.0)

    def use(self, amount: float) -> None:
        """Notes a use; a negative amount gives back what was taken too much."""
        second = int(self._clock())
        self._used += amount
        if self._bins and self._bins[-1][0] == second:
            self._bins[-1] = second, self._bins[-1][1] + amount
        else:
            self._bins.append((second, amount))

    def _expire(self, now: float) -> None:
        while self._bins and self._bins[0][0] + MINUTE_S + 1 <= now:
            self._used -= self._bins.popleft()[1]
        if not self._bins:
            self._used = 0.0

    def _leave_room(self, amount: float) -> None:
        """Takes so much off the oldest seconds that one small use fits at once: nobody waits a minute for the first."""
        while self._bins and self._used + amount > self.limit:
            second, held = self._bins.popleft()
            taken = min(held, self._used + amount - self.limit)
            self._used -= taken
            if held > taken:
                self._bins.appendleft((second, held - taken))
                break
