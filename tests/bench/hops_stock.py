"""The hops of the pipeline as a user of Faust, or of aiokafka alone, would write them: programs that bench.hops runs.

A record goes from topic to topic as ours does: read, advanced by one attempt, verdict or strategy, sent on as JSON of
the size that ours has there. Each stage has a topic; a round of refining is a topic more, so that as many messages
pass as with ours.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from schemas.kafka import bootstrap_servers
from schemas.process import announce_ready, end_with_parent
from schemas.settings import load_settings

SIDES = ("faust", "faust-plain", "aiokafka")
TOPICS = ("logs", "prompts", "attempts", "refine", "rewritten", "accepted", "outcomes")
IN_FLIGHT = 128

Json = dict[str, Any]


def topic_of(side: str, name: str) -> str:
    """Returns the name of a side's topic."""
    return f"stock.{side}.{name}"


# What the stages do, on plain JSON


def admit(record: Json) -> Json:
    """Makes a case of a log record."""
    return {
        "case_id": record["response"]["id"],
        "task": "bench",
        "split": "train",
        "pipeline": "0123456789abcdef",
        "source": {"cluster": "5L6g3nShT-eMCtK--X86sw", "topic": "bench", "partition": 1, "offset": 4711},
        "body_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "session": "9f86d081884c7d659a2feaa0c55ad015",
        "created_ms": time.time_ns() // 1_000_000,
        "messages": record["request"]["messages"],
        "production_answer": record["response"]["choices"][0]["message"]["content"],
        "shape": "openai-chat-halves",
        "attempts": [],
        "charges": [],
    }


def attempt(case: Json) -> Json:
    """Adds an answer and what it cost."""
    number = len(case["attempts"])
    text = "wait please" if number else "wait"
    made = {"round": number, "source": "refiner" if number else "student", "text": text, "model": "instant"}
    case["attempts"].append(made | {"prompt_tokens": 250, "completion_tokens": 20, "logprob": -1.0})
    return charged(case, "refiner" if number else "student")


def judge(case: Json) -> Json:
    """Adds a verdict to the last answer."""
    last = case["attempts"][-1]
    passed = last["text"].endswith("please")
    broken = {"rule": "please", "hinge": last["text"][:20], "why": "not kind", "fix": "say please"}
    last["verdict"] = {
        "passed": passed,
        "score": 1.0 if passed else 0.0,
        "max_score": 1.0,
        "violations": [] if passed else [broken],
        "judge": "verifier:bench.hops:verify",
        "rubric": "0123456789ab",
    }
    return case


def distil(case: Json) -> Json:
    """Adds a strategy and the outcome."""
    case["strategy"] = {"mistake": "curt", "guardrail": "be kind", "model": "instant", "id": ""}
    case["outcome"] = {"kind": "gold", "stage": "strategist", "at_ms": time.time_ns() // 1_000_000}
    return charged(case, "strategist")


def charged(case: Json, role: str) -> Json:
    """Adds a charge to a case's spend."""
    charge = {"role": role, "model": "instant", "prompt_tokens": 250, "completion_tokens": 20}
    case["charges"].append(charge)
    case["spend"] = {"calls": len(case["charges"]), "prompt_tokens": 250 * len(case["charges"])}
    return case


STEPS: tuple[Callable[[Json], Json], ...] = (admit, attempt, judge, attempt, judge, distil)


# Faust


def run_faust(side: str, address: str, folder: str, ready: Callable[[], None]) -> None:
    """Runs one app with an agent a stage, in one process."""
    import faust

    app = faust.App(f"gs.{side}", broker=f"kafka://{address}", datadir=folder, web_enabled=False)
    topics = [app.topic(topic_of(side, name), value_serializer="json") for name in TOPICS]
    make = plain_agent if side == "faust-plain" else ordered_agent
    for number, step in enumerate(STEPS):
        make(app, topics[number], step, topics[number + 1])

    @app.agent(topics[-1])  # type: ignore[untyped-decorator]
    async def last(cases: Any) -> None:
        async for _ in cases:
            pass

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await app.start()
        ready()
        await stop.wait()
        await app.stop()

    asyncio.run(run())


def plain_agent(app: Any, topic: Any, step: Callable[[Json], Json], to: Any) -> None:
    """As Faust's documentation has it: what a crash finds in flight or in a buffer is lost."""

    @app.agent(topic, name=topic.get_topic_name())  # type: ignore[untyped-decorator]
    async def agent(cases: Any) -> None:
        async for case in cases:
            case = step(case)
            await to.send(key=case["case_id"], value=case)


def ordered_agent(app: Any, topic: Any, step: Callable[[Json], Json], to: Any) -> None:
    """Loses nothing: a case is acknowledged once the next topic has it, and no later one before it."""
    slots = asyncio.Semaphore(IN_FLIGHT)
    taken: dict[Any, deque[list[Any]]] = defaultdict(deque)

    async def work(entry: list[Any], queue: deque[list[Any]]) -> None:
        case = step(entry[0].value)
        sent = await to.send(key=case["case_id"], value=case)
        await sent
        entry[1] = True
        while queue and queue[0][1]:
            queue.popleft()[0].ack()
        slots.release()

    @app.agent(topic, name=topic.get_topic_name())  # type: ignore[untyped-decorator]
    async def agent(cases: Any) -> None:
        working = set()
        async for event in cases.noack().events():
            await slots.acquire()
            queue = taken[event.message.tp]
            queue.append([event, False])
            task = asyncio.create_task(work(queue[-1], queue))
            working.add(task)
            task.add_done_callback(working.discard)


# aiokafka


def run_aiokafka(side: str, address: str, ready: Callable[[], None]) -> None:
    """Runs a loop a stage, in one process: a batch in, a batch out, confirmed, committed."""
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    async def loop(number: int, producer: Any) -> None:
        group = f"gs.{side}" if number == len(STEPS) else f"gs.{side}.{number}"
        topic = topic_of(side, TOPICS[number])
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=address, group_id=group, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            while True:
                batches = await consumer.getmany(timeout_ms=200)
                sent = []
                for record in (one for batch in batches.values() for one in batch):
                    case = msgspec.json.decode(record.value)
                    if number < len(STEPS):
                        case = STEPS[number](case)
                        to, key = topic_of(side, TOPICS[number + 1]), case["case_id"].encode()
                        sent.append(await producer.send(to, msgspec.json.encode(case), key))
                await asyncio.gather(*sent)
                if batches:
                    await consumer.commit()
        finally:
            await consumer.stop()

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        producer = AIOKafkaProducer(bootstrap_servers=address, acks="all")
        await producer.start()
        loops = [asyncio.create_task(loop(number, producer)) for number in range(len(TOPICS))]
        ready()
        await asyncio.wait([asyncio.create_task(stop.wait()), *loops], return_when=asyncio.FIRST_COMPLETED)
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await producer.stop()

    asyncio.run(run())


def main() -> None:
    """Runs the side that the command line names, with the broker of a settings file."""
    end_with_parent()
    logging.basicConfig(level=logging.ERROR)
    side, config, *overrides = sys.argv[1:]
    settings = load_settings(Path(config), overrides, environ={})
    address = bootstrap_servers(settings)[0]
    if side == "aiokafka":
        run_aiokafka(side, address, lambda: announce_ready(settings))
    else:
        run_faust(side, address, str(settings.state / side), lambda: announce_ready(settings))


if __name__ == "__main__":
    main()
