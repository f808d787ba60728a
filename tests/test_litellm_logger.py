"""Claims about the LiteLLM callback: one record a call, no call that waits, every loss counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from kafka import TopicPartition
from steps import until

from agents.providers import load_litellm
from schemas.settings import Settings
from streams.lookup import make_reader, read_ranges
from streams.topics import ensure_source_topic

NOWHERE = "127.0.0.1:9"


@pytest.fixture
def make_logger() -> Callable[..., Any]:
    """Gives the class; LiteLLM is imported as all others do it."""
    load_litellm()
    from streams.litellm_logger import KafkaLogger

    return KafkaLogger


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings()


@pytest.fixture
def topic(settings: Settings) -> str:
    name = f"logged-{settings.kafka.topic_prefix}x"
    ensure_source_topic(settings, name, partitions=1)
    return name


def logged(settings: Settings, topic: str) -> list[dict[str, Any]]:
    reader = make_reader(settings)
    try:
        where = TopicPartition(topic, 0)
        end = reader.end_offsets([where])[where]
        return [json.loads(record.value) for record in read_ranges(reader, {where: (0, end)})]
    finally:
        reader.close()


PRODUCT = """
import asyncio, sys, time
import litellm
from streams.litellm_logger import KafkaLogger

ask = {"model": "openai/gpt-4o-mini", "messages": [{"role": "user", "content": "Is it raining?"}]}
logger = KafkaLogger(sys.argv[1], sys.argv[2])
litellm.callbacks = [logger]

async def calls():
    await litellm.acompletion(**ask, mock_response="yes, awaited")
    async for _ in await litellm.acompletion(**ask, mock_response="yes, streamed", stream=True):
        pass
    try:
        await litellm.acompletion(**ask, mock_response="litellm.RateLimitError", num_retries=0)
    except litellm.RateLimitError:
        pass
    await asyncio.sleep(2)  # LiteLLM calls back when it comes to it

asyncio.run(calls())
litellm.completion(**ask, mock_response="yes, at once")
time.sleep(2)
logger.close(30)
print(logger.sent, logger.dropped)
"""


def test_every_call_is_one_record_answered_or_failed_awaited_streamed_or_not(settings: Settings, topic: str) -> None:
    product = subprocess.run(
        [sys.executable, "-c", PRODUCT, topic, settings.kafka.bootstrap_servers],
        env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    )
    records = logged(settings, topic)
    assert sorted(record["status"] for record in records) == ["failure", "success", "success", "success"]
    answers = [r["response"]["choices"][0]["message"]["content"] for r in records if r["status"] == "success"]
    assert sorted(answers) == ["yes, at once", "yes, awaited", "yes, streamed"]
    assert all(record["messages"] == [{"role": "user", "content": "Is it raining?"}] for record in records)
    assert len({record["litellm_call_id"] for record in records}) == 4
    assert product.stdout.split()[-2:] == ["4", "0"]


def test_without_a_broker_calls_go_on_and_what_the_queue_cannot_hold_is_counted(
    make_logger: Callable[..., Any],
) -> None:
    logger = make_logger("nowhere", NOWHERE, queue_records=3, bootstrap_timeout_ms=100)
    for number in range(5):
        logger.log_success_event({"standard_logging_object": {"id": number}}, None, None, None)
    assert logger.dropped == 2
    logger.close(timeout_s=5)
    assert (logger.sent, logger.dropped) == (0, 5)
    logger.log_success_event({"standard_logging_object": {"id": 5}}, None, None, None)
    assert logger.dropped == 6


def test_what_waits_when_the_program_ends_is_sent(
    make_logger: Callable[..., Any], settings: Settings, topic: str
) -> None:
    logger = make_logger(topic, settings.kafka.bootstrap_servers)
    for number in range(50):
        logger.log_success_event({"standard_logging_object": {"n": number, "at": object}}, None, None, None)
    logger.close(timeout_s=30)
    assert (logger.sent, logger.dropped) == (50, 0)
    assert [record["n"] for record in logged(settings, topic)] == list(range(50))


def test_what_is_no_payload_or_has_no_topic_is_counted(make_logger: Callable[..., Any], settings: Settings) -> None:
    logger = make_logger("", settings.kafka.bootstrap_servers)
    logger.log_failure_event({}, None, None, None)
    assert logger.dropped == 1
    logger.log_success_event({"standard_logging_object": {"n": 1}}, None, None, None)
    until(lambda: logger.dropped == 2)
    logger.close()
