"""Removes what no reader can be reading any more: superseded manifests, then the files only they named."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from schemas.gold import landing_folder, landing_name, landing_partitions, landing_starts
from schemas.manifests import Manifest, manifest_numbers, manifest_path, read_manifest_file
from streams.compaction.aside import oldest_aside_ms, put_aside, remove_aside
from streams.compaction.rewrite import TEMP
from streams.durable import remove_stale_temp_files


class Removed(msgspec.Struct):
    """How many files of each kind went."""

    manifests: int = 0
    files: int = 0
    landing: int = 0


def clean(gold: Path, grace_s: float, *, now_ms: int) -> Removed:
    """Puts superseded files aside, and removes them a grace period later; call it under the compaction lock.

    1. Put aside all manifests but the newest: a query that begins does not list them.
    2. Remove what was put aside a grace period ago.
    3. Put aside what no manifest left names: landing files below the watermark of the oldest one, and compacted files,
       also what a killed compaction left behind. Whoever listed such a manifest has listed its files by now, or fails
       to open it.

    Killed anywhere, the next call goes on: what is removed is found from what is left.
    """
    removed = Removed()
    remove_stale_temp_files(gold / "tmp", TEMP)
    # 1. Manifests
    for number in manifest_numbers(gold)[:-1]:
        put_aside(gold, manifest_path(gold, number), now_ms)
    # 2. Remove
    _remove(gold, grace_s, now_ms, removed)
    # 3. Files
    kept = [read_manifest_file(gold, number) for number in manifest_numbers(gold)]
    if kept:
        if now_ms - kept[0].created_ms >= grace_s * 1000:  # a gold set of before there were manifests has no older one
            _put_landing_aside(gold, kept[0], now_ms)
        _put_unnamed_aside(gold, kept, grace_s, now_ms)
    if grace_s == 0:
        _remove(gold, grace_s, now_ms, removed)
    return removed


def next_at_ms(gold: Path, grace_s: float) -> float | None:
    """Returns from when on there is something to remove; None where there is nothing."""
    oldest_ms = oldest_aside_ms(gold)
    return None if oldest_ms is None else oldest_ms + grace_s * 1000


def _remove(gold: Path, grace_s: float, now_ms: int, removed: Removed) -> None:
    for name in remove_aside(gold, grace_s, now_ms):
        kind = {"manifests": "manifests", "landing": "landing"}.get(name.partition("/")[0], "files")
        setattr(removed, kind, getattr(removed, kind) + 1)


def _put_landing_aside(gold: Path, manifest: Manifest, now_ms: int) -> None:
    for partition in landing_partitions(gold):
        end = manifest.watermark.get(partition, 0)
        for start in landing_starts(gold, partition):
            if start < end:
                put_aside(gold, landing_folder(gold, partition) / landing_name(partition, start), now_ms)


def _put_unnamed_aside(gold: Path, kept: Iterable[Manifest], grace_s: float, now_ms: int) -> None:
    named = {name for manifest in kept for file in manifest.files for name in (file.name, file.facts)}
    for path in sorted([*(gold / "data").rglob("*.parquet"), *(gold / "facts").glob("*.parquet")]):
        if path.relative_to(gold).as_posix() not in named and time.time() - path.lstat().st_mtime >= grace_s:
            put_aside(gold, path, now_ms)
