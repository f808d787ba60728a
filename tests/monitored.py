"""A whole small factory for Prometheus to watch: gold, holdout, every kind of failure, money, a run, a promotion.

The student's answers come from a stub, so does the judge; the trainer trains a random tiny model for real, and rollout
loads its adapter on a stub of vLLM.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import STUB_TASK, openai_record, processes, toy_answer
from stub_models import Reply, StubModels
from stub_vllm import StubVllm

from schemas.settings import Settings
from streams.supervisor import Supervisor
from streams.topics import create_topics, ensure_source_topic

TOPIC = "logs-monitored"
PROCESSES = ("intake", "worker", "retries", "sink", "trainer", "rollout", "exporter")
PRICE = "input_cost_per_token = 1e-6\noutput_cost_per_token = 2e-6\n"
MORE = """
[tasks.toy.budget.judge]
usd_per_day = 5.0
[tasks.toy.trainer]
base = "{base}"
rank = 16
alpha = 32
learning_rate = 1e-2
epochs = 6
batch_size = 8
min_corrected_rows = 8
max_overlap = 1.0
quiet_s = 1.0
threads = 1
[tasks.toy.gate]
min_holdout = 4
max_holdout = 8
[tasks.toy.rollout]
servers = ["{vllm}"]
canary_share = 0.2
"""

FIRST: list[bytes | None] = [
    *(openai_record(f"question {n}", f"req-{n}") for n in range(30)),
    openai_record("this is already good", "req-good"),
    openai_record("hopeless", "req-hopeless"),
    openai_record("stumble", "req-stumble"),
    b'{"messages": [',  # dead: not_json
    openai_record("question 3", "req-3"),  # dropped: duplicate
]
SECOND: list[bytes | None] = [openai_record(f"later {n}", f"req-later-{n}") for n in range(20)]


def monitored(
    make_settings: Callable[..., Settings], models: StubModels, vllm: StubVllm, base: Path, folder: Path
) -> Settings:
    """Returns the factory's settings, with its topics made and its state in `folder`."""
    stumbled = threading.Event()

    def answer(request: dict[str, Any]) -> Reply:
        if request["model"] in ("judge", "refiner", "strategist"):
            return toy_answer(request)
        if "stumble" in request["messages"][-1]["content"] and not stumbled.is_set():
            stumbled.set()
            return Reply(status=503)
        adapted = request["model"] != "student"  # the version that serves
        return Reply("please wait") if adapted else toy_answer(request)

    models.answer = answer
    toml = STUB_TASK.format(topic=TOPIC, api_base=models.api_base) + MORE.format(base=base, vllm=vllm.url)
    toml = toml.replace("holdout_share = 0.0", "holdout_share = 0.3")
    for role in ("student", "judge", "refiner", "strategist"):
        own = "max_tokens = 8\n" if role == "student" else ""
        toml = toml.replace(f"[tasks.toy.{role}]\n", f"[tasks.toy.{role}]\n{PRICE}{own}")
    settings = make_settings(toml, f"state_dir={folder}")
    create_topics(settings)
    ensure_source_topic(settings, TOPIC, partitions=1)
    return settings


def everything(settings: Settings, config: Path) -> Supervisor:
    """Returns a supervisor of all processes, to be used as a context manager."""
    return processes(settings, config, *PROCESSES)
