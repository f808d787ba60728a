"""Tracing on a real broker with real processes: one case is one trace, whatever becomes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from collector import Collector, Seen, tree
from factory_settings import process_options
from kafka import KafkaProducer
from pipeline import STUB_TASK, openai_record, outcomes, toy_answer, wait_for
from steps import command_line
from stub_models import Reply, StubModels

from schemas.kafka import client_options
from schemas.settings import Settings, load_settings
from schemas.tracing.context import case_trace
from streams.supervisor import Supervisor
from streams.topics import create_topics, ensure_source_topic

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "the patient's name is Ada"
RECORDS: dict[str, bytes | None] = {
    "req-plain": None,
    "req-product": f"00-{TRACE}-{SPAN}-01".encode(),
    "req-unsampled": f"00-{TRACE[::-1]}-{SPAN}-00".encode(),
    "req-hostile": b"00-" + b"0" * 32 + b"-" + b"f" * 9999,
    "req-flaky": None,
    "req-dies": None,
}


class Ran(NamedTuple):
    """A factory that has run, and what its collector saw."""

    collector: Collector
    rows: dict[str, dict[str, Any]]
    asked_with: list[dict[str, str]]  # the headers of each model call

    def trace(self, case_id: str) -> list[Seen]:
        return self.collector.of(case_trace(case_id))


class Flaky:
    """Models that fail for two cases: once with a 503, and with a 400 until `is_mended`."""

    def __init__(self) -> None:
        self.is_mended = False
        self._failed = False

    def __call__(self, request: dict[str, Any]) -> Reply:
        text = request["messages"][-1]["content"]
        if request["model"] == "student" and "flaky" in text and not self._failed:
            self._failed = True
            return Reply(status=503)
        if request["model"] == "student" and "dies" in text and not self.is_mended:
            return Reply(status=400)
        return toy_answer(request)


@pytest.fixture(scope="module")
def ran(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """Runs each record to its end over two workers, and redrives the one that died."""
    folder = tmp_path_factory.mktemp("traced")
    answer = Flaky()
    with Collector() as collector, StubModels(answer) as models:
        toml = STUB_TASK.format(topic="logs-traced", api_base=models.api_base)
        (folder / "goldstream.toml").write_text(f'{toml}\n[tracing]\nendpoint = "{collector.endpoint}"\n')
        changes = [f"kafka.bootstrap_servers={kafka}", "kafka.topic_prefix=traced.", f"state_dir={folder / 'state'}"]
        settings = load_settings(folder / "goldstream.toml", changes, environ={})
        create_topics(settings)
        ensure_source_topic(settings, "logs-traced", partitions=1)
        with factory(settings, folder) as supervisor:
            log_all(settings)
            wait_for(lambda: len(outcomes(settings)) >= len(RECORDS), "all outcomes", supervisor)
            answer.is_mended = True
            redriven = command_line(settings, folder, "dlq", "redrive", "--id", "req-dies")
            assert redriven.exit_code == 0, redriven.output
            wait_for(lambda: by_id(settings)["req-dies"]["outcome"] == "gold", "the redriven case", supervisor)
        yield Ran(collector, by_id(settings), models.headers)


def factory(settings: Settings, folder: Path) -> Supervisor:
    """Returns intake, retries, the sink, and two workers: a case goes from one to the other and back.

    Both are students too: a worker imports what it calls models with ahead of time only then.
    """
    options = process_options(settings, folder / "goldstream.toml")
    commands = {name: [name, *options] for name in ("intake", "retries", "sink")}
    commands["worker-1"] = ["worker", "--stages", "student,judge", *options]
    commands["worker-2"] = ["worker", "--stages", "student,refiner,strategist", *options]
    return Supervisor(settings, commands)


def log_all(settings: Settings) -> None:
    """Produces the records as a product would, some with its trace in their headers."""
    producer = KafkaProducer(**client_options(settings), acks="all")
    for case_id, parent in RECORDS.items():
        headers = [("traceparent", parent), ("tracestate", b"shop=7")] if parent else []
        producer.send("logs-traced", value=openai_record(f"{SECRET}: {case_id}", case_id), headers=headers)
    producer.flush()
    producer.close(timeout=5)


def by_id(settings: Settings) -> dict[str, dict[str, Any]]:
    return {row["case_id"]: row for row in outcomes(settings)}


def named(spans: list[Seen], name: str) -> list[Seen]:
    return [span for span in spans if span.name == name]


def steps(spans: list[Seen]) -> list[str]:
    """Returns the path from a trace's first span to the sink, from parent to child."""
    known, last = {span.id: span for span in spans}, named(spans, "process traced.outcomes")[-1]
    path = [last]
    while path[-1].parent in known:
        path.append(known[path[-1].parent])
    return [span.name.replace("traced.", "") for span in reversed(path)]


def test_a_case_is_one_trace_from_the_log_to_the_file_with_a_refinement(ran: Ran) -> None:
    spans = ran.trace("req-plain")
    assert steps(spans) == [
        "process logs-traced", "send prompts",
        "process prompts", "send attempts",
        "process attempts", "send refine",
        "process refine", "send attempts",
        "process attempts", "send accepted",
        "process accepted", "send outcomes",
        "process outcomes",
    ]  # fmt: skip
    assert len([span for span in spans if not span.parent]) == 1, tree(spans)
    services = {f"goldstream-{name}" for name in ("intake", "worker", "sink")}
    assert {span.service for span in spans} == services
    assert len({span.resource["service.instance.id"] for span in spans}) == 4, "two workers"
    assert {case_id for case_id in RECORDS if ran.rows[case_id]["outcome"] == "gold"} == set(RECORDS)


