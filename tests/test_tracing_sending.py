"""Sending spans: what a process sends where, what it leaves out, and what a collector that fails costs."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collector import Collector
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind

from agents.completion import Completion
from agents.traced import outgoing, traced
from schemas.case import Message
from schemas.errors import ModelRefused, SettingsError
from schemas.measures import TRACING_SPANS
from schemas.metrics_server import scrape
from schemas.settings import Model, Settings, Tracing, load_settings
from schemas.tracing import tracer, tracing
from schemas.tracing.context import Parent, case_trace, run_parent
from schemas.tracing.outbox import Outbox
from schemas.tracing.sdk import Tracer
from streams.tracing import trace_hops, trace_landing

MODEL = Model(model="openai/gpt-5", api_base="https://models.example/v1", max_tokens=9, temperature=0.5)
ASKED = [Message("system", "Be kind."), Message("user", "My name is Ada.")]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        yield server


def settings_for(collector: Collector, **changes: Any) -> Settings:
    return Settings(tracing=Tracing(endpoint=collector.endpoint, **changes))


def answer(text: str = "Hello Ada.") -> Completion:
    return Completion(
        text=text, thinking="", model="openai/gpt-5", adapter="", prompt_tokens=7, completion_tokens=3, logprob=None,
        latency_s=0.1, cost_usd=0.2, finish_reason="stop",
    )  # fmt: skip


def call_once(settings: Settings, adapter: str = "", error: Exception | None = None) -> None:
    """Makes one model call under a case's span and sends both."""
    from opentelemetry import context
    from opentelemetry.trace import set_span_in_context

    with tracing(settings, "worker"):
        ours = tracer()
        assert ours is not None
        hop = ours.start("process", SpanKind.CONSUMER, trace_id=case_trace("req-1"))
        token = context.attach(set_span_in_context(hop))
        try:
            with traced("student", "toy", MODEL, adapter, ASKED, 0) as span:
                assert ("traceparent" in outgoing()) == hop.is_recording()
                if error is not None:
                    raise error
                span.answered(answer())
        except ModelRefused:
            pass
        finally:
            context.detach(token)
            hop.end()


class TestOff:
    def test_nothing_of_opentelemetry_is_imported_by_any_process_of_ours(self) -> None:
        code = (
            "import sys, agents.models, agents.providers, streams.worker, streams.intake, streams.retries, "
            "streams.sink, streams.dlq, streams.review, trainer.service, trainer.run, trainer.traced\n"
            "from schemas.settings import Settings; from schemas.tracing import tracing; from agents.traced import *\n"
            "from streams.tracing import trace_hops, trace_landing\n"
            "with tracing(Settings(), 'worker'):\n"
            "    assert trace_hops(Settings(), 'student') is None and trace_landing('t', 'sink') is None\n"
            "    with traced('student', 'toy', None, '', [], 0) as span: span.answered(None)\n"
            "    assert outgoing() == {}\n"
            "print([name for name in sys.modules if name.startswith('opentelemetry')])"
        )
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert told.stdout.splitlines()[-1:] == ["[]"], told.stdout + told.stderr

    def test_no_endpoint_makes_no_span(self) -> None:
        with tracing(Settings(), "worker"):
            assert tracer() is None
            assert trace_hops(Settings(), "student") is None
            assert trace_landing("gs.outcomes", "sink") is None


