"""Delayed retries: how long a case waits on a retry topic."""

from __future__ import annotations

import pytest

from streams.retries import wait_s

NOW = 1_790_000_000_000
HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("not_before_ms", "waits_s"),
    [(NOW + 7_000, 7.0), (NOW - 1, 0.0), (NOW + HOUR_MS, 10.0), (NOW - HOUR_MS, 0.0), (0, 0.0)],
)
def test_a_wrong_clock_never_makes_a_case_wait_longer_than_its_topic_does(not_before_ms: int, waits_s: float) -> None:
    assert wait_s(not_before_ms, NOW, delay_s=10) == waits_s
