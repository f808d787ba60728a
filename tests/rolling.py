"""What tests about rollout share: a list in the place of gs.adapters, rollout in a thread, settings on stub servers."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stub_vllm import StubVllm
from toys import NEW, OLD, Service, a_manifest, with_task

from schemas.adapters import AdapterRecord
from schemas.case import Attempt, Case, Message, Source, Verdict
from schemas.settings import Model, Rollout, Settings, Trainer
from trainer.registry import promote, publish
from trainer.rollout import run_rollout

THIRD = "v0003-cccccc"


class ListRecords:
    """gs.adapters as a list."""

    def __init__(self, *records: AdapterRecord) -> None:
        self.records = list(records)

    def read(self) -> list[AdapterRecord]:
        return list(self.records)

    def append(self, record: AdapterRecord) -> None:
        self.records.append(record)


class InThread(Service):
    """Rollout in a thread; leaving the block stops it."""

    def __init__(self, settings: Settings, records: ListRecords, **options: Any) -> None:
        self.stop = threading.Event()
        options = {"stop": self.stop, "records": records, "poll_s": 0.02} | options
        self.thread = threading.Thread(target=run_rollout, args=(settings,), kwargs=options)


def on_vllm(settings: Settings, base: Path, *servers: StubVllm, share_gpu: bool = False, **rollout: Any) -> Settings:
    """Returns settings whose student is served by these servers."""
    return with_task(
        settings,
        student=Model(model="hosted_vllm/tiny", api_base=servers[0].url),
        trainer=Trainer(base=str(base), share_gpu=share_gpu),
        rollout=Rollout(servers=tuple(s.url for s in servers), **rollout),
    )


def a_record(version: str, **changes: Any) -> AdapterRecord:
    fields: dict[str, Any] = {"task": "toy", "version": version, "lease_epoch": 1, "sequence": 1, "at_ms": 1}
    return AdapterRecord(**(fields | changes))


def publish_and_promote(settings: Settings, base: Path, run_folder: Path, version: str) -> None:
    publish(settings.adapters, run_folder, a_manifest(base, version))
    promote(settings.adapters, "toy", version, by="gate", reason="better")


RECORD = a_record(NEW, previous=OLD, canary_share=0.1, at_ms=1000)


def tried(case_id: str, passed: bool | None, record: AdapterRecord = RECORD, **changes: Any) -> Case:
    """Returns an ended case whose first attempt the version of its arm made; `passed` None: it died at the student."""
    adapter = changes.pop("adapter", record.previous if record.in_canary(case_id) else record.version)
    verdict = Verdict(passed=bool(passed), score=0, max_score=1, judge="test")
    first = Attempt(round=0, source="student", text="?", model="m", adapter=adapter, verdict=verdict)
    fields: dict[str, Any] = {
        "task": "toy",
        "split": "train",
        "source": Source(cluster="c", topic="t", partition=0, offset=0),
        "messages": (Message("user", "red"),),
        "created_ms": 2000,
    }
    case = Case(case_id=case_id, attempts=() if passed is None else (first,), **(fields | changes))
    if passed is None:
        return case.ended("dead", "student", 1, "bad_answer")
    return case.ended("gold" if passed else "unresolved", "sink", 1)


def traffic(cases: int, rate: Callable[[bool, int], float], seed: int, record: AdapterRecord = RECORD) -> list[Case]:
    """Returns cases that pass at rate(in the canary, number)."""
    dice = random.Random(seed)
    ids = [f"{seed}-{number}" for number in range(cases)]
    return [
        tried(i, dice.random() < rate(record.in_canary(i), number), record, split=dice.choice(["train", "holdout"]))
        for number, i in enumerate(ids)
    ]
