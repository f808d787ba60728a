"""Spans on their way to the collector: a bounded queue and a thread, so that one that is down costs spans alone.

schemas.tracing.sdk puts it behind the SDK. What could not be sent is counted in goldstream_tracing_spans_total and said
once an outage.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from schemas.measures import TRACING_SPANS

log = logging.getLogger(__name__)

MOST_WAITING = 8192  # some 20 MB
BATCH = 256  # turning a larger one into bytes would hold up a worker's event loop
EVERY_S = 1.0
CLOSE_S = 3.0  # that a process waits at its end


class Outbox(SpanProcessor):
    """Takes ended spans and sends them in batches."""

    def __init__(self, exporter: SpanExporter, most_waiting: int = MOST_WAITING, close_s: float = CLOSE_S) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # a line a try otherwise
        self.counts = {"sent": 0, "failed": 0, "queue_full": 0}
        self._exporter, self._most_waiting, self._close_s = exporter, most_waiting, close_s
        self._waiting: deque[ReadableSpan] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._is_down = self._sending = False
        TRACING_SPANS.read_from(lambda: {(result,): count for result, count in self.counts.items()})
        self._thread = threading.Thread(target=self._run, name="tracing", daemon=True)
        self._thread.start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing to do."""

    def on_end(self, span: ReadableSpan) -> None:
        """Takes a span; never waits. Called from any thread."""
        with self._lock:
            if len(self._waiting) >= self._most_waiting or self._closing:
                self.counts["queue_full"] += 1
                return
            self._waiting.append(span)
            is_due = len(self._waiting) >= BATCH
        if is_due:
            self._wake.set()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Waits until everything was sent or given up; returns whether it was within the time."""
        deadline = time.monotonic() + timeout_millis / 1000
        self._wake.set()
        while time.monotonic() < deadline:
            if not self._waiting and not self._sending:
                return True
            time.sleep(0.01)
        return False

    def shutdown(self) -> None:
        """Sends what waits, within CLOSE_S; what is left then counts as failed."""
        self._closing = True
        self._wake.set()
        self._thread.join(self._close_s)
        self._exporter.shutdown()  # ends a pause between two tries
        self._thread.join(0.5)
        with self._lock:
            self.counts["failed"] += len(self._waiting)
            self._waiting.clear()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(EVERY_S)
            self._wake.clear()
            while batch := self._next_batch():
                self._send(batch)
                if self._is_down and not self._closing:
                    break  # the next try is a while away; what comes meanwhile waits, then is counted
        deadline = time.monotonic() + self._close_s
        while time.monotonic() < deadline and (batch := self._next_batch()):
            self._send(batch)
            if self._is_down:
                break

    def _next_batch(self) -> list[ReadableSpan]:
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            self._sending = bool(batch)
        return batch

    def _send(self, batch: list[ReadableSpan]) -> None:
        try:
            is_sent = self._exporter.export(batch) is SpanExportResult.SUCCESS
        except Exception as error:  # nothing of a collector's may reach a case
            log.debug("tracing: %s", type(error).__name__)
            is_sent = False
        with self._lock:
            self.counts["sent" if is_sent else "failed"] += len(batch)
            self._sending = False
        if not is_sent and not self._is_down:
            log.warning(
                "the collector at tracing.endpoint takes no spans; they are dropped and counted in "
                "goldstream_tracing_spans_total until it does. Cases go on."
            )
        elif is_sent and self._is_down:
            log.info(
                "the collector takes spans again; %d were dropped", sum(self.counts.values()) - self.counts["sent"]
            )
        self._is_down = not is_sent
