"""What an operator asks of running processes, and what they answer: records on gs.commands, the latest of a key counts.

| key             | record         | read by                                           |
|-----------------|----------------|---------------------------------------------------|
| a stage         | Pause          | intake and workers                                |
| adapters/<task> | AdapterCommand | rollout, which carries it out                     |
| answers/<task>  | CommandAnswer  | whoever asked: what became of the command         |

Earlier versions read every record here as a Pause. So the others carry the fields of one, of a stage there is not.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from schemas.settings import ROLES

PAUSABLE = ("intake", *ROLES)
_ADAPTERS, _ANSWERS = b"adapters/", b"answers/"

Action = Literal["promote", "rollback"]


class Pause(msgspec.Struct, frozen=True):
    """Whether a stage takes new work. Cases in flight are finished either way."""

    stage: str
    paused: bool
    at_ms: int


class AdapterCommand(msgspec.Struct, frozen=True, kw_only=True):
    """Asks rollout to promote a version of a task, or to go back to what served before.

    It rests on what a person saw: where the promotion log has grown since, it is refused. So it is done once at most,
    however often it is read.
    """

    id: str
    task: str
    action: Action
    version: str = ""  # to promote, "" for the base; for a rollback the one that should serve no more
    promotions: int  # length of the promotion log that the person saw
    by: str
    reason: str
    at_ms: int
    force: bool = False  # promote although the gate did not pass it
    stage: str = "rollout"
    paused: bool = False


class CommandAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a command; the command itself may be gone from the topic."""

    command: AdapterCommand
    result: Literal["done", "refused"]
    detail: str
    at_ms: int
    stage: str = "rollout"
    paused: bool = False


Record = Pause | AdapterCommand | CommandAnswer


def encode_command(record: Record) -> tuple[bytes, bytes]:
    """Returns a record of gs.commands as key and value."""
    match record:
        case Pause():
            key = record.stage.encode()
        case AdapterCommand():
            key = _ADAPTERS + record.task.encode()
        case CommandAnswer():
            key = _ANSWERS + record.command.task.encode()
    return key, msgspec.json.encode(record)


def decode_command(key: bytes | None, value: bytes | None) -> Record | None:
    """Reads a record of gs.commands; None for one that cannot be read, which changes nothing for anybody."""
    key = key or b""
    kind: type[Record] = Pause
    if key.startswith(_ADAPTERS):
        kind = AdapterCommand
    elif key.startswith(_ANSWERS):
        kind = CommandAnswer
    try:
        return msgspec.json.decode(value or b"", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def read_pause(key: bytes | None, value: bytes | None) -> Pause | None:
    """Reads a pause or resume; None for every other record."""
    record = decode_command(key, value)
    return record if isinstance(record, Pause) and record.stage in PAUSABLE else None
