"""One training run, from a pinned watermark to a promotion, and what becomes of a run that was killed.

trainer.service starts it while it holds the task's lease. Its folder is <state>/trainer/runs/<task>/<version>/:
run.json pins what it is a function of, out/ is what the loop writes.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from pathlib import Path
from typing import Literal

import msgspec

from schemas.adapters import AdapterManifest, GateReport, adapter_folder, base_fingerprint, verify_adapter
from schemas.errors import AdapterError, ModelError, Overtaken, SetupError, TrainingError
from schemas.faults import crash_point
from schemas.gold import Watermark, current_watermark
from schemas.measures import TRAINER_RUNS
from schemas.settings import Settings, Trainer
from trainer.base import MakeEngine, local_engine, student_base
from trainer.contamination import uncontaminated
from trainer.dataset import base_context, train_rows, training_data
from trainer.erasure import erase_texts
from trainer.gate import AnswerCache, Judge, VerdictCache, run_gate
from trainer.holdout import freeze_holdout, holdout_cases
from trainer.lease import Fence, LeaseLost
from trainer.lineage import ForgottenMeanwhile, refuse_forgotten, write_trained_on
from trainer.pinned import Pinned, git_revision, keep_pinned, read_pinned
from trainer.progress import ProgressReport
from trainer.registry import (
    clear_leftovers,
    incumbent,
    list_adapters,
    next_version,
    promote,
    promotions,
    publish,
    read_gate,
    removed_adapters,
    write_gate,
)
from trainer.report import Gated, read_losses, render_page
from trainer.resident import Resident
from trainer.sleep import servers_asleep
from trainer.status import StatusFile
from trainer.traced import traced_run
from trainer.trigger import arrivals
from trainer.webhook import Webhook, make_event

log = logging.getLogger("goldstream.trainer")

STATUS_EVERY_S = 0.5
OUT = "out"
FRUITLESS_TRIES = 5  # starts of one run that got no further than the one before
CORRECTIVE = ("rgt", "isft", "on_policy")  # recipes that learn from failures alone


class Stopped(Exception):
    """The service was asked to stop in the middle of a run; the next start goes on with it."""


class Runner:
    """One task's runs; the caller holds the task's lease during every call."""

    def __init__(
        self,
        settings: Settings,
        task: str,
        *,
        stop: threading.Event,
        webhook: Webhook,
        make_engine: MakeEngine | None = None,
        judge: Judge | None = None,
    ) -> None:
        self.settings, self.task, self.stop, self.webhook = settings, task, stop, webhook
        self.make_engine, self.judge = make_engine or local_engine, judge
        self.base = student_base(settings, task)
        self.resident = Resident(self.base.path, settings.task(task).trainer.resident_mb)
        self.status = StatusFile(settings, task)
        self.runs = settings.state / "trainer" / "runs" / task
        self.cache: AnswerCache = {}
        self.judged: VerdictCache = {}  # by a gate that was broken off
        self.cache_base = ""  # the base the cached answers came from
        self.pinned: Pinned | None = None
        self.report = ProgressReport(task)

    def base_sha256(self) -> str:
        """Returns the fingerprint of the base as it lies there now: versions of one base are one line."""
        return base_fingerprint(self.base.path)

    def run(self, fence: Fence, killed: Pinned | None = None) -> GateReport:
        """Trains, publishes, gates and promotes; `killed` is a run to go on with.

        1. pin the watermark: rows that come later wait for the next run;
        2. build the examples from all gold below it;
        3. train, from the base unless trainer.continue_from says otherwise;
        4. publish the adapter, its manifest last;
        5. gate it against the incumbent;
        6. append it to the promotion log where the gate says so and promotion is automatic.

        Killed anywhere, the next start goes on from there (`finish_interrupted`).
        """
        settings, task, trainer = self.settings, self.task, self.settings.task(self.task).trainer
        clear_leftovers(settings.adapters, task)
        erase_texts(settings, ())  # of who was forgotten since, perhaps on another machine
        pinned = killed or self._pin(trainer)  # 1
        folder = self.runs / pinned.version
        try:
            with traced_run(pinned, killed is not None) as traced:
                with traced.step("train"):
                    manifest = self._train(pinned, folder, trainer)  # 2, 3
                traced.trained(manifest)
                publish(settings.adapters, folder / OUT, manifest, still_owner=fence.check)  # 4
                log.info("%s %s: published", task, pinned.version)
                crash_point("trainer.after_publish")
                shutil.rmtree(folder, ignore_errors=True)
                with traced.step("gate"):
                    report = self.gate(manifest, fence)  # 5
                traced.gated(report)
                self._promote(report, pinned.parent, fence)  # 6
                return report
        except Exception as error:
            if would_fail_again(error):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            self.pinned = None
            self.status.tell(state="idle")

    def finish_interrupted(self, fence: Fence) -> bool:
        """Goes on with whatever a killed trainer was at; tells whether there was anything.

        1. a version that was published and not gated is gated, one that passed and was not promoted is promoted;
        2. a run that was pinned and not published is continued, where the base is still the same.

        Raises TrainingError for a run that is killed again and again, and whatever the run itself raises.
        """
        published = {manifest.version for manifest in list_adapters(self.settings.adapters, self.task)}
        found = self._finish_gate(fence)
        for folder in sorted(self.runs.glob("v*")) if self.runs.is_dir() else []:
            pinned = read_pinned(folder)
            why_not = "it was published" if folder.name in published else self._why_not_continued(pinned)
            if pinned is None or why_not:
                log.info("%s %s: the unfinished run is dropped: %s", self.task, folder.name, why_not)
                shutil.rmtree(folder, ignore_errors=True)
                continue
            if pinned.tries >= FRUITLESS_TRIES:
                shutil.rmtree(folder, ignore_errors=True)
                raise TrainingError(
                    f"the run {pinned.version} of {self.task} was killed {pinned.tries} times without getting further "
                    f"than step {pinned.furthest}, and is dropped. Has the machine enough memory? Lower "
                    "trainer.batch_size, max_length or rank; the next run starts anew."
                )
            log.info("%s %s: a run that was interrupted goes on; newer gold waits", self.task, pinned.version)
            self.run(fence, msgspec.structs.replace(pinned, tries=pinned.tries + 1))
            return True
        return found

    def gate(self, manifest: AdapterManifest, fence: Fence) -> GateReport:
        """Judges a published version against the incumbent of the same base, and writes both reports."""
        settings, task, version = self.settings, self.task, manifest.version
        self.status.tell(state="gating", version=version)
        gate = settings.task(task).gate
        cases = freeze_holdout(settings.adapters, task, holdout_cases(settings.gold, task), gate.max_holdout)
        log.info("%s %s: the gate asks %d holdout cases", task, version, len(cases))
        engine = self.make_engine(settings, task)
        try:
            if engine.base_sha256 != self.cache_base:
                self.cache, self.cache_base = {}, engine.base_sha256
            report, shown = run_gate(
                settings,
                task,
                engine,
                cases,
                candidate=version,
                incumbent=self._usable_incumbent(engine.base_sha256),
                judge=self.judge,
                cache=self.cache,
                judged=self.judged,
            )
        finally:
            engine.close()
        self.judged = {}  # each gate asks its judge anew
        page = render_page(
            report,
            manifest,
            losses=read_losses(adapter_folder(settings.adapters, task, version)),
            history=[*self._history(manifest), Gated(version, report.before, report.after, report.decision)],
            shown=shown,
        )
        fence.check()
        write_gate(settings.adapters, report, page)
        erase_texts(settings, ())  # of who was forgotten while it ran: the page did not lie there yet
        TRAINER_RUNS.add(task, report.decision)
        log.info("%s %s: gate says %s: %s", task, version, report.decision, report.reason)
        return report

    def _pin(self, trainer: Trainer) -> Pinned:
        version = next_version(self.settings.adapters, self.task, secrets.token_hex(4))
        base_sha256 = self.base_sha256()
        initial = self._usable_incumbent(base_sha256) if trainer.continue_from == "incumbent" else ""
        pinned = Pinned(
            task=self.task,
            version=version,
            watermark=current_watermark(self.settings.gold),
            base_sha256=base_sha256,
            parent=incumbent(self.settings.adapters, self.task),
            initial=initial,
            revision=git_revision(),
            started_ms=int(time.time() * 1000),
        )
        shutil.rmtree(self.runs, ignore_errors=True)  # of runs that cannot be continued: we hold the lease
        return pinned

    def _train(self, pinned: Pinned, folder: Path, trainer: Trainer) -> AdapterManifest:
        from trainer.loop import train_lora  # loads torch; the service idles without it

        settings, task, version = self.settings, self.task, pinned.version
        self._keep(pinned)
        crash_point("trainer.pinned")
        self.status.tell(
            state="training",
            version=version,
            step=0,
            steps=0,
            loss=None,
            corrected=0,
            error="",
            last_run_ms=pinned.started_ms,
        )
        _refuse_one_class(settings, task, pinned.watermark, trainer.recipe)
        pairs = self.resident.pairs(settings.gold)  # 2
        pairs.begin()
        rows = train_rows(settings.gold, task, pinned.watermark, trainer.recipe)
        rows, contaminated = uncontaminated(rows, settings.gold, task, pinned.watermark, trainer.max_overlap)
        data = training_data(
            rows,
            pairs.tokenizer,
            trainer,
            context=base_context(self.base.path),
            student_model=settings.task(task).student.model,
            tools=settings.task(task).carry_over.tools,
            known=pairs,
        )
        pairs.sweep()
        if contaminated:
            data = data._replace(skipped=data.skipped | {"contaminated": contaminated})
        skipped = ", ".join(f"{n} {reason}" for reason, n in data.skipped.items()) or "none"
        log.info("%s %s: %d cases, %d pairs; left out: %s", task, version, data.cases, len(data.examples), skipped)
        # The loop compares what its checkpoint was made of: where data or settings differ, it starts anew.
        initial = adapter_folder(settings.adapters, task, pinned.initial) if pinned.initial else None
        self.report = ProgressReport(task)
        with servers_asleep(settings, task):  # where trainer.share_gpu is set
            stats = train_lora(  # 3
                self.base.path,
                data.examples,
                trainer,
                folder / OUT,
                base_name=self.base.name,
                watermark=pinned.watermark,
                initial=initial,
                resident=self.resident,
                progress=self._progress,
            )
        done = (stats.steps, stats.seconds, stats.tokens_per_s, stats.first_loss, stats.last_loss)
        log.info("%s %s: %d steps in %.1f s, %.0f tokens/s, loss %.3f -> %.3f", task, version, *done)
        refuse_forgotten(settings.gold, task, {example.case_id for example in data.examples})
        write_trained_on(folder / OUT, data.examples)
        return AdapterManifest(
            task=task,
            version=version,
            base=self.base.name,
            base_sha256=pinned.base_sha256,
            files={},
            watermark=pinned.watermark,
            rows=data.cases,
            pairs=len(data.examples),
            settings=msgspec.to_builtins(trainer) | {"data_sha256": data.sha256()},
            seed=trainer.seed,
            revision=pinned.revision,
            created_ms=int(time.time() * 1000),
            parent=pinned.parent,
            initial=pinned.initial,
            training=msgspec.structs.asdict(stats) | {f"skipped_{r}": n for r, n in data.skipped.items()},
        )

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

    def _promote(self, report: GateReport, parent: str, fence: Fence) -> None:
        registry, task, version, reason = self.settings.adapters, self.task, report.version, report.reason
        mode = self.settings.task(task).gate.promotion
        kind: Literal["promotion", "waiting", "refusal"] = "waiting"
        if report.decision != "promote":
            kind = "refusal"
        elif mode == "manual":
            log.info("%s %s: waits for `goldstream adapters promote`", task, version)
        elif mode == "shadow":
            log.info("%s %s: shadow: it would have been promoted", task, version)
        else:
            fence.check()
            try:
                known = promotions(registry, task)
                if (known[-1].version if known else "") != parent:
                    raise Overtaken(f"{task}: {parent or 'the base'}, which {version} was measured against, is out.")
                base = self.base_sha256()
                promote(registry, task, version, by="gate", reason=reason, base_sha256=base, after=len(known))
                kind = "promotion"
                log.info("%s %s: promoted", task, version)
            except Overtaken:
                reason = f"another version was promoted by hand meanwhile; {reason}"
                log.info("%s %s: not promoted, another version was by hand meanwhile", task, version)
        self.webhook.send(make_event(kind, task, version, previous=parent, by="gate", reason=reason, gate=report))

    def _finish_gate(self, fence: Fence) -> bool:
        """Gates or promotes the newest version of this base where a killed run did not get to it."""
        adapters = list_adapters(self.settings.adapters, self.task, self.base_sha256())
        if not adapters:
            return False
        newest = adapters[-1]
        report = read_gate(self.settings.adapters, self.task, newest.version)
        found = report is None
        if report is None:
            log.info("%s %s: was published but never gated", self.task, newest.version)
            try:
                report = self.gate(newest, fence)
            except AdapterError as error:  # damaged since: the next run must not wait for it
                log.error("%s %s: cannot be gated: %s", self.task, newest.version, error)
                return False
            finally:
                self.status.tell(state="idle")
        never = all(entry.version != newest.version for entry in promotions(self.settings.adapters, self.task))
        # One that waits for a person goes on waiting where promotion has become automatic since.
        modes = {report.promotion, self.settings.task(self.task).gate.promotion}
        passed = report.decision == "promote" and modes == {"auto"}
        if never and (found or (passed and incumbent(self.settings.adapters, self.task) == newest.parent)):
            self._promote(report, newest.parent, fence)
            return True
        return found

    def _why_not_continued(self, pinned: Pinned | None) -> str:
        if pinned is None:
            return "it has no run.json"
        if pinned.base_sha256 != self.base_sha256():
            return "the base has changed since"
        return ""

    def _history(self, manifest: AdapterManifest) -> list[Gated]:
        """Returns what earlier gates of this base found, oldest first."""
        registry, task = self.settings.adapters, self.task
        known = [*removed_adapters(registry, task), *list_adapters(registry, task)]
        names = sorted(m.version for m in known if m.base_sha256 == manifest.base_sha256)
        gates = [read_gate(registry, task, name) for name in names if name != manifest.version]
        return [Gated(g.version, g.before, g.after, g.decision) for g in gates if g and g.cases]

    def _progress(self, step: int, steps: int, loss: float, tokens_per_s: float) -> None:
        if self.stop.is_set():
            raise Stopped
        self.report(step, steps, loss, tokens_per_s)
        if step == steps or time.time() * 1000 - self.status.now.updated_ms > STATUS_EVERY_S * 1000:
            self.status.tell(step=step, steps=steps, loss=loss)
            if self.pinned and step > self.pinned.furthest:
                self._keep(msgspec.structs.replace(self.pinned, furthest=step, tries=1))

    def _keep(self, pinned: Pinned) -> None:
        keep_pinned(self.runs / pinned.version, pinned)
        self.pinned = pinned


def would_fail_again(error: Exception) -> bool:
    """Tells whether a run on the same gold, settings and base would fail of this again.

    It would not of a full disk, a judge that is down, a lease that was lost, a stop, or a case forgotten meanwhile.
    """
    passing = OSError | ModelError | SetupError | LeaseLost | Stopped | ForgottenMeanwhile
    return not isinstance(error, passing)


def _refuse_one_class(settings: Settings, task: str, watermark: Watermark, recipe: str) -> None:
    """Raises TrainingError where a recipe that learns from failures meets gold without any."""
    found = arrivals(settings.gold, task, {}, watermark)
    if found.rows and not found.corrected_ms and recipe in CORRECTIVE:
        raise TrainingError(
            f"all {found.rows} gold rows of {task} passed at the first attempt: recipe {recipe!r} learns from failures "
            "that were corrected, and there are none. Where the student is that good, nothing needs doing; otherwise "
            'make the rubric stricter, or train on its own passing answers with recipe = "rejection".'
        )
