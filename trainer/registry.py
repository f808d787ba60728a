"""The adapter registry: immutable versions on disk, their gate reports, and who was promoted when.

    <registry>/<task>/v0007-3fa9c2d1/      one version: weights, config, manifest.json; gate.html, gate.json once gated
    <registry>/<task>/promotions/00000003.json   the promotion log; its last entry names who should serve
    <registry>/<task>/removed/v0002-77ab01ce/    manifest and gate.json of a version that was removed (trainer.removal)
    <registry>/<task>/holdout.json         ids of the frozen holdout (trainer.holdout)
    <registry>/<task>/lease                lock of the trainer at work; <registry>/rollout.lease of rollout
    <registry>/<task>/.tmp/                whatever is half written; never read

Files are only ever added, so that trainer, rollout and the command line need no lock to read. Versions keep counting
when the base model changes: those of one base are a line, told apart by the manifest's base_sha256.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from schemas.adapters import (
    MANIFEST,
    VERSION,
    AdapterManifest,
    GateReport,
    adapter_folder,
    file_sha256,
    read_manifest,
    verify_adapter,
)
from schemas.errors import AdapterError, Overtaken, SetupError
from schemas.faults import crash_point
from schemas.lineage import TRAINED_ON
from schemas.promotions import PromotedBy
from schemas.promotions import Promotion as Promotion
from schemas.promotions import promotions as promotions
from schemas.promotions import served_before as served_before
from trainer.lease import lease as lease

GATE, REPORT = "gate.json", "gate.html"
REMOVED = "removed"
# Of what a run leaves behind:
PUBLISHED = ("adapter_config.json", "adapter_model.safetensors", "steps.jsonl", TRAINED_ON)
LEFTOVER_AGE_S = 3600.0


def next_version(registry: Path, task: str, run_id: str) -> str:
    """Returns the name after the highest one ever used, finished, removed or not, for example v0008-3fa9c2d1."""
    names = [*_version_names(registry / task), *_version_names(registry / task / REMOVED)]
    version = f"v{1 + max(map(_number, names), default=0):04d}-{run_id}"
    if not VERSION.fullmatch(version):
        raise AdapterError(f"run id {run_id!r} cannot be part of a version; expected 6 to 32 of a-z and 0-9")
    return version


def publish(
    registry: Path, run: Path, manifest: AdapterManifest, *, still_owner: Callable[[], None] = lambda: None
) -> Path:
    """Copies a run's files into the registry as `manifest.version` and returns the folder.

    1. copy into a temporary folder that no reader looks into, hashing and syncing each file;
    2. write the manifest, last;
    3. check the result as any reader will, weights included;
    4. ask `still_owner`, which raises where another trainer has taken over;
    5. rename it into place, which fails where the version exists.

    Raises AdapterError where the check fails or the version exists, SetupError where the disk is full; nothing is
    visible then.
    """
    final = adapter_folder(registry, manifest.task, manifest.version)
    with _room_on(registry):
        temporary = _temporary(registry, manifest.task, manifest.version)
        temporary.mkdir()
        try:
            files: dict[str, str] = {}
            for source in (run / name for name in PUBLISHED if (run / name).exists()):  # 1
                shutil.copyfile(source, temporary / source.name)
                _sync(temporary / source.name)
                files[source.name] = file_sha256(temporary / source.name)
            _write(temporary / MANIFEST, msgspec.json.encode(msgspec.structs.replace(manifest, files=files)))  # 2
            _sync(temporary)
            verify_adapter(temporary)  # 3
            still_owner()  # 4
            crash_point("registry.before_rename")
            try:
                temporary.rename(final)  # 5; onto a folder that is not empty it fails
            except OSError as error:
                if final.exists():
                    raise AdapterError(
                        f"{final} exists already; a version is never overwritten. Train again."
                    ) from error
                raise
            crash_point("registry.after_rename")
            _sync(final.parent)
            return final
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def list_adapters(registry: Path, task: str, base_sha256: str | None = None) -> list[AdapterManifest]:
    """Returns the manifests of every finished version, oldest first; with `base_sha256` only those of that line."""
    found = _manifests(registry / task)
    return [m for m in found if base_sha256 is None or m.base_sha256 == base_sha256]


def removed_adapters(registry: Path, task: str) -> list[AdapterManifest]:
    """Returns the manifests of versions whose weights were removed, oldest first."""
    return _manifests(registry / task / REMOVED)


def write_gate(registry: Path, report: GateReport, page: str = "") -> None:
    """Writes a gate's report beside the manifest: its page for people first, then gate.json, which is the decision.

    Raises AdapterError where there is a decision already, SetupError where the disk is full.
    """
    folder = adapter_folder(registry, report.task, report.version)
    target = folder / GATE
    data = msgspec.json.format(msgspec.json.encode(report), indent=1)
    with _room_on(registry):
        if page and not target.exists():  # a page without a decision is a killed gate's, and is replaced
            replace_file(registry, report.task, f"{report.version}/{REPORT}", page.encode("utf-8", "replace"))
            crash_point("registry.after_report")
        if not _link_new(registry, report.task, target, data):
            raise AdapterError(f"{target} exists already; a gate's decision is never rewritten.")


def read_gate(registry: Path, task: str, version: str) -> GateReport | None:
    """Returns the gate report of a version, also of a removed one; None where it was not gated."""
    path = adapter_folder(registry, task, version) / GATE
    if not path.parent.exists():
        path = registry / task / REMOVED / version / GATE
    try:
        return msgspec.json.decode(path.read_bytes(), type=GateReport)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, OSError) as error:
        raise AdapterError(f"{path} cannot be read: {error}. Restore the file from a backup.") from error


def promote(
    registry: Path,
    task: str,
    version: str,
    *,
    by: PromotedBy,
    reason: str = "",
    base_sha256: str | None = None,
    after: int | None = None,
    command: str = "",
) -> Promotion:
    """Appends to the promotion log: `version` should serve, "" for the base. Rollout does the rest.

    Going back to an older version is one more entry. Raises AdapterError for a version that must not be loaded,
    where `base_sha256` is given also for one of another base; SetupError where the disk is full. Where `after` is
    given, the number of entries the decision rests on, it raises Overtaken if somebody has promoted since.
    `command` is the id of the one on gs.commands that asked for it.
    """
    if version:
        verify_adapter(adapter_folder(registry, task, version), base_sha256)
    at_ms = int(time.time() * 1000)
    entry = Promotion(task=task, version=version, by=by, at_ms=at_ms, reason=reason, command=command)
    folder = registry / task / "promotions"
    with _room_on(registry):
        folder.mkdir(parents=True, exist_ok=True)
        number = (len(promotions(registry, task)) if after is None else after) + 1
        crash_point("registry.before_promotion")
        while not _link_new(registry, task, folder / f"{number:08d}.json", msgspec.json.encode(entry)):
            if after is not None:
                raise Overtaken(f"{task}: another version was promoted meanwhile; {version or 'the base'} was not.")
            number += 1  # another process promoted meanwhile; the later entry wins
    return entry


def rollback(
    registry: Path,
    task: str,
    *,
    by: PromotedBy,
    reason: str,
    base_sha256: str | None = None,
    after: int | None = None,
    command: str = "",
) -> tuple[Promotion, list[str]]:
    """Promotes the version that served before the one that should serve now, and returns the entry.

    A second rollback goes one further back, not forth again. Versions that cannot be loaded any more are passed over
    and returned with why; the base always can. Raises AdapterError where the base serves already. `after` and
    `command` are as in `promote`.
    """
    before = served_before(promotions(registry, task))
    if not before:
        raise AdapterError(f"nothing of {task} served before {incumbent(registry, task) or 'the base'}; it stays.")
    passed_over: list[str] = []
    for version in before:
        try:
            entry = promote(
                registry, task, version, by=by, reason=reason, base_sha256=base_sha256, after=after, command=command
            )
            return entry, passed_over
        except AdapterError as error:
            passed_over.append(f"{version}: {error}")
    raise AdapterError("; ".join(passed_over))


def incumbent(registry: Path, task: str) -> str:
    """Returns the version that should serve: the promotion log's last, "" for the base."""
    log = promotions(registry, task)
    return log[-1].version if log else ""


