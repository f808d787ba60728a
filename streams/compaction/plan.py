"""What compaction does next: pure decisions over names, sizes and times."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from schemas.gold import LandingFile
from schemas.manifests import DataFile, Manifest, Watermark
from schemas.settings.gold import Gold


class Plan(NamedTuple):
    """What a compaction rewrites and keeps."""

    landing: tuple[LandingFile, ...]
    merge: tuple[DataFile, ...]  # compacted files to be written anew, larger or without what is forgotten
    keep: tuple[DataFile, ...]
    watermark: Watermark

    @property
    def empty(self) -> bool:
        """Nothing is to be done."""
        return not self.landing and not self.merge


def why_due(files: int, oldest_s: float, settings: Gold) -> str | None:
    """Returns why compaction is due; None while it is not. `files` are landing files, `oldest_s` the age of one."""
    if files >= settings.compact_files:
        return f"{files} landing files"
    if files > 1 and oldest_s >= settings.compact_after_s:
        return f"{files} landing files, the oldest {oldest_s:.0f} s old"
    return None


def make_plan(
    manifest: Manifest,
    landing: Sequence[LandingFile],
    today: str,
    settings: Gold,
    tainted: Iterable[str] = (),
) -> Plan:
    """Returns what to rewrite: all landing files, small files where there are enough, and tainted ones.

    Files of a folder (one outcome, split and day) are merged while they are small: once there are `merge_files` of
    them, or two where the day is over and no more are to come. `tainted` names files that hold forgotten rows.
    """
    folders: dict[str, list[DataFile]] = defaultdict(list)
    for file in manifest.files:
        folders[file.name.rpartition("/")[0]].append(file)
    rewrite = set(tainted)
    for folder, files in folders.items():
        small = [file.name for file in files if file.bytes < settings.large_mb << 20]
        over = folder.rpartition("dt=")[2] < today
        if len(small) >= (2 if over else settings.merge_files):
            rewrite.update(small)
    watermark = dict(manifest.watermark)
    for link in landing:
        watermark[link.partition] = max(link.end, watermark.get(link.partition, 0))
    return Plan(
        tuple(landing),
        tuple(file for file in manifest.files if file.name in rewrite),
        tuple(file for file in manifest.files if file.name not in rewrite),
        watermark,
    )
