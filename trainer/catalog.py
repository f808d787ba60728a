"""What `goldstream adapters` and `goldstream trainer once` say and do: rows, a version's story, promotion by hand.

goldstream.py prints what these functions return.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from schemas.adapters import AdapterManifest, GateReport, adapter_folder, base_fingerprint, verify_adapter
from schemas.errors import AdapterError, GoldstreamError
from schemas.settings import Settings
from schemas.status import read_rollout_status as rollout_status
from schemas.status import read_trainer_status as read_status
from trainer.base import student_base
from trainer.registry import (
    REPORT,
    Promotion,
    incumbent,
    list_adapters,
    promote,
    promotions,
    read_gate,
    removed_adapters,
    rollback,
)
from trainer.trigger import next_scheduled
from trainer.webhook import Webhook, make_event

COLUMNS = ("task", "version", "state", "base", "rows", "trained", "before", "after", "p_value", "reason")
MORE_COLUMNS = (*COLUMNS, "decision", "incumbent", "promotion", "base_sha256")  # for programs
STATUS_COLUMNS = ("task", "state", "version", "step", "new corrected", "needed", "last run", "planned", "last error")
BASE = "base"  # how a person names the base without an adapter


def adapter_rows(settings: Settings, task: str, removed: bool = False) -> list[list[Any]]:
    """Returns a row of MORE_COLUMNS for each version of a task, oldest first."""
    registry = settings.adapters
    gone = {manifest.version: manifest for manifest in (removed_adapters(registry, task) if removed else [])}
    known = {manifest.version: manifest for manifest in list_adapters(registry, task)} | gone
    serving, promoted = incumbent(registry, task), {entry.version for entry in promotions(registry, task)}
    base = _base_sha256(settings, task)
    rows: list[list[Any]] = []
    for version, manifest in sorted(known.items()):
        gate = read_gate(registry, task, version)
        state = "removed" if version in gone else _state(manifest, gate, serving, promoted, base)
        trained = datetime.fromtimestamp(manifest.created_ms / 1000, UTC)
        row = [task, version, state, f"{manifest.base} {manifest.base_sha256[:8]}", manifest.rows, trained]
        row += [gate.before, gate.after, gate.p_value, gate.reason] if gate else [None, None, None, "not gated yet"]
        row += [gate.decision, gate.incumbent, gate.promotion] if gate else [None, None, None]
        rows.append([*row, manifest.base_sha256])
    return rows


def tell_rollout(settings: Settings, task: str) -> Iterator[str]:
    """Tells what the servers really serve, as far as rollout has said, and what keeps it from what should serve."""
    status = rollout_status(settings, task)
    if status is None:
        return
    canary = (
        f", {status.canary_share:.0%} of the cases stay on {status.previous or BASE}" if status.canary_share else ""
    )
    wanted = "" if status.wanted == status.serving else f", and {status.wanted or 'the base'} should"
    yield f"{task}: {status.serving or 'the base'} is served{wanted}{canary} ({_time(status.updated_ms)})"
    for where, said in {**status.servers, **status.errors}.items():
        if said != "serves":
            yield f"  {where}: {said}"
    if status.watch:
        yield f"  guard: {status.watch}"


def describe(settings: Settings, task: str, version: str) -> dict[str, Any]:
    """Returns everything known about a version, for --json; whether it may be loaded is under "problem"."""
    registry = settings.adapters
    gone = {manifest.version: manifest for manifest in removed_adapters(registry, task)}
    folder = adapter_folder(registry, task, version)
    problem = ""
    try:
        manifest = gone.get(version) or verify_adapter(folder, _base_sha256(settings, task))
    except AdapterError as error:
        problem, manifest = str(error), next(m for m in list_adapters(registry, task) if m.version == version)
    gate = read_gate(registry, task, version)
    page = folder / REPORT
    return {
        "version": version,
        "folder": str(folder),
        "serves": incumbent(registry, task) == version,
        "removed": version in gone,
        "problem": problem,
        "manifest": msgspec.to_builtins(manifest),
        "gate": msgspec.to_builtins(gate) if gate else None,
        "promotions": [msgspec.to_builtins(p) for p in promotions(registry, task) if p.version == version],
        "report": str(page) if page.exists() else "",
    }


def tell(found: dict[str, Any]) -> Iterator[str]:
    """Tells what `describe` found, line by line."""
    manifest = msgspec.convert(found["manifest"], AdapterManifest)
    gate = msgspec.convert(found["gate"], GateReport) if found["gate"] else None
    said = " (serves)" if found["serves"] else " (removed)" if found["removed"] else ""
    trained, settings = manifest.training, manifest.settings
    yield f"{manifest.task} {manifest.version}{said}"
    if found["problem"]:
        yield _line("problem", f"it would not be loaded: {found['problem']}")
    yield _line("base", f"{manifest.base} ({manifest.base_sha256[:8]})")
    yield _line("gold", f"{manifest.rows} cases, {manifest.pairs} pairs, below {_watermark(manifest)}")
    yield _line(
        "training",
        f"{settings.get('recipe', '?')}, rank {settings.get('rank', '?')}, {trained.get('steps', 0):.0f} steps in "
        f"{trained.get('seconds', 0):.0f} s, loss {trained.get('first_loss', 0):.3f} -> "
        f"{trained.get('last_loss', 0):.3f}, seed {manifest.seed}",
    )
    left_out = {name: n for name, n in trained.items() if name.startswith("skipped_") and n}
    if left_out:
        yield _line("left out", ", ".join(f"{n:.0f} {name.removeprefix('skipped_')}" for name, n in left_out.items()))
    yield _line("made", f"{_time(manifest.created_ms)}, revision {manifest.revision[:10] or 'unknown'}")
    yield from tell_gate(gate) if gate else [_line("gate", "not gated yet")]
    for entry in found["promotions"]:
        yield _line("promoted", f"{_time(entry['at_ms'])} by {entry['by']}: {entry['reason'] or 'no reason given'}")
    yield _line("folder", found["folder"])
    if found["report"]:
        yield _line("report", found["report"])


def tell_gate(gate: GateReport) -> Iterator[str]:
    """Tells a gate's figures and decision, line by line."""
    against = gate.incumbent or "the base"
    yield _line("gate", f"{gate.decision}: {gate.reason}")
    if gate.holdout_sha256 and gate.judge:
        yield _line("", f"{gate.gained} cases only it passes, {gate.lost} only {against} passes")
        yield _line(
            "",
            f"mean score {gate.score_before:.1%} -> {gate.score_after:.1%}, difference "
            f"{gate.score_low:+.1%} to {gate.score_high:+.1%}",
        )
    if gate.thinking:
        yield _line("", f"thinking on: pass rate {gate.thinking.before:.1%} -> {gate.thinking.after:.1%}")
    for rule in sorted({*gate.violations_before, *gate.violations_after}):
        yield _line("rule", f"{rule}: {gate.violations_before.get(rule, 0)} -> {gate.violations_after.get(rule, 0)}")


