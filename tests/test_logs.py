"""What a process says of what goes on and on."""

from __future__ import annotations

import logging

import pytest

from schemas.logs import LIBRARIES, Seldom, log_to_stderr


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


def test_a_library_that_finds_the_machine_busy_keeps_it_to_itself(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    selector, manager = logging.getLogger("kafka.net.selector"), logging.getLogger("kafka.net.manager")
    before = {one: one.level for one in (selector, *map(logging.getLogger, LIBRARIES))}
    monkeypatch.delenv("GOLDSTREAM_LOG_LIBRARIES", raising=False)
    try:
        log_to_stderr()
        selector.warning("Task ran for 0.137s (>0.100s threshold)")
        manager.warning("Connection failed")
    finally:
        for one, level in before.items():
            one.setLevel(level)
    assert caplog.messages == ["Connection failed"]


def test_a_socket_that_closes_while_it_is_read_is_one_line_and_a_mistake_of_ours_is_told_whole() -> None:
    def told(name: str) -> str:
        why = AttributeError("'NoneType' object has no attribute 'recv'")
        record = logging.LogRecord(name, logging.ERROR, "f", 1, "closing", (), (AttributeError, why, None))
        assert Seldom().filter(record)
        return logging.Formatter().format(record)

    assert told("kafka.net.transport") == "closing"
    assert "has no attribute" in told("mode.worker")
    assert "has no attribute" in told("streams.intake")
