"""Promotions and rollbacks that a person asks for on gs.commands: rollout carries them out and answers.

The dashboard asks this way: streams and trainer meet on topics alone. One rollout at a time reads, the holder of its
lease. A command names how long the promotion log was when the person looked, so that it is done once at most and
never undoes what somebody else decided meanwhile; one that nobody carried out in time is refused, not done late.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any, Protocol

from schemas.commands import AdapterCommand, CommandAnswer, Record, decode_command, encode_command
from schemas.errors import BrokerError, GoldstreamError
from schemas.faults import crash_point
from schemas.kafka import connect
from schemas.promotions import Promotion, promotions
from schemas.settings import Settings
from schemas.topics import COMMANDS
from trainer.catalog import find_version, promote_by_hand, roll_back_by_hand
from trainer.webhook import Webhook

log = logging.getLogger("goldstream.rollout")

EXPIRES_S = 600.0
KAFKA_TIMEOUT_S = 30.0


class CommandLog(Protocol):
    """Where commands and answers are kept: the topic gs.commands, or a list in tests."""

    def read(self) -> list[Record]:
        """Returns what came since the last reading, in order; the first time everything."""

    def append(self, answer: CommandAnswer) -> None:
        """Adds an answer and returns once it is durable."""

    def close(self) -> None:
        """Ends the connection."""


class Orders:
    """Carries out what is asked."""

    def __init__(self, settings: Settings, commands: CommandLog, webhook: Webhook | None = None) -> None:
        self._settings, self._log, self._webhook = settings, commands, webhook
        self._open: dict[str, AdapterCommand] = {}  # not answered yet, by id, in the order they came

    def poll(self) -> list[CommandAnswer]:
        """Answers every command that has no answer yet, oldest first. Raises BrokerError where an answer is not taken.

        1. read what came, answers of an earlier rollout too;
        2. do it;
        3. answer; where that fails, the next poll finds what was done in the promotion log and answers again.
        """
        for record in self._log.read():  # 1
            if isinstance(record, AdapterCommand):
                self._open[record.id] = record
            elif isinstance(record, CommandAnswer):
                self._open.pop(record.command.id, None)
        answers = []
        for command in list(self._open.values()):
            answer = self._carried_out(command)  # 2
            crash_point("orders.before_answer")
            self._log.append(answer)  # 3
            del self._open[command.id]
            answers.append(answer)
            log.info("%s: %s by %s: %s, %s", command.task, command.action, command.by, answer.result, answer.detail)
        return answers

    def _carried_out(self, command: AdapterCommand) -> CommandAnswer:
        try:
            return _answer(command, "done", self._do(command))
        except (GoldstreamError, OSError) as error:
            return _answer(command, "refused", str(error))

    def _do(self, command: AdapterCommand) -> str:
        task, said = command.task, f"{command.by}: {command.reason}"
        self._settings.task(task)
        known = promotions(self._settings.adapters, task)
        done = next((entry for entry in known if entry.command == command.id), None)
        if done is not None:
            return _told(done)
        age_s = time.time() - command.at_ms / 1000
        if age_s > EXPIRES_S:
            raise GoldstreamError(
                f"no rollout was running when this was asked, {age_s / 60:.0f} minutes ago; it is too late now. Look "
                "at the adapters again, then ask again."
            )
        if len(known) != command.promotions:
            last = _told(known[-1]) if known else "nothing"
            raise GoldstreamError(f"somebody has decided since: {last}. Look at the adapters again, then ask again.")
        how: dict[str, Any] = {"after": command.promotions, "command": command.id, "webhook": self._webhook}
        if command.action == "promote":
            version = find_version(self._settings, task, command.version or "base")
            entry, _ = promote_by_hand(self._settings, task, version, reason=said, force=command.force, **how)
            return _told(entry)
        entry, _, passed_over = roll_back_by_hand(self._settings, task, reason=said, **how)
        return _told(entry) + (f"; passed over {'; '.join(passed_over)}" if passed_over else "")


class KafkaCommands:
    """gs.commands as a CommandLog, over a connection that stays."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._topic = settings, settings.topic(COMMANDS)
        self._consumer: Any = None

    def read(self) -> list[Record]:
        """Reads to the end, without a group; raises BrokerError where it cannot, and begins anew then."""
        from kafka.errors import KafkaError  # trainer/ imports without Kafka

        try:
            return self._read()
        except (KafkaError, BrokerError) as error:
            self.close()
            raise BrokerError(f"{self._topic} cannot be read: {type(error).__name__}: {error}") from error

    def _read(self) -> list[Record]:
        from kafka import KafkaConsumer, TopicPartition

        if self._consumer is None:
            options = {"group_id": None, "enable_auto_commit": False, "allow_auto_create_topics": False}
            self._consumer = connect(KafkaConsumer, self._settings, isolation_level="read_committed", **options)
            known = sorted(self._consumer.partitions_for_topic(self._topic) or ())
            if not known:
                raise BrokerError(f"the topic {self._topic} does not exist. `goldstream topics create` makes it.")
            partitions = [TopicPartition(self._topic, number) for number in known]
            self._consumer.assign(partitions)
            self._consumer.seek_to_beginning(*partitions)
        partitions = list(self._consumer.assignment())
        ends = self._consumer.end_offsets(partitions)
        found: list[Record] = []
        deadline = time.monotonic() + KAFKA_TIMEOUT_S
        while any(self._consumer.position(p) < ends[p] for p in partitions):
            if time.monotonic() > deadline:
                raise BrokerError(f"{self._topic} was not read to its end within {KAFKA_TIMEOUT_S:.0f} s")
            for batch in self._consumer.poll(timeout_ms=500).values():
                records = (decode_command(message.key, message.value) for message in batch)
                found += [record for record in records if record is not None]
        return found

    def append(self, answer: CommandAnswer) -> None:
        """Produces an answer and waits until every in-sync replica has it; raises BrokerError where that fails."""
        from kafka import KafkaProducer
        from kafka.errors import KafkaError

        key, value = encode_command(answer)
        try:
            producer = connect(KafkaProducer, self._settings, acks="all", max_block_ms=int(KAFKA_TIMEOUT_S * 1000))
            try:
                producer.send(self._topic, key=key, value=value).get(timeout=KAFKA_TIMEOUT_S)
            finally:
                producer.close(timeout=KAFKA_TIMEOUT_S)
        except KafkaError as error:
            raise BrokerError(f"{self._topic} did not take an answer: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Ends the connection."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()


def _answer(command: AdapterCommand, result: Any, detail: str) -> CommandAnswer:
    return CommandAnswer(command=command, result=result, detail=detail, at_ms=int(time.time() * 1000))


def _told(entry: Promotion) -> str:
    at = datetime.fromtimestamp(entry.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{entry.version or 'the base'} should serve since {at}, by {entry.by}: {entry.reason or 'no reason given'}"
