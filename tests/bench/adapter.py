"""How long from the row that reaches the threshold to the first answer under the adapter trained with it.

Ours: worker, trainer and rollout as they run in production, on a real broker; their clock starts when the landing file
with the row has its name, and ends when the attempt of a case that waits for the student is on gs.attempts. Theirs: a
script in a fresh process that trains on the same rows, then a fresh process that loads the result and answers once
(bench.adapter_cold). Ours waits for its trigger, verifies, publishes, promotes and announces; theirs does none of it.

What favours whom. The gate is taken out of ours: the cold start has none. Both train the same pairs in as many steps,
two to four, so that the waiting around them shows: over a training of minutes any ratio goes to 1. The server of the
cold start is transformers in a script; vLLM takes a minute to start. Ours finds its gold landed: sink.seconds_per_file
(15 s by default, for fewer files) and trainer.quiet_s (0 by default) wait before that, because somebody wants it so.
Both sides run on one core, with their files in the page cache.
"""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version as version_of
from pathlib import Path
from typing import NamedTuple

import msgspec
from factory_settings import config_options
from kafka import TopicPartition

from agents.scribe.rules import verify
from agents.scribe.scripted import strategize, write_draft, write_note
from agents.scribe.transcripts import make_transcript
from bench.row import Result, cores, ratios
from schemas.adapters import AdapterManifest, adapter_folder, read_manifest
from schemas.case import Attempt, Case, Message, Source, Strategy, Verdict, decode_case, encode_case
from schemas.outcomes import outcome_row
from schemas.settings import Settings, load_settings
from schemas.topics import ATTEMPTS, PROMPTS
from streams.broker import start_broker, stop_broker
from streams.clients import make_consumer, make_producer
from streams.landing import LandingChain
from streams.supervisor import Supervisor
from streams.topics import create_topics
from trainer.registry import incumbent

STUDENT = Path(__file__).resolve().parents[2] / "agents" / "scribe" / "student"
TASK = "scribe"
NEW, HOLDOUT = 16, 4  # train rows that come with each round, holdout cases
TOKENS = 16  # of an answer
ROUNDS = 3
WAIT_S = 120.0
LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) (.*)")  # of a log
SETTLE_S = 1.5  # between the rows before the last and the last one
CONFIG = """
[kafka]
partitions = 1
[local.scribe]
path = "{student}"
threads = 1
[worker]
stages = ["student"]
[tasks.scribe]
topics = ["prod.scribe.chat"]
[tasks.scribe.student]
model = "local/scribe"
max_tokens = {tokens}
[tasks.scribe.refiner]
model = "scripted/scribe-refiner"
[tasks.scribe.strategist]
model = "scripted/scribe-strategist"
[tasks.scribe.rubric]
verifier = "agents.scribe.rules:verify"
rules = [{{ id = "complete", text = "All three lines, nothing left out." }}]
[tasks.scribe.trainer] # quiet_s is 0: what a user sets who wants speed
min_corrected_rows = {new}
rank = 16
alpha = 32
learning_rate = 3e-3
epochs = 1
batch_size = 16
strategy_weight = 0.1
max_length = 512
threads = 1
[tasks.scribe.gate] # asks little, and lets every version through: what it decides is no matter here
min_holdout = {holdout}
max_holdout = {holdout}
min_gain = -1.0
significance = 0.001
[tasks.scribe.rollout]
canary_share = 0.0
"""


class Round(NamedTuple):
    """One way from the threshold to the first answer, seconds."""

    total: float
    training: float  # its steps
    gate: float = 0.0
    stretches: dict[str, float] = {}

    @property
    def without_gate(self) -> float:
        """What the cold start is compared with."""
        return self.total - self.gate

    @property
    def own(self) -> float:
        """Training and gate taken out."""
        return self.total - self.gate - self.training


