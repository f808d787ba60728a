"""A circuit breaker for one model endpoint: decides when it may be called, from what its calls came to.

Pure: no I/O, the clock is an argument. agents.models keeps one per endpoint, obeys it and asks the probes.

    closed ── N cases in a row fail, a 429, a probe that fails ──> open for a cool-down
    open ── cool-down over, one probe: answered ──> closed;  failed ──> open, for longer
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

FIRST_S = 1.0  # the first cool-down; each that follows soon doubles
ASKED_AT_MOST_S = 3600.0  # a Retry-After beyond it is a mistake of the server's
LATELY_S = 5.0  # an answer this fresh says that the endpoint is up
LIMIT_MEMORY_S = 60.0


class Breaker:
    """What is known of one endpoint.

    - One case that always fails while others are answered never opens it: it counts cases in a row, not calls.
    - A 429 opens it at once, for what Retry-After asks or for a cool-down.
    - A cool-down doubles up to `longest_s` if the one before ended a short while ago and at most as many calls were
      answered since as went wrong: an endpoint that answers up to its limit, or most of its callers, is used for what
      it can do. Jitter keeps processes apart.
    """

    def __init__(
        self,
        failures: int = 5,
        longest_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(0.5, 1.0),
    ) -> None:
        self._failures, self._longest_s, self._clock, self._jitter = failures, longest_s, clock, jitter
        self._until: float | None = None  # end of the cool-down; None while closed
        self._limited = False  # opened by a 429: an older call's answer does not end it
        self._failing: set[str] = set()  # cases that failed since the last answer
        self._limited_cases: dict[str, tuple[float, bool]] = {}  # the last two: when, and if again despite an answer
        self._answered_at = float("-inf")
        self._closed_at = float("-inf")
        self._good = self._bad = 0  # calls for cases since it closed
        self._pause_s = 0.0  # the last cool-down, before jitter

    @property
    def is_open(self) -> bool:
        """Tells whether only probes may be sent."""
        return self._until is not None

    @property
    def wait_s(self) -> float:
        """Seconds until the next probe is due; 0 while closed."""
        return 0.0 if self._until is None else max(0.0, self._until - self._clock())

    @property
    def answered_lately(self) -> bool:
        """Tells whether the endpoint has answered somebody a moment ago."""
        return self._clock() - self._answered_at < LATELY_S

    def limits_only(self, case_id: str) -> bool:
        """Tells whether a case's 429 is its own fault: somebody was answered since the one before, and no other case
        was limited within the last minute."""
        after = self._clock() - LIMIT_MEMORY_S
        others = any(at > after for case, (at, _) in self._limited_cases.items() if case != case_id)
        return not others and self._limited_cases.get(case_id, (0.0, False))[1]

    def succeeded(self) -> None:
        """Notes that the endpoint has answered a case, well or badly."""
        self._answered_at = self._clock()
        self._good += 1
        self._failing.clear()
        if self._until is not None and not self._limited:
            self._close()

    def failed(self, case_id: str) -> None:
        """Notes that a call for this case has failed in a way that may pass."""
        self._failing.add(case_id)
        self._bad += 1
        if self._until is None and len(self._failing) >= self._failures:
            self._open()

    def limited(self, case_id: str, retry_after_s: float | None = None) -> None:
        """Notes a 429 for this case."""
        before = self._limited_cases.pop(case_id, None)
        again = before is not None and self._answered_at > before[0]
        self._limited_cases[case_id] = self._clock(), again
        if len(self._limited_cases) > 2:
            del self._limited_cases[next(iter(self._limited_cases))]
        if self._until is None:
            self._limited = True
            self._bad += 1
            self._open(retry_after_s)
        elif retry_after_s is not None:  # one of many calls under way at once: the pause does not grow by each
            self._until = max(self._until, self._clock() + min(retry_after_s, ASKED_AT_MOST_S))

    def probe_succeeded(self) -> None:
        """Notes that the endpoint has answered a probe."""
        self._answered_at = self._clock()
        self._failing.clear()
        if self._until is not None:
            self._close()

    def probe_failed(self, retry_after_s: float | None = None) -> None:
        """Notes that a probe has failed: opens, or stays open for longer."""
        self._open(retry_after_s)

    def _open(self, retry_after_s: float | None = None) -> None:
        now = self._clock()
        relapsed = now - self._closed_at <= self._pause_s and self._good <= self._bad
        again = self._until is not None or relapsed
        self._pause_s = min(self._pause_s * 2, self._longest_s) if again else min(FIRST_S, self._longest_s)
        cool_down_s = self._pause_s * self._jitter()
        self._until = now + max(cool_down_s, min(retry_after_s or 0.0, ASKED_AT_MOST_S))

    def _close(self) -> None:
        self._until, self._limited, self._closed_at = None, False, self._clock()
        self._good = self._bad = 0
