"""Adapters as they cross processes: the folder's manifest, the serving record, and their verification.

The trainer writes `adapters/<task>/v0007-<run id>/`; rollout announces one on gs.adapters;
every worker verifies the folder before it loads it.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from schemas.errors import AdapterError
from schemas.gold import Watermark
from schemas.settings import TASK_NAME

MANIFEST = "manifest.json"
VERSION = re.compile(r"v([0-9]{4,12})-[a-z0-9]{6,32}")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


class AdapterManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter is: written last, so a folder without it does not exist for anyone."""

    task: str
    version: str
    base: str  # name or path the base was loaded from
    base_sha256: str  # base_fingerprint() of it
    files: dict[str, str]  # name -> SHA-256, everything but the manifest
    watermark: Watermark
    rows: int
    pairs: int
    settings: dict[str, Any]
    seed: int
    revision: str  # git revision of Goldstream, "" where unknown
    created_ms: int
    parent: str = ""  # incumbent it was compared with
    initial: str = ""  # version it went on from, "" for the base
    training: dict[str, float] = {}


class AdapterRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who serves a task from now on: the value of gs.adapters, keyed by task.

    Records order by (lease_epoch, sequence); a lower one than already seen is ignored.

    A canary share of the cases stays on `previous`. Which ones is a hash of version and case id: the same case,
    redelivered, is in the same arm while the record stands, every process agrees on it, and the guard can tell
    afterwards. So no message carries its arm; the attempt says which adapter answered.
    """

    task: str
    version: str  # "" is the base without an adapter
    lease_epoch: int
    sequence: int
    at_ms: int
    reason: str = ""
    served_as: str = ""  # model name under which a vLLM server knows it
    previous: str = ""
    canary_share: float = 0.0  # of cases, on `previous`
    fallback: str = ""  # version to use where `version` cannot be used; "" is the base

    def in_canary(self, case_id: str) -> bool:
        """Tells whether a case belongs to the share that stays on `previous`."""
        digest = hashlib.sha256(f"{self.task}\0{self.version}\0{case_id}".encode()).digest()
        return int.from_bytes(digest[:8]) < self.canary_share * 2**64

    def supersedes(self, other: AdapterRecord | None) -> bool:
        """Tells whether this record is newer than `other`."""
        return other is None or (self.lease_epoch, self.sequence) > (other.lease_epoch, other.sequence)


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two sides on the same cases. Shares and scores run from 0 to 1; a score is a verdict's, over its maximum."""

    cases: int
    before: float  # incumbent's pass rate
    after: float  # candidate's
    gained: int  # cases only the candidate passes
    lost: int  # cases only the incumbent passes
    p_value: float  # two-sided, of the test the report names
    score_before: float = 0.0  # incumbent's mean score
    score_after: float = 0.0
    score_low: float = 0.0  # bootstrap interval of the mean difference, at 1 - gate.significance
    score_high: float = 0.0


class GateExample(msgspec.Struct, frozen=True, kw_only=True):
    """One holdout case in numbers; its texts are in gate.html alone."""

    case_id: str
    change: Literal["lost", "gained", "failed"]  # the last: on both sides, with other answers
    rules_before: tuple[str, ...] = ()
    rules_after: tuple[str, ...] = ()


class GateReport(msgspec.Struct, frozen=True, kw_only=True):
    """Why a candidate was promoted or refused; kept beside the adapter as gate.json. Holds no prompt or answer.

    The figures are with thinking off, as production asks; they alone decide. `incumbent` is "" where the candidate
    met the base: none served, or one of another base.
    """

    task: str
    version: str
    incumbent: str
    decision: Literal["promote", "refuse", "undecided"]
    reason: str
    cases: int
    before: float  # incumbent's pass rate on the holdout
    after: float  # candidate's
    gained: int  # cases only the candidate passes
    lost: int  # cases only the incumbent passes
    p_value: float  # two-sided, of `test`
    seconds: float = 0.0
    violations_before: dict[str, int] = {}
    violations_after: dict[str, int] = {}
    test: Literal["mcnemar", "bootstrap"] = "mcnemar"  # exact McNemar over passes, or paired bootstrap over scores
    promotion: Literal["auto", "manual", "shadow"] = "auto"  # the setting at the time
    score_before: float = 0.0
    score_after: float = 0.0
    score_low: float = 0.0
    score_high: float = 0.0
    thinking: Comparison | None = None  # the same with thinking on, where gate.thinking asks for it
    base_sha256: str = ""
    holdout_sha256: str = ""  # of the case ids asked, in order
    rubric: str = ""  # version judged by
    judge: str = ""
    at_ms: int = 0
    examples: tuple[GateExample, ...] = ()