def test_hops_speak_the_conventions_for_messaging(ran: Ran) -> None:
    (hop,) = named(ran.trace("req-plain"), "process traced.refine")
    assert hop.kind == "consumer"
    assert hop.attributes["messaging.system"] == "kafka"
    assert hop.attributes["messaging.operation.type"] == "process"
    assert hop.attributes["messaging.destination.name"] == "traced.refine"
    assert hop.attributes["messaging.consumer.group.name"] == "traced.refiner"
    assert hop.attributes["messaging.destination.partition.id"].isdigit()
    about = {name: hop.attributes[f"goldstream.{name}"] for name in ("case_id", "task", "stage", "round", "to")}
    assert about == {"case_id": "req-plain", "task": "toy", "stage": "refiner", "round": 1, "to": "attempts"}
    (sent,) = named(ran.trace("req-plain"), "send traced.refine")
    assert (sent.kind, sent.attributes["messaging.operation.type"]) == ("producer", "send")


def test_model_calls_speak_the_conventions_for_generative_models(ran: Ran) -> None:
    calls = named(ran.trace("req-plain"), "chat student")
    assert len(calls) == 1
    call, (hop,) = calls[0], named(ran.trace("req-plain"), "process traced.prompts")
    assert (call.kind, call.parent) == ("client", hop.id)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "student",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.response.finish_reasons": ["stop"],
        "server.address": "127.0.0.1",
        "goldstream.role": "student",
    }
    assert (
        expected.items() <= {**call.attributes}.items()
        if False
        else all(call.attributes[name] == value for name, value in expected.items())
    )


def test_a_vllm_server_is_told_the_span_of_each_call(ran: Ran) -> None:
    calls = [span for span in ran.trace("req-plain") if span.kind == "client"]
    told = [headers["traceparent"] for headers in ran.asked_with if "traceparent" in headers]
    assert {f"00-{span.trace}-{span.id}-01" for span in calls} <= set(told)
    assert len(told) < len(ran.asked_with), "a case that is not sampled tells nothing"


def test_a_verdict_is_an_event_with_its_score_and_the_broken_rules(ran: Ran) -> None:
    judged = named(ran.trace("req-plain"), "process traced.attempts")
    verdicts = [about for span in judged for name, about in span.events if name == "gen_ai.evaluation.result"]
    assert [one["gen_ai.evaluation.score.label"] for one in verdicts] == ["fail", "pass"]
    assert [one["goldstream.rules"] for one in verdicts] == [["polite"], []]
    assert [one["gen_ai.evaluation.score.value"] for one in verdicts] == [0.0, 1.0]


def test_the_trace_of_the_product_goes_on(ran: Ran) -> None:
    spans = ran.collector.of(TRACE)
    assert steps(spans)[0] == "process logs-traced"
    (first,) = named(spans, "process logs-traced")
    assert first.parent == SPAN
    assert not ran.trace("req-product")


def test_what_the_product_did_not_sample_is_not_sampled(ran: Ran) -> None:
    assert not ran.collector.case("req-unsampled")
    assert not ran.collector.of(TRACE[::-1])


def test_a_hostile_header_costs_the_context_alone(ran: Ran) -> None:
    assert len(steps(ran.trace("req-hostile"))) == 13


def test_a_retry_is_part_of_the_trace_with_the_wait_as_a_span(ran: Ran) -> None:
    path = steps(ran.trace("req-flaky"))
    assert path[2:8] == [
        "process prompts", "send retry.1s", "process retry.1s", "send prompts", "process prompts", "send attempts",
    ]  # fmt: skip
    (wait,) = named(ran.trace("req-flaky"), "process traced.retry.1s")
    assert wait.service == "goldstream-retries"
    failed, answered = named(ran.trace("req-flaky"), "chat student")
    assert (failed.is_error, failed.attributes["error.type"]) == (True, "model_unavailable")
    assert not answered.is_error


def test_a_redrive_continues_the_trace_where_it_ended_and_links_to_it(ran: Ran) -> None:
    spans = ran.trace("req-dies")
    died, revived = named(spans, "process traced.prompts")
    assert (died.is_error, died.attributes["goldstream.outcome"]) == (True, "dead")
    assert died.attributes["error.type"] == died.attributes["goldstream.reason"] == "model_refused"
    (redrive,) = named(spans, "redrive")
    assert (redrive.service, redrive.parent, redrive.links) == ("goldstream-redrive", died.id, [(died.trace, died.id)])
    assert revived.attributes["goldstream.epoch"] == 1
    assert len(named(spans, "process traced.outcomes")) == 2


def test_a_landing_file_links_to_its_cases_and_they_to_it(ran: Ran) -> None:
    (landed,) = named(ran.trace("req-plain"), "process traced.outcomes")
    (file,) = (span for span in ran.collector.spans if (span.trace, span.id) in landed.links)
    assert file.name == "land traced.outcomes"
    (sent,) = named(ran.trace("req-plain"), "send traced.outcomes")
    assert (sent.trace, sent.id) in file.links
    assert file.attributes["messaging.batch.message_count"] == len(file.links)


def test_no_text_of_a_case_reaches_the_collector(ran: Ran) -> None:
    everything = b"".join(ran.collector.bodies)
    assert everything
    for text in (SECRET, "please wait", "no please", "Always ask kindly"):
        assert text.encode() not in everything
    assert json.dumps([span.attributes for span in ran.collector.spans])
