"""What a process says of what goes on and on."""

from __future__ import annotations

import logging

from schemas.logs import Seldom


def test_a_library_says_the_same_thing_twice_a_minute_and_we_whenever_we_like() -> None:
    now = 0.0
    seldom = Seldom(lambda: now)

    def shown(name: str, text: str, *arguments: object) -> bool:
        return seldom.filter(logging.LogRecord(name, logging.ERROR, "f", 1, text, arguments, None))

    assert shown("kafka.net.manager", "Connection failed: %s", "refused")
    assert not shown("kafka.net.manager", "Connection failed: %s", "refused again")
    assert shown("kafka.cluster", "No node available")
    assert shown("streams.intake", "not confirmed")
    assert shown("streams.intake", "not confirmed")
    now = 31.0
    assert shown("kafka.net.manager", "Connection failed: %s", "refused")
