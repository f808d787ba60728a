"""A training run is a trace of its own, under ids that whoever uses the adapter can name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from collector import Collector
from toys import TOY, ToyEngine, toy_gold, toy_judge, with_task

from schemas.adapters import GateReport
from schemas.settings import Settings, Tracing
from schemas.tracing import tracing
from schemas.tracing.context import run_parent
from trainer.pinned import Pinned
from trainer.service import run_trainer
from trainer.traced import traced_run

PINNED = Pinned(
    task="toy", version="v0002-cd", watermark={}, base_sha256="", parent="v0001-ab", initial="", revision="r",
    started_ms=1,
)  # fmt: skip


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        yield server


class Perfect(ToyEngine):
    """The base knows nothing, every adapter everything."""

    def load_adapter(self, name: str, folder: Path) -> None:
        self.answers[name] = TOY


def train(settings: Settings) -> GateReport:
    engine = Perfect({"": dict.fromkeys(TOY, "?")})
    found = run_trainer(
        settings, once="toy", stop=threading.Event(), judge=toy_judge, make_engine=lambda settings, task: engine
    )
    assert found is not None
    return found


def test_a_run_tells_what_it_trained_on_and_what_the_gate_said(settings: Settings, collector: Collector) -> None:
    quick = msgspec.structs.replace(settings.tasks["toy"].trainer, epochs=1, rank=4)
    settings = msgspec.structs.replace(with_task(settings, trainer=quick), tracing=Tracing(endpoint=collector.endpoint))
    toy_gold(settings.gold)
    with tracing(settings, "trainer"):
        report = train(settings)
    expected = run_parent("toy", report.version)
    run = next(span for span in collector.spans if span.name == "run toy")
    assert (run.trace, run.id, run.parent) == (expected.trace_id, expected.span_id, "")
    assert (run.attributes["goldstream.adapter"], run.attributes["goldstream.rows"]) == (report.version, 4)
    assert {span.name for span in collector.spans if span.parent == run.id} == {"train", "gate"}
    ((name, gate),) = run.events
    assert (name, gate["goldstream.decision"], gate["goldstream.adapter"]) == (
        "goldstream.gate", report.decision, report.version,
    )  # fmt: skip
    assert (gate["goldstream.before"], gate["goldstream.after"]) == (report.before, report.after)


def test_the_rest_of_an_interrupted_run_is_in_its_trace(collector: Collector) -> None:
    with tracing(Settings(tracing=Tracing(endpoint=collector.endpoint)), "trainer"):
        with pytest.raises(KeyError), traced_run(PINNED, False) as traced, traced.step("train"):
            raise KeyError("a prompt")
        with traced_run(PINNED, True):
            pass
    by_name = {span.name: span for span in collector.spans}
    first = run_parent("toy", "v0002-cd")
    assert by_name["run toy"].attributes["error.type"] == "KeyError"
    assert by_name["train"].is_error
    assert by_name["continue toy"].parent == first.span_id == by_name["run toy"].id
    assert b"a prompt" not in b"".join(collector.bodies)


def test_a_run_is_kept_whatever_the_ratio(collector: Collector) -> None:
    with (
        tracing(Settings(tracing=Tracing(endpoint=collector.endpoint, ratio=0.0)), "trainer"),
        traced_run(PINNED, False),
    ):
        pass
    assert [span.name for span in collector.spans] == ["run toy"]
