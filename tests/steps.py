"""Moving cases by hand on the real broker: intake and sink in a thread, cases put where a stage would put them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from factory_settings import process_options
from kafka import KafkaProducer, OffsetAndMetadata, TopicPartition
from pipeline import STUB_TASK
from waiting import wait_until

from goldstream import cli
from schemas.case import Case, decode_case, encode_case
from schemas.kafka import client_options
from schemas.settings import Settings
from streams.clients import make_consumer
from streams.intake import run_intake
from streams.lag import LagReader
from streams.lookup import make_reader, read_ranges
from streams.sink import run_sink
from streams.topics import create_topics, ensure_source_topic

Make = Callable[..., Settings]


def start(make_settings: Make, topic: str, *overrides: str) -> Settings:
    settings = make_settings(STUB_TASK.format(topic=topic, api_base="http://127.0.0.1:9"), *overrides)
    create_topics(settings)
    ensure_source_topic(settings, topic, partitions=1)
    return settings


@contextlib.contextmanager
def running(run: Callable[[threading.Event, Callable[[], None]], None]) -> Iterator[None]:
    """Runs intake, the sink or what else a process does in a thread."""
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=run, args=(stop, ready.set))
    thread.start()
    try:
        assert ready.wait(60)
        yield
    finally:
        stop.set()
        thread.join(60)


def take_in(settings: Settings) -> None:
    """Runs intake until it has read everything."""
    with running(lambda stop, ready: run_intake(settings, stop, ready)), LagReader(settings) as lag:
        until(lambda: all(row.committed >= 0 and not row.lag for row in lag.read() if row.group == "intake"))


def sink_all(settings: Settings) -> None:
    """Runs the sink until every outcome has landed."""
    with running(lambda stop, ready: run_sink(settings, stop=stop, ready=ready)), LagReader(settings) as lag:
        until(lambda: not any(row.lag for row in lag.read() if row.group == "sink"))


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Waits until `condition` holds, which asks Kafka."""
    wait_until(condition, timeout_s, every_s=0.1)


def cases_on(settings: Settings, name: str) -> list[Case]:
    """Returns every case on a topic of ours."""
    reader = make_reader(settings)
    try:
        tps = [TopicPartition(settings.topic(name), p) for p in reader.partitions_for_topic(settings.topic(name))]
        ends = reader.end_offsets(tps)
        found = [decode_case(record.value) for record in read_ranges(reader, {tp: (0, ends[tp]) for tp in tps})]
        return sorted(found, key=lambda case: case.source.offset)
    finally:
        reader.close()


def put(settings: Settings, name: str, *cases: Case) -> None:
    """Produces cases to a topic of ours."""
    producer = KafkaProducer(**client_options(settings), acks="all")
    for case in cases:
        producer.send(settings.topic(name), key=case.case_id.encode(), value=encode_case(case)).get(timeout=30)
    producer.close(timeout=5)


def commit_to_the_end(settings: Settings, group: str, name: str) -> None:
    """Makes a stage's group believe that it has finished its topic."""
    consumer = make_consumer(settings, group)
    tps = [TopicPartition(settings.topic(name), p) for p in consumer.partitions_for_topic(settings.topic(name))]
    consumer.assign(tps)
    consumer.commit({tp: OffsetAndMetadata(end, "", -1) for tp, end in consumer.end_offsets(tps).items()})
    consumer.close()


def command_line(settings: Settings, tmp_path: Path, *command: str) -> Any:
    return CliRunner().invoke(cli, [*command, *process_options(settings, tmp_path / "goldstream.toml")])
