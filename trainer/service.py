"""The trainer's service: watches the gold set, trains, publishes, gates and promotes, task by task.

`goldstream trainer` runs it; `goldstream train` asks it for one run. A run always starts from the base and trains on
all gold so far (DAgger aggregation, retrained rather than continued: no run inherits another's mistakes, and an
adapter is a function of its watermark, settings and seed alone). An error ends a run and the incumbent keeps serving.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import pyarrow.compute as pc

from schemas.adapters import AdapterManifest, GateReport, adapter_folder, base_fingerprint, verify_adapter
from schemas.errors import AdapterError, GoldstreamError, SettingsError
from schemas.gold import Watermark, current_watermark, read_outcomes
from schemas.settings import Settings
from trainer.dataset import build_examples, train_rows
from trainer.gate import AnswerCache, Engine, Judge, freeze_holdout, holdout_cases, run_gate
from trainer.registry import (
    clear_leftovers,
    incumbent,
    lease,
    list_adapters,
    next_version,
    promote,
    promotions,
    publish,
    read_gate,
    write_gate,
)

log = logging.getLogger("goldstream.trainer")

POLL_S = 2.0
STATUS_EVERY_S = 0.5
FIRST_RETRY_S = 60.0
LAST_RETRY_S = 3600.0


class TrainerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the trainer does for a task right now; <state>/trainer/<task>.json for the command line."""

    task: str
    state: Literal["idle", "training", "gating"]
    version: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    corrected: int = 0  # new corrected rows, of `needed` that start a run
    needed: int = 0
    error: str = ""  # why the last run ended early
    updated_ms: int = 0


class Base(NamedTuple):
    """The model a task's student is, as the trainer loads it."""

    name: str  # as it is served
    path: Path


MakeEngine = Callable[[Settings, str], Engine]


class _Stopped(Exception):
    """The service was asked to stop in the middle of a run."""


def run_trainer(
    settings: Settings,
    *,
    once: str | None = None,
    stop: threading.Event,
    poll_s: float = POLL_S,
    make_engine: MakeEngine | None = None,
    judge: Judge | None = None,
) -> GateReport | None:
    """Runs until `stop`; with `once`, trains that task now whatever the trigger says and returns the gate's report.

    `make_engine` and `judge` are by default the local engine and the task's own judge. Raises SettingsError where an
    enabled task has no base; with `once` every error of the run, and None where it was stopped.
    """
    if once is not None:
        worker = _TaskTrainer(settings, once, stop, make_engine, judge)
        with lease(settings.adapters / once / "lease", stop) as held:
            try:
                return worker.run() if held is not None else None
            except _Stopped:
                return None
    enabled = [name for name, task in settings.tasks.items() if task.trainer.enabled]
    workers = [_TaskTrainer(settings, name, stop, make_engine, judge) for name in enabled]
    log.info("trainer watches %s", ", ".join(enabled) or "no task: trainer.enabled is off for all")
    while not stop.is_set():
        for worker in workers:
            with lease(settings.adapters / worker.task / "lease", stop, wait=False) as held:
                if held is not None:  # else another trainer is at work on this task: look again later
                    worker.poll()
        stop.wait(poll_s)
    return None


def student_base(settings: Settings, task: str) -> Base:
    """Returns the base model of a task's student; raises SettingsError where the trainer cannot know it."""
    chosen = settings.task(task)
    provider, _, name = chosen.student.model.partition("/")
    folder = settings.local[name].path if provider == "local" and name in settings.local else chosen.trainer.base
    if not folder:
        raise SettingsError(
            f"tasks.{task}.trainer.base is missing: the student {chosen.student.model!r} is served elsewhere, so the "
            "trainer needs the folder of its base weights. Set it, or set trainer.enabled = false."
        )
    if not Path(folder).is_dir():
        raise SettingsError(f"the base model of task {task}, {folder}, is no folder. Download it, or correct the path.")
    return Base(name or chosen.student.model, Path(folder))


def corrected_rows(gold: Path, task: str, above: Mapping[int, int], upto: Watermark) -> int:
    """Counts gold train rows whose first attempt failed, with above <= offset < upto in each partition."""
    columns = ("outcome", "split", "corrected", "kafka_partition", "kafka_offset")
    rows = read_outcomes(gold, columns, task=task, watermark=upto)
    rows = rows.filter(pc.and_(pc.equal(rows["outcome"], "gold"), pc.equal(rows["split"], "train")))
    rows = rows.filter(pc.fill_null(rows["corrected"], False))
    places = zip(rows["kafka_partition"].to_pylist(), rows["kafka_offset"].to_pylist(), strict=True)
    return sum(offset >= above.get(partition, 0) for partition, offset in places)


