"""What the page asks to be done to stages, reviews and adapters. Blocks, but for promotions.

Promotions and rollbacks go to rollout as records on gs.commands, and its answer comes back there.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Literal

import msgspec
from kafka.errors import KafkaError

from agents.expert import Decision
from schemas.adapters import VERSION
from schemas.commands import Action, AdapterCommand, encode_command
from schemas.errors import AdapterError, BrokerError, SettingsError
from schemas.promotions import promotions
from schemas.settings import Settings
from schemas.topics import COMMANDS
from streams.clients import make_producer
from streams.dashboard.answers import AdapterAsked, ReviewAsked, ReviewCase, ReviewDone, ReviewItem, ReviewQueue
from streams.dashboard.cases import SHOWN, tell_story
from streams.dashboard.live import Live
from streams.dashboard.state import CommandState
from streams.dashboard.training import BASE, command_state
from streams.review import Why, decide, read_queue, show_case

ANSWER_S = 15.0  # for which rollout's answer is waited for
LOOK_S = 0.1


def review_queue(settings: Settings, task: str | None, why: Why | None, limit: int) -> ReviewQueue:
    """Returns what waits for an expert."""
    queue = read_queue(settings, task, why, limit)
    return ReviewQueue(
        items=tuple(
            ReviewItem(
                case_id=item.case_id,
                task=item.task,
                why=item.why,
                reason=item.reason or "",
                rounds=item.rounds,
                score=item.score,
                max_score=item.max_score,
                prompt=item.prompt[:SHOWN],
                answer=item.answer[:SHOWN],
                ended_ms=int(item.ended_at.timestamp() * 1000),
            )
            for item in queue.items
        ),
        waiting={str(kind): number for kind, number in queue.sizes.items()},
    )


def review_case(settings: Settings, case_id: str) -> ReviewCase:
    """Returns what an expert needs in order to decide; raises ReviewError for an id that has no row."""
    shown = show_case(settings, case_id)
    row, pending = shown["case"], shown["pending"]
    story = tell_story(settings, case_id)
    assert story is not None  # it has a row
    attempts = {attempt["round"]: attempt["text"] for attempt in row["attempts"] or ()}
    rules = settings.task(row["task"]).rubric.rules if row["task"] in settings.tasks else ()
    decided = ""
    if pending is not None:
        decided = f"{pending['decision']} by {pending['by']}, not yet in the gold set"
    elif row["review"]:
        decided = f"{row['review']} by {row['reviewer']}, {row['reviewed_at']:%Y-%m-%d %H:%M UTC}"
    return ReviewCase(
        story=story,
        rules=tuple({"id": rule.id, "text": rule.text, "severity": rule.severity} for rule in rules),
        rounds=tuple(attempts),
        proposed_round=shown["proposed_round"],
        proposed_text=attempts.get(shown["proposed_round"], ""),
        in_queue=shown["in_queue"],
        decided=decided,
    )


def make_decision(settings: Settings, case_id: str, asked: ReviewAsked) -> ReviewDone:
    """Makes an expert's decision; raises ReviewError where it cannot be made."""
    made = decide(settings, case_id, Decision(**msgspec.structs.asdict(asked)))
    return ReviewDone(**msgspec.structs.asdict(made))


async def ask_rollout(settings: Settings, live: Live, task: str, action: Action, asked: AdapterAsked) -> CommandState:
    """Asks rollout for a promotion or rollback and waits a while for what became of it.

    Raises SettingsError for a task or text that cannot be, AdapterError for a version that is none, BrokerError where
    Kafka does not take the command.
    """
    settings.task(task)
    if not asked.reason.strip():
        raise SettingsError("a promotion or rollback needs a reason; it is kept in the promotion log.")
    version = "" if asked.version == BASE else asked.version
    if action == "promote" and not asked.version:
        raise AdapterError('name the version to promote, or "base".')
    if version and not VERSION.fullmatch(version):
        raise AdapterError(f"{version[:80]!r} is no adapter version; expected a name like v0007-3fa9c2d1.")
    known = await asyncio.to_thread(promotions, settings.adapters, task)
    command = AdapterCommand(
        id=uuid.uuid4().hex,
        task=task,
        action=action,
        version=version,
        promotions=len(known) if asked.promotions is None else asked.promotions,
        by=asked.by.strip()[:64] or "dashboard",
        reason=asked.reason.strip()[:500],
        at_ms=int(time.time() * 1000),
        force=asked.force,
    )
    await asyncio.to_thread(_send, settings, command)
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        found = next((one for one in await live.commands(task) if one.id == command.id), None)
        if found is not None and found.result != "asked":
            return found
        await asyncio.sleep(LOOK_S)
    return command_state(command)


def _send(settings: Settings, command: AdapterCommand) -> None:
    producer = make_producer(settings, "commands")
    key, value = encode_command(command)
    try:
        producer.send(settings.topic(COMMANDS), key=key, value=value).get(timeout=20)
    except KafkaError as error:
        raise BrokerError(f"the command was not confirmed by the broker: {error}. Try again.") from error
    finally:
        producer.close(timeout=5)


def stage_told(stage: str, action: Literal["pause", "resume"]) -> str:
    """Returns what became of a stage, for people."""
    if action == "pause":
        return f"{stage} takes no new work; what is in flight is finished"
    return f"{stage} takes work again"
