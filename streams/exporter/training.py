"""Who trains, what the gate said and who serves, as series: from the files of trainer and rollout, and gs.adapters."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

from schemas.adapters import VERSION, AdapterRecord, GateReport
from schemas.commands import PAUSABLE, read_pause
from schemas.metrics import Labels
from schemas.settings import Settings
from schemas.status import read_rollout_status, read_trainer_status
from streams.exporter import families as f
from streams.exporter.gold import NEWEST_VERSIONS

STATES = ("idle", "training", "gating")


class TrainingReading:
    """Reads the small files of trainer and rollout; a gate's report, which never changes, once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reports: dict[Path, GateReport | None] = {}

    def read(self) -> None:
        """Shows what they say. A task that was never trained has no series."""
        self._show_trainer()
        self._show_rollout()
        self._show_gates()

    def _show_trainer(self) -> None:
        said = {name: status for name in self._settings.tasks if (status := read_trainer_status(self._settings, name))}
        f.TRAINER_STATE.set({(n, state): float(one.state == state) for n, one in said.items() for state in STATES})
        f.TRAINER_STEP.set({(name,): float(one.step) for name, one in said.items()})
        f.TRAINER_STEPS.set({(name,): float(one.steps) for name, one in said.items()})
        f.TRAINER_LOSS.set({(name,): one.loss for name, one in said.items() if one.loss is not None})
        f.TRAINER_ROWS.set({(name,): float(one.corrected) for name, one in said.items()})
        f.TRAINER_NEEDED.set({(name,): float(one.needed) for name, one in said.items()})
        f.TRAINER_FAILED.set({(name,): float(bool(one.error)) for name, one in said.items()})
        f.TRAINER_LAST.set({(name,): one.last_run_ms / 1000 for name, one in said.items() if one.last_run_ms})

    def _show_rollout(self) -> None:
        said = {name: status for name in self._settings.tasks if (status := read_rollout_status(self._settings, name))}
        f.ROLLOUT_PENDING.set({(name,): float(one.wanted != one.serving) for name, one in said.items()})
        f.ROLLOUT_SERVERS.set(
            ((name, state if state in ("serves", "asleep") else "failing"), 1.0)
            for name, one in said.items()
            for state in one.servers.values()
        )
        steps = ("servers", "switch", "guard")
        f.ROLLOUT_FAILING.set({(name, step): float(step in one.errors) for name, one in said.items() for step in steps})

    def _show_gates(self) -> None:
        reports = [report for name in self._settings.tasks for report in self._newest(name)]
        f.GATE_DECISION.set({(one.task, one.version, one.decision): 1.0 for one in reports})
        rates: dict[Labels, float] = {}
        for one in reports:
            rates |= {(one.task, one.version, "before"): one.before, (one.task, one.version, "after"): one.after}
        f.GATE_PASS_RATE.set(rates)
        f.GATE_CASES.set({(one.task, one.version): float(one.cases) for one in reports})
        f.GATE_P.set({(one.task, one.version): one.p_value for one in reports})
        f.GATE_TIME.set({(one.task, one.version): one.at_ms / 1000 for one in reports if one.at_ms})
        f.GATE_REFUSED.set({(one.task,): float(_refused_last(reports, one.task)) for one in reports})

    def _newest(self, task: str) -> list[GateReport]:
        """Returns the reports of a task's newest versions, removed ones too."""
        folder = self._settings.adapters / task
        paths = [path for place in (folder, folder / "removed") for path in place.glob("v*/gate.json")]
        paths = [path for path in paths if VERSION.fullmatch(path.parent.name)]
        newest = sorted(paths, key=lambda path: path.parent.name)[-NEWEST_VERSIONS:]
        for path in newest:
            if self._reports.get(path) is None:
                self._reports[path] = _read_report(path)
        return [report for path in newest if (report := self._reports[path]) is not None]


class Announced:
    """What gs.adapters and gs.commands say now; followers call it from their threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._serving: dict[str, AdapterRecord] = {}
        self._paused: dict[Labels, float] = {(stage,): 0.0 for stage in PAUSABLE}
        f.STAGE_PAUSED.set(self._paused)

    def adapter(self, key: bytes, value: bytes) -> None:
        """Takes a record of gs.adapters; one that cannot be read changes nothing, as for the workers."""
        try:
            record = msgspec.json.decode(value, type=AdapterRecord)
        except msgspec.DecodeError:
            return
        with self._lock:
            if record.task in self._settings.tasks and record.supersedes(self._serving.get(record.task)):
                self._serving[record.task] = record
            serving = self._serving.values()
            f.ADAPTER_INFO.set(
                {
                    (one.task, one.version or "base", one.previous or "base", one.fallback or "base"): 1.0
                    for one in serving
                }
            )
            f.ADAPTER_CANARY.set({(one.task,): one.canary_share for one in serving})
            f.ADAPTER_SINCE.set({(one.task,): one.at_ms / 1000 for one in serving})

    def command(self, key: bytes, value: bytes) -> None:
        """Takes a record of gs.commands."""
        pause = read_pause(key, value)
        if pause is None:
            return
        self._paused[pause.stage,] = float(pause.paused)
        f.STAGE_PAUSED.set(self._paused)


def _refused_last(reports: Iterable[GateReport], task: str) -> int:
    """Returns how many of a task's versions, oldest first, were refused after the last that passed."""
    refused = 0
    for one in reports:
        if one.task == task:
            refused = 0 if one.decision == "promote" else refused + (one.decision == "refuse")
    return refused


def _read_report(path: Path) -> GateReport | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=GateReport)
    except (OSError, msgspec.DecodeError):
        return None
