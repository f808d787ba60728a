"""Claims about deploy/prometheus, by the real Prometheus: the alerts, the scrape config, the names of our metrics."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from dashboards import annotations, panels, resolved
from monitored import FIRST, PROCESSES, SECOND, TOPIC, everything, monitored
from pipeline import outcomes, produce, wait_for
from prometheus import DEPLOY, RULES, needed, promtool, running, selectors
from scraped import family_names, scrape_all, series, total
from steps import command_line
from stub_models import StubModels
from stub_vllm import StubVllm

from goldstream import cli
from schemas.measures import PROCESS_FAMILIES
from schemas.settings import Settings
from streams.exporter.families import FAMILIES

TESTS = DEPLOY / "prometheus" / "tests"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]
]
KMINIONS = {"goldstream_kafka_topic_high_water_mark_sum", "goldstream_kafka_consumer_group_topic_offset_sum"}


@needed
def test_each_alert_fires_where_it_should_and_only_there() -> None:
    tried = promtool("test", "rules", *sorted(TESTS.glob("*.yml")))
    assert tried.returncode == 0, tried.stdout + tried.stderr


@needed
def test_prometheus_takes_our_configuration() -> None:
    checked = promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_is_tried_for_firing_and_for_silence() -> None:
    tried: dict[str, set[bool]] = {}
    for path in TESTS.glob("*.yml"):
        for test in yaml.safe_load(path.read_text("utf-8"))["tests"]:
            for one in test["alert_rule_test"]:
                tried.setdefault(one["alertname"], set()).add(bool(one["exp_alerts"]))
    assert tried == {rule["alert"]: {True, False} for rule in ALERTS}


def test_every_alert_says_what_it_means_and_which_command_to_run_next() -> None:
    for rule in ALERTS:
        assert set(rule["annotations"]) == {"summary", "description", "next"}, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        for words in re.findall(r"goldstream ([a-z]+(?: [a-z]+)?)", rule["annotations"]["next"]):
            assert _is_command(words.split()), f"{rule['alert']}: goldstream {words}"


def _is_command(words: list[str]) -> bool:
    command: click.Command | None = cli
    for word in words:
        if not isinstance(command, click.Group):
            return True
        command = command.get_command(click.Context(command), word)
    return command is not None


def test_the_page_lists_every_alert() -> None:
    page = (DEPLOY / "monitoring.md").read_text("utf-8")
    assert {rule["alert"] for rule in ALERTS} == set(re.findall(r"^\| (Goldstream\w+)", page, re.M))


def test_alerts_and_dashboards_ask_for_metrics_that_exist() -> None:
    families = [*FAMILIES, *(family for own in PROCESS_FAMILIES.values() for family in own)]
    known = family_names(families)
    for where, expression in _expressions():
        for name in re.findall(r"\bgoldstream_\w+", expression):
            stem = re.sub(r"_(total|bucket|sum|count)$", "", name)
            assert name in known or stem in known, f"{where}: {name}"


def _expressions() -> list[tuple[str, str]]:
    asked = [(rule["alert"], rule["expr"]) for rule in ALERTS]
    return asked + [(str(panel), expression) for panel in panels() for expression in panel.expressions]


@needed
def test_promtool_finds_nothing_to_say_of_our_metrics_but_names_that_are_kminions() -> None:
    page = (DEPLOY / "metrics.md").read_text("utf-8")
    scrapes = [text for text in re.findall(r"^```\n(.*?)^```", page, re.M | re.S) if text.startswith("# HELP")]
    assert len(scrapes) == len(PROCESS_FAMILIES) + 1
    for text in scrapes:
        said = promtool("check", "metrics", stdin=text)
        assert {line.split()[0] for line in (said.stdout + said.stderr).splitlines()} <= KMINIONS, said.stderr


@needed
@pytest.mark.timeout(600)  # for a busy machine, and with the broker's start where this test is the first
def test_no_panel_and_no_alert_asks_a_running_factory_for_what_is_not_there(
    make_settings: Callable[..., Settings], models: StubModels, vllm: StubVllm, base: Path, tmp_path: Path
) -> None:
    config = _shipped(tmp_path / "deploy" / "prometheus")
    settings = monitored(make_settings, models, vllm, base, tmp_path / ".goldstream")
    with everything(settings, tmp_path / "goldstream.toml") as factory, running(config, tmp_path / "tsdb") as server:
        factory.wait_ready()
        produce(settings, TOPIC, FIRST)
        wait_for(lambda: exported(settings, "goldstream_adapter_info"), "an adapter that serves", factory, 300)
        produce(settings, TOPIC, SECOND)
        wait_for(lambda: len(outcomes(settings)) == len(FIRST) + len(SECOND), "all outcomes", factory)
        reviewed = command_line(settings, tmp_path, "review", "reject", "req-good", "--reason", "not kind enough")
        assert reviewed.exit_code == 0, reviewed.output
        wait_for(lambda: exported(settings, "goldstream_reviews"), "the expert's decision", factory)
        wait_for(lambda: server.query("count(goldstream_reviews)") == [1], "its scrape", factory)
        scraped = {one["labels"]["process"]: one["health"] for one in server.get("targets")["activeTargets"]}
        assert scraped == dict.fromkeys(PROCESSES, "up")
        rules = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
        assert {rule["name"]: rule["health"] for rule in rules} == {rule["alert"]: "ok" for rule in ALERTS}
        empty = [where for where, expression in _asked() if all(map(math.isnan, server.query(expression)))]
    assert empty == []


def _asked() -> list[tuple[str, str]]:
    """Returns every query of every panel as Grafana would send it, and every series that an alert asks for."""
    asked = [(f"{panel}: {one}", resolved(one)) for panel in panels() for one in panel.expressions]
    asked += [(name, resolved(expression)) for name, expression in annotations()]
    return asked + [(f"{rule['alert']}: {one}", one) for rule in ALERTS for one in selectors(rule["expr"])]


def _shipped(folder: Path) -> Path:
    """Copies deploy/prometheus to where its path to the state folder fits, scraping 15 times as often."""
    shutil.copytree(DEPLOY / "prometheus", folder)
    config = folder / "prometheus.yml"
    config.write_text(config.read_text("utf-8").replace(": 15s", ": 1s"))
    return config


def exported(settings: Settings, name: str) -> float:
    """Returns the sum of a family of the exporter's."""
    return total(series(scrape_all(settings).get("exporter", "")), name)
