"""A factory that has worked for some hours, for tests of the dashboard's page: cases that ended in every way, adapters
with their gates, a topic that nobody reads, and the dashboard's own process in front of it.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from factory_settings import config_options, role_tables
from kafka import KafkaProducer
from steps import put, running, sink_all
from toys import NEW, OLD, a_manifest, a_report

from schemas.case import Attempt, Case, Charge, Message, Source, Spend, Strategy, Verdict, Violation, encode_case
from schemas.kafka import client_options
from schemas.settings import Settings, load_settings
from streams.topics import create_topics, ensure_source_topic
from trainer.orders import KafkaCommands, Orders
from trainer.registry import promote, publish, write_gate

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> \" ' & ${x} \u202egnp.exe"
MODEL = "hosted_vllm/a-model"
REFUSED = "v0003-cccccc"
START_S = 60.0
NOWHERE = "http://127.0.0.1:9"  # no model answers: every case here has ended

TOML = """
state_dir = "{state}"
[kafka]
bootstrap_servers = "{kafka}"
topic_prefix = "{prefix}"
[sink]
seconds_per_file = 0.3
[local.tiny]
path = "{base}"
[tasks.toy]
topics = ["product-{prefix}chat"]
[tasks.toy.review]
sample = 1.0
[tasks.toy.rubric]
rules = [
  {{ id = "polite", text = "It says please.", severity = "critical" }},
  {{ id = "brief", text = "It is one sentence." }},
]
[tasks.toy.student]
model = "local/tiny"
max_tokens = 8
[tasks.toy.trainer]
rank = 4
"""
TOML += role_tables("toy", ("judge", "refiner", "strategist"), model="hosted_vllm/{role}", api_base=NOWHERE)


class Factory:
    """Settings on the shared broker with topics of their own, and how to serve them."""

    def __init__(self, folder: Path, kafka: str, prefix: str, base: Path) -> None:
        self.toml = folder / "goldstream.toml"
        self.toml.write_text(TOML.format(state=folder / "state", kafka=kafka, prefix=prefix, base=base))
        self.settings: Settings = load_settings(self.toml, environ={})

    def make_topics(self) -> None:
        """Makes our topics and the product's."""
        create_topics(self.settings)
        ensure_source_topic(self.settings, self.settings.source_topics()[0], partitions=1)

    def work(self, base: Path, run_folder: Path) -> None:
        """Lets cases end in every way, trains three versions, and leaves a record that nobody reads."""
        registry = self.settings.adapters
        for version, gain in ((OLD, (0.2, 0.55)), (NEW, (0.55, 0.8)), (REFUSED, (0.8, 0.75))):
            publish(registry, run_folder, a_manifest(base, version, created_ms=now_ms() - 3_600_000, rows=64, pairs=90))
            report = a_report(
                version,
                decision="refuse" if version == REFUSED else "promote",
                reason=f"pass rate {gain[0]:.1%} -> {gain[1]:.1%} of 40 cases",
                cases=40,
                before=gain[0],
                after=gain[1],
                at_ms=now_ms() - 3_000_000,
            )
            write_gate(registry, report, f"<h1>The gate on {version}</h1><script>document.title = 'ran'</script>")
        for version in (OLD, NEW):
            promote(registry, "toy", version, by="gate", reason="better")
        self.make_topics()
        put(self.settings, "outcomes", *ended_cases())
        sink_all(self.settings)
        self.leave_unread(now_ms() - 20 * 60_000)

    def leave_unread(self, at_ms: int) -> None:
        """Puts a case before the judge, whom nobody has started."""
        producer = KafkaProducer(**client_options(self.settings), acks="all")
        case = worked(900, NEW, passed=False)
        topic = self.settings.topic("attempts")
        producer.send(topic, key=case.case_id.encode(), value=encode_case(case), timestamp_ms=at_ms).get(timeout=30)
        producer.close(timeout=5)

    @contextlib.contextmanager
    def rollout(self) -> Iterator[None]:
        """Answers what the page asks for, as the rollout process does."""

        def answer(stop: threading.Event, ready: Callable[[], None]) -> None:
            commands = KafkaCommands(self.settings)
            orders = Orders(self.settings, commands)
            ready()
            while not stop.wait(0.05):
                orders.poll()
            commands.close()

        with running(answer):
            yield