def read_status(settings: Settings, task: str) -> TrainerStatus | None:
    """Returns what the trainer last said about a task, None where it never ran."""
    try:
        return msgspec.json.decode(_status_path(settings, task).read_bytes(), type=TrainerStatus)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def local_engine(settings: Settings, task: str) -> Engine:
    """Builds the engine that answers the holdout."""
    from agents.local import LocalEngine  # loads torch; the service idles without it

    base = student_base(settings, task)
    student = settings.task(task).student.model
    max_batch = settings.local[base.name].max_batch if student.startswith("local/") else 64
    engine: Engine = LocalEngine(base.path, max_batch=max_batch, threads=settings.task(task).trainer.threads)
    return engine


class _TaskTrainer:
    """One task's runs; the caller holds the task's lease during every call of poll and run."""

    def __init__(
        self, settings: Settings, task: str, stop: threading.Event, make_engine: MakeEngine | None, judge: Judge | None
    ) -> None:
        self.settings, self.task, self.stop = settings, task, stop
        self.make_engine, self.judge = make_engine or local_engine, judge
        self.base = student_base(settings, task)
        self.cache: AnswerCache = {}
        self.cache_base = ""  # the base the cached answers came from
        self.seen: Watermark | None = None  # watermark the trigger was last computed for
        self.came: Watermark | None = None  # newest watermark, and when it was first seen
        self.came_at = 0.0
        self.failed_at: Watermark | None = None
        self.retry_s, self.retry_at = FIRST_RETRY_S, 0.0
        self.status = TrainerStatus(task=task, state="idle", needed=settings.task(task).trainer.min_corrected_rows)
        self.resumed = False

    def poll(self) -> None:
        """Starts a run where enough corrected rows have come; logs whatever goes wrong and backs off."""
        if time.monotonic() < self.retry_at:
            return
        try:
            self._poll()
            self.retry_s = FIRST_RETRY_S
        except _Stopped:
            log.info("%s: stopped; the unfinished run is dropped", self.task)
        except Exception as error:
            # One task's broken data, verifier or base must not end the service for the others. Our own errors and
            # the system's carry no prompt text; of any other only the type is logged.
            known = isinstance(error, GoldstreamError | OSError)
            text = str(error) if known else f"unexpected {type(error).__name__}"
            log.error("%s: the run ended early (next try after %.0f s): %s", self.task, self.retry_s, text)
            log.debug("traceback", exc_info=not known)
            self.failed_at, self.seen, self.resumed = self.seen, None, False
            self.retry_at = time.monotonic() + self.retry_s
            self.retry_s = min(self.retry_s * 2, LAST_RETRY_S)
            self._tell(state="idle", error=text)

    def _poll(self) -> None:
        if not self.resumed:
            self.resumed = True
            self._finish_interrupted()
        watermark = current_watermark(self.settings.gold)
        if watermark in (self.seen, self.failed_at):
            return
        if watermark != self.came:
            self.came, self.came_at = watermark, time.monotonic()
        if time.monotonic() - self.came_at < self.settings.task(self.task).trainer.quiet_s:
            return
        self.seen = watermark
        adapters = list_adapters(self.settings.adapters, self.task)
        above = adapters[-1].watermark if adapters else {}
        corrected = corrected_rows(self.settings.gold, self.task, above, watermark)
        self._tell(state="idle", corrected=corrected)
        if corrected >= self.status.needed:
            log.info("%s: %d new corrected rows (%d asked for): a run starts", self.task, corrected, self.status.needed)
            self.run()

    def run(self) -> GateReport:
        """Trains, publishes, gates and promotes.

        1. pin the watermark: rows that come later wait for the next run;
        2. build the examples from all gold below it;
        3. train from the base;
        4. publish the adapter, its manifest last;
        5. gate it against the incumbent;
        6. append it to the promotion log where the gate says so and promotion is automatic.

        Killed after 4 or 5, the next start goes on from there; killed before, the run is repeated.
        """
        from transformers import AutoTokenizer

        from trainer.loop import train_lora  # loads torch; the service idles without it

        settings, task, trainer = self.settings, self.task, self.settings.task(self.task).trainer
        registry = settings.adapters
        clear_leftovers(registry, task)
        version = next_version(registry, task, secrets.token_hex(4))
        runs = settings.state / "trainer" / "runs" / task
        shutil.rmtree(runs, ignore_errors=True)  # of runs that were killed: we hold the lease
        folder = runs / version
        try:
            watermark = current_watermark(settings.gold)  # 1
            self._tell(state="training", version=version, step=0, steps=0, loss=None, corrected=0, error="")

            tokenizer = AutoTokenizer.from_pretrained(self.base.path, local_files_only=True)  # 2
            data = build_examples(
                train_rows(settings.gold, task, watermark),
                tokenizer,
                recipe=trainer.recipe,
                strategy_weight=trainer.strategy_weight,
                max_length=trainer.max_length,
            )
            skipped = ", ".join(f"{n} {reason}" for reason, n in data.skipped.items()) or "none"
            log.info("%s %s: %d cases, %d pairs; left out: %s", task, version, data.cases, len(data.examples), skipped)

            stats = train_lora(  # 3
                self.base.path, data.examples, trainer, folder, base_name=self.base.name, progress=self._progress
            )
            log.info(
                "%s %s: %d steps in %.1f s, %.0f tokens/s, loss %.3f -> %.3f",
                task,
                version,
                stats.steps,
                stats.seconds,
                stats.tokens_per_s,
                stats.first_loss,
                stats.last_loss,
            )

            manifest = AdapterManifest(
                task=task,
                version=version,
                base=self.base.name,
                base_sha256=base_fingerprint(self.base.path),
                files={},
                watermark=watermark,
                rows=data.cases,
                pairs=len(data.examples),
                settings=msgspec.to_builtins(trainer) | {"data_sha256": data.sha256()},
                seed=trainer.seed,
                revision=_git_revision(),
                created_ms=int(time.time() * 1000),
                parent=incumbent(registry, task),
                training=msgspec.structs.asdict(stats) | {f"skipped_{r}": n for r, n in data.skipped.items()},
            )
            publish(registry, folder, manifest)  # 4
            log.info("%s %s: published", task, version)
            report = self._gate(version)  # 5
            self._promote(report, manifest.parent)  # 6
            return report
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            self._tell(state="idle")

    def _gate(self, version: str) -> GateReport:
        self._tell(state="gating", version=version)
        settings, task = self.settings, self.task
        cases = holdout_cases(settings.gold, task)
        cases = freeze_holdout(settings.adapters, task, cases, settings.task(task).gate.max_holdout)
        engine = self.make_engine(settings, task)
        try:
            if engine.base_sha256 != self.cache_base:
                self.cache, self.cache_base = {}, engine.base_sha256
            report = run_gate(
                settings,
                task,
                engine,
                cases,
                candidate=version,
                incumbent=self._usable_incumbent(engine.base_sha256),
                judge=self.judge,
                cache=self.cache,
            )
        finally:
            engine.close()
        write_gate(settings.adapters, report)
        log.info("%s %s: gate says %s: %s", task, version, report.decision, report.reason)
        return report

    def _usable_incumbent(self, base_sha256: str) -> str:
        version = incumbent(self.settings.adapters, self.task)
        if not version:
            return ""
        try:
            verify_adapter(adapter_folder(self.settings.adapters, self.task, version), base_sha256)
        except AdapterError as error:
            log.warning("%s: the incumbent cannot be loaded, so the candidate meets the base: %s", self.task, error)
            return ""
        return version

    def _promote(self, report: GateReport, parent: str) -> None:
        if report.decision != "promote":
            return
        if incumbent(self.settings.adapters, self.task) != parent:
            log.info("%s %s: not promoted, another version was by hand meanwhile", self.task, report.version)
            return
        if self.settings.task(self.task).gate.promotion == "manual":
            log.info("%s %s: waits for `goldstream adapters promote`", self.task, report.version)
            return
        promote(self.settings.adapters, self.task, report.version, by="gate", reason=report.reason)
        log.info("%s %s: promoted", self.task, report.version)

    def _finish_interrupted(self) -> None:
        """Gates or promotes the newest version where a killed run did not get to it."""
        adapters = list_adapters(self.settings.adapters, self.task)
        if not adapters:
            return
        newest = adapters[-1]
        report = read_gate(self.settings.adapters, self.task, newest.version)
        if report is None:
            log.info("%s %s: was published but never gated", self.task, newest.version)
            try:
                report = self._gate(newest.version)
            except AdapterError as error:  # damaged since: the next run must not wait for it
                log.error("%s %s: cannot be gated: %s", self.task, newest.version, error)
                return
            finally:
                self._tell(state="idle")
        if all(entry.version != newest.version for entry in promotions(self.settings.adapters, self.task)):
            self._promote(report, newest.parent)

    def _progress(self, step: int, steps: int, loss: float, tokens_per_s: float) -> None:
        if self.stop.is_set():
            raise _Stopped
        if step == steps or time.time() * 1000 - self.status.updated_ms > STATUS_EVERY_S * 1000:
            log.info("%s: step %d of %d, loss %.3f, %.0f tokens/s", self.task, step, steps, loss, tokens_per_s)
            self._tell(step=step, steps=steps, loss=loss)

    def _tell(self, **changes: object) -> None:
        """Writes the status file anew, atomically."""
        self.status = msgspec.structs.replace(self.status, **changes, updated_ms=int(time.time() * 1000))
        path = _status_path(self.settings, self.task)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")  # one writer: the lease's holder
        temporary.write_bytes(msgspec.json.encode(self.status))
        temporary.replace(path)


def _status_path(settings: Settings, task: str) -> Path:
    return settings.state / "trainer" / f"{task}.json"


def _git_revision() -> str:
    """Returns the commit Goldstream runs from, "" where it was installed without its repository."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
