"""Claims about what processes count and where they show it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from metered import RECORDS, TOPIC, metered, run_through
from pipeline import wait_for
from scraped import family_names, names, scrape_all, series, targets, total
from stub_models import StubModels

from agents.account import Call
from agents.budget import Budget as Budgets
from agents.counting import Counted
from agents.endpoints import Endpoint, Endpoints
from schemas.case import Spend
from schemas.errors import BadAnswer, ModelUnavailable, SettingsError
from schemas.ledger import Entry, Line
from schemas.measures import (
    BUDGET_CAP,
    BUDGET_SPENT,
    MODEL_CALLS,
    MODEL_COST,
    MODEL_ENDPOINTS_HELD,
    MODEL_IN_FLIGHT,
    MODEL_TOKENS,
    PROCESS_FAMILIES,
)
from schemas.metrics import MOST_SERIES, OTHER, Counter, Family, Gauge, Histogram
from schemas.metrics_server import scrape, serving_metrics, targets_file
from schemas.settings import Budget, Limits, Metrics, Model, Settings, Task, Worker
from streams.exporter.families import FAMILIES
from streams.measuring import show_budget

DEPLOY = Path(__file__).parents[1] / "deploy"
TRAINED = ("goldstream_trainer", "goldstream_gate", "goldstream_adapter", "goldstream_rollout")


def shown(settings: Settings, *families: Family, process: str = "sink") -> contextlib.AbstractContextManager[str]:
    return serving_metrics(settings, process, families)


def local(tmp_path: Path, port: object = "free", host: str = "127.0.0.1") -> Settings:
    return Settings(state_dir=str(tmp_path), metrics=Metrics(port=port, host=host))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_labels_without_end_are_counted_under_one_name() -> None:
    counter = Counter("calls", "Calls.", ("id",))
    for number in range(MOST_SERIES + 10):
        counter.add(str(number))
    assert len(counter.samples()) == MOST_SERIES + 1
    assert total(series(scrape([counter])), "calls_total", id=OTHER) == 10


def test_buckets_hold_what_took_no_longer_than_their_bound() -> None:
    histogram = Histogram("call_seconds", "Time.", ("model",), bounds=(0.5, 1.0))
    for seconds in (0.5, 0.7, 3.0):
        histogram.add("m", seconds=seconds)
    found = series(scrape([histogram]))
    assert [total(found, "call_seconds_bucket", le=bound) for bound in ("0.5", "1.0", "+Inf")] == [1, 2, 3]
    assert total(found, "call_seconds_count") == 3
    assert total(found, "call_seconds_sum") == pytest.approx(4.2)


def test_a_gauge_set_anew_forgets_what_is_gone_and_adds_what_falls_together() -> None:
    gauge = Gauge("rows", "Rows.", ("task",))
    gauge.set({("old",): 1.0})
    gauge.set([(("new",), 1.0), (("new",), 2.0)])
    assert series(scrape([gauge])) == {("rows", frozenset({("task", "new")})): 3.0}


def test_quotes_and_line_ends_in_a_label_break_no_scrape() -> None:
    gauge = Gauge("rows", "Rows.", ("model",))
    gauge.set({('a "b"\n\\c',): 1.0})
    assert series(scrape([gauge])) == {("rows", frozenset({("model", 'a "b"\n\\c')})): 1.0}


def test_two_processes_of_one_name_have_a_file_each_and_take_it_away(tmp_path: Path) -> None:
    settings = local(tmp_path)
    with shown(settings) as first, shown(settings) as second:
        assert first != second
        files = {path.name for path in (tmp_path / "run").iterdir()}
        assert files == {"sink.metrics.json", "sink-2.metrics.json"}
    assert list((tmp_path / "run").iterdir()) == []


def test_a_killed_process_leaves_its_file_to_the_next(tmp_path: Path) -> None:
    path = targets_file(tmp_path, "sink")
    path.parent.mkdir()
    path.write_text(f'[{{"targets": ["127.0.0.1:{free_port()}"], "labels": {{"process": "sink"}}}}]')
    with shown(local(tmp_path)) as address:
        assert targets(local(tmp_path)) == {"sink": address}


def test_a_port_that_is_taken_is_passed_over(tmp_path: Path) -> None:
    port = free_port()
    with shown(local(tmp_path, port)) as first, shown(local(tmp_path, port)) as second:
        assert int(second.rpartition(":")[2]) > int(first.rpartition(":")[2]) >= port


def test_metrics_that_are_off_open_nothing(tmp_path: Path) -> None:
    with shown(local(tmp_path, "off")) as address:
        assert address == ""
    assert not (tmp_path / "run").exists()


def test_an_address_that_is_not_ours_is_an_error_that_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"metrics\.host"), shown(local(tmp_path, host="203.0.113.9")):
        pass


def test_a_state_folder_that_cannot_be_written_costs_the_file_alone(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    gauge = Gauge("rows", "Rows.")
    gauge.set({(): 1.0})
    with shown(local(tmp_path), gauge) as address, urllib.request.urlopen(f"http://{address}/metrics") as answer:
        assert b"rows 1.0" in answer.read()


def test_a_machine_without_the_prometheus_client_only_lacks_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with shown(local(tmp_path)) as address:
        assert address == ""


def test_an_empty_answer_is_a_failed_call_that_is_paid_for() -> None:
    error = BadAnswer("empty")
    error.spend = Spend(1, 100, 5, 0.25, 1.0)
    with pytest.raises(BadAnswer), Counted("paid", "judge", "m"):
        raise error
    found = series(scrape([MODEL_CALLS, MODEL_TOKENS, MODEL_COST, MODEL_IN_FLIGHT]))
    assert total(found, "goldstream_model_calls_total", task="paid", result="bad_answer") == 1
    assert total(found, "goldstream_model_tokens_total", task="paid", kind="prompt") == 100
    assert total(found, "goldstream_model_cost_usd_total", task="paid") == 0.25
    assert total(found, "goldstream_model_calls_in_flight", task="paid") == 0


async def _an_outage(seen: list[float]) -> None:
    back = asyncio.Event()

    async def ask(endpoint: Endpoint, timeout_s: float) -> None:
        if not back.is_set():
            raise ModelUnavailable("down")

    endpoints = Endpoints(Worker(breaker_failures=2, breaker_longest_s=0.01), ask)
    endpoint = endpoints.get("judge", "toy", Model(model="outage", api_base="http://127.0.0.1:9"))
    for case_id in ("one", "two"):
        seen.append(_held("outage"))
        endpoints.note(endpoint, case_id, ModelUnavailable("down"))
    seen.append(_held("outage"))
    back.set()
    await endpoint.closed.wait()
    seen.append(_held("outage"))
    endpoints.close()


def _held(model: str) -> float:
    return total(series(scrape([MODEL_ENDPOINTS_HELD])), "goldstream_model_endpoints_held", role="judge", model=model)


def test_an_endpoint_that_is_down_shows_until_it_answers_again() -> None:
    seen: list[float] = []
    asyncio.run(_an_outage(seen))
    assert seen == [0, 0, 1, 0]


def test_spent_beside_its_cap_counts_what_other_workers_told_the_ledger() -> None:
    caps = Budget(usd_per_day=2.0, judge=Limits(usd_per_day=1.0))
    budget = Budgets(Settings(tasks={"toy": Task(topics=("log",), budget=caps)}))
    budget.admit("toy", "judge", Call("m", 0, 10, 0.25)).settle(Spend(1, 5, 5, 0.2, 0.1))
    for number, (writer, role) in enumerate((("other", "judge"), ("other", "student"), (budget.writer, "judge"))):
        lines = (Line(model="m", cost_usd=0.5),)
        key = {"day": budget.day(), "task": "toy", "role": role, "writer": writer}
        budget.book.apply(Entry(seq=number, at_ms=1, lines=lines, **key))
    show_budget(budget._settings, budget)
    found = series(scrape([BUDGET_CAP, BUDGET_SPENT]))
    spent = {role: total(found, "goldstream_budget_spent_usd", role=role) for role in ("judge", "all")}
    assert spent == {"judge": pytest.approx(0.7), "all": pytest.approx(1.2)}
    assert total(found, "goldstream_budget_cap_usd", role="all") == 2
    assert not any(dict(labels)["role"] == "refiner" for _, labels in found), "a role without a cap of its own"


def test_a_running_factory_shows_what_becomes_of_its_records(
    make_settings: Callable[..., Settings], models: StubModels, tmp_path: Path
) -> None:
    settings = metered(make_settings, models)
    supervisor = run_through(settings, tmp_path / "goldstream.toml")
    try:
        everything = len(RECORDS)

        def exported() -> bool:
            return total(series(scrape_all(settings).get("exporter", "")), "goldstream_cases") == everything

        wait_for(exported, "the exporter's reading", supervisor)
        scraped = {process: series(text) for process, text in scrape_all(settings).items()}
    finally:
        supervisor.stop()
    log = (settings.state / "logs" / "exporter.log").read_text()
    assert "member_metadata" not in log, "kafka-python complains of Faust's at every reading"
    intake, worker, sink, exporter = (scraped[name] for name in ("intake", "worker", "sink", "exporter"))
    read = "goldstream_intake_records_total"
    assert total(intake, read, topic=TOPIC) == everything
    assert total(intake, read, shape="openai-chat", result="admitted") == everything - 1
    assert total(intake, read, result="dead", reason="not_json") == 1
    calls = "goldstream_model_calls_total"
    assert total(worker, calls, role="student", result="unavailable") == 1
    assert total(worker, calls, role="student", result="ok") == total(
        worker, "goldstream_stage_produced_total", to="attempts"
    ) - (total(worker, calls, role="refiner", result="ok"))
    assert total(worker, "goldstream_model_call_seconds_count") == total(worker, calls, result="ok")
    assert total(worker, "goldstream_model_cost_usd_total") > 0
    assert total(worker, "goldstream_model_calls_in_flight") == 0
    assert total(worker, "goldstream_budget_held", role="judge") == 0
    assert total(worker, "goldstream_budget_cap_usd") == 5
    assert total(worker, "goldstream_budget_spent_usd", role="judge") == pytest.approx(
        total(worker, "goldstream_model_cost_usd_total", role="judge")
    )
    assert total(worker, "goldstream_model_endpoints_held") == 0
    assert total(scraped["retries"], "goldstream_retries_returned_total") == 1
    assert total(sink, "goldstream_sink_rows_total") == everything
    assert total(sink, "goldstream_sink_fsync_seconds_total") > 0
    assert total(exporter, "goldstream_gold_rows") == 12
    assert total(exporter, "goldstream_gold_rows", corrected="true") == 11
    assert total(exporter, "goldstream_dead_letters", reason="not_json", stage="intake") == 1
    assert total(exporter, "goldstream_dropped", reason="duplicate") == 1
    assert total(exporter, "goldstream_unresolved", task="toy") == 1
    assert total(exporter, "goldstream_attempts_judged", round="0", adapter="base") == 13
    assert total(exporter, "goldstream_attempts_accepted", round="0") == 1
    assert total(exporter, "goldstream_violations", rule="polite") > 0
    assert total(exporter, "goldstream_cases_cost_usd") == pytest.approx(
        total(worker, "goldstream_model_cost_usd_total"), rel=0.2
    )
    group = {"group_id": settings.topic("intake"), "topic_name": TOPIC}
    assert total(exporter, "goldstream_kafka_consumer_group_topic_partition_lag", partition_id="0", **group) == 0
    assert total(exporter, "goldstream_kafka_consumer_group_topic_offset_sum", **group) == everything
    assert total(exporter, "goldstream_kafka_consumer_group_members", group_id=settings.topic("judge")) == 1
    assert total(exporter, "goldstream_exporter_up") == 3
    for process, found in scraped.items():
        expected = family_names(FAMILIES if process == "exporter" else PROCESS_FAMILIES[process])
        missing = {name for name in expected - names(found) if not name.startswith(TRAINED)}
        assert missing <= {"goldstream_reviews", "goldstream_stage_lag_trend"}, process
        assert not any("req-" in str(labels) for _, labels in found), "no ids in labels"


def test_the_page_of_metrics_shows_every_family_and_no_other() -> None:
    page = (DEPLOY / "metrics.md").read_text("utf-8")
    assert page.startswith(Path(__file__).with_name("metrics_page.md").read_text("utf-8")), "make metrics-page"
    documented = {line.split()[2].removesuffix("_total") for line in page.splitlines() if line.startswith("# TYPE ")}
    families = [*FAMILIES, *(family for own in PROCESS_FAMILIES.values() for family in own)]
    assert documented == family_names(families)
    for family in families:
        assert family.help in page, f"{family.name}: make metrics-page"
