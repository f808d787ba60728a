"""The frozen holdout: which cases every gate of a task asks, the same ones from version to version.

Called by trainer.run before each gate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow.compute as pc

from schemas.case import Message
from schemas.errors import AdapterError
from schemas.gold import read_outcomes
from schemas.outcomes import row_messages
from schemas.record import RECORD_COLUMNS, row_record
from trainer.registry import replace_file

HOLDOUT = "holdout.json"


class HoldoutCase(NamedTuple):
    """One prompt the gate asks."""

    case_id: str
    messages: list[Message]
    record: dict[str, Any] | None = None  # what checks of the rubric may compare with, and the tools that were offered


def holdout_cases(gold: Path, task: str) -> list[HoldoutCase]:
    """Returns every holdout case of a task."""
    rows = read_outcomes(gold, ("case_id", "outcome", "split", "messages", *RECORD_COLUMNS), task=task)
    rows = rows.filter(pc.and_(pc.equal(rows["outcome"], "holdout"), pc.equal(rows["split"], "holdout")))
    return [HoldoutCase(row["case_id"], row_messages(row), row_record(row)) for row in rows.to_pylist()]


def freeze_holdout(registry: Path, task: str, cases: Sequence[HoldoutCase], limit: int) -> list[HoldoutCase]:
    """Returns the at most `limit` cases the gate asks, remembering them in holdout.json.

    Ids once written stay, in their order, so that gates of one task ask the same questions and their pass rates can
    be compared. While there are fewer than `limit`, new ones are appended at the end. A case whose row is gone
    (erased, or superseded by another outcome) is left out and its place filled. New ids come in the order of their
    hash: producers' ids may grow with time, and a sample of the first days only would not be one of the traffic.
    The caller holds the task's lease.
    """
    by_id = {case.case_id: case for case in cases}
    path = registry / task / HOLDOUT
    try:
        frozen = msgspec.json.decode(path.read_bytes(), type=list[str]) if path.exists() else []
    except (msgspec.DecodeError, OSError) as error:
        raise AdapterError(f"{path} cannot be read: {error}. Restore it, or remove it to freeze a new one.") from error
    present = [case_id for case_id in frozen if case_id in by_id]
    fresh = sorted(by_id.keys() - set(frozen), key=lambda case_id: hashlib.sha256(case_id.encode()).digest())
    added = fresh[: max(0, limit - len(present))]
    if added:
        replace_file(registry, task, HOLDOUT, msgspec.json.encode([*frozen, *added]))
    return [by_id[case_id] for case_id in [*present, *added][:limit]]


def holdout_sha256(cases: Sequence[HoldoutCase]) -> str:
    """Returns a hash of the case ids in order; pass rates of two gates can be compared where it is the same."""
    return hashlib.sha256("\0".join(case.case_id for case in cases).encode()).hexdigest()
