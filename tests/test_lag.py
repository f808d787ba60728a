"""Claims about `goldstream lag`: how far, how fast, how old, and who reads."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.errors import (
    CoordinatorLoadInProgressError,
    GroupAuthorizationFailedError,
    KafkaError,
    NotCoordinatorError,
)
from steps import command_line, start, until

from schemas.kafka import client_options
from schemas.settings import Settings
from schemas.tables import to_json
from streams.backlog import Backlog, BacklogReader, totals
from streams.intake import run_intake
from streams.lag import LagReader, once_loaded

LOG = "logs-lag"


def log_records(settings: Settings, count: int, age_s: float = 0.0) -> None:
    producer = KafkaProducer(**client_options(settings), acks="all")
    for _ in range(count):
        producer.send(LOG, value=b"{}", timestamp_ms=int((time.time() - age_s) * 1000))
    producer.close(timeout=10)


def of_group(rows: list[Backlog], group: str) -> list[Backlog]:
    return [row for row in rows if row.group == group]


def test_the_backlog_of_the_products_own_topic_tells_its_age_trend_and_reader(
    make_settings: Callable[..., Settings],
) -> None:
    settings = start(make_settings, LOG, "intake.start_at=earliest")
    log_records(settings, 5, age_s=120)
    with BacklogReader(settings) as reader:
        (first,) = of_group(reader.read(), "intake")
        assert (first.topic, first.end, first.committed, first.lag, first.trend) == (LOG, first.end, None, 5, None)
        assert first.oldest_s is not None
        assert 119 < first.oldest_s < 240
        assert (first.member, first.members) == ("", 0)
        log_records(settings, 20)
        (grown,) = of_group(reader.read(), "intake")
        assert (grown.lag, grown.end) == (25, first.end + 20)
        assert grown.trend is not None
        assert grown.trend > 0

        stop = threading.Event()
        thread = threading.Thread(target=run_intake, args=(settings, stop))
        thread.start()
        try:
            with LagReader(settings) as lag:
                until(lambda: lag.by_group()["intake"] == 0 and lag.read()[0].committed > 0)
            (done,) = of_group(reader.read(), "intake")
        finally:
            stop.set()
            thread.join(60)
    assert (done.lag, done.committed, done.oldest_s, done.members) == (0, done.end, None, 1)
    assert done.trend is not None
    assert done.trend < 0
    assert "intake" in done.member


def test_totals_are_per_group_with_the_oldest_of_all(make_settings: Callable[..., Settings], tmp_path: Path) -> None:
    row = Backlog("judge", "gs.attempts", 0, 10, 4, 6, 1.5, 30.0, "a", 2)
    other = row._replace(partition=1, lag=2, trend=-1.0, oldest_s=None, member="b")
    never = row._replace(group="sink", topic="gs.outcomes", trend=None, oldest_s=None, member="", members=0)
    assert totals([row, other, never]) == [["judge", 1, 8, 0.5, 30.0, 2], ["sink", 1, 6, None, None, 0]]


def test_the_command_prints_one_group_and_refuses_one_that_does_not_exist(
    make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    settings = start(make_settings, LOG)
    shown = command_line(settings, tmp_path, "lag", "--group", "sink", "--json", "--every", "0.2")
    rows = json.loads(shown.output)
    assert {row["group"] for row in rows} == {"sink"}
    assert [row["lag"] for row in rows] == [0] * len(rows)
    assert rows[0]["trend"] == 0.0
    assert to_json(["lag", "member"], [[1, "a  b"]], indent=-1) == '[{"lag":1,"member":"a  b"}]', (
        "one line, for --watch"
    )
    wrong = command_line(settings, tmp_path, "lag", "--group", "nobody")
    assert "expected one of intake, student" in str(wrong.exception)


@pytest.mark.parametrize("passing", [CoordinatorLoadInProgressError, NotCoordinatorError])
def test_a_group_that_its_broker_still_loads_is_asked_for_again(passing: type[KafkaError]) -> None:
    answers: list[Any] = [passing(), passing(), {"gs.judge": {}}]

    def ask() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, KafkaError):
            raise answer
        return answer

    assert once_loaded(ask) == {"gs.judge": {}}
    answers[:] = [passing(), passing()]
    with pytest.raises(passing):
        once_loaded(ask, within_s=0.0)
    answers[:] = [GroupAuthorizationFailedError()]
    with pytest.raises(GroupAuthorizationFailedError):
        once_loaded(ask)
