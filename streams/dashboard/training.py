"""Who trains, what the gate said, who serves: from the files of trainer, registry and rollout, and gs.adapters.

A manifest and a gate's report never change once they are written, so each is read once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import msgspec

from schemas.adapters import MANIFEST, VERSION, AdapterManifest, AdapterRecord, GateReport, read_manifest
from schemas.commands import AdapterCommand, CommandAnswer, decode_command, read_pause
from schemas.errors import AdapterError
from schemas.ledger import Book, decode_entry
from schemas.promotions import Promotion, promotions, served_before
from schemas.settings import Settings
from schemas.status import read_rollout_status, read_trainer_status
from streams.dashboard.state import Adapters, CommandState, GateFigures, Mark, TrainerState, Version, VersionState

BASE = "base"  # how a person names the base without an adapter
REMOVED, GATE, REPORT = "removed", "gate.json", "gate.html"
KEPT_COMMANDS = 10  # of a task


class Announced:
    """What gs.adapters, gs.commands and gs.ledger say now; followers call it from their threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._serving: dict[str, AdapterRecord] = {}
        self._paused: dict[str, bool] = {}
        self._asked: dict[str, dict[str, CommandState]] = {}
        self.book = Book()

    def adapter(self, key: bytes, value: bytes) -> None:
        """Takes a record of gs.adapters."""
        try:
            record = msgspec.json.decode(value, type=AdapterRecord)
        except msgspec.DecodeError:
            return
        with self._lock:
            if record.supersedes(self._serving.get(record.task)):
                self._serving[record.task] = record

    def command(self, key: bytes, value: bytes) -> None:
        """Takes a record of gs.commands."""
        pause = read_pause(key, value)
        record = decode_command(key, value)
        with self._lock:
            if pause is not None:
                self._paused[pause.stage] = pause.paused
            elif isinstance(record, AdapterCommand):
                self._asked.setdefault(record.task, {}).setdefault(record.id, command_state(record))
            elif isinstance(record, CommandAnswer):
                self._asked.setdefault(record.command.task, {})[record.command.id] = command_state(
                    record.command, record
                )

    def ledger(self, key: bytes, value: bytes) -> None:
        """Takes a record of gs.ledger."""
        try:
            entry = decode_entry(value)
        except msgspec.DecodeError:
            return
        with self._lock:
            self.book.apply(entry)

    def serving(self) -> dict[str, AdapterRecord]:
        """Returns the record that counts for each task."""
        with self._lock:
            return dict(self._serving)

    def paused(self) -> frozenset[str]:
        """Returns the stages an operator has paused."""
        with self._lock:
            return frozenset(stage for stage, paused in self._paused.items() if paused)

    def commands(self, task: str) -> tuple[CommandState, ...]:
        """Returns what was asked of rollout for a task, the newest first."""
        with self._lock:
            asked = sorted(self._asked.get(task, {}).values(), key=lambda one: -one.at_ms)
        return tuple(asked[:KEPT_COMMANDS])

    def ledger_now(self) -> Book:
        """Returns the ledger as it is, for reading."""
        book = Book()
        with self._lock:
            book.entries = dict(self.book.entries)
        return book


def command_state(command: AdapterCommand, answer: CommandAnswer | None = None) -> CommandState:
    """Returns a command and its answer as the page is told."""
    return CommandState(
        id=command.id,
        action=command.action,
        version=command.version or BASE,
        by=command.by,
        reason=command.reason,
        at_ms=command.at_ms,
        result=answer.result if answer else "asked",
        detail=answer.detail if answer else "",
    )


