"""Removes what no reader can be reading any more: manifests past their grace period, then the files only they named."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from schemas.faults import crash_point
from schemas.gold import landing_folder, landing_name, landing_partitions, landing_starts
from schemas.manifests import Manifest, manifest_numbers, manifest_path, read_manifest_file
from streams.compaction.rewrite import TEMP
from streams.durable import remove_stale_temp_files


class Removed(msgspec.Struct):
    """How many files of each kind went."""

    manifests: int = 0
    files: int = 0
    landing: int = 0


def clean(gold: Path, grace_s: float, *, now_ms: int) -> Removed:
    """Removes superseded files; call it under the compaction lock.

    1. Manifests that were superseded longer ago than the grace period, the oldest first.
    2. Landing files below the watermark of the oldest manifest left.
    3. Compacted files that no manifest left names, once they are as old: also what a killed compaction left behind.

    Killed anywhere, the next call goes on: what is removed is found from what is left.
    """
    removed = Removed()
    remove_stale_temp_files(gold / "tmp", TEMP)
    kept = [read_manifest_file(gold, number) for number in manifest_numbers(gold)]
    # 1. Manifests
    while len(kept) > 1 and _past(kept[1].created_ms, grace_s, now_ms):
        manifest_path(gold, kept.pop(0).number).unlink(missing_ok=True)
        crash_point("compact.after_manifest_removal")
        removed.manifests += 1
    # 2. Landing files
    if kept:
        if _past(kept[0].created_ms, grace_s, now_ms):
            removed.landing = _remove_landing(gold, kept[0])
        # 3. Compacted files
        removed.files = _remove_unnamed(gold, kept, grace_s)
    return removed


def _remove_landing(gold: Path, manifest: Manifest) -> int:
    removed = 0
    for partition in landing_partitions(gold):
        end = manifest.watermark.get(partition, 0)
        for start in landing_starts(gold, partition):
            if start < end:
                (landing_folder(gold, partition) / landing_name(partition, start)).unlink(missing_ok=True)
                crash_point("compact.after_landing_removal")
                removed += 1
    return removed


def _remove_unnamed(gold: Path, kept: Iterable[Manifest], grace_s: float) -> int:
    named = {name for manifest in kept for file in manifest.files for name in (file.name, file.facts)}
    removed = 0
    for path in sorted([*(gold / "data").rglob("*.parquet"), *(gold / "facts").glob("*.parquet")]):
        if path.relative_to(gold).as_posix() not in named and time.time() - path.stat().st_mtime >= grace_s:
            path.unlink(missing_ok=True)
            crash_point("compact.after_file_removal")
            removed += 1
    return removed


def _past(then_ms: int, grace_s: float, now_ms: int) -> bool:
    return now_ms - then_ms >= grace_s * 1000
