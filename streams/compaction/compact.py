"""One compaction, from the lock to the cleaning; `goldstream gold compact` and the sink's keeper call it."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pyarrow as pa

from schemas.errors import Fenced, GoldError
from schemas.forgotten import MATCHED_ON, REASON, Forgotten, read_forgotten
from schemas.gold import landing_partitions, read_chain, read_columns
from schemas.manifests import DataFile, Manifest, latest_manifest
from schemas.settings.gold import Gold
from streams.compaction.cleaning import Removed, clean
from streams.compaction.plan import Plan, make_plan
from streams.compaction.publish import publish
from streams.compaction.rewrite import TEMP, Writers, read_batches, read_landing
from streams.durable import fsync_folder, make_folder
from streams.stats import write_facts

log = logging.getLogger("goldstream.compaction")


class Report(msgspec.Struct, kw_only=True):
    """What a compaction did, or with `dry_run` would do."""

    manifest: int  # the number that holds now
    dry_run: bool = False
    landing_files: int = 0  # read into compacted ones
    merged_files: int = 0  # compacted files written anew
    written_files: int = 0
    rows: int = 0  # written
    bytes: int = 0
    erased_rows: int = 0  # forgotten rows whose text is no longer in the files that hold
    files: int = 0  # compacted files that hold now, and their rows
    total_rows: int = 0
    seconds: float = 0.0
    removed: Removed = msgspec.field(default_factory=Removed)


def compact(gold: Path, settings: Gold, *, dry_run: bool = False, now_ms: int | None = None) -> Report:
    """Moves the rows of all landing files into compacted ones, merges small ones and takes out what is forgotten.

    1. Take the lock: a second compaction would only repeat the work.
    2. Read the manifest that holds, the landing files above its watermark, and what is forgotten; plan.
    3. Write the new files, each whole before it has its name.
    4. Publish the next manifest. Until then nothing has changed for anybody, and from then on nothing is needed.
    5. Remove what was superseded longer ago than the grace period.

    Raises Fenced where another compaction is at work, ChainBroken where a landing file is damaged, GoldError where
    the disk refuses; the gold set is as it was then.
    """
    began = time.monotonic()
    now_ms = int(time.time() * 1000) if now_ms is None else now_ms
    try:
        with _lock(gold):  # 1.
            # 2. Plan
            manifest = latest_manifest(gold)
            forgotten = read_forgotten(gold)
            mark = fingerprint(forgotten)
            tainted = [] if mark == manifest.forgotten else _tainted(gold, manifest, forgotten)
            chains = [read_chain(gold, partition, manifest) for partition in landing_partitions(gold)]
            today = time.strftime("%Y-%m-%d", time.gmtime(now_ms / 1000))
            plan = make_plan(manifest, [link for chain in chains for link in chain], today, settings, tainted)
            report = Report(
                manifest=manifest.number,
                dry_run=dry_run,
                landing_files=len(plan.landing),
                merged_files=len(plan.merge),
                files=len(manifest.files),
                total_rows=manifest.rows,
            )
            if dry_run:
                return report
            if not plan.empty or mark != manifest.forgotten:
                # 3. Write
                made, report.erased_rows = _rewrite(gold, plan, forgotten, manifest.number + 1)
                # 4. Publish
                files = tuple(sorted((*plan.keep, *made), key=lambda file: file.name))
                manifest = Manifest(
                    number=manifest.number + 1,
                    created_ms=max(now_ms, manifest.created_ms),
                    watermark=plan.watermark,
                    files=files,
                    forgotten=mark,
                )
                publish(gold, manifest)
                report.manifest, report.files, report.total_rows = manifest.number, len(files), manifest.rows
                report.written_files, report.rows = len(made), sum(file.rows for file in made)
                report.bytes = sum(file.bytes for file in made)
            # 5. Remove
            report.removed = clean(gold, settings.grace_s, now_ms=now_ms)
    except (OSError, pa.ArrowException) as error:
        raise GoldError(
            f"{gold}: compaction failed ({error}); the gold set is as it was. Mend that (is the disk full?) and run "
            "`goldstream gold compact` again."
        ) from error
    report.seconds = round(time.monotonic() - began, 3)
    return report


def fingerprint(forgotten: Forgotten) -> str:
    """Returns what tells one state of what is forgotten from another, empty for none."""
    if not forgotten:
        return ""
    said = repr((sorted(forgotten.records.items()), sorted(forgotten.places)))
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _tainted(gold: Path, manifest: Manifest, forgotten: Forgotten) -> list[str]:
    """Returns the names of compacted files that hold rows forgotten since they were written."""
    return [
        file.name
        for file in manifest.files
        if forgotten.mask(read_columns(gold / file.name, MATCHED_ON)).to_numpy().any()
    ]


def _rewrite(gold: Path, plan: Plan, forgotten: Forgotten, number: int) -> tuple[tuple[DataFile, ...], int]:
    """Returns the files written from those that the plan names, and how many forgotten rows lost their text."""
    read = erased = 0
    with Writers(gold, number) as writers:
        for table in _rows(gold, plan):
            bare = forgotten.erased(table)
            erased += _bare_rows(bare) - _bare_rows(table) if bare is not table else 0
            read += len(table)
            writers.add(bare)
        made = tuple(_with_facts(gold, file) for file in writers.finish())
    written, kept = sum(file.rows for file in made), sum(file.rows for file in plan.merge)
    if written != read or read < kept:
        raise GoldError(f"{gold}: compaction read {read} rows and wrote {written}. Nothing was published; report this.")
    return made, erased


def _with_facts(gold: Path, file: DataFile) -> DataFile:
    """Writes the facts of a file beside the data, and returns it with their name."""
    name = f"facts/{file.name.rpartition('/')[2]}"
    target = gold / name
    make_folder(target.parent)
    temp = gold / "tmp" / f"{TEMP}{target.name}.tmp"
    write_facts(gold, file.name, temp)
    with temp.open("rb") as written:
        os.fsync(written.fileno())
    temp.replace(target)
    fsync_folder(target.parent)
    return msgspec.structs.replace(file, facts=name)


def _rows(gold: Path, plan: Plan) -> Iterator[pa.Table]:
    """Yields the rows to write: compacted files first, since they are older, then landing files in offset order."""
    for file in plan.merge:
        yield from read_batches(gold / file.name)
    for link in plan.landing:
        yield read_landing(link.path)


def _bare_rows(table: pa.Table) -> int:
    return sum(1 for reason in table["reason"].to_pylist() if reason == REASON)


@contextmanager
def _lock(gold: Path) -> Iterator[None]:
    make_folder(gold / "tmp")
    descriptor = os.open(gold / "tmp" / "compaction.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Fenced(f"{gold}: another compaction is at work. Wait for it; it does what this one would.") from None
    try:
        yield
    finally:
        os.close(descriptor)
