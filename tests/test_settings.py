"""Settings: precedence, unknown keys, and what each mistake is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

import schemas
from schemas.errors import SettingsError
from schemas.settings import Settings, load_settings
from schemas.topics import topic_plan

TASK = """
[tasks.toy]
topics = ["logs"]
student = { model = "openai/x" }
refiner = { model = "openai/x" }
strategist = { model = "openai/x" }
judge = { model = "openai/x" }
[tasks.toy.rubric]
rules = [{ id = "a", text = "A.", points = 2 }, { id = "b", text = "B." }]
"""


def load(tmp_path: Path, text: str, *overrides: str, **environ: str) -> Settings:
    path = tmp_path / "goldstream.toml"
    path.write_text(text)
    return load_settings(path, overrides, environ)


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    text = "[kafka]\npartitions = 2\nreplication = 2\nretention_hours = 2\n"
    environ = {"GOLDSTREAM_KAFKA__PARTITIONS": "3", "GOLDSTREAM_KAFKA__REPLICATION": "3"}
    kafka = load(tmp_path, text, "kafka.partitions=4", **environ).kafka
    assert (kafka.partitions, kafka.replication, kafka.retention_hours, kafka.max_message_bytes) == (4, 3, 2, 1_000_000)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[kafka]\nfoo = 1", "unknown key kafka.foo"),
        ("foo = 1", "unknown key foo"),
        ("[kafka]\npartitions = 'many'", "kafka.partitions"),
        ("[kafka", "not valid TOML"),
        ("[worker]\nevent_deadline_s = 90", "worker.event_deadline_s"),
        (TASK.replace("[tasks.toy", '[tasks."../toy"').replace('toy".rubric', 'toy".rubric'), "becomes a folder name"),
        (TASK.replace('["logs"]', "[]"), "tasks.toy.topics is empty"),
        (TASK.replace('["logs"]', '["gs.prompts"]'), "has our own prefix"),
        (TASK.replace('["logs"]', '["a/b"]'), "no Kafka topic name"),
        (TASK.replace('id = "b"', 'id = "a"'), "rule ids must differ"),
        (TASK + "pass_mark = 9", "at most 3"),
        (TASK.replace('judge = { model = "openai/x" }', ""), "has no judge"),
        (TASK.replace('student = { model = "openai/x" }', ""), "tasks.toy.student.model is missing"),
        (TASK.replace('student = { model = "openai/x" }', 'student = { model = "local/y" }'), "there is no [local.y]"),
    ],
)
def test_each_mistake_is_named_with_its_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    assert says in str(caught.value)


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="goldstream init"):
        load_settings(tmp_path / "none.toml", environ={})


def test_the_starting_file_and_the_demos_file_are_valid() -> None:
    folder = Path(schemas.__file__).parent
    starting = load_settings(folder / "starting.toml", environ={})
    assert list(starting.tasks) == ["support"]
    demo = load_settings(folder.parent / "deploy" / "demo.toml", environ={})
    assert demo.tasks["scribe"].rubric.max_score == 6


def test_the_pipeline_version_changes_with_the_task(tmp_path: Path) -> None:
    before, after = load(tmp_path, TASK), load(tmp_path, TASK.replace("points = 2", "points = 3"))
    assert before.pipeline_version("toy") != after.pipeline_version("toy")


def test_every_topic_is_planned_under_the_prefix(tmp_path: Path) -> None:
    plans = topic_plan(load(tmp_path, "[kafka]\ntopic_prefix = 'x.'\n"))
    assert all(plan.name.startswith("x.") for plan in plans)
    assert {plan.name for plan in plans if plan.config.get("cleanup.policy") == "compact"} == {
        "x.adapters",
        "x.commands",
        "x.forgotten",
    }
