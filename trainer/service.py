"""The trainer's service: watches the gold set and starts runs, task by task.

`goldstream trainer` runs it; `goldstream trainer once` asks it for one run. A run sees all gold so far (DAgger
aggregation); an error ends it, and the incumbent keeps serving. What a run needs is prepared while its gold lands
(trainer.ahead). Two trainers may watch one registry: the lease of a
task lets one of them at a time work on it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from schemas.adapters import GateReport
from schemas.errors import GoldstreamError
from schemas.gold import Watermark, current_watermark
from schemas.measures import TRAINER_RUNS
from schemas.settings import Settings
from trainer.ahead import Ahead
from trainer.base import MakeEngine
from trainer.gate import Judge
from trainer.glance import glance, gold_folders, wait_for_news
from trainer.lease import Fence, lease
from trainer.registry import list_adapters, read_gate
from trainer.run import Runner, Stopped, would_fail_again
from trainer.trigger import Arrivals, arrivals, due, is_quiet
from trainer.webhook import Webhook

log = logging.getLogger("goldstream.trainer")

POLL_S = 2.0
SLICE_S = 0.2  # of preparing the next run, before the next glance
FIRST_RETRY_S = 60.0
LAST_RETRY_S = 3600.0
WEBHOOK_AT_END_S = 30.0


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
    webhook = Webhook(settings.webhook)

    def watcher(task: str) -> _TaskWatcher:
        return _TaskWatcher(
            settings, Runner(settings, task, stop=stop, webhook=webhook, make_engine=make_engine, judge=judge)
        )

    try:
        if once is not None:
            return watcher(once).run_now(stop)
        enabled = [name for name, task in settings.tasks.items() if task.trainer.enabled]
        watchers = [watcher(name) for name in enabled]
        log.info("trainer watches %s", ", ".join(enabled) or "no task: trainer.enabled is off for all")
        folders = partial(gold_folders, settings.gold)
        while not stop.is_set():
            seen = glance(folders())
            for one in watchers:
                with lease(one.lease, stop, wait=False) as held:
                    if held is not None:  # else another trainer is at work on this task: look again later
                        one.poll(held)
            wait_for_news(seen, folders, stop, poll_s, lambda: _prepare([one.ahead for one in watchers]))
        return None
    finally:
        webhook.close(WEBHOOK_AT_END_S if once is not None else 5.0)


def _prepare(preparing: Sequence[Ahead]) -> bool:
    """Goes on preparing the next runs for a moment; tells whether something is left to do."""
    for one in preparing:
        one.go_on(SLICE_S)
    return any(one.busy for one in preparing)


class _TaskWatcher:
    """One task's trigger, and what happens after an error."""

    def __init__(self, settings: Settings, runner: Runner) -> None:
        self.settings, self.runner, self.task = settings, runner, runner.task
        self.lease: Path = settings.adapters / self.task / "lease"
        self.seen: Watermark | None = None  # watermark that `new` was read at
        self.new = Arrivals((), 0)
        self.came: Watermark | None = None  # newest watermark, and when it was first seen
        self.came_at = 0.0
        self.waiting_since: float | None = None  # first arrival of those that quiet_s waits after
        self.hopeless: Watermark | None = None  # gold on which a run failed in a way it would fail again
        self.retry_s, self.retry_at = FIRST_RETRY_S, 0.0
        self.resumed = False
        self.ahead = Ahead(settings, self.task, runner.resident)

    def run_now(self, stop: threading.Event) -> GateReport | None:
        """Trains at once, or goes on with a run that was interrupted; waits for another trainer on this task."""
        with lease(self.lease, stop, wait=False) as held:
            if held is None:
                log.warning("%s: another trainer is at work on this task; waiting for it to end", self.task)
        with lease(self.lease, stop) as held:
            if held is None:
                return None
            fence = Fence(self.lease, held)
            try:
                if self.runner.finish_interrupted(fence):
                    newest = list_adapters(self.settings.adapters, self.task)[-1]
                    return read_gate(self.settings.adapters, self.task, newest.version)
                return self.runner.run(fence)
            except Stopped:
                log.info("%s: stopped; the next start goes on with this run", self.task)
                return None

    def poll(self, held: int) -> None:
        """Starts a run where one is due; logs whatever goes wrong and backs off."""
        if time.monotonic() < self.retry_at:
            return
        try:
            self._poll(held)
            self.retry_s = FIRST_RETRY_S
        except Stopped:
            TRAINER_RUNS.add(self.task, "stopped")
            log.info("%s: stopped; the next start goes on with this run", self.task)
        except Exception as error:
            # One task's broken data, verifier or base must not end the service for the others. Our own errors and
            # the system's carry no prompt text; of any other only the type is logged.
            known = isinstance(error, GoldstreamError | OSError)
            text = str(error) if known else f"unexpected {type(error).__name__}"
            TRAINER_RUNS.add(self.task, "error")
            log.error("%s: the run ended early (next try after %.0f s): %s", self.task, self.retry_s, text)
            log.debug("traceback", exc_info=not known)
            if would_fail_again(error):
                self.hopeless = self.came
            self.seen, self.resumed = None, False
            self.retry_at = time.monotonic() + self.retry_s
            self.retry_s = min(self.retry_s * 2, LAST_RETRY_S)
            self.runner.status.tell(state="idle", error=text)

    def _poll(self, held: int) -> None:
        self.runner.resident.forget(self.settings.gold)
        watermark = current_watermark(self.settings.gold)
        if watermark != self.came:
            self.came, self.came_at = watermark, time.monotonic()
            if self.waiting_since is None:
                self.waiting_since = self.came_at
        if not self.resumed:
            self.resumed = True
            self.runner.finish_interrupted(Fence(self.lease, held))
        if watermark == self.hopeless:
            return
        trainer, status = self.settings.task(self.task).trainer, self.runner.status
        if watermark != self.seen:
            line = list_adapters(self.settings.adapters, self.task, self.runner.base_sha256())
            above = line[-1].watermark if line else {}
            pairs_b = trainer.recipe == "rgt" and trainer.pair_weights[1] > 0
            self.new = arrivals(self.settings.gold, self.task, above, watermark, strategies=pairs_b)
            self.seen = watermark
            status.tell(state="idle", corrected=len(self.new.corrected_ms))
        if self.new.rows:
            self.ahead.want(watermark)
        if self.waiting_since is not None and not is_quiet(
            trainer, time.monotonic() - self.came_at, time.monotonic() - self.waiting_since
        ):
            return
        self.waiting_since = None
        last_ms = status.now.last_run_ms or status.now.since_ms
        reason = due(trainer, self.new, last_ms=last_ms, now_ms=int(time.time() * 1000))
        if reason:
            log.info("%s: a run starts: %s", self.task, reason)
            self.seen = None  # what came before this run is not new after it
            self.runner.run(Fence(self.lease, held))