class Factory:
    """Broker, worker, trainer and rollout, and a gold set that grows."""

    def __init__(self, settings: Settings, supervisor: Supervisor) -> None:
        self.settings, self.supervisor = settings, supervisor
        self.random = random.Random(7)
        self.chain = LandingChain(settings.gold, 0)
        self.rows = 0
        self.asked = 0
        self.producer = make_producer(settings, "bench", linger_ms=0)
        self.consumer = make_consumer(settings)
        attempts = TopicPartition(settings.topic(ATTEMPTS), 0)
        self.consumer.assign([attempts])
        self.consumer.seek_to_end(attempts)
        self.consumer.poll(timeout_ms=200)

    def close(self) -> None:
        """Closes its clients."""
        self.producer.close(timeout=5)
        self.consumer.close()

    def land(self, cases: Sequence[Case]) -> float:
        """Writes one landing file as the sink does; returns when it had its name, on the wall clock."""
        rows = [outcome_row(case, 0, self.rows + index) for index, case in enumerate(cases)]
        self.chain.write(self.rows, self.rows + len(rows), rows)
        self.rows += len(rows)
        return time.time()

    def gold(self, count: int) -> list[Case]:
        """Draws cases whose first attempt failed and was corrected."""
        found: list[Case] = []
        while len(found) < count:
            text, facts = make_transcript(self.random)
            asked = (Message("user", text),)
            draft, note = write_draft(facts, self.random), write_note(facts)
            if not (violations := verify(asked, draft)):
                continue
            failed = Verdict(passed=False, score=0, max_score=1, judge="rules", violations=tuple(violations))
            passed = Verdict(passed=True, score=1, max_score=1, judge="rules")
            case = Case(
                case_id=f"gold-{self.rows + len(found)}",
                task=TASK,
                split="train",
                source=Source(cluster="c", topic="t", partition=0, offset=self.rows + len(found)),
                messages=asked,
                attempts=(
                    Attempt(round=0, source="student", text=draft, model="local/scribe", verdict=failed),
                    Attempt(round=1, source="refiner", text=note, model="scripted/scribe-refiner", verdict=passed),
                ),
                strategy=Strategy(*strategize(asked, [draft], violations)),
            )
            found.append(case.ended("gold", "strategist", int(time.time() * 1000)))
        return found

    def holdout(self) -> list[Case]:
        """Draws cases of the holdout."""
        return [
            msgspec.structs.replace(case, case_id=f"holdout-{case.case_id}", split="holdout", strategy=None).ended(
                "holdout", "judge", int(time.time() * 1000)
            )
            for case in self.gold(HOLDOUT)
        ]

    def round(self, early: Sequence[Case] = ()) -> Round:
        """Lands what reaches the threshold and waits for an answer under the adapter that comes of it.

        From its promotion on there is always one case before the student.
        """
        before = incumbent(self.settings.adapters, TASK)
        self.land(early or self.gold(NEW - 1))
        time.sleep(SETTLE_S)
        began = self.land(self.gold(1))
        deadline = time.monotonic() + WAIT_S
        while (version := incumbent(self.settings.adapters, TASK)) == before:
            self._alive(deadline, "no adapter was promoted")
            time.sleep(0.002)
        while (answered := self._answered(version)) is None:
            self._alive(deadline, f"no answer under {version}")
        manifest = read_manifest(adapter_folder(self.settings.adapters, TASK, version))
        return self._read(began, answered, version, manifest)

    def _answered(self, version: str) -> float | None:
        """Puts a case before the student, waits for its attempt, and returns when that came if it is the version's."""
        self.asked += 1
        text, _ = make_transcript(self.random)
        case = Case(
            case_id=f"asked-{self.asked}",
            task=TASK,
            split="train",
            source=Source(cluster="c", topic="t", partition=0, offset=self.asked),
            messages=(Message("user", text),),
        )
        self.producer.send(self.settings.topic(PROMPTS), key=case.case_id.encode(), value=encode_case(case))
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            for records in self.consumer.poll(timeout_ms=1000).values():
                came = time.time()
                return came if decode_case(records[-1].value).attempts[0].adapter == version else None
        raise TimeoutError(f"{case.case_id} was not answered within {WAIT_S:.0f} s")

    def _alive(self, deadline: float, what: str) -> None:
        if happened := self.supervisor.check():
            raise RuntimeError("; ".join(happened))
        if time.monotonic() > deadline:
            tails = "\n".join(child.tail(15) for child in self.supervisor.children)
            raise TimeoutError(f"{what} within {WAIT_S:.0f} s:\n{tails}")

    def _read(self, began: float, answered: float, version: str, manifest: AdapterManifest) -> Round:
        """Takes the round apart by the lines that the processes logged."""
        said = {name: self._said(name) for name in ("trainer", "rollout", "worker")}

        def at(process: str, text: str) -> float:
            return next(when for when, line in reversed(said[process]) if text in line and when >= began - 0.05)

        marks = [
            ("seen", at("trainer", "a run starts")),
            ("read, tokenised, loaded", at("trainer", f"{version}: {manifest.training['steps']:.0f} steps in")),
            ("published", at("trainer", f"{version}: published")),
            ("gate", at("trainer", f"{version}: gate says")),
            ("promoted", at("trainer", f"{version}: promoted")),
            ("announced", at("rollout", f"{version} serves now")),
            ("heard", at("worker", f"now served by {version}")),
            ("answered", answered),
        ]
        stretches, last = {}, began
        for name, when in marks:
            stretches[name] = round(when - last, 4)
            last = when
        training = manifest.training["seconds"]
        stretches["read, tokenised, loaded"] -= training
        return Round(answered - began, training, stretches["gate"], stretches)

    def _said(self, name: str) -> list[tuple[float, str]]:
        path = next(child.log_path for child in self.supervisor.children if child.name == name)
        lines = (LINE.match(line) for line in path.read_text().splitlines())
        found = [line.groups() for line in lines if line is not None]
        return [(datetime.fromisoformat(at).timestamp() + int(ms) / 1000, text) for at, ms, text in found]


