"""Claims about `goldstream adapters` and `goldstream trainer once|status`: what they print, do and refuse."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from test_webhook import VARIABLE, Receiver, receiver
from toys import NEW, OLD, TOY, a_manifest, a_report, toy_gold

from goldstream import cli
from schemas.errors import AdapterError, BrokerError, SettingsError, TrainingError
from schemas.settings import Settings, load_settings
from schemas.status import RolloutStatus
from trainer.catalog import find_version
from trainer.registry import incumbent, promote, promotions, publish, write_gate

__all__ = ["receiver"]
THIRD = "v0003-cccccc"


@pytest.fixture
def command(tmp_path: Path, base: Path) -> Any:
    """Gives the command line on settings of its own; `.settings` are those."""
    toml = tmp_path / "goldstream.toml"
    toml.write_text(f"""
state_dir = "{tmp_path / "state"}"
[local.tiny]
path = "{base}"
[tasks.toy]
topics = ["log"]
[tasks.toy.student]
model = "local/tiny"
max_tokens = 8
[tasks.toy.refiner]
model = "scripted/x"
[tasks.toy.strategist]
model = "scripted/x"
[tasks.toy.rubric]
verifier = "test_adapters_cli:exact"
rules = [{{ id = "exact", text = "be exact" }}]
[tasks.toy.trainer]
rank = 4
epochs = 1
learning_rate = 1e-2
threads = 1
max_overlap = 1.0
[tasks.toy.gate]
min_holdout = 4
""")

    class Command:
        settings: Settings = load_settings(toml, environ={})

        def __call__(self, *arguments: str, fails: bool = False) -> Result:
            result = CliRunner().invoke(cli, [*arguments, "--config", str(toml)], env={"COLUMNS": "200"})
            if not fails and result.exception:
                raise result.exception
            return result

        def json(self, *arguments: str) -> Any:
            return json.loads(self(*arguments, "--json").stdout)

    return Command()


def exact(messages: Any, answer: str) -> list[Any]:
    from schemas.case import Violation

    return [] if answer == TOY[messages[-1].text()] else [Violation("exact", hinge=answer[:3])]


@pytest.fixture
def registry(command: Any, base: Path, run_folder: Path) -> Path:
    """Three versions: one that served, one that serves, one that was refused."""
    adapters: Path = command.settings.adapters
    for version, decision in ((OLD, "promote"), (NEW, "promote"), (THIRD, "refuse")):
        publish(adapters, run_folder, a_manifest(base, version, settings={"recipe": "rgt", "rank": 8}))
        violations = {"violations_before": {"exact": 4}, "violations_after": {"exact": 1}, "judge": "toy"}
        report = a_report(version, decision=decision, holdout_sha256="f" * 64, **violations)
        write_gate(adapters, report, "<p>why</p>")
        if decision == "promote":
            promote(adapters, "toy", version, by="gate", reason="better")
    return adapters


def test_list_says_what_each_version_is_and_which_serves(command: Any, registry: Path) -> None:
    rows = command.json("adapters", "list")
    assert [(row["version"], row["state"], row["decision"]) for row in rows] == [
        (OLD, "served", "promote"),
        (NEW, "serves", "promote"),
        (THIRD, "refused", "refuse"),
    ]
    assert rows[0]["base"].startswith("tiny ")
    table = command("adapters", "list").stdout
    assert "serves" in table
    assert NEW in table


def test_versions_of_another_base_are_listed_as_such(
    command: Any, registry: Path, base: Path, run_folder: Path
) -> None:
    publish(registry, run_folder, a_manifest(base, "v0004-dddddd", base_sha256="f" * 64))
    promote(registry, "toy", "v0004-dddddd", by="gate")
    assert [row["state"] for row in command.json("adapters", "list")] == [
        "served",
        "served",
        "refused",
        "serves, but of another base",
    ]
    with pytest.raises(AdapterError, match="nothing"):
        command("adapters", "promote", "4")


def test_list_tells_what_is_really_served_and_why_it_is_not_what_should_be(command: Any, registry: Path) -> None:
    errors = {"switch": "the model server answered 500"}
    status = RolloutStatus(task="toy", wanted=NEW, serving=OLD, previous="", canary_share=0.1, errors=errors)
    path = command.settings.state / "rollout" / "toy.json"
    path.parent.mkdir()
    path.write_bytes(msgspec.json.encode(status))
    told = command("adapters", "list").stdout
    assert f"toy: {OLD} is served, and {NEW} should, 10% of the cases stay on base" in told
    assert "switch: the model server answered 500" in told


def test_show_tells_gold_training_gate_promotions_and_where_the_report_is(command: Any, registry: Path) -> None:
    told = command("adapters", "show", "2").stdout
    for said in (f"toy {NEW} (serves)", "4 cases, 4 pairs", "rgt, rank 8", "4 cases only it passes", "exact: 4 -> 1"):
        assert said in told
    assert "by gate: better" in told
    assert str(registry / "toy" / NEW / "gate.html") in told
    (registry / "toy" / NEW / "adapter_config.json").write_text("{}")
    assert "it would not be loaded" in command("adapters", "show", NEW).stdout
    assert "changed after it was written" in command.json("adapters", "show", "v0002")["problem"]


def test_a_version_is_named_by_number_or_in_full(command: Any, registry: Path, base: Path, run_folder: Path) -> None:
    settings = command.settings
    assert [find_version(settings, "toy", name) for name in ("3", "v0003", THIRD, "base")] == [THIRD, THIRD, THIRD, ""]
    with pytest.raises(AdapterError, match="no version '9'; it has v0001"):
        find_version(settings, "toy", "9")
    publish(registry, run_folder, a_manifest(base, "v0003-eeeeee"))
    with pytest.raises(AdapterError, match="more than one version"):
        find_version(settings, "toy", "3")


def test_promote_takes_what_the_gate_passed_and_the_rest_only_by_force(command: Any, registry: Path) -> None:
    with pytest.raises(AdapterError, match=r"the gate says refuse.*--force"):
        command("adapters", "promote", "3")
    assert "should serve now, after v0002" in command("adapters", "promote", "1", "--reason", "calmer").stdout
    with pytest.raises(AdapterError, match="already"):
        command("adapters", "promote", "1")
    command("adapters", "promote", "3", "--force")
    assert command.json("adapters", "promote", "base")["previous"] == THIRD
    log = promotions(registry, "toy")[2:]
    assert [(entry.version, entry.by, entry.reason) for entry in log] == [
        (OLD, "hand", "calmer"),
        (THIRD, "hand", ""),
        ("", "hand", ""),
    ]


def test_rollback_goes_back_step_by_step_and_needs_a_reason(command: Any, registry: Path) -> None:
    assert "Missing option '--reason'" in command("adapters", "rollback", fails=True).output
    assert f"{OLD} should serve now, after {NEW}" in command("adapters", "rollback", "--reason", "complaints").stdout
    assert command.json("adapters", "rollback", "--reason", "more complaints")["version"] == ""
    with pytest.raises(AdapterError, match="nothing of toy served before"):
        command("adapters", "rollback", "--reason", "again")


def test_promotion_and_rollback_by_hand_reach_the_webhook(
    command: Any, registry: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOLDSTREAM_WEBHOOK__URL_ENV", VARIABLE)
    command("adapters", "promote", "base", "--reason", "a test")
    command("adapters", "promote", "1")
    command("adapters", "rollback", "--reason", "complaints")
    said = [(body["event"], body["version"], body["previous"], body["by"]) for body in receiver.bodies]
    assert said == [("promotion", "", NEW, "hand"), ("promotion", OLD, "", "hand"), ("rollback", "", OLD, "hand")]
    assert receiver.bodies[1]["gate"]["after"] == 1.0


def test_gc_shows_a_plan_and_removes_only_when_told(command: Any, registry: Path, base: Path, run_folder: Path) -> None:
    publish(registry, run_folder, a_manifest(base, "v0004-dddddd"))
    options = ("adapters", "gc", "--without-broker", "--keep", "1", "--grace-hours", "0")
    time.sleep(0.01)  # the promotions are older than a grace period of none
    plan = [(row["version"], row["result"], row["why"]) for row in command.json(*options)]
    assert plan == [
        (OLD, "would be removed", ""),
        (NEW, "kept", "should serve now"),
        (THIRD, "would be removed", ""),
        ("v0004-dddddd", "kept", "the newest of its base"),
    ]
    assert "nothing was removed" in command(*options).stdout
    assert (registry / "toy" / OLD).exists()
    assert "MB freed" in command(*options, "--yes").stdout
    assert [row["version"] for row in command.json("adapters", "list")] == [NEW, "v0004-dddddd"]
    assert next(row["state"] for row in command.json("adapters", "list", "--removed")) == "removed"
    with pytest.raises(AdapterError, match="was removed"):
        command("adapters", "promote", "1")
    assert "(removed)" in command("adapters", "show", "1").stdout


def test_gc_without_kafka_says_that_it_cannot_know_who_serves(command: Any, registry: Path) -> None:
    with pytest.raises(BrokerError, match="--without-broker"):
        command("adapters", "gc", "--yes")
    assert (registry / "toy" / OLD).exists()


def test_a_task_need_not_be_named_where_there_is_one_and_must_where_there_are_two(
    command: Any, registry: Path, tmp_path: Path
) -> None:
    toml = tmp_path / "goldstream.toml"
    first = toml.read_text()
    second = first[first.index("[tasks.toy]") :].replace("toy", "two").replace('["log"]', '["other"]')
    toml.write_text(first + second)
    with pytest.raises(SettingsError, match="which task"):
        command("adapters", "show", "1")
    assert NEW in command("adapters", "show", "2", "--task", "toy").stdout
    with pytest.raises(SettingsError, match="'three' is not configured"):
        command("adapters", "list", "--task", "three")


def test_once_tells_what_was_trained_what_the_gate_found_and_where_the_report_is(command: Any) -> None:
    settings = command.settings
    toy_gold(settings.gold)
    told = command("trainer", "once").stdout
    (version,) = (path.name for path in (settings.adapters / "toy").glob("v*"))
    for said in (version, "4 cases, 8 pairs", "1 steps", "gate", "exact: 4 ->", "keeps serving", "gate.html"):
        assert said in told
    assert incumbent(settings.adapters, "toy") == ""
    status = command.json("trainer", "status")[0]
    assert (status["task"], status["state"], status["needed"], status["last error"]) == ("toy", "idle", 200, "")
    assert status["last run"] is not None


def test_once_on_an_empty_gold_set_says_what_is_missing_and_publishes_nothing(command: Any) -> None:
    with pytest.raises(TrainingError, match="nothing to train on"):
        command("trainer", "once", "--task", "toy")
    assert command.json("adapters", "list") == []
    assert command.json("trainer", "status")[0]["state"] == "idle"


def test_reports_of_versions_written_before_these_figures_can_be_read(command: Any, registry: Path) -> None:
    old = {"task": "toy", "version": OLD, "incumbent": "", "decision": "refuse", "reason": "no gain", "cases": 4}
    old |= {"before": 0.5, "after": 0.5, "gained": 1, "lost": 1, "p_value": 1.0, "violations_before": {"exact": 2}}
    (registry / "toy" / OLD / "gate.json").write_bytes(msgspec.json.encode(old))
    assert command.json("adapters", "list")[0]["reason"] == "no gain"
    assert "refuse: no gain" in command("adapters", "show", "1").stdout