def tell_once(settings: Settings, gate: GateReport) -> Iterator[str]:
    """Tells what came of `goldstream trainer once`."""
    task, version = gate.task, gate.version
    yield from tell(describe(settings, task, version))
    serving = incumbent(settings.adapters, task)
    if serving == version:
        yield _line("now", f"{version} is promoted; rollout switches the servers")
    elif gate.decision == "promote":
        yield _line(
            "now", f"{serving or 'the base'} keeps serving. goldstream adapters promote {version} --task {task}"
        )
    else:
        yield _line("now", f"{serving or 'the base'} keeps serving")


def find_version(settings: Settings, task: str, name: str) -> str:
    """Returns the version a person means: its whole name, its number (v0007, 7), or "base"; "" is the base.

    Raises AdapterError where there is none, or more than one.
    """
    if name == BASE:
        return ""
    known = [m.version for m in [*list_adapters(settings.adapters, task), *removed_adapters(settings.adapters, task)]]
    number = name.removeprefix("v")
    found = [v for v in known if v == name or (number.isdigit() and int(v[1:].partition("-")[0]) == int(number))]
    if len(found) == 1:
        return found[0]
    if found:
        raise AdapterError(f"{name!r} is more than one version of {task}: {', '.join(found)}. Name one in full.")
    raise AdapterError(f"{task} has no version {name!r}; it has {', '.join(known) or 'none yet'}, and {BASE!r}.")