@contextmanager
def factory(room: Path) -> Iterator[Factory]:
    """Starts everything, ours on the measured core and the broker on the other; stops it all."""
    config = room / "bench.toml"
    config.write_text(CONFIG.format(student=STUDENT, tokens=TOKENS, new=NEW, holdout=HOLDOUT))
    overrides = [f"state_dir={room}/state"]
    settings = load_settings(config, overrides, environ={})
    measured, others = cores()
    os.sched_setaffinity(0, others)
    start_broker(settings)
    try:
        create_topics(settings)
        options = config_options(config, overrides)
        os.sched_setaffinity(0, measured)  # what is started from here on
        with Supervisor(settings, {name: [name, *options] for name in ("worker", "trainer", "rollout")}) as supervisor:
            os.sched_setaffinity(0, others)
            supervisor.wait_ready()
            ours = Factory(settings, supervisor)
            try:
                yield ours
            finally:
                ours.close()
    finally:
        stop_broker(settings)


def cold_start(settings: Settings, room: Path, core: set[int]) -> Round:
    """Trains in a fresh process and answers in another; each imports, loads and ends."""
    trainer = settings.task(TASK).trainer
    chosen = {"batch_size": trainer.batch_size, "rank": trainer.rank, "alpha": trainer.alpha}
    chosen |= {"rate": trainer.learning_rate, "weight": trainer.strategy_weight}
    shared = ["--base", str(STUDENT), "--adapter", str(room / "cold")]
    prompt, _ = make_transcript(random.Random(1))
    script = [sys.executable, str(Path(__file__).with_name("adapter_cold.py"))]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, core)
    try:
        began = time.monotonic()
        trained = _run([*script, "train", *shared, "--gold", str(settings.gold), "--settings", json.dumps(chosen)])
        between = time.monotonic()
        _run([*script, "serve", *shared, "--prompt", prompt, "--max-tokens", str(TOKENS)])
        total = time.monotonic() - began
    finally:
        os.sched_setaffinity(0, before)
    return Round(total, trained["seconds"], stretches={"train": between - began, "serve": total - (between - began)})


def _run(command: Sequence[str]) -> dict[str, float]:
    """Runs a script to the line it prints, which is where the clock stops; how it ends does not count."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.kill()
    return dict(json.loads(line))


def measure(room: Path) -> Result:
    """Measures both in turns. One round warms up: the first run of a service that has just started."""
    measured, _ = cores()
    pairs: list[tuple[Round, Round]] = []
    with factory(room) as ours:
        first = ours.round([*ours.holdout(), *ours.gold(NEW - 1)])
        for number in range(ROUNDS):
            sides = {"ours": ours.round, "theirs": lambda: cold_start(ours.settings, room, measured)}
            found = {side: sides[side]() for side in (("ours", "theirs") if number % 2 else ("theirs", "ours"))}
            pairs.append((found["ours"], found["theirs"]))
    whole = ratios([(theirs.total, own.without_gate) for own, theirs in pairs])
    untrained = ratios([(theirs.total - theirs.training, own.own) for own, theirs in pairs])
    stretches = {name: statistics.median(own.stretches[name] for own, _ in pairs) for name in pairs[0][0].stretches}
    training = statistics.median(own.training for own, _ in pairs)
    return Result(
        figure=whole.median,
        low=whole.low,
        high=whole.high,
        ours=f"in all {whole.theirs:.2f} s, {training:.2f} s of it training, the gate taken out",
        theirs=f"{whole.ours:.1f} s in all",
        also=(
            (f"training and gate taken out {untrained.theirs:.2f} s (at most 2 s)", untrained.theirs <= 2.0),
            (f"{untrained.median:.3g} x with training taken out of both", untrained.median >= 10.0),
        ),
        versions={name: version_of(name) for name in ("torch", "transformers", "peft")},
        detail={
            "stretches": stretches,
            "first run of the service": first._asdict(),
            "rounds": [{"ours": own._asdict(), "theirs": theirs._asdict()} for own, theirs in pairs],
        },
    )
