"""The adapter registry: immutable versions on disk, their gate reports, and who was promoted when.

    <registry>/<task>/v0007-3fa9c2d1/      one version: weights, config, manifest.json; gate.json once gated
    <registry>/<task>/promotions/00000003.json   the promotion log; its last entry names who should serve
    <registry>/<task>/holdout.json         ids of the frozen holdout (trainer.gate)
    <registry>/<task>/lease                flock of the trainer at work; <registry>/rollout.lease of rollout
    <registry>/<task>/.tmp/                whatever is half written; never read

Files are only ever added, so that trainer, rollout and the command line need no lock to read.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

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
from schemas.errors import AdapterError
from schemas.faults import crash_point

GATE = "gate.json"
LEFTOVER_AGE_S = 3600.0

PromotedBy = Literal["gate", "hand", "guard"]  # the trainer, a person, rollout's live guard


class Promotion(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a task's promotion log: from now on this version should serve."""

    task: str
    version: str  # "" is the base without an adapter
    by: PromotedBy
    at_ms: int
    reason: str = ""


def next_version(registry: Path, task: str, run_id: str) -> str:
    """Returns the name after the highest one present, finished or not, for example v0008-3fa9c2d1."""
    version = f"v{1 + max(map(_number, _version_names(registry, task)), default=0):04d}-{run_id}"
    if not VERSION.fullmatch(version):
        raise AdapterError(f"run id {run_id!r} cannot be part of a version; expected 6 to 32 of a-z and 0-9")
    return version


def publish(registry: Path, run: Path, manifest: AdapterManifest) -> Path:
    """Copies a run's files into the registry as `manifest.version` and returns the folder.

    1. copy into a temporary folder that no reader looks into, hashing and syncing each file;
    2. write the manifest, last;
    3. check the result as any reader will, weights included;
    4. rename it into place, which fails where the version exists.

    Raises AdapterError where the check fails or the version exists; nothing is visible then.
    """
    final = adapter_folder(registry, manifest.task, manifest.version)
    temporary = _temporary(registry, manifest.task, manifest.version)
    temporary.mkdir()
    try:
        files: dict[str, str] = {}
        for source in sorted(p for p in run.iterdir() if p.is_file()):  # 1
            shutil.copyfile(source, temporary / source.name)
            _sync(temporary / source.name)
            files[source.name] = file_sha256(temporary / source.name)
        _write(temporary / MANIFEST, msgspec.json.encode(msgspec.structs.replace(manifest, files=files)))  # 2
        _sync(temporary)
        verify_adapter(temporary)  # 3
        crash_point("registry.before_rename")
        try:
            temporary.rename(final)  # 4; onto a folder that is not empty it fails
        except OSError as error:
            if final.exists():
                raise AdapterError(f"{final} exists already; a version is never overwritten. Train again.") from error
            raise
        crash_point("registry.after_rename")
        _sync(final.parent)
        return final
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def list_adapters(registry: Path, task: str) -> list[AdapterManifest]:
    """Returns the manifests of every finished version, oldest first."""
    names = sorted(_version_names(registry, task), key=lambda name: (_number(name), name))
    folders = [registry / task / name for name in names]
    return [read_manifest(folder) for folder in folders if (folder / MANIFEST).exists()]


def write_gate(registry: Path, report: GateReport) -> None:
    """Writes a gate report beside the manifest; raises AdapterError where there is one already."""
    target = adapter_folder(registry, report.task, report.version) / GATE
    if not _link_new(registry, report.task, target, msgspec.json.format(msgspec.json.encode(report), indent=1)):
        raise AdapterError(f"{target} exists already; a gate's decision is never rewritten.")


def read_gate(registry: Path, task: str, version: str) -> GateReport | None:
    """Returns the gate report of a version, None where it was not gated."""
    path = adapter_folder(registry, task, version) / GATE
    try:
        return msgspec.json.decode(path.read_bytes(), type=GateReport)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, OSError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from error


def promote(registry: Path, task: str, version: str, *, by: PromotedBy, reason: str = "") -> Promotion:
    """Appends to the promotion log: `version` should serve, "" for the base. Rollout does the rest.

    Going back to an older version is one more entry. Raises AdapterError for a version that must not be loaded.
    """
    if version:
        verify_adapter(adapter_folder(registry, task, version))
    entry = Promotion(task=task, version=version, by=by, at_ms=int(time.time() * 1000), reason=reason)
    folder = registry / task / "promotions"
    folder.mkdir(parents=True, exist_ok=True)
    number = len(promotions(registry, task)) + 1
    while not _link_new(registry, task, folder / f"{number:08d}.json", msgspec.json.encode(entry)):
        number += 1  # another process promoted meanwhile; the later entry wins
    return entry


def promotions(registry: Path, task: str) -> list[Promotion]:
    """Returns the promotion log, oldest first."""
    paths = sorted((registry / task / "promotions").glob("*.json"))
    try:
        return [msgspec.json.decode(path.read_bytes(), type=Promotion) for path in paths]
    except (msgspec.DecodeError, OSError) as error:
        raise AdapterError(f"the promotion log in {registry / task} cannot be read: {error}") from error


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
    temporary = _temporary(registry, task, name)
    _write(temporary, data)
    temporary.replace(registry / task / name)
    _sync(registry / task)


@contextmanager
def lease(path: Path, stop: threading.Event, wait: bool = True) -> Iterator[int | None]:
    """Holds an exclusive lock on `path`; yields its file descriptor, or None where it was not obtained.

    Without `wait` a lease held elsewhere gives None at once, otherwise only `stop` does. The kernel releases the lock
    when the process ends, however it ends; the file itself stays, since removing it would give two owners.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not wait or stop.wait(0.1):
                    yield None
                    return
        yield descriptor
    finally:
        os.close(descriptor)


def _version_names(registry: Path, task: str) -> list[str]:
    folder = registry / task
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
    _write(temporary, data)
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
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
