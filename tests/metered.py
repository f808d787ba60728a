"""A small factory with everything to count: gold, a case that fails once, dead letters, dropped records, a budget."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import STUB_TASK, openai_record, outcomes, processes, produce, toy_answer, wait_for
from stub_models import Reply, StubModels

from schemas.settings import Settings
from streams.supervisor import Supervisor
from streams.topics import create_topics, ensure_source_topic

TOPIC = "logs-metered"
PROCESSES = ("intake", "worker", "retries", "sink", "exporter")


def metered(make_settings: Callable[..., Settings], models: StubModels) -> Settings:
    """Returns the factory's settings, with its topics made and its records logged."""
    stumbled = threading.Event()

    def answer(request: dict[str, Any]) -> Reply:
        if request["model"] == "student" and "stumble" in request["messages"][-1]["content"] and not stumbled.is_set():
            stumbled.set()
            return Reply(status=503)
        return toy_answer(request)

    models.answer = answer
    toml = STUB_TASK.format(topic=TOPIC, api_base=models.api_base) + "[tasks.toy.budget.judge]\nusd_per_day = 5.0\n"
    for role in ("student", "judge", "refiner", "strategist"):
        table = f"[tasks.toy.{role}]\n"
        price = "input_cost_per_token = 1e-6\noutput_cost_per_token = 2e-6\n"
        toml = toml.replace(table, table + price)
    settings = make_settings(toml)
    create_topics(settings)
    ensure_source_topic(settings, TOPIC, partitions=1)
    return settings


RECORDS: list[bytes | None] = [
    *(openai_record(f"question {n}", f"req-{n}") for n in range(10)),
    openai_record("already good", "req-good"),
    openai_record("hopeless", "req-hopeless"),
    openai_record("stumble", "req-stumble"),
    b'{"messages": [',  # dead: not_json
    openai_record("question 3", "req-3"),  # dropped: duplicate
]


def run_through(settings: Settings, config: Path) -> Supervisor:
    """Returns the running processes once every record has its outcome; the caller leaves the context."""
    supervisor = processes(settings, config, *PROCESSES).__enter__()
    try:
        supervisor.wait_ready()
        produce(settings, TOPIC, RECORDS)
        wait_for(lambda: len(outcomes(settings)) >= len(RECORDS), "all outcomes", supervisor)
    except BaseException:
        supervisor.stop()
        raise
    return supervisor
