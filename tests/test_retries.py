"""Delayed retries: how long a case waits on a retry topic, and that it is kept there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from kafka import TopicPartition

from schemas.case import Case, Source, encode_case
from schemas.settings import Settings
from schemas.topics import PROMPTS, retry_topic
from streams.clients import make_consumer, make_producer
from streams.flow import now_ms
from streams.retries import run_retries, wait_s
from streams.topics import create_topics

NOW = 1_790_000_000_000
HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("not_before_ms", "waits_s"),
    [(NOW + 7_000, 7.0), (NOW - 1, 0.0), (NOW + HOUR_MS, 10.0), (NOW - HOUR_MS, 0.0), (0, 0.0)],
)
def test_a_wrong_clock_never_makes_a_case_wait_longer_than_its_topic_does(not_before_ms: int, waits_s: float) -> None:
    assert wait_s(not_before_ms, NOW, delay_s=10) == waits_s


def test_what_waits_is_kept_when_another_process_joins_and_leaves(make_settings: Callable[..., Settings]) -> None:
    settings = make_settings("", "kafka.partitions=2", "worker.retry_delays_s=[6]")
    create_topics(settings)
    sent = {f"waiting-{number}" for number in range(20)}
    found: set[str] = set()
    with _retries(settings), make_consumer(settings) as reader:
        _send_to_wait(settings, sent, 6)
        time.sleep(1)  # they are read, and wait in the buffers of a process that holds both partitions
        with _retries(settings):  # it takes one of them, and gives it back
            pass
        reader.assign([TopicPartition(settings.topic(PROMPTS), partition) for partition in range(2)])
        reader.seek_to_beginning()
        deadline = time.monotonic() + 30
        while found != sent and time.monotonic() < deadline:
            found |= {record.key.decode() for part in reader.poll(timeout_ms=200).values() for record in part}
    assert sorted(sent - found) == []


def _send_to_wait(settings: Settings, names: Collection[str], delay_s: int) -> None:
    with make_producer(settings, "test") as producer:
        for number, name in enumerate(sorted(names)):
            source = Source(cluster="c", topic="logs", partition=0, offset=number)
            due_ms = now_ms() + 1000 * delay_s
            case = Case(
                case_id=name, task="toy", split="train", source=source, retry_stage="student", not_before_ms=due_ms
            )
            producer.send(settings.topic(retry_topic(delay_s)), key=name.encode(), value=encode_case(case))


@contextmanager
def _retries(settings: Settings) -> Iterator[None]:
    """Runs `goldstream retries` in a thread until the block is left."""
    stop, ready = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_retries, settings, stop, ready.set)
        try:
            assert ready.wait(30)
            yield
        finally:
            stop.set()
            running.result(30)
