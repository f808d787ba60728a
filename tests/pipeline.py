"""Running the real processes in tests: a task on stub models, records in, outcomes counted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from factory_settings import process_options, role_tables
from kafka import KafkaProducer
from stub_models import Reply

from schemas.kafka import client_options
from schemas.settings import Settings
from streams.gold import query
from streams.supervisor import Supervisor

TOPIC = "logs"

STUB_TASK = """
[worker]
cases_in_flight = 16
event_deadline_s = 30  # no call may time out on a busy machine: each would be a retry
retry_delays_s = [1]
[sink]
seconds_per_file = 0.3
[intake]
start_at = "earliest"
holdout_share = 0.0
[tasks.toy]
topics = ["{topic}"]
max_rounds = 2
[tasks.toy.rubric]
rules = [{{ id = "polite", text = "It says please." }}]
"""
STUB_TASK += role_tables("toy", model="hosted_vllm/{role}", api_base="{api_base}", retries=0)


def toy_answer(request: dict[str, Any]) -> Reply:
    """Plays all four roles: the student forgets `please`, the refiner says it, the judge looks for it."""
    role, prompt = request["model"], request["messages"][-1]["content"]
    everything = " ".join(message["content"] for message in request["messages"])
    if role == "student":
        return Reply("please wait" if "already good" in prompt else "wait")
    if role == "refiner":
        return Reply("wait" if "hopeless" in everything else "please wait")
    if role == "strategist":
        return Reply(json.dumps({"mistake": "Was curt.", "guardrail": "Always ask kindly."}))
    draft = everything.rpartition("<<<draft ")[2]
    violation = {"rule": "polite", "hinge": "wait", "why": "no please", "fix": "say please"}
    return Reply(json.dumps({"violations": [] if "please" in draft.split("<<<end")[0] else [violation]}))


def openai_record(text: str, request_id: str | None = None) -> bytes:
    """Returns a product's log record: request and response of one chat completion."""
    response: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": "wait"}}]}
    if request_id:
        response["id"] = request_id
    return json.dumps({"request": {"messages": [{"role": "user", "content": text}]}, "response": response}).encode()


def produce(settings: Settings, topic: str, values: Iterable[bytes | None]) -> None:
    """Produces values to a source topic and waits for the confirmations."""
    producer = KafkaProducer(**client_options(settings), acks="all", max_request_size=10_000_000)
    try:
        for future in [producer.send(topic, value=value, key=b"k") for value in values]:
            future.get(timeout=30)
    finally:
        producer.close(timeout=5)


def processes(settings: Settings, config: Path, *names: str) -> Supervisor:
    """Returns a supervisor of real processes with these settings, to be used as a context manager."""
    options = process_options(settings, config)
    return Supervisor(settings, {name: [name, *options] for name in names})


def wait_for(condition: Callable[[], bool], what: str, supervisor: Supervisor, timeout_s: float = 90.0) -> None:
    """Waits until `condition` holds, restarting children that died; fails with the ends of their logs."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        supervisor.check()
        if time.monotonic() > deadline:
            tails = "\n".join(f"--- {child.name}\n{child.tail(15)}" for child in supervisor.children)
            raise AssertionError(f"{what}: not after {timeout_s:.0f} s\n{tails}")
        time.sleep(0.2)


def outcomes(settings: Settings) -> list[dict[str, Any]]:
    """Returns every outcome row's main columns."""
    names = "case_id, outcome, reason, stage, rounds, answer, strategy_guardrail, source_offset, calls, detail"
    columns, rows = query(settings.gold, f"select {names} from outcomes order by source_offset")
    return [dict(zip(columns, row, strict=True)) for row in rows]
