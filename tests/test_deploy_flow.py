"""A case goes through the services of compose.yaml: their commands, variables and settings, on a real broker.

What differs from the containers: addresses, folders, and the models, which a stub plays. torch and what belongs to it
cannot be imported, as in the image of the stream side.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from deployed import DEPLOY, compose, image_of, started
from factory_settings import config_options
from pipeline import openai_record, outcomes, produce, toy_answer, wait_for
from stub_models import StubModels
from test_deploy import TRAINER_ONLY

from schemas.settings import Settings, load_settings
from streams.supervisor import Supervisor

SIDES = ("in", "out")
STREAM_SIDE = ("intake", "worker", "retries", "sink", "rollout", "exporter", "dashboard")


@pytest.fixture
def without_torch(tmp_path: Path) -> Path:
    """A folder which, on Python's path, makes importing what the stream side's image lacks fail as it would there."""
    folder = tmp_path / "absent"
    folder.mkdir()
    for name in TRAINER_ONLY:
        (folder / f"{name}.py").write_text(f'raise ModuleNotFoundError("No module named {name}", name="{name}")\n')
    return folder


def test_a_case_goes_through_the_services_of_compose(
    make_settings: Callable[..., Settings], models: StubModels, tmp_path: Path, without_torch: Path
) -> None:
    models.answer = toy_answer
    commands = {s.where.removeprefix("compose.yaml: "): s for s in started() if s.where.startswith("compose.yaml")}
    kafka = make_settings().kafka
    task = "tasks.support."
    here = [  # what is another address, folder or model than in the containers
        f"kafka.bootstrap_servers={kafka.bootstrap_servers}",
        f"kafka.topic_prefix={kafka.topic_prefix}",
        f"state_dir={tmp_path / 'state'}",
        "metrics.host=127.0.0.1",
        "metrics.port=free",
        "dashboard.host=127.0.0.1",
        "dashboard.port=auto",
        "kafka.partitions=2",
        "intake.start_at=earliest",
        "sink.seconds_per_file=0.3",
        *(f"{task}{role}.model=hosted_vllm/{role}" for role in ("student", "judge", "refiner", "strategist")),
        *(f"{task}{role}.api_base={models.api_base}" for role in ("student", "judge", "refiner", "strategist")),
        *(f"{task}{role}.{side}put_cost_per_token=0" for role in ("judge", "refiner", "strategist") for side in SIDES),
        f'{task}topics=["compose-{kafka.topic_prefix}chat"]',
        f'{task}rubric.rules=[{{"id": "polite", "text": "It says please."}}]',
    ]
    path = DEPLOY / "docker" / "goldstream.toml"
    settings = load_settings(path, here, environ={})
    options = config_options(path, here)
    variables = {"PYTHONPATH": str(without_torch), "OPENAI_API_KEY": "stub-key"}

    def supervise(*names: str) -> Supervisor:
        supervisor = Supervisor(settings, {name: [*commands[name].words, *options] for name in names})
        for child in supervisor.children:
            assert image_of(compose()["services"][child.name]["image"]) == "stream"
            own = {k: v for k, v in commands[child.name].variables.items() if k not in ("PATH", "HOME")}
            child.environment = own | variables
        return supervisor

    run(*commands["topics"].words, *options, **variables).check_returncode()
    with supervise(*STREAM_SIDE) as supervisor:
        supervisor.wait_ready()
        produce(settings, settings.source_topics()[0], [openai_record(f"question {n}", f"req-{n}") for n in range(12)])
        wait_for(lambda: len(outcomes(settings)) >= 12, "all outcomes", supervisor)
        for name in STREAM_SIDE:
            assert scrape(settings, name)
        assert [child.restarts for child in supervisor.children] == [0] * len(STREAM_SIDE)
    kinds = Counter(row["outcome"] for row in outcomes(settings))
    assert sum(kinds.values()) == 12
    assert set(kinds) <= {"gold", "holdout"}
    assert kinds["gold"] > 0


def scrape(settings: Settings, name: str) -> str:
    """Returns what a service shows at /metrics."""
    (target,) = json.loads((settings.state / "run" / f"{name}.metrics.json").read_text())[0]["targets"]
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of ours to its end."""
    command = [sys.executable, "-m", "goldstream", *words]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)


def test_the_stream_side_says_what_the_trainer_needs(tmp_path: Path, without_torch: Path) -> None:
    config, absent = str(DEPLOY / "demo.toml"), str(without_torch)
    done = run("trainer", "once", "--config", config, PYTHONPATH=absent, GOLDSTREAM_STATE_DIR=str(tmp_path))
    assert done.returncode == 1
    assert ".[trainer]" in done.stderr
    assert "Traceback" not in done.stderr
