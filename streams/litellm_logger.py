"""A LiteLLM callback that logs every call to a Kafka topic, for products that do not log to Kafka yet.

In a program:   litellm.callbacks = [KafkaLogger("prod.scribe.chat", "kafka:9092")]
In the proxy:   litellm_settings: {callbacks: streams.litellm_logger.kafka_logger}, with the topic in
                GOLDSTREAM_LOG_TOPIC and the brokers in GOLDSTREAM_LOG_BOOTSTRAP_SERVERS.

What it logs is LiteLLM's StandardLoggingPayload, which intake reads as it is. It never makes a call wait: a callback
encodes the payload and puts it into a bounded queue, which a thread empties. What finds the queue full, cannot be
encoded or is refused by Kafka is dropped and counted.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
from typing import Any

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError
from litellm.integrations.custom_logger import CustomLogger

from schemas.kafka import construct

log = logging.getLogger(__name__)

QUEUE_RECORDS = 10_000
IDLE_S = 0.2  # how soon the thread sees that the program ends
RETRY_S = 2.0  # between attempts to reach a broker that has not answered yet
TOPIC, SERVERS = "GOLDSTREAM_LOG_TOPIC", "GOLDSTREAM_LOG_BOOTSTRAP_SERVERS"


class KafkaLogger(CustomLogger):  # type: ignore[misc]  # litellm's base carries no types
    """Sends each finished call, failed ones too, to `topic`. The thread begins with the first call.

    `options` go to kafka-python's KafkaProducer as they are, for security and the like. `sent` and `dropped` count
    records; a record counts as sent once all in-sync replicas have it.
    """

    def __init__(
        self, topic: str = "", bootstrap_servers: str = "", *, queue_records: int = QUEUE_RECORDS, **options: Any
    ) -> None:
        super().__init__()
        self.topic, self._servers = topic, bootstrap_servers
        self._options = {"acks": "all", "linger_ms": 50, "max_block_ms": 10_000} | options
        self.sent = self.dropped = 0
        self._counting = threading.Lock()
        self._queue: queue.Queue[bytes] = queue.Queue(queue_records)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = threading.Event()

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Logs an answered call of LiteLLM's async functions."""
        self._put(kwargs)

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Logs a failed call of LiteLLM's async functions."""
        self._put(kwargs)

    def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Logs an answered call."""
        self._put(kwargs)

    def log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """Logs a failed call."""
        self._put(kwargs)

    def close(self, timeout_s: float = 5.0) -> None:
        """Sends what waits, for at most `timeout_s`; the rest is dropped. The program's end does it too."""
        self._closed.set()
        if self._thread is None:
            return
        self._thread.join(timeout_s)
        self._count(dropped=len(_emptied(self._queue)))

    def _put(self, kwargs: Any) -> None:
        payload = kwargs.get("standard_logging_object") if isinstance(kwargs, dict) else None
        if payload is None or self._closed.is_set():
            self._count(dropped=1)
            return
        try:
            self._queue.put_nowait(msgspec.json.encode(payload, enc_hook=str))
        except (queue.Full, TypeError, ValueError, RecursionError):
            self._count(dropped=1)
            return
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="goldstream-log", daemon=True)
                self._thread.start()
                atexit.register(self.close)

    def _run(self) -> None:
        producer = self._connected()
        while producer is not None:
            try:
                value = self._queue.get(timeout=IDLE_S)
            except queue.Empty:
                if self._closed.is_set():
                    break
                continue
            try:
                future = producer.send(self.topic or os.environ.get(TOPIC, ""), value=value)
                future.add_both(self._settled)
            except (KafkaError, AssertionError, ValueError) as error:  # ValueError: no topic is named
                self._count(dropped=1)
                log.warning("a call was not logged: %s", type(error).__name__)
        if producer is not None:
            producer.close(timeout=5)

    def _connected(self) -> Any:
        """Returns a producer once a broker answers; None where the program ends before."""
        servers = self._servers or os.environ.get(SERVERS, "localhost:9092")
        told = False
        while not self._closed.is_set():
            try:
                return construct(KafkaProducer, bootstrap_servers=servers.split(","), **self._options)
            except KafkaError as error:
                if not told:
                    log.warning("no Kafka answers at %s (%s); calls are kept until the queue is full", servers, error)
                    told = True
                self._closed.wait(RETRY_S)
        return None

    def _settled(self, result: Any) -> None:
        if isinstance(result, BaseException):
            self._count(dropped=1)
        else:
            self._count(sent=1)

    def _count(self, *, sent: int = 0, dropped: int = 0) -> None:
        with self._counting:
            if dropped and not self.dropped:
                log.warning("calls are dropped rather than logged; KafkaLogger.dropped counts them")
            self.sent += sent
            self.dropped += dropped


def _emptied(waiting: queue.Queue[bytes]) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(waiting.get_nowait())
        except queue.Empty:
            return found


kafka_logger = KafkaLogger()
