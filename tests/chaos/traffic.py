"""The product's traffic: requests with known ids, logged at a steady pace in the background."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from books import Place
from kafka import KafkaProducer

from schemas.kafka import client_options
from schemas.settings import Settings

PARTITIONS = 2
FILLING = "The patient reports a cough and takes 500 mg of metformin daily. " * 4
Acts = Callable[[int], str]  # the number of a case -> what models do to it besides, for example " student:slow"


class Traffic:
    """Sends one fault's records and notes where each came to lie: `sent` is what must end as an outcome."""

    def __init__(self, settings: Settings, topic: str, fault: str) -> None:
        self.topic, self.fault = topic, fault
        self.cases = 0
        self.sent: list[Place] = []
        self._settings = settings
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def feed(self, cases: int, seconds: float = 5.0, acts: Acts = lambda number: "") -> None:
        """Logs `cases` requests over `seconds`, in the background.

        One in 25 meets a student that is away once, so that gs.retry topics carry cases too. A case needs 0 to 2
        refinements. The ids of cases that something happens to end in "-x".
        """
        self.cases += cases
        self._thread = threading.Thread(target=self._run, args=(cases, seconds, acts), daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Tells whether all is sent; raises what stopped it."""
        if self._error is not None:
            raise self._error
        return self._thread is None or not self._thread.is_alive()

    def send(self, values: Iterable[bytes | None], topic: str = "", expect: bool = True) -> None:
        """Produces raw values at once, to the product's topic or another; with `expect` each must end as an outcome."""
        producer = make_producer(self._settings)
        futures = [producer.send(topic or self.topic, value=value, key=key_of(value)) for value in values]
        self.cases += len(futures) if expect else 0
        self._note(producer, futures, expect)

    def stop(self) -> None:
        """Ends the traffic where it is."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(30)

    def _run(self, cases: int, seconds: float, acts: Acts) -> None:
        try:
            producer = make_producer(self._settings)
            waiting = []
            began = time.monotonic()
            for number in range(cases):
                act = acts(number) or (" student:flaky" if number % 25 == 7 else "")
                case_id = f"{self.fault}-{number:05d}{'-x' if act else ''}"
                text = f"[case {case_id} needs {number % 4 and (number % 3 or 2)}{act}] {FILLING}"
                value = log_record(text, case_id)
                waiting.append(producer.send(self.topic, value=value, partition=number % PARTITIONS))
                early_s = seconds * number / cases - (time.monotonic() - began)
                if early_s > 0.05 and self._stop.wait(early_s):
                    break
            self._note(producer, waiting)
        except BaseException as error:
            self._error = error

    def _note(self, producer: Any, futures: Iterable[Any], expect: bool = True) -> None:
        try:
            for place in [future.get(timeout=120) for future in futures]:
                if expect:
                    self.sent.append((place.topic, place.partition, place.offset))
        finally:
            producer.close(timeout=10)


def make_producer(settings: Settings) -> Any:
    """Returns a producer for anything a fault wants on a topic."""
    return KafkaProducer(**client_options(settings), acks="all", max_request_size=10_000_000, linger_ms=5)


def log_record(text: str, request_id: str) -> bytes:
    """Returns a record as the product logs it."""
    response = {"id": request_id, "choices": [{"message": {"role": "assistant", "content": "wait"}}]}
    return json.dumps({"request": {"messages": [{"role": "user", "content": text}]}, "response": response}).encode()


def key_of(value: bytes | None) -> bytes:
    """Returns the key our own processes would give a message: its case_id where it has one."""
    found = re.search(rb'"case_id":"([^"]+)"', value or b"")
    return found[1] if found else b"k"