def adapter_folder(registry: Path, task: str, version: str) -> Path:
    """Returns the folder of a version; raises AdapterError for a name that is no version, or no task's."""
    if not re.fullmatch(TASK_NAME, task):
        raise AdapterError(f"{task[:80]!r} is no task name; expected lower-case letters, digits, - and _")
    if not VERSION.fullmatch(version):
        raise AdapterError(f"{version[:80]!r} is no adapter version; expected a name like v0007-3fa9c2d1")
    return registry / task / version


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_fingerprint(folder: Path) -> str:
    """Returns a hash of a base model: its config and weights.

    Weights over 64 MiB count by size and their first and last MiB, so that large bases stay quick to check.
    """
    digest = hashlib.sha256()
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")])
    if not any(f.suffix == ".safetensors" for f in files):
        raise AdapterError(f"{folder} holds no .safetensors weights; a base model must be a folder that does.")
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        if size <= 64 << 20:
            digest.update(bytes.fromhex(file_sha256(path)))
            continue
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
            file.seek(-(1 << 20), 2)
            digest.update(file.read())
    return digest.hexdigest()


def read_manifest(folder: Path) -> AdapterManifest:
    """Reads an adapter's manifest; raises AdapterError where it is missing or malformed."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=AdapterManifest)
    except FileNotFoundError as error:
        raise AdapterError(f"{folder} has no {MANIFEST}: it was never finished, and nobody may load it.") from error
    except (msgspec.DecodeError, OSError) as error:
        raise AdapterError(f"{folder / MANIFEST} cannot be read: {error}") from error


def verify_adapter(folder: Path, base_sha256: str | None = None) -> AdapterManifest:
    """Checks an adapter folder before it is loaded and returns its manifest.

    Raises AdapterError for a pickle, a changed, missing or extra file, NaN or infinite weights, and, where
    `base_sha256` is given, an adapter of another base.
    """
    manifest = read_manifest(folder)
    present = {p.name for p in folder.iterdir() if p.is_file()} - {MANIFEST, "gate.json", "gate.html"}
    pickles = sorted(name for name in present if name.endswith(_PICKLES))
    if pickles:
        raise AdapterError(f"{folder} holds {pickles[0]}, a pickle, which can run code. Only safetensors are loaded.")
    if present != set(manifest.files):
        raise AdapterError(f"{folder}: files {sorted(present)} are not those of its manifest {sorted(manifest.files)}")
    for name, expected in manifest.files.items():
        if file_sha256(folder / name) != expected:
            raise AdapterError(f"{folder / name} changed after it was written: its SHA-256 is not the manifest's.")
    if base_sha256 is not None and manifest.base_sha256 != base_sha256:
        raise AdapterError(
            f"{folder} was trained on another base ({manifest.base}, {manifest.base_sha256[:12]}); "
            f"the serving base is {base_sha256[:12]}. Train a new adapter on it."
        )
    for name in manifest.files:
        if name.endswith(".safetensors"):
            check_weights(folder / name)
    return manifest


def check_weights(path: Path) -> None:
    """Raises AdapterError where a safetensors file is malformed or holds a NaN or infinite weight.

    Reads the format itself (header length, JSON header, raw little-endian data), so that it needs no torch.
    """
    data = path.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        body = memoryview(data)[8 + length :]
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            begin, end = tensor["data_offsets"]
            if end > len(body):
                raise AdapterError(f"{path} is cut short: tensor {name} ends at {end} of {len(body)} bytes.")
            if not _finite(tensor["dtype"], body[begin:end]):
                raise AdapterError(f"{path}: tensor {name} holds NaN or infinite weights; the run diverged.")
    except (struct.error, ValueError, KeyError, TypeError) as error:
        if isinstance(error, AdapterError):
            raise
        raise AdapterError(f"{path} is no safetensors file: {error}") from error


def _finite(dtype: str, data: memoryview) -> bool:
    if dtype == "F32":
        return bool(np.isfinite(np.frombuffer(data, "<f4")).all())
    if dtype in ("BF16", "F16"):
        exponent = 0x7F80 if dtype == "BF16" else 0x7C00
        return not bool(np.any((np.frombuffer(data, "<u2") & exponent) == exponent))
    raise AdapterError(f"unexpected weight type {dtype}; expected F32, F16 or BF16")


def served_name(task: str, version: str) -> str:
    """Returns the model name under which a server knows an adapter: rollout loads it so, agents.models asks for it."""
    return f"{task}-{version}"
