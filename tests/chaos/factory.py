"""The factory under fault: real processes on the real broker, their deaths and restarts, drain.

A `Lane` is one set of processes with topics and files of its own; faults take turns on it. Everything it starts it
stops by its own id.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
from books import count_rows
from broker import Broker
from factory_settings import config_options, role_tables
from kafka import TopicPartition
from kafka.errors import KafkaError
from traffic import PARTITIONS, Acts, Traffic

from schemas.errors import BrokerError
from schemas.settings import ROLES, Settings, load_settings
from streams.clients import make_consumer
from streams.lag import LagReader, group_topics
from streams.supervisor import Child, Supervisor
from streams.topics import connect_admin, create_topics, ensure_source_topic

HERE = Path(__file__).parent
WITHOUT_MODELS = """
[kafka]
partitions = 2
[worker]
cases_in_flight = 32
event_deadline_s = 6
drain_s = 2
retry_delays_s = [1, 2]
[sink]
seconds_per_file = 1.0
rows_per_file = 500
[intake]
start_at = "earliest"
poll_records = 100
[tasks.chaos]
topics = ["TOPIC"]
max_rounds = 3
[tasks.chaos.rubric]
verifier = "worker:verify"
rules = [{ id = "ripe", text = "It is refined often enough." }]
"""
STUB = {"model": "scripted/stub"}  # what it answers is decided in worker.py
CONFIG = WITHOUT_MODELS + role_tables("chaos", ("student", "refiner", "strategist"), **STUB)
BACKOFF_S = (0.1, 0.5, 1.0, 2.0)
SESSION_S = 6.0  # the least the broker allows
CASE_ID = re.compile(rb"\[case ([\w.-]+) needs ")
DRAIN_LIMIT_S = 150.0


class Aborted(Exception):
    """The run was given up; every lane stops its processes and ends."""


class Lane:
    """One running factory. Use as a context manager; `begin`, `feed`, do harm, `drain`, `count`."""

    def __init__(
        self,
        folder: Path,
        name: str,
        broker: Broker,
        config: str = CONFIG,
        *,
        stub: bool = True,
        besides: Sequence[str] = (),
    ) -> None:
        """With `stub` one stub worker per role, else one `goldstream worker`; `besides` names more of our commands."""
        self.name, self.broker = name, broker
        self.folder = folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = self.folder / "goldstream.toml"
        self.topic = f"logs-{name}"  # of the product
        self.config.write_text(config.replace("TOPIC", self.topic))
        self.calls = self.folder / "calls.log"
        self.calls.touch()
        self.overrides = [
            f"kafka.bootstrap_servers={broker.address}",
            f"kafka.topic_prefix={name}.",
            f"state_dir={self.folder / 'state'}",
        ]
        self.settings: Settings = load_settings(self.config, self.overrides, environ={})
        self.options = config_options(self.config, self.overrides)
        commands = {name: [name, *self.options] for name in ("intake", "retries", "sink", *besides)}
        programs = {role: self.worker_words(role) for role in ROLES if stub}
        self.supervisor = Supervisor(self.settings, commands, programs, BACKOFF_S)
        self._environment = {
            "CHAOS_CALL_LOG": str(self.calls),
            "CHAOS_SESSION_S": str(SESSION_S),
            # Our processes find the verifier "worker:verify" here, and run the code this suite lies beside.
            "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}",
        }
        for child in self.supervisor.children:
            child.environment |= self._environment
        self.events: list[str] = []
        self.kills = 0
        self._armed: dict[str, str] = {}
        self._reset("", random.Random(0))

    def __enter__(self) -> Lane:
        create_topics(self.settings)
        ensure_source_topic(self.settings, self.topic, PARTITIONS)
        self._admin = connect_admin(self.settings)
        self._reader = make_consumer(self.settings)
        self.supervisor.__enter__()
        try:
            self.supervisor.wait_ready(180)
        except BaseException:
            self.supervisor.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.supervisor.stop()
        self.traffic.stop()
        self._reader.close()
        self._admin.close()

    def worker_words(self, stages: str) -> list[str]:
        """Returns the command line of a stub worker for these roles."""
        return [str(HERE / "worker.py"), *self.options, "--stages", stages]

    def begin(self, fault: str, dice: random.Random) -> None:
        """Starts the count anew: everything from here on belongs to this fault."""
        self._reset(fault, dice)

    # Traffic

    def feed(self, cases: int, seconds: float = 5.0, acts: Acts = lambda number: "") -> None:
        """Starts this fault's traffic, see Traffic.feed."""
        self.traffic.feed(cases, seconds, acts)

    def send(self, values: Iterable[bytes | None], topic: str = "", expect: bool = True) -> None:
        """Produces raw values at once, see Traffic.send."""
        self.traffic.send(values, topic, expect)

    def raw(self, topic: str) -> list[bytes | None]:
        """Returns what this fault has put on a topic, record by record."""
        tps = [tp for tp in self._start if tp.topic == topic]
        return [value for _, value in self._read({tp: self._start[tp] for tp in tps})]

    # Waiting; dead children are noticed and restarted here and nowhere else

    def tick(self) -> None:
        """Notes what died and what it had in hand, and restarts it; raises Aborted where the run is given up."""
        if self.broker.given_up.is_set():
            raise Aborted
        for child in self.supervisor.children:
            if child.process is not None and child.process.poll() is not None:
                code = child.process.returncode
                self.events.append(f"{child.name} ended with {code}")
                armed = self._armed.pop(child.name, "")
                child.environment.pop("GOLDSTREAM_CRASH_AT", None)
                if code == -signal.SIGKILL:
                    self.kills += 1
                    if armed:
                        self.reached.append(armed)
                        if more := self._later.get(child.name):
                            self._armed[child.name] = child.environment["GOLDSTREAM_CRASH_AT"] = more.pop(0)
                    self._note_at_risk(child.name)
        self.supervisor.check()

    def sleep(self, seconds: float) -> None:
        """Waits while the supervisor works."""
        self.wait_for(lambda: False, seconds)

    def wait_for(self, condition: Callable[[], bool], limit_s: float = 60.0) -> bool:
        """Waits until `condition` holds; returns whether it came to that."""
        deadline = time.monotonic() + limit_s
        while not condition():
            self.tick()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def memory_until(self, condition: Callable[[], bool]) -> dict[str, list[float]]:
        """Returns the resident memory of every child in MiB, a sample every second until `condition` holds."""
        sizes: dict[str, list[float]] = {child.name: [] for child in self.supervisor.children}
        while not condition():
            self.sleep(1)
            for child in self.supervisor.children:
                if child.process is not None and child.process.poll() is None:
                    sizes[child.name].append(psutil.Process(child.process.pid).memory_info().rss / 2**20)
        return sizes

    def positions(self, role: str) -> dict[Any, int]:
        """Returns how far the group of a role has committed, 0 where it never has; raises KafkaError."""
        group, topics = self.settings.topic(role), group_topics(self.settings)[role]
        found = self._admin.list_group_offsets({group: None}).get(group, {})
        known = {TopicPartition(t, p): 0 for t in topics for p in self._reader.partitions_for_topic(t) or ()}
        return known | {tp: one.offset for tp, one in found.items()}

    def drain(self, limit_s: float = 0.0) -> bool:
        """Waits until all traffic is sent and no group of ours is behind; returns False after `limit_s`.

        It is by default DRAIN_LIMIT_S, and longer where many cases were sent.
        """
        limit_s = limit_s or max(DRAIN_LIMIT_S, self.traffic.cases / 50)
        deadline = time.monotonic() + limit_s
        self.wait_for(lambda: self.traffic.ended, limit_s)
        quiet, reader = 0, None
        try:
            while quiet < 2:  # between two hops a case is for a moment in no group's lag
                self.sleep(0.4)
                try:
                    reader = reader or LagReader(self.settings).__enter__()
                    self.lag = reader.by_group()
                    quiet = 0 if any(self.lag.values()) else quiet + 1
                except (KafkaError, BrokerError):
                    quiet = 0
                if time.monotonic() > deadline:
                    return False
            return True
        finally:
            if reader is not None:
                reader.__exit__()

    # Harm

    def child(self, name: str) -> Child:
        """Returns a supervised process by name."""
        return next(child for child in self.supervisor.children if child.name == name)

    def send_signal(self, name: str, number: int) -> None:
        """Sends a signal to a child, if it runs now."""
        process = self.child(name).process
        if process is not None and process.poll() is None:
            process.send_signal(number)

    def kill(self, *names: str) -> None:
        """Kills children at once and waits until they are gone."""
        for name in names:
            self.send_signal(name, signal.SIGKILL)
        for name in names:
            process = self.child(name).process
            if process is not None:
                process.wait(10)
        self.tick()

    def restart(self, name: str, **environment: str) -> None:
        """Ends a child in order and starts it with these variables besides."""
        child = self.child(name)
        child.environment.update(environment)
        self.send_signal(name, signal.SIGTERM)
        if child.process is not None:
            child.process.wait(30)

    def arm(self, points: dict[str, str], later: dict[str, list[str]] | None = None) -> None:
        """Restarts children so that each dies at its crash point, "name:N"; after that death they live on as before.

        With `later` the next life of a child dies at the next of these points, and so on.
        """
        self._later = {name: list(more) for name, more in (later or {}).items()}
        for name, point in points.items():
            self._armed[name] = point
            self.send_signal(name, signal.SIGTERM)
            self.child(name).environment["GOLDSTREAM_CRASH_AT"] = point
        for name in points:
            process = self.child(name).process
            if process is not None:
                process.wait(30)
                # Ended in order, so it is armed still: `tick` must not take this end for the crash.
                self.child(name).check()
        self.wait_for(lambda: all(self.child(name).ready or name not in self._armed for name in points), 90)

    def join(self, name: str, stages: str = "") -> Child:
        """Starts one more process: a stub worker of these stages, or without any the command before the "+"."""
        if stages:
            child = Child(name, self.worker_words(stages), self.settings, [], BACKOFF_S)
        else:
            child = Child(name, [name.partition("+")[0], *self.options], self.settings, ["-m", "goldstream"], BACKOFF_S)
        child.environment |= self._environment
        self.supervisor.children.append(child)
        child.start()
        return child

    def leave(self, child: Child, number: int = signal.SIGTERM) -> None:
        """Ends a worker that joined, for good."""
        self.supervisor.children.remove(child)
        if child.process is not None and child.process.poll() is None:
            child.process.send_signal(number)
            self.kills += number == signal.SIGKILL
            try:
                child.process.wait(20)
            finally:
                if child.process.poll() is None:
                    child.process.kill()

    def log_text(self, name: str) -> str:
        """Returns what a child has written since the fault began."""
        path = self.child(name).log_path
        with path.open("rb") as file:
            file.seek(self._log_sizes.get(name, 0))
            return file.read().decode(errors="replace")

    # Counting

    def calls_made(self) -> Counter[tuple[str, str, str]]:
        """Returns how often each (role, case, round) was called since the fault began. A role may be "student-away"."""
        with self.calls.open("rb") as file:
            file.seek(self._calls_start)
            lines = file.read().decode().splitlines()
        return Counter(tuple(line.split()) for line in lines if line.split()[1].startswith(self.fault))

    def count(self) -> dict[str, Any]:
        """Counts what became of this fault's records, and the model calls that were made more than once."""
        repeated = {key: times - 1 for key, times in self.calls_made().items() if times > 1 and "-" not in key[0]}
        cases = {case for _, case, _ in repeated}
        result = {"cases": self.traffic.cases, "kills": self.kills, "repeated_calls": sum(repeated.values())}
        result |= count_rows(self.settings.gold, self.traffic.sent, self.tolerated)
        if self.at_risk is not None:
            result |= {"repeated_cases": len(cases), "uncommitted_cases": len(self.at_risk)}
            result["beyond_uncommitted"] = len(cases - self.at_risk)
        return result

    def tails(self, lines: int = 12) -> str:
        """Returns the ends of all logs."""
        return "\n".join(f"--- {child.name}\n{child.tail(lines)}" for child in self.supervisor.children)

    def _reset(self, fault: str, dice: random.Random) -> None:
        self.fault, self.dice = fault, dice
        self.kills = 0
        self.traffic = Traffic(self.settings, self.topic, fault)
        self.reached: list[str] = []
        self.at_risk: set[str] | None = set()  # None once something else than a kill may repeat calls
        self.events = []
        self.tolerated: set[str] = set()  # outcomes and reasons this fault may give its plain cases
        self.lag: dict[str, int] = {}
        self.notes: dict[str, Any] = {}  # what a fault measured besides
        self._armed.clear()
        self._later: dict[str, list[str]] = {}
        self._calls_start = self.calls.stat().st_size
        self._log_sizes = {c.name: c.log_path.stat().st_size for c in self.supervisor.children if c.log_path.exists()}
        if fault:
            topics = {t for topics in group_topics(self.settings).values() for t in topics}
            tps = [TopicPartition(t, p) for t in topics for p in self._reader.partitions_for_topic(t) or ()]
            self._start: dict[Any, int] = self._reader.end_offsets(tps)

    def _note_at_risk(self, name: str) -> None:
        """Adds the cases that a process just killed had taken and not committed: they alone may repeat calls."""
        group = name.partition("+")[0]
        if self.at_risk is None or group not in group_topics(self.settings) or group == "sink":
            return
        try:
            pending = {
                found[1].decode()
                for _, value in self._read(self.positions(group))
                if (found := CASE_ID.search(value or b""))
            }
            if group == "intake":
                admitted = {m[1].decode() for v in self.raw(self.settings.topic("prompts")) if (m := CASE_ID.search(v))}
                self.at_risk |= pending & admitted
            elif group == "retries":
                self.at_risk |= pending
            else:
                self.at_risk |= pending & {
                    case for role, case, _ in self.calls_made() if role.partition("-")[0] == group
                }
        except KafkaError:
            self.at_risk = None  # the broker is away too; nothing can be said about this one

    def _read(self, start: dict[Any, int]) -> list[tuple[Any, bytes | None]]:
        """Returns the records of some partitions from `start` to their present ends."""
        if not start:
            return []
        reader, found = self._reader, []
        ends = reader.end_offsets(list(start))
        reader.assign(list(start))
        for tp, offset in start.items():
            reader.seek(tp, max(offset, 0))
        deadline = time.monotonic() + 20
        while any(reader.position(tp) < ends[tp] for tp in start) and time.monotonic() < deadline:
            for tp, records in reader.poll(timeout_ms=200).items():
                found += [(tp, record.value) for record in records if record.offset < ends[tp]]
        return found
