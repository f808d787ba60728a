"""The exporter as a process: reads lag, the gold set and the training side in the background, and shows the latest.

A scrape asks nobody and costs nothing but its text. Each reading has a thread of its own, so that a slow one delays
no other, and rests at least nine times as long as it took.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from schemas.errors import GoldstreamError
from schemas.settings import Settings
from schemas.topics import ADAPTERS, COMMANDS
from streams.exporter import families as f
from streams.exporter.gold import GoldReading
from streams.exporter.lag import LagReading
from streams.exporter.training import Announced, TrainingReading
from streams.follow import Follower

log = logging.getLogger("goldstream.exporter")

LAG_EVERY_S, GOLD_EVERY_S, TRAINING_EVERY_S = 5.0, 15.0, 5.0
REST = 9  # times what a reading took: it takes a tenth of a core at most
FIRST_S = 60.0


def run_exporter(settings: Settings, stop: threading.Event, ready: Callable[[], None] = lambda: None) -> None:
    """Reads until `stop` is set; `ready` is called once each reading has been tried.

    What fails is logged, shown as goldstream_exporter_up 0, and tried again: an exporter outlives what it watches.
    """
    announced, lag = Announced(settings), LagReading(settings)
    followers = [Follower(settings, ADAPTERS, announced.adapter), Follower(settings, COMMANDS, announced.command)]
    readings = [
        Reading("lag", LAG_EVERY_S, lag.read),
        Reading("gold", GOLD_EVERY_S, GoldReading(settings).read),
        Reading("training", TRAINING_EVERY_S, TrainingReading(settings).read),
    ]
    for follower in followers:
        follower.start()
    for reading in readings:
        reading.start()
    try:
        deadline = time.monotonic() + FIRST_S
        for reading in readings:
            while not reading.tried.wait(0.2) and not stop.is_set() and time.monotonic() < deadline:
                pass
        if not stop.is_set():
            ready()
        stop.wait()
    finally:
        for reading in readings:
            reading.stop()
        for follower in followers:
            follower.stop()
        lag.close()


class Reading:
    """A thread that reads again and again."""

    def __init__(self, name: str, every_s: float, act: Callable[[], None]) -> None:
        self.name, self.tried = name, threading.Event()
        self._every_s, self._act = every_s, act
        self._said = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"read-{name}", daemon=True)

    def start(self) -> Reading:
        """Starts reading; returns itself."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stops the thread and waits for it."""
        self._stop.set()
        self._thread.join(20)

    def _run(self) -> None:
        while not self._stop.is_set():
            took_s = self.read()
            self._stop.wait(max(self._every_s - took_s, REST * took_s))

    def read(self) -> float:
        """Reads once, says how it went, and returns the seconds it took."""
        began, error = time.monotonic(), ""
        try:
            self._act()
        except (GoldstreamError, OSError) as failed:
            error = str(failed)
        except Exception as failed:  # DuckDB's and Kafka's own; their text may quote a row
            error = f"unexpected {type(failed).__name__}"
            log.debug("traceback", exc_info=True)
        took_s = time.monotonic() - began
        if error and error != self._said:
            log.error("%s cannot be read, and is tried again: %s", self.name, error)
        self._said = error
        f.UP.put(self.name, value=float(not error))
        f.READ_S.put(self.name, value=took_s)
        if not error:
            f.READ_AT.put(self.name, value=time.time())
        self.tried.set()
        return took_s