class Registry:
    """Reads the registry's small files."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._manifests: dict[Path, AdapterManifest] = {}
        self._reports: dict[Path, GateReport] = {}

    def trainer(self, task: str) -> TrainerState:
        """Returns what a task's trainer does."""
        status, chosen = read_trainer_status(self._settings, task), self._settings.task(task).trainer
        if status is None:
            state = "never ran" if chosen.enabled else "off"
            return TrainerState(task=task, state=state, needed=chosen.min_corrected_rows)  # type: ignore[arg-type]
        return TrainerState(
            task=task,
            state=status.state,
            version=status.version if status.state != "idle" else "",
            step=status.step if status.state == "training" else 0,
            steps=status.steps if status.state == "training" else 0,
            loss=status.loss,
            corrected=status.corrected,
            needed=chosen.min_corrected_rows,
            last_run_ms=status.last_run_ms or None,
            updated_ms=status.updated_ms,
            error=status.error,
        )

    def adapters(
        self,
        task: str,
        record: AdapterRecord | None,
        commands: tuple[CommandState, ...],
        live: Mapping[tuple[str, str], tuple[int, int]],
    ) -> Adapters:
        """Returns a task's adapters; raises AdapterError where a file of the registry cannot be read."""
        log = promotions(self._settings.adapters, task)
        wanted = log[-1].version if log else ""
        before = served_before(log)
        status = read_rollout_status(self._settings, task)
        serving = record.version if record else status.serving if status else ""
        manifests = self._known(task)
        versions = [
            self._version(task, manifest, removed, log, wanted, record, live)
            for manifest, removed in sorted(manifests, key=lambda one: (_number(one[0].version), one[0].version))
        ]
        return Adapters(
            task=task,
            serving=serving or (BASE if record or status else ""),
            since_ms=record.at_ms if record else None,
            previous=(record.previous or BASE) if record else "",
            canary_share=record.canary_share if record else 0.0,
            wanted=wanted or BASE,
            promotions=len(log),
            can_roll_back=bool(before),
            roll_back_to=(before[0] or BASE) if before else "",
            servers=dict(status.servers) if status else {},
            watch=status.watch if status else "",
            errors=dict(status.errors) if status else {},
            versions=tuple(reversed(versions)),
            commands=commands,
        )

    def marks(self, task: str) -> tuple[Mark, ...]:
        """Returns when another version was promoted, or an earlier one brought back."""
        found = []
        log = promotions(self._settings.adapters, task)
        for number, entry in enumerate(log):
            previous = log[number - 1].version if number else ""
            back = not entry.version or any(one.version == entry.version for one in log[:number])
            found.append(
                Mark(
                    at_ms=entry.at_ms,
                    kind="rollback" if back else "promotion",
                    version=entry.version or BASE,
                    previous=previous or BASE,
                    by=entry.by,
                    reason=entry.reason,
                )
            )
        return tuple(found)

    def last_gate(self, task: str) -> GateReport | None:
        """Returns the report of the newest version that was gated."""
        reports = [report for manifest, removed in self._known(task) if (report := self._gate(task, manifest, removed))]
        return max(reports, key=lambda one: _number(one.version), default=None)

    def report(self, task: str, version: str) -> Path | None:
        """Returns where a version's gate report for people lies, None where there is none."""
        if task not in self._settings.tasks or not VERSION.fullmatch(version):
            return None
        path = self._settings.adapters / task / version / REPORT
        return path if path.is_file() else None

    def _known(self, task: str) -> list[tuple[AdapterManifest, bool]]:
        folder = self._settings.adapters / task
        found = []
        for place, removed in ((folder, False), (folder / REMOVED, True)):
            for path in place.iterdir() if place.is_dir() else ():
                if VERSION.fullmatch(path.name) and (path / MANIFEST).exists():
                    if path not in self._manifests:
                        self._manifests[path] = read_manifest(path)
                    found.append((self._manifests[path], removed))
        return found

    def _gate(self, task: str, manifest: AdapterManifest, removed: bool) -> GateReport | None:
        folder = self._settings.adapters / task
        path = (folder / REMOVED if removed else folder) / manifest.version / GATE
        if path not in self._reports:
            try:
                self._reports[path] = msgspec.json.decode(path.read_bytes(), type=GateReport)
            except FileNotFoundError:
                return None
            except (OSError, msgspec.DecodeError) as error:
                raise AdapterError(f"{path} cannot be read: {error}. Restore the file from a backup.") from error
        return self._reports[path]

    def _version(
        self,
        task: str,
        manifest: AdapterManifest,
        removed: bool,
        log: list[Promotion],
        wanted: str,
        record: AdapterRecord | None,
        live: Mapping[tuple[str, str], tuple[int, int]],
    ) -> Version:
        gate = self._gate(task, manifest, removed)
        state = "removed" if removed else _state(manifest.version, gate, log, wanted, record)
        judged, passed = live.get((task, manifest.version), (0, 0))
        return Version(
            version=manifest.version,
            state=state,
            base=manifest.base,
            rows=manifest.rows,
            pairs=manifest.pairs,
            created_ms=manifest.created_ms,
            gate=_figures(gate) if gate else None,
            report=not removed and self.report(task, manifest.version) is not None,
            can_promote=not removed and manifest.version != wanted,
            needs_force=gate is None or gate.decision != "promote",
            live_judged=judged,
            live_passed=passed,
        )


def _state(
    version: str, gate: GateReport | None, log: list[Promotion], wanted: str, record: AdapterRecord | None
) -> VersionState:
    if record is not None and record.version == version:
        return "serves"
    if record is not None and record.canary_share and record.previous == version:
        return "canary"
    if version == wanted:
        return "coming"
    if any(entry.version == version for entry in log):
        return "served"
    if gate is None:
        return "not gated"
    if gate.decision == "promote":
        return "waits" if _number(version) > _number(wanted) else "passed"
    return "refused" if gate.decision == "refuse" else "undecided"


def _figures(gate: GateReport) -> GateFigures:
    return GateFigures(
        decision=gate.decision,
        reason=gate.reason,
        cases=gate.cases,
        before=gate.before,
        after=gate.after,
        gained=gate.gained,
        lost=gate.lost,
        p_value=gate.p_value,
        test=gate.test,
        incumbent=gate.incumbent or BASE,
        promotion=gate.promotion,
        at_ms=gate.at_ms,
    )


def _number(version: str) -> int:
    named = VERSION.fullmatch(version)
    return int(named[1]) if named else 0