def clear_leftovers(registry: Path, task: str) -> None:
    """Removes what killed processes left in .tmp; younger entries may belong to a living one."""
    for path in (registry / task / ".tmp").glob("*"):
        try:
            if time.time() - path.stat().st_mtime < LEFTOVER_AGE_S:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            continue


def replace_file(registry: Path, task: str, name: str, data: bytes) -> None:
    """Writes <registry>/<task>/<name> anew, atomically; the caller holds the task's lease."""
    target = registry / task / name
    temporary = _temporary(registry, task, target.name)
    try:
        _write(temporary, data)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(target.parent)


@contextmanager
def _room_on(registry: Path) -> Iterator[None]:
    """Turns the system's words for a full disk into ours."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise SetupError(
            f"{error.strerror}: the registry {registry} could not be written to. Nothing half-written is visible, and "
            "the incumbent keeps serving. Free some space there (`goldstream adapters gc` shows old versions that can "
            "go), or move state_dir to a larger disk."
        ) from error


def _manifests(folder: Path) -> list[AdapterManifest]:
    names = sorted(_version_names(folder), key=lambda name: (_number(name), name))
    return [read_manifest(folder / name) for name in names if (folder / name / MANIFEST).exists()]


def _version_names(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if VERSION.fullmatch(p.name)] if folder.is_dir() else []


def _number(version: str) -> int:
    return int(version[1:].partition("-")[0])


def _temporary(registry: Path, task: str, name: str) -> Path:
    """Returns a new path on the registry's file system, outside of every folder that is verified or listed."""
    folder = registry / task / ".tmp"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{secrets.token_hex(6)}"


def _link_new(registry: Path, task: str, target: Path, data: bytes) -> bool:
    """Creates `target` whole; returns False, leaving it as it is, where it exists. Linking never overwrites."""
    temporary = _temporary(registry, task, target.name)
    try:
        _write(temporary, data)
        os.link(temporary, target)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    crash_point("registry.after_link")
    _sync(target.parent)
    return True


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _sync(path)


def _sync(path: Path) -> None:
    """Flushes a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
