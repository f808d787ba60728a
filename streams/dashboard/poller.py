"""Reads Kafka, the gold set and the files of trainer and rollout in the background, while somebody looks.

Each has a thread of its own, so that one that is slow or down holds up no other. However many pages are open there is
one poller; what they are told is encoded once, and only where something has changed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import msgspec

from schemas.adapters import GateReport
from schemas.errors import GoldstreamError
from schemas.settings import Settings
from schemas.topics import ADAPTERS, COMMANDS, LEDGER
from streams.backlog import BacklogReader
from streams.cost import caps, held
from streams.dashboard.facts import Facts
from streams.dashboard.figures import Figures, count
from streams.dashboard.flow import ENDS, Around, Reading, build_flow
from streams.dashboard.state import (
    Adapters,
    Budget,
    Cost,
    Held,
    Mark,
    Passing,
    Problem,
    ReviewState,
    State,
    TrainerState,
)
from streams.dashboard.training import Announced, Registry
from streams.follow import Follower
from streams.review import draw

log = logging.getLogger("goldstream.dashboard")

LOOK_S = 10.0  # between two looks at the oldest records and at who reads
REST = 19  # times the CPU that a reading took: a twentieth of a core at most
REST_S = 0.2
FIRST_S = 3.0  # for which the first state waits for every part
STOP_S = 15.0
_PARTS = ("kafka", "gold", "training")


class Poller:
    """Everything the page is told again and again; use start and stop, and `newest` in between."""

    def __init__(self, settings: Settings, on_change: Callable[[bytes], None] = lambda state: None) -> None:
        self._settings, self._on_change = settings, on_change
        self._lock = threading.Lock()
        self._problems: dict[str, Problem] = {}
        self._readings: tuple[Reading | None, Reading | None] = (None, None)  # the last and the one before
        self._figures: Figures | None = None
        self._trainers: tuple[TrainerState, ...] = ()
        self._adapters: tuple[Adapters, ...] = ()
        self._marks: dict[str, tuple[Mark, ...]] = {}
        self._gates: tuple[GateReport, ...] = ()
        self.announced = Announced()
        self._registry = Registry(settings)
        self._facts = Facts(settings.gold, lambda case_id: draw(settings, case_id))
        self._backlog: BacklogReader | None = None
        self._looked = 0.0
        self._told = b""
        self._state: State | None = None
        refresh_s = settings.dashboard.refresh_s
        self._loops = [
            _Loop("gold", refresh_s, self._read_gold, self._note),
            _Loop("training", refresh_s, self._read_training, self._note),
            _Loop("kafka", refresh_s, self._read_lag, self._note),
        ]
        self._followers = [
            Follower(settings, ADAPTERS, self.announced.adapter),
            Follower(settings, COMMANDS, self.announced.command),
            Follower(settings, LEDGER, self.announced.ledger),
        ]

    def start(self) -> Poller:
        """Starts reading; returns itself."""
        for loop in self._loops:
            loop.start()
        for follower in self._followers:
            follower.start()
        return self

    def stop(self) -> None:
        """Stops reading and waits for the threads."""
        stops = [*(loop.stop for loop in self._loops), *(follower.stop for follower in self._followers)]
        closing = [threading.Thread(target=stop) for stop in stops]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(STOP_S)
        self._close_backlog()
        self._facts.close()

    def newest(self) -> State:
        """Returns the state; the first time once every part has been tried, or after a moment."""
        deadline = time.monotonic() + FIRST_S
        for loop in self._loops:
            loop.tried.wait(max(deadline - time.monotonic(), 0.0))
        self._tell()
        with self._lock:
            assert self._state is not None
            return self._state

    def _note(self, part: str, error: str) -> None:
        """Takes down how a reading went, and tells what is new."""
        with self._lock:
            known = self._problems.pop(part, None)
            if error:
                since = known.since_ms if known else _now_ms()
                self._problems[part] = Problem(part=part, why=error, since_ms=since)  # type: ignore[arg-type]
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            state = self._assembled()
            told = msgspec.json.encode(msgspec.structs.replace(state, at_ms=0))
            if told == self._told and self._state is not None:
                return
            self._told, self._state = told, state
            data = msgspec.json.encode(state)
        self._on_change(data)

    def _assembled(self) -> State:
        settings, figures, book = self._settings, self._figures, self.announced.ledger_now()
        now, before = self._readings
        ledger = sum(one.spent_usd for one in book.entries.values()) if now is not None else None
        budgets = tuple(
            Budget(
                task=one.task,
                role=one.role,
                cap=one.cap,  # type: ignore[arg-type]
                limit=one.limit,
                spent=one.spent,
                reserved=one.reserved,
                left=one.left,
            )
            for one in caps(settings, book)
        )
        waiting = [Held(task=one.task, role=one.role, why=one.why, since=one.since) for one in held(book, _now_ms())]
        return State(
            at_ms=_now_ms(),
            prefix=settings.kafka.topic_prefix,
            tasks=tuple(settings.tasks),
            refresh_s=settings.dashboard.refresh_s,
            problems=tuple(self._problems[part] for part in _PARTS if part in self._problems),
            flow=build_flow(settings, now, before, self._around(waiting)),
            funnels=figures.funnels if figures else (),
            passing=tuple(
                Passing(
                    task=task,
                    bucket_ms=found.bucket_s * 1000,
                    from_ms=found.from_s * 1000,
                    to_ms=found.to_s * 1000,
                    lines=found.lines,
                    marks=self._marks.get(task, ()),
                )
                for task, found in (figures.passing if figures else {}).items()
            ),
            outcomes=figures.outcomes if figures else (),
            violations=figures.violations if figures else (),
            cost=Cost(
                tasks=figures.costs if figures else (),
                roles=figures.roles if figures else (),
                budgets=budgets,
                held=tuple(waiting),
                ledger_usd=ledger,
                rows_usd=sum(one.usd for one in figures.costs) if figures else 0.0,
            ),
            trainers=self._trainers,
            adapters=self._adapters,
            dead=figures.dead if figures else (),
            review=figures.review if figures else ReviewState(),
        )

    def _around(self, waiting: list[Held]) -> Around:
        figures = self._figures
        ends = {end: sum(getattr(one, end) for one in figures.outcomes) for end in ENDS} if figures else {}
        several = len(self._settings.tasks) > 1

        def named(task: str, text: str) -> str:
            return f"{task}: {text}" if several else text

        corrected = [
            named(one.task, f"{one.corrected} of {one.needed} new corrected rows")
            for one in self._trainers
            if one.state != "off"
        ]
        busy = [one for one in self._trainers if one.state in ("training", "gating")]
        training = [one for one in busy if one.state == "training"]
        serving = [named(one.task, one.serving) for one in self._adapters if one.serving]
        failing = [named(one.task, text) for one in self._adapters for text in one.errors.values()]
        coming = [named(one.task, f"{one.wanted} is coming") for one in self._adapters if one.wanted != one.serving]
        said = [named(one.task, f"{one.decision}: {one.reason}") for one in self._gates]
        return Around(
            paused=self.announced.paused(),
            held={one.role: named(one.task, one.why) for one in waiting},
            ends=ends,
            gold_note=f"{sum(ends.values())} cases have ended" if ends else "",
            services={
                "trainer": (
                    "busy" if training else "idle" if any(one.state == "idle" for one in self._trainers) else "unknown",
                    "; ".join(named(one.task, f"{one.version} step {one.step} of {one.steps}") for one in training)
                    or "; ".join(named(one.task, one.error) for one in self._trainers if one.error),
                ),
                "gate": ("busy" if len(busy) > len(training) else "idle", "; ".join(said)),
                "rollout": (
                    "busy" if serving and coming else "idle",
                    "; ".join(failing or (coming if serving else ())),
                ),
            },
            training_notes={"gold_set>trainer": "; ".join(corrected)},
            versions=sum(len(one.versions) for one in self._adapters),
            serving="; ".join(serving),
        )

    def _read_lag(self) -> None:
        """Reads the backlog over a connection that is made anew after an error; a lag that is old is not shown."""
        try:
            if self._backlog is None:
                self._backlog = BacklogReader(self._settings).__enter__()
                self._looked = 0.0
            look = time.monotonic() - self._looked >= LOOK_S
            rows = self._backlog.read(look)
            if look:
                self._looked = time.monotonic()
        except Exception:
            with self._lock:
                self._readings = (None, None)
            self._close_backlog()
            raise
        with self._lock:
            self._readings = (Reading(time.monotonic(), rows), self._readings[0])

    def _close_backlog(self) -> None:
        reader, self._backlog = self._backlog, None
        if reader is not None:
            reader.__exit__()

    def _read_gold(self) -> None:
        if self._facts.refresh() or self._figures is None:
            figures = count(self._facts, self._settings)
            with self._lock:
                self._figures = figures

    def _read_training(self) -> None:
        serving, figures = self.announced.serving(), self._figures
        live = figures.live if figures else {}
        tasks = list(self._settings.tasks)
        trainers = tuple(self._registry.trainer(task) for task in tasks)
        adapters = tuple(
            self._registry.adapters(task, serving.get(task), self.announced.commands(task), live) for task in tasks
        )
        marks = {task: self._registry.marks(task) for task in tasks}
        gates = tuple(report for task in tasks if (report := self._registry.last_gate(task)) is not None)
        with self._lock:
            self._trainers, self._adapters, self._marks, self._gates = trainers, adapters, marks, gates


class _Loop:
    """A thread that reads again and again, and rests in between."""

    def __init__(self, name: str, every_s: float, act: Callable[[], None], note: Callable[[str, str], None]) -> None:
        self.name, self.tried = name, threading.Event()
        self._every_s, self._act, self._note = every_s, act, note
        self._stop = threading.Event()
        self._said = ""
        self._thread = threading.Thread(target=self._run, name=f"dashboard-{name}", daemon=True)

    def start(self) -> None:
        """Starts reading."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread and waits for it."""
        self._stop.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            began, worked, error = time.monotonic(), time.thread_time(), ""
            try:
                self._act()
            except (GoldstreamError, OSError) as failed:
                error = str(failed)
            except Exception as failed:  # DuckDB's and Kafka's own; their text may quote a row
                error = f"unexpected {type(failed).__name__}; the log of the dashboard may say more"
                log.debug("traceback", exc_info=True)
            took_s, worked_s = time.monotonic() - began, time.thread_time() - worked
            if error and error != self._said:
                log.error("%s cannot be read, and is tried again: %s", self.name, error)
            self._said = error
            self.tried.set()
            self._note(self.name, error)
            self._stop.wait(max(self._every_s - took_s, REST * worked_s, REST_S))


def _now_ms() -> int:
    return int(time.time() * 1000)
