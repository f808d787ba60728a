"""The promotion log of a task: who should serve since when, and why. trainer.registry writes it, everyone may read it.

<registry>/<task>/promotions/00000003.json   one entry; the last one names who should serve
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from schemas.errors import AdapterError

PromotedBy = Literal["gate", "hand", "guard"]  # the trainer, a person, rollout's live guard


class Promotion(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a task's promotion log: from now on this version should serve."""

    task: str
    version: str  # "" is the base without an adapter
    by: PromotedBy
    at_ms: int
    reason: str = ""
    command: str = ""  # id of the command on gs.commands that asked for it


def promotions(registry: Path, task: str) -> list[Promotion]:
    """Returns the promotion log, oldest first."""
    paths = sorted((registry / task / "promotions").glob("*.json"))
    try:
        return [msgspec.json.decode(path.read_bytes(), type=Promotion) for path in paths]
    except (msgspec.DecodeError, OSError) as error:
        raise AdapterError(
            f"the promotion log in {registry / task} cannot be read: {error}. Restore the file from a backup."
        ) from error


def served_before(log: Sequence[Promotion]) -> list[str]:
    """Returns what served before the log's last entry, latest first and the base last; empty where the base serves.

    Going back to a version undoes everything after it, so that it leaves no trace here.
    """
    served = [""]
    for entry in log:
        if entry.version in served:
            del served[served.index(entry.version) + 1 :]
        else:
            served.append(entry.version)
    return served[-2::-1]
