"""Toys of the trainer's tests: four lines to learn, ended cases, a gold set, an engine that answers from a table.

Fixtures made of them (`base`, `tokenizer`, `settings`, `run_folder`) are in conftest.py.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pyarrow.parquet as pq

from schemas.adapters import AdapterManifest, GateReport, base_fingerprint
from schemas.case import Attempt, Case, Message, Source, Strategy, Verdict, Violation
from schemas.errors import ModelRefused
from schemas.gold import END_OFFSET, START_OFFSET, landing_folder, landing_name, read_chain
from schemas.outcomes import outcome_row, outcome_table
from schemas.settings import Settings
from trainer.holdout import HoldoutCase
from trainer.service import run_trainer

STRATEGY = Strategy("listed a denied symptom", "leave out what the patient denies")
TOY = {"red": "stop", "green": "go", "amber": "wait", "blue": "none"}


def a_case(
    case_id: str,
    question: str,
    answer: str = "",
    *,
    kind: str = "gold",
    split: str = "train",
    corrected: bool = True,
    strategy: Strategy | None = None,
    task: str = "toy",
) -> Case:
    """Returns an ended case: gold that a refiner corrected, unless told otherwise."""
    bad = Verdict(passed=False, score=0, max_score=1, judge="test")
    good = Verdict(passed=True, score=1, max_score=1, judge="test")
    attempts = [Attempt(round=0, source="student", text="?", model="m", verdict=bad)] if corrected else []
    if kind == "gold":
        attempts.append(Attempt(round=len(attempts), source="refiner", text=answer, model="m", verdict=good))
    case = Case(
        case_id=case_id,
        task=task,
        split=split,  # type: ignore[arg-type]
        source=Source(cluster="c", topic="t", partition=0, offset=0),
        messages=(Message("user", question),),
        attempts=tuple(attempts),
        strategy=strategy,
    )
    return case.ended(kind, "sink", 1)  # type: ignore[arg-type]


def add_gold(gold: Path, cases: Sequence[Case], partition: int = 0) -> None:
    """Writes cases as the next landing file of a partition."""
    chain = read_chain(gold, partition)
    start = chain[-1].end if chain else 0
    rows = [outcome_row(case, partition, start + index) for index, case in enumerate(cases)]
    metadata = {START_OFFSET: str(start).encode(), END_OFFSET: str(start + len(rows)).encode()}
    folder = landing_folder(gold, partition)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = gold / "half"  # the service may be reading
    pq.write_table(outcome_table(rows).replace_schema_metadata(metadata), temporary)
    temporary.rename(folder / landing_name(partition, start))


def toy_gold(gold: Path, copies: int = 1, strategy: Strategy | None = STRATEGY) -> None:
    train = [
        a_case(f"train-{color}-{n}", color, answer, strategy=strategy)
        for n in range(copies)
        for color, answer in TOY.items()
    ]
    holdout = [a_case(f"holdout-{color}", color, kind="holdout", split="holdout") for color in TOY]
    add_gold(gold, [*train, *holdout])


async def toy_judge(messages: Sequence[Message], answer: str) -> Verdict:
    passed = answer == TOY[messages[-1].text()]
    violations = () if passed else (Violation("exact"), Violation("exact"))
    return Verdict(passed=passed, score=float(passed), max_score=1, judge="toy", violations=violations)


def with_task(settings: Settings, **changes: Any) -> Settings:
    return msgspec.structs.replace(settings, tasks={"toy": msgspec.structs.replace(settings.tasks["toy"], **changes)})


def a_manifest(base: Path, version: str, **changes: Any) -> AdapterManifest:
    fields: dict[str, Any] = {
        "task": "toy",
        "version": version,
        "base": "tiny",
        "base_sha256": base_fingerprint(base),
        "files": {},
        "watermark": {0: 4},
        "rows": 4,
        "pairs": 4,
        "settings": {},
        "seed": 0,
        "revision": "",
        "created_ms": 1,
    }
    return AdapterManifest(**(fields | changes))


def a_report(version: str, **changes: Any) -> GateReport:
    fields: dict[str, Any] = {
        "task": "toy",
        "version": version,
        "incumbent": "",
        "decision": "promote",
        "reason": "better",
        "cases": 4,
        "before": 0.0,
        "after": 1.0,
        "gained": 4,
        "lost": 0,
        "p_value": 0.125,
    }
    return GateReport(**(fields | changes))


class ToyEngine:
    """Answers from a table: version, or version and " thinking" -> question -> answer."""

    base_sha256 = "0" * 64

    def __init__(self, answers: dict[str, dict[str, str]]) -> None:
        self.answers, self.closed = answers, False
        self.asked: list[str] = []

    def load_adapter(self, name: str, folder: Path) -> None:
        assert folder.name == name

    def unload_adapter(self, name: str) -> None:
        assert name

    def close(self) -> None:
        self.closed = True

    def generate_batch(
        self, prompts: Any, *, adapter: str, temperature: float, max_tokens: int, thinking: bool
    ) -> list[Any]:
        assert (temperature, max_tokens) == (0.0, 520 if thinking else 8)
        adapter += " thinking" if thinking else ""
        if any(p[-1].text() not in self.answers[adapter] for p in prompts):
            raise ModelRefused("beyond the context")
        self.asked.append(adapter)
        return [SimpleNamespace(text=self.answers[adapter][p[-1].text()]) for p in prompts]


COLORS = [HoldoutCase(color, [Message("user", color)]) for color in TOY]
NEW, OLD = "v0002-bbbbbb", "v0001-aaaaaa"


class Service:
    """The trainer's service in a thread; leaving the block stops it."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        self.stop = threading.Event()
        options = {"stop": self.stop, "poll_s": 0.02, "judge": toy_judge} | options
        self.thread = threading.Thread(target=run_trainer, args=(settings,), kwargs=options)

    def __enter__(self) -> Service:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Lets the kernel refuse to write files beyond a size, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
