"""The manifests of a gold set: which compacted files it has, and from where on landing files count.

Compaction (streams.compaction) publishes them, numbered and each created only if absent; the newest one holds. A
reader takes its files, and of each partition the landing rows from its watermark on. views.sql reads them as JSON.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from schemas.errors import ChainBroken

Watermark = dict[int, int]  # partition -> first offset not included

_NAME = re.compile(r"(\d{20})\.json")
_TRIES = 5
_Found = TypeVar("_Found")


class DataFile(msgspec.Struct, frozen=True, kw_only=True):
    """One compacted file; offsets are of gs.outcomes, by partition the first and the last that it holds."""

    name: str  # below the gold set's folder: data/<outcome>/<split>/dt=<date>/<name>.parquet
    rows: int
    bytes: int
    sha256: str
    offsets: dict[int, tuple[int, int]]
    facts: str = ""  # the file of its rows' counts that `goldstream gold stats` adds up


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What compaction has published: every row below the watermark lies in these files, each once."""

    number: int = 0
    created_ms: int = 0
    watermark: Watermark = {}
    files: tuple[DataFile, ...] = ()
    forgotten: str = ""  # fingerprint of what was forgotten when these files were last searched for it

    @property
    def rows(self) -> int:
        """All rows of its files."""
        return sum(file.rows for file in self.files)


def manifest_path(gold: Path, number: int) -> Path:
    """Returns the path of a manifest; zero-padding makes names sort by number."""
    return gold / "manifests" / f"{number:020d}.json"


def manifest_numbers(gold: Path) -> list[int]:
    """Returns the numbers of the manifests there are, the newest last."""
    try:
        names = os.listdir(gold / "manifests")
    except FileNotFoundError:
        return []
    return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))


def read_manifest_file(gold: Path, number: int) -> Manifest:
    """Returns a manifest by number. Raises ChainBroken for a damaged one, FileNotFoundError where there is none."""
    path = manifest_path(gold, number)
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ChainBroken(
            f"{path}: no manifest ({error}). It was damaged after it was written: restore it from a backup of the "
            "gold set; the compacted files that it names are whole."
        ) from error
    if manifest.number != number:
        raise ChainBroken(f"{path}: holds manifest {manifest.number}. It was renamed: give it back its name.")
    return manifest


def latest_manifest(gold: Path) -> Manifest:
    """Returns the manifest that holds; one without files and watermark where nothing has been compacted."""
    for _ in range(_TRIES):
        numbers = manifest_numbers(gold)
        if not numbers:
            return Manifest()
        try:
            return read_manifest_file(gold, numbers[-1])
        except FileNotFoundError:
            continue  # superseded and removed since the folder was listed
    raise ChainBroken(f"{gold / 'manifests'}: manifests vanish while they are read. Is something else removing files?")


def newest_number(gold: Path) -> int:
    """Returns the number of the manifest that holds, 0 where there is none; opens nothing."""
    return max(manifest_numbers(gold), default=0)


def consistently(gold: Path, read: Callable[[Manifest], _Found]) -> _Found:
    """Returns what `read` makes of the manifest that holds, again where compaction published another meanwhile.

    Files go only a grace period after they were superseded; a reader slower than that begins anew with those that
    took their place. Raises what `read` raises where no newer manifest explains it.
    """
    for attempt in range(_TRIES):
        manifest = latest_manifest(gold)
        try:
            return read(manifest)
        except (ChainBroken, FileNotFoundError):
            if attempt == _TRIES - 1 or newest_number(gold) == manifest.number:
                raise
            time.sleep(0.01)
    raise AssertionError("unreachable")


def by_partition(files: Iterable[DataFile], partition: int) -> list[DataFile]:
    """Returns the files that hold rows of a partition."""
    return [file for file in files if partition in file.offsets]