class TestWhatIsSent:
    def test_a_process_names_itself_and_whoever_runs_it(self, collector: Collector) -> None:
        call_once(settings_for(collector, service_name="gold", resource={"deployment.environment.name": "prod"}))
        told = collector.spans[0].resource
        assert (told["service.name"], told["service.namespace"]) == ("gold-worker", "gold")
        assert told["deployment.environment.name"] == "prod"
        assert collector.headers[0]["path"] == "/v1/traces"

    def test_texts_are_sent_only_where_the_settings_say_so(self, collector: Collector) -> None:
        call_once(settings_for(collector))
        assert "Ada" not in str(collector.spans)
        assert b"Ada" not in b"".join(collector.bodies)
        call_once(settings_for(collector, record_content=True))
        call = next(span for span in reversed(collector.spans) if span.name == "chat gpt-5")
        assert '"content":"My name is Ada."' in call.attributes["gen_ai.input.messages"]
        assert '"content":"Hello Ada."' in call.attributes["gen_ai.output.messages"]

    def test_a_call_that_fails_tells_the_kind_of_error_and_not_its_text(self, collector: Collector) -> None:
        call_once(settings_for(collector), error=ModelRefused("student of toy: no model for Ada"))
        (call,) = (span for span in collector.spans if span.name == "chat gpt-5")
        assert (call.is_error, call.attributes["error.type"]) == (True, "model_refused")
        assert call.attributes["server.address"] == "models.example"
        assert call.attributes["server.port"] == 443
        assert b"Ada" not in b"".join(collector.bodies)

    def test_a_call_with_an_adapter_links_to_the_run_that_made_it(self, collector: Collector) -> None:
        call_once(settings_for(collector), adapter="v0007-ab")
        (call,) = (span for span in collector.spans if span.name == "chat gpt-5")
        run = run_parent("toy", "v0007-ab")
        assert call.links == [(run.trace_id, run.span_id)]
        assert call.attributes["goldstream.adapter"] == "v0007-ab"

    def test_a_call_outside_a_case_has_no_span(self, collector: Collector) -> None:
        with tracing(settings_for(collector), "trainer"), traced("judge", "toy", MODEL, "", ASKED, 0) as span:
            span.answered(answer())
            assert outgoing() == {}
        assert not collector.spans

    def test_headers_come_from_the_variable_that_is_named(
        self, collector: Collector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLLECTOR_HEADERS", "x-key=s3cret,x-org=a%20b")
        call_once(settings_for(collector, headers_env="COLLECTOR_HEADERS"))
        assert (collector.headers[0]["x-key"], collector.headers[0]["x-org"]) == ("s3cret", "a b")


class TestSampling:
    def decided(self, ratio: float, *parents: Parent | None) -> list[bool]:
        ours = Tracer(Tracing(endpoint="http://127.0.0.1:9", ratio=ratio), "worker")
        try:
            return [
                ours.start("process", SpanKind.CONSUMER, parent, trace_id=case_trace(f"req-{n}")).is_recording()
                for n, parent in enumerate(parents)
            ]
        finally:
            ours.close()

    def test_a_share_of_the_cases_is_traced_and_the_same_ones_everywhere(self) -> None:
        first, again = (self.decided(0.3, *[None] * 400) for _ in range(2))
        assert first == again
        assert 80 < sum(first) < 160
        assert sum(self.decided(0.0, *[None] * 50)) == 0
        assert sum(self.decided(1.0, *[None] * 50)) == 50

    def test_a_uuid_is_as_good_a_trace_id_as_any(self) -> None:
        ours = Tracer(Tracing(endpoint="http://127.0.0.1:9", ratio=0.2), "worker")
        traces = [uuid.uuid5(uuid.NAMESPACE_DNS, str(n)).hex for n in range(400)]
        found = [ours.start("process", SpanKind.CONSUMER, trace_id=trace).is_recording() for trace in traces]
        ours.close()
        assert 40 < sum(found) < 120, "version and variant bits must not decide"

    def test_the_parent_decides_where_there_is_one(self) -> None:
        yes, no = (Parent("a" * 32, "b" * 16, sampled) for sampled in (True, False))
        assert self.decided(0.0, yes, no) == self.decided(1.0, yes, no) == [True, False]


class TestCollectorDown:
    def test_cases_go_on_and_what_is_lost_is_counted_and_said_once(
        self, collector: Collector, caplog: pytest.LogCaptureFixture
    ) -> None:
        collector.status = 400  # it answers and takes nothing
        with caplog.at_level(logging.INFO), tracing(settings_for(collector), "worker"):
            ours = tracer()
            assert ours is not None
            for _ in range(3):
                ours.start("process", SpanKind.CONSUMER).end()
                assert ours.outbox.force_flush(5000)
            assert ours.outbox.counts == {"sent": 0, "failed": 3, "queue_full": 0}
            assert 'goldstream_tracing_spans_total{result="failed"} 3.0' in scrape([TRACING_SPANS])
            collector.status = 200
            ours.start("process", SpanKind.CONSUMER).end()
            assert ours.outbox.force_flush(5000)
        assert [r.getMessage()[:30] for r in caplog.records if r.levelno >= logging.WARNING] == [
            "the collector at tracing.endpo"
        ]
        assert "takes spans again; 3 were dropped" in caplog.text
        assert len(collector.spans) == 1

    def test_a_collector_that_hangs_blocks_nobody_and_the_rest_is_dropped(self) -> None:
        stuck, released = threading.Event(), threading.Event()

        class Hanging(SpanExporter):
            def export(self, spans: Any) -> SpanExportResult:
                stuck.set()
                released.wait(30)
                return SpanExportResult.FAILURE

        outbox = Outbox(Hanging(), most_waiting=10, close_s=0.1)
        outbox.on_end(object())  # type: ignore[arg-type]
        assert stuck.wait(10)
        for _ in range(30):
            outbox.on_end(object())  # type: ignore[arg-type]
        assert outbox.counts["queue_full"] == 20
        outbox.shutdown()  # returns although the collector never answers
        assert outbox.counts["failed"] >= 10
        released.set()

    def test_nobody_listening_is_an_outage_like_any(self) -> None:
        with tracing(Settings(tracing=Tracing(endpoint="http://127.0.0.1:9", timeout_s=0.5)), "worker"):
            ours = tracer()
            assert ours is not None
            ours.start("process", SpanKind.CONSUMER).end()
            assert ours.outbox.force_flush(10_000)
            assert ours.outbox.counts["failed"] == 1


class TestSettings:
    @pytest.mark.parametrize(
        ("value", "says"),
        [
            ("collector:4318", "expected the address of an OTLP collector"),
            ("grpc://collector:4317", "not spoken"),
            ("http://user:pass@collector:4318", "tracing.headers_env"),
            ("http://collector:4318?key=s3cret", "tracing.headers_env"),
        ],
    )
    def test_an_address_that_cannot_be_used_is_refused_without_its_secret(
        self, tmp_path: Path, value: str, says: str
    ) -> None:
        (tmp_path / "goldstream.toml").write_text(f'[tracing]\nendpoint = "{value}"\n')
        with pytest.raises(SettingsError, match=says) as caught:
            load_settings(tmp_path / "goldstream.toml", environ={})
        assert "pass" not in str(caught.value).replace("password", "")
        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize("held", [None, "no pairs", "bad name=x"])
    def test_headers_that_cannot_be_read_are_an_error_that_does_not_repeat_them(
        self, collector: Collector, monkeypatch: pytest.MonkeyPatch, held: str | None
    ) -> None:
        monkeypatch.delenv("COLLECTOR_HEADERS", raising=False)
        if held is not None:
            monkeypatch.setenv("COLLECTOR_HEADERS", held)
        with (
            pytest.raises(SettingsError, match="COLLECTOR_HEADERS") as caught,
            tracing(settings_for(collector, headers_env="COLLECTOR_HEADERS"), "worker"),
        ):
            pass
        assert held is None or held not in str(caught.value)