def promote_by_hand(
    settings: Settings,
    task: str,
    version: str,
    *,
    reason: str,
    force: bool,
    after: int | None = None,
    command: str = "",
    webhook: Webhook | None = None,
) -> tuple[Promotion, str]:
    """Promotes a version because a person says so; returns the entry and who should have served before.

    Raises AdapterError for one that must not be loaded, belongs to another base or serves already, and without
    `force` for one the gate did not pass; Overtaken as `promote` does. Without a `webhook` that goes on, it waits
    until one has been told.
    """
    registry = settings.adapters
    before = incumbent(registry, task)
    if version == before:
        raise AdapterError(f"{version or 'the base'} should serve {task} already; nothing to do.")
    if version and version in {manifest.version for manifest in removed_adapters(registry, task)}:
        raise AdapterError(f"{version} was removed by `goldstream adapters gc`; its weights are gone. Train again.")
    gate = read_gate(registry, task, version) if version else None
    if version and not force and (gate is None or gate.decision != "promote"):
        said = f"the gate says {gate.decision}: {gate.reason}" if gate else "it was not gated yet"
        raise AdapterError(f"{version} of {task}: {said}. --force promotes it all the same.")
    base = _base_sha256(settings, task)
    entry = promote(registry, task, version, by="hand", reason=reason, base_sha256=base, after=after, command=command)
    _tell(settings, webhook, "promotion", entry, before, gate)
    return entry, before


def roll_back_by_hand(
    settings: Settings,
    task: str,
    *,
    reason: str,
    after: int | None = None,
    command: str = "",
    webhook: Webhook | None = None,
) -> tuple[Promotion, str, list[str]]:
    """Goes back to what served before; returns the entry, who should have served, and versions passed over.

    `after`, `command` and `webhook` are as in `promote_by_hand`.
    """
    before = incumbent(settings.adapters, task)
    base = _base_sha256(settings, task)
    entry, passed_over = rollback(
        settings.adapters, task, by="hand", reason=reason, base_sha256=base, after=after, command=command
    )
    _tell(settings, webhook, "rollback", entry, before, None)
    return entry, before, passed_over


def _tell(
    settings: Settings, webhook: Webhook | None, kind: Any, entry: Promotion, before: str, gate: GateReport | None
) -> None:
    event = make_event(kind, entry.task, entry.version, previous=before, by=entry.by, reason=entry.reason, gate=gate)
    told = webhook or Webhook(settings.webhook)
    told.send(event)
    if webhook is None:
        told.close()


def _base_sha256(settings: Settings, task: str) -> str | None:
    """Returns the fingerprint of a task's base, None where it does not lie on this machine."""
    try:
        return base_fingerprint(student_base(settings, task).path)
    except GoldstreamError:
        return None


def _state(
    manifest: AdapterManifest, gate: GateReport | None, serving: str, promoted: set[str], base: str | None
) -> str:
    other = base is not None and manifest.base_sha256 != base
    if manifest.version == serving:
        return "serves, but of another base" if other else "serves"
    if other:
        return "of another base"
    if manifest.version in promoted:
        return "served"
    if gate is None:
        return "not gated"
    if gate.decision == "promote":
        return "waits" if manifest.version > serving else "passed"
    return {"refuse": "refused", "undecided": "undecided"}[gate.decision]


def _watermark(manifest: AdapterManifest) -> str:
    return ", ".join(f"{p}:{offset}" for p, offset in sorted(manifest.watermark.items())) or "an empty gold set"


def _line(name: str, text: str) -> str:
    return f"  {name:<10}{text}"


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def status_rows(settings: Settings) -> list[list[Any]]:
    """Returns a row of STATUS_COLUMNS for each task: what its trainer does, and what would start the next run."""
    rows: list[list[Any]] = []
    for task, chosen in settings.tasks.items():
        status, trainer = read_status(settings, task), chosen.trainer
        if status is None:
            rows.append([task, "off" if not trainer.enabled else "never ran", "", "", None, trainer.min_corrected_rows])
            rows[-1] += [None, None, ""]
            continue
        steps = f"{status.step} of {status.steps}" if status.state == "training" and status.steps else ""
        planned = next_scheduled(trainer, status.last_run_ms or status.since_ms)
        rows.append(
            [
                task,
                status.state,
                status.version if status.state != "idle" else "",
                steps,
                status.corrected,
                trainer.min_corrected_rows,
                _when(status.last_run_ms),
                _when(planned or 0),
                status.error,
            ]
        )
    return rows


def _when(ms: int) -> datetime | None:
    return datetime.fromtimestamp(ms / 1000, UTC) if ms else None
