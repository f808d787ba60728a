"""Claims about gs.commands: who reads what, and what rollout does and answers when a person asks for an adapter."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rolling import THIRD, InThread, ListRecords
from toys import NEW, OLD, a_manifest, a_report
from waiting import wait_until

from schemas.commands import AdapterCommand, CommandAnswer, Pause, Record, decode_command, encode_command, read_pause
from schemas.errors import BrokerError
from schemas.settings import Settings
from streams.topics import create_topics
from trainer.orders import EXPIRES_S, KafkaCommands, Orders
from trainer.registry import incumbent, promote, promotions, publish, write_gate


class ListCommands:
    """gs.commands as a list; `broken` takes no answer."""

    def __init__(self, *records: Record) -> None:
        self.records, self.answers, self.broken = list(records), list[CommandAnswer](), False

    def read(self) -> list[Record]:
        found, self.records = self.records, []
        return found

    def append(self, answer: CommandAnswer) -> None:
        if self.broken:
            raise BrokerError("no Kafka answers")
        self.answers.append(answer)

    def close(self) -> None: ...


@pytest.fixture
def line(settings: Settings, base: Path, run_folder: Path) -> Settings:
    """Two versions, both passed by the gate; the newer one should serve. A third was refused."""
    for version in (OLD, NEW, THIRD):
        publish(settings.adapters, run_folder, a_manifest(base, version))
        write_gate(settings.adapters, a_report(version, decision="refuse" if version == THIRD else "promote"))
    for version in (OLD, NEW):
        promote(settings.adapters, "toy", version, by="gate", reason="better")
    return settings


def asked(action: Any, version: str = "", **changes: Any) -> AdapterCommand:
    now = int(time.time() * 1000)
    fields = {"id": uuid.uuid4().hex, "task": "toy", "promotions": 2, "by": "anna", "reason": "doses", "at_ms": now}
    return AdapterCommand(action=action, version=version, **(fields | changes))


def answered(settings: Settings, *commands: AdapterCommand) -> list[CommandAnswer]:
    return Orders(settings, ListCommands(*commands)).poll()


def test_a_rollback_that_is_asked_for_is_done_and_answered(line: Settings) -> None:
    (answer,) = answered(line, asked("rollback", NEW))
    assert (answer.result, incumbent(line.adapters, "toy")) == ("done", OLD)
    last = promotions(line.adapters, "toy")[-1]
    assert (last.by, last.reason, last.command) == ("hand", "anna: doses", answer.command.id)


def test_a_version_the_gate_refused_is_promoted_only_with_force(line: Settings) -> None:
    (refused,) = answered(line, asked("promote", THIRD))
    assert refused.result == "refused"
    assert "the gate says refuse" in refused.detail
    (done,) = answered(line, asked("promote", THIRD, force=True))
    assert (done.result, incumbent(line.adapters, "toy")) == ("done", THIRD)


def test_a_command_that_rests_on_an_older_promotion_log_is_refused(line: Settings) -> None:
    (answer,) = answered(line, asked("rollback", OLD, promotions=1))
    assert answer.result == "refused"
    assert "somebody has decided since" in answer.detail
    assert incumbent(line.adapters, "toy") == NEW


def test_a_command_whose_answer_was_lost_is_not_done_again(line: Settings) -> None:
    command = asked("rollback", NEW)
    commands = ListCommands(command)
    commands.broken = True
    orders = Orders(line, commands)
    with pytest.raises(BrokerError):
        orders.poll()
    commands.broken = False
    assert [answer.result for answer in orders.poll()] == ["done"]
    assert [answer.result for answer in answered(line, command)] == ["done"]  # another rollout reads it once more
    assert [entry.version for entry in promotions(line.adapters, "toy")] == [OLD, NEW, OLD]


def test_a_command_that_has_an_answer_is_left_alone(line: Settings) -> None:
    command = asked("rollback", NEW)
    answer = CommandAnswer(command=command, result="refused", detail="", at_ms=1)
    assert Orders(line, ListCommands(command, answer)).poll() == []
    assert incumbent(line.adapters, "toy") == NEW


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (asked("rollback", NEW, at_ms=int((time.time() - EXPIRES_S - 60) * 1000)), "too late"),
        (asked("promote", "v0099-zzzzzz"), "no version"),
        (asked("promote", "../../etc"), "no version"),
        (asked("promote", NEW), "already"),
        (asked("rollback", task="nobody"), "not configured"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(line: Settings, command: AdapterCommand, why: str) -> None:
    (answer,) = answered(line, command)
    assert answer.result == "refused"
    assert why in answer.detail
    assert len(promotions(line.adapters, "toy")) == 2


def test_rollout_reads_commands_from_kafka_and_answers_there(
    line: Settings, make_settings: Callable[..., Settings]
) -> None:
    here = make_settings()
    settings = msgspec.structs.replace(line, kafka=here.kafka)
    create_topics(settings)
    theirs = KafkaCommands(settings)
    answers: list[CommandAnswer] = []

    def answered() -> bool:
        answers[:] = [record for record in theirs.read() if isinstance(record, CommandAnswer)]
        return bool(answers)

    try:
        with InThread(settings, ListRecords(), commands=KafkaCommands(settings)):
            for record in (Pause("judge", True, 1), asked("rollback", NEW)):
                theirs.append(record)  # type: ignore[arg-type]  # the topic takes any record
            wait_until(answered, 60, every_s=0.05)
            assert [answer.result for answer in answers] == ["done"]
            assert incumbent(settings.adapters, "toy") == OLD
    finally:
        theirs.close()


def test_an_earlier_version_reads_every_record_as_a_pause_of_a_stage_it_does_not_have() -> None:
    command = asked("promote", NEW)
    for record in (command, CommandAnswer(command=command, result="done", detail="", at_ms=1)):
        key, value = encode_command(record)
        assert msgspec.json.decode(value, type=Pause).stage == "rollout"  # as it did
        assert read_pause(key, value) is None
        assert decode_command(key, value) == record


def test_a_record_that_is_no_command_changes_nothing() -> None:
    for key, value in ((b"judge", b"{"), (b"", b""), (None, None), (b"judge", b'{"stage":"moon","paused":true}')):
        assert read_pause(key, value) is None
    pause = Pause("judge", True, 1)
    assert read_pause(*encode_command(pause)) == pause
