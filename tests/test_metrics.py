"""Claims about what processes count and where they show it."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from metered import RECORDS, TOPIC, metered, run_through
from pipeline import wait_for
from scraped import family_names, names, scrape_all, series, targets, total
from stub_models import StubModels

from agents.counting import Counted
from schemas.case import Spend
from schemas.errors import BadAnswer, SettingsError
from schemas.measures import MODEL_CALLS, MODEL_COST, MODEL_IN_FLIGHT, MODEL_TOKENS, PROCESS_FAMILIES
from schemas.metrics import MOST_SERIES, OTHER, Counter, Family, Gauge, Histogram
from schemas.metrics_server import scrape, serving_metrics, targets_file
from schemas.settings import Metrics, Settings
from streams.exporter.families import FAMILIES

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


def test_alerts_ask_for_metrics_that_exist() -> None:
    rules = (DEPLOY / "prometheus" / "alerts.yml").read_text("utf-8")
    asked = {name.removesuffix("_total") for name in re.findall(r"goldstream_\w+", rules)}
    families = [*FAMILIES, *(family for own in PROCESS_FAMILIES.values() for family in own)]
    assert asked <= family_names(families)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed; Debian's prometheus brings it")
def test_each_alert_fires_where_it_should_and_only_there() -> None:
    tried = subprocess.run(
        ["promtool", "test", "rules", DEPLOY / "prometheus" / "alerts_test.yml"], capture_output=True, text=True
    )
    assert tried.returncode == 0, tried.stdout + tried.stderr
