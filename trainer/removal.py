"""Removing old versions: what may go, and taking it away in a way no reader ever sees half of.

`goldstream adapters gc` shows the plan and, asked to, carries it out.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from schemas.adapters import AdapterManifest, adapter_folder
from schemas.errors import AdapterError
from schemas.faults import crash_point
from schemas.lineage import TRAINED_ON
from trainer.registry import (
    GATE,
    REMOVED,
    clear_leftovers,
    incumbent,
    list_adapters,
    promotions,
    read_gate,
)

KEPT_FILES = ("manifest.json", GATE, TRAINED_ON)  # of a removed version; gate.html goes too, for its texts


class Candidate(NamedTuple):
    """One version, and why it stays; `kept` is "" where it can go."""

    manifest: AdapterManifest
    kept: str
    size: int  # bytes


def removal_plan(
    registry: Path, task: str, *, keep: int, grace_s: float, served: Collection[str], now_ms: int
) -> list[Candidate]:
    """Returns every version with why it stays, oldest first.

    Kept are the incumbent; what is `served` now or could be again without a promotion (the versions the serving
    record names); the last `keep` promoted ones; whatever was trained, promoted or replaced within the grace period;
    candidates that wait for a gate or a person; the newest of each base, whose watermark the next run counts from.
    """
    log, adapters, since = promotions(registry, task), list_adapters(registry, task), now_ms - grace_s * 1000
    promoted = list(dict.fromkeys(entry.version for entry in reversed(log) if entry.version))  # latest first
    lately: set[str] = set()
    for before, entry in zip([None, *log], log, strict=False):
        if entry.at_ms > since:
            lately |= {entry.version, before.version if before else ""}
    newest = {manifest.base_sha256: manifest.version for manifest in adapters}
    serving = incumbent(registry, task)

    def why(manifest: AdapterManifest) -> str:
        version = manifest.version
        if version == serving:
            return "should serve now"
        if version in served:
            return "named by the serving record"
        if version in promoted[:keep]:
            return f"one of the last {keep} promoted"
        if version in lately:
            return "promoted or replaced within the grace period"
        if manifest.created_ms > since:
            return "trained within the grace period"
        if version in newest.values():
            return "the newest of its base"
        gate = read_gate(registry, task, version)
        if gate is None:
            return "not gated yet"
        if gate.decision == "promote" and version not in promoted and version > serving:
            return "passed the gate and waits for a promotion"
        return ""

    return [Candidate(m, why(m), _size(adapter_folder(registry, task, m.version))) for m in adapters]


def remove(registry: Path, task: str, version: str) -> int:
    """Removes a version's weights and returns the bytes freed; its number stays taken, its figures stay readable.

    1. rename the folder into removed/, where nobody loads from: from here on the version does not exist;
    2. delete everything but manifest and gate.json. Killed in between, `finish_removals` does the rest.

    Raises AdapterError for the incumbent, also where it was promoted after the plan was made.
    """
    if version == incumbent(registry, task):
        raise AdapterError(f"{version} should serve {task} now; it is not removed.")
    source, target = adapter_folder(registry, task, version), registry / task / REMOVED / version
    target.parent.mkdir(exist_ok=True)
    source.rename(target)  # 1
    if version == incumbent(registry, task):  # promoted between the look and the rename
        target.rename(source)
        raise AdapterError(f"{version} was promoted just now; it is not removed.")
    crash_point("registry.removed")
    return _strip(target)  # 2


def finish_removals(registry: Path, task: str) -> int:
    """Finishes what a killed removal left, and clears old leftovers of killed runs; returns the bytes freed."""
    clear_leftovers(registry, task)
    folder = registry / task / REMOVED
    return sum(_strip(path) for path in folder.iterdir()) if folder.is_dir() else 0


def _strip(folder: Path) -> int:
    freed = 0
    for path in folder.iterdir():
        if path.name in KEPT_FILES:
            continue
        freed += _size(path)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return freed


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