class Dashboard:
    """`goldstream dashboard` as a process; leaving the block ends it."""

    def __init__(self, factory: Factory, *overrides: str, port: int | str = "auto") -> None:
        self._token = factory.settings.state / "dashboard.token"
        words = config_options(factory.toml, [f"dashboard.port={port}", *overrides])
        self._command = [sys.executable, "-m", "goldstream", "dashboard", *words]
        self.url = self.token = ""

    def __enter__(self) -> Dashboard:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=Path(__file__).parent.parent
        )
        printed = ""
        assert self._process.stdout is not None
        deadline = time.monotonic() + START_S
        for line in self._process.stdout:
            printed += line
            if found := re.search(r"dashboard: (http://[^/\s]+)", line):
                self.url, self.token = found[1], self._token.read_text().strip()
                self._drain = threading.Thread(target=self._process.stdout.read)
                self._drain.start()
                return self
            assert time.monotonic() < deadline, printed
        raise AssertionError(f"goldstream dashboard ended:\n{printed}")

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait()
            self._drain.join(10)
            if self._process.stdout is not None:
                self._process.stdout.close()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rsplit(":", 1)[1])


def now_ms() -> int:
    return int(time.time() * 1000)


def verdict(passed: bool, *violations: Violation) -> Verdict:
    return Verdict(passed=passed, score=float(passed), max_score=1.0, violations=violations, judge=MODEL, kind="model")


def worked(number: int, adapter: str, *, passed: bool, **changes: Any) -> Case:
    """Returns a case whose first attempt passed, or failed and was refined once; not ended yet."""
    curt = Violation("polite", "critical", "wait here", "there is no please in it", "say please")
    first = Attempt(
        round=0, source="student", text="please wait" if passed else "You should wait here.", model="local/tiny",
        adapter=adapter, completion_tokens=5, latency_s=0.2, verdict=verdict(True) if passed else verdict(False, curt),
    )  # fmt: skip
    again = Attempt(
        round=1, source="refiner", text="Please wait here.", model=MODEL, refiner="teacher", rewrote=0, changed=0.25,
        cost_usd=0.002, verdict=verdict(True),
    )  # fmt: skip
    charges = (Charge(role="judge", model=MODEL, calls=2, prompt_tokens=300, completion_tokens=40, cost_usd=0.004),)
    fields: dict[str, Any] = {
        "case_id": f"req-{number}",
        "task": "toy",
        "split": "train",
        "source": Source(cluster="c", topic="product", partition=0, offset=number, timestamp_ms=now_ms()),
        "messages": (Message("system", "Be polite."), Message("user", f"What shall I do at light number {number}?")),
        "attempts": (first,) if passed else (first, again),
        "strategy": None if passed else Strategy("gave an order", "ask for it with please", MODEL, "s-1"),
        "spend": Spend(calls=2, prompt_tokens=300, completion_tokens=40, cost_usd=0.004, model_s=0.8),
        "charges": charges,
        "created_ms": now_ms() - 4000,
        "body_sha256": f"body {number}",
    }
    return Case(**(fields | changes))


def ended_cases() -> list[Case]:
    """Returns cases that ended over the last six hours in every way, under the base and two adapters."""
    cases, begin = [], now_ms() - 6 * 3_600_000
    for number in range(48):
        adapter, passes = [("", 1), (OLD, 2), (NEW, 3)][number // 16]
        at_ms = begin + number * 7 * 60_000
        cases.append(
            worked(number, adapter, passed=number % 4 < passes, created_ms=at_ms - 4000).ended(
                "gold", "strategist", at_ms
            )
        )
    failing = worked(0, NEW, passed=False).attempts[:1]
    for number in (60, 61, 62):
        case = worked(number, NEW, passed=False, attempts=failing, strategy=None)
        cases.append(case.ended("unresolved", "judge", now_ms() - 60_000, "rounds_spent"))
    evil = Attempt(
        round=0, source="student", text=HOSTILE, model=HOSTILE,
        verdict=verdict(False, Violation(HOSTILE, "major", "alert(1)", HOSTILE, HOSTILE)),
    )  # fmt: skip
    hostile = worked(66, NEW, passed=False, attempts=(evil,), messages=(Message("user", HOSTILE),), strategy=None)
    cases.append(hostile.ended("unresolved", "judge", now_ms(), "rounds_spent", HOSTILE))
    for number in (70, 71, 72):
        case = worked(number, NEW, passed=False, attempts=failing, strategy=None)
        cases.append(case.ended("dead", "judge", now_ms() - 30_000, "bad_answer", "the verdict is no JSON object"))
    cases += [
        worked(n, NEW, passed=n % 2 == 0, split="holdout", strategy=None).ended("holdout", "judge", now_ms() - 90_000)
        for n in (80, 81)
    ]
    cases.append(
        worked(90, "", passed=True, attempts=(), strategy=None).ended("dropped", "intake", now_ms(), "near_duplicate")
    )
    return cases
