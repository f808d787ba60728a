"""Rollout: makes the version that should serve the one that serves, in a process of its own that outlives training.

Watches the promotion log of the registry; every vLLM server loads an adapter under a versioned name and answers a
smoke test, and only then one record on gs.adapters switches every worker. A share of the cases stays on the version
before while trainer.guard compares the two. Imports no torch, so that it stays small.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from schemas.adapters import AdapterRecord, served_name
from schemas.errors import GoldstreamError, Overtaken
from schemas.faults import crash_point
from schemas.measures import ROLLOUT_STEPS
from schemas.settings import Settings
from schemas.status import RolloutStatus, rollout_status_path
from trainer.fleet import Fleet, can_serve_beside
from trainer.glance import glance, wait_for_news
from trainer.guard import Finding, Guard
from trainer.lease import lease
from trainer.orders import CommandLog, KafkaCommands, Orders
from trainer.records import KafkaRecords as KafkaRecords
from trainer.records import NewerRollout as NewerRollout
from trainer.records import RecordLog, Writer, next_epoch
from trainer.records import latest_records as latest_records
from trainer.registry import Promotion, promote, promotions
from trainer.webhook import Webhook, make_event

log = logging.getLogger("goldstream.rollout")

POLL_S = 1.0
LOOK_POLLS = 10  # between two looks of the guard at the gold set
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
WEBHOOK_AT_END_S = 5.0


def run_rollout(
    settings: Settings,
    *,
    stop: threading.Event,
    records: RecordLog | None = None,
    commands: CommandLog | None = None,
    poll_s: float = POLL_S,
) -> None:
    """Runs until `stop`. A second rollout waits for the first; whatever fails is logged and tried again.

    `records` is by default the topic gs.adapters, and `commands` then gs.commands. Ends with BrokerError where a
    newer rollout writes to the first.
    """
    if records is None:
        with KafkaRecords(settings) as kept:
            run_rollout(settings, stop=stop, records=kept, commands=commands or KafkaCommands(settings), poll_s=poll_s)
        return
    with lease(settings.adapters / "rollout.lease", stop) as descriptor:
        if descriptor is None:
            return
        known = _read_patiently(records, stop)
        if known is None:
            return
        epoch = next_epoch(descriptor, known)
        log.info("rollout watches %s with lease epoch %d", ", ".join(settings.tasks), epoch)
        writer = Writer(records, known, epoch)
        webhook = Webhook(settings.webhook)
        tasks = [_TaskRollout(settings, name, writer, webhook, poll_s) for name in settings.tasks]
        folders = [settings.adapters / name / "promotions" for name in settings.tasks]
        asked = [_Step("commands", poll_s, Orders(settings, commands, webhook).poll)] if commands else []
        try:
            while not stop.is_set():
                for step in asked:
                    step.run("all")
                seen = glance(folders)
                for task in tasks:
                    task.poll()
                wait_for_news(seen, lambda: folders, stop, poll_s)
                if glance(folders).times != seen.times:
                    for task in tasks:
                        task.look_now()
        finally:
            if commands is not None:
                commands.close()
            webhook.close(WEBHOOK_AT_END_S)


class _Step:
    """Something done again and again: every `every_s` while it works, with backoff while it does not."""

    def __init__(self, name: str, every_s: float, act: Callable[[], object]) -> None:
        self.name, self.every_s, self.act = name, every_s, act
        self.retry_s, self.at, self.error = FIRST_RETRY_S, 0.0, ""

    def run(self, task: str) -> None:
        """Acts where it is time to; a failure is logged, and ends nothing but this try."""
        if time.monotonic() < self.at:
            return
        try:
            self.act()
            self.retry_s, self.error, pause_s = FIRST_RETRY_S, "", self.every_s
            ROLLOUT_STEPS.add(task, self.name, "ok")
        except NewerRollout:
            raise
        except (GoldstreamError, OSError) as error:
            log.error("%s: %s failed (next try after %.0f s): %s", task, self.name, self.retry_s, error)
            self.error, pause_s = str(error), self.retry_s
            ROLLOUT_STEPS.add(task, self.name, "error")
            self.retry_s = min(self.retry_s * 2, LAST_RETRY_S)
        self.at = time.monotonic() + pause_s


class _TaskRollout:
    """One task: its servers, its switches, its guard. Each goes on when another fails."""

    def __init__(self, settings: Settings, task: str, writer: Writer, webhook: Webhook, poll_s: float) -> None:
        self.settings, self.task, self.writer, self.webhook = settings, task, writer, webhook
        self.status = RolloutStatus(task=task)
        self.guard: Guard | None = None
        self.guarded: AdapterRecord | None = None  # the record it watches
        self.fleet = Fleet(settings, task)
        self.watch = ""
        self.steps = (
            _Step("servers", poll_s, self._tend),
            _Step("switch", poll_s, self._switch_if_wanted),
            _Step("guard", poll_s * LOOK_POLLS, self._watch),
        )

    def look_now(self) -> None:
        """Lets the next poll see a promotion that has come; what has just failed keeps its pause."""
        if not self.steps[1].error:
            self.steps[1].at = 0.0

    def poll(self) -> None:
        """Does what is due."""
        for step in self.steps:
            step.run(self.task)
        self._tell()

    @property
    def serving(self) -> AdapterRecord | None:
        """The record that counts."""
        return self.writer.latest.get(self.task)

    def _promoted(self) -> list[Promotion]:
        return promotions(self.settings.adapters, self.task)

    def _switch_if_wanted(self) -> None:
        promoted = self._promoted()
        wanted = promoted[-1].version if promoted else ""
        if wanted != (self.serving.version if self.serving else ""):
            self._switch(promoted)

    def _switch(self, promoted: Sequence[Promotion]) -> None:
        """Brings the last promoted version into service; nothing switches unless every step succeeds.

        1. read the records again: the last attempt may have gone further than it knew;
        2. verify the folder;
        3. load it on every server that is up and ask it something, under its own name, beside the one that serves;
        4. append the record: from here on it serves, but for the canary share;
        5. unload all but it and the version just replaced, which calls under way, the canary and the fallback use.
        """
        last = promoted[-1] if promoted else None
        wanted, reason = (last.version, f"{last.by}: {last.reason}") if last else ("", "no promotion left")
        self.writer.refresh()  # 1
        current = self.serving.version if self.serving else ""
        if current == wanted:
            return
        if wanted:
            self.fleet.load(wanted)  # 2, 3
        crash_point("rollout.before_record")
        # Going back is no experiment: nobody stays on what was taken back, nor falls back to it.
        forward = bool(wanted) and all(entry.version != wanted for entry in promoted[:-1])
        forward = forward and can_serve_beside(self.settings, self.task, current, wanted)
        rollout = self.settings.task(self.task).rollout
        self.writer.append(  # 4
            AdapterRecord(
                task=self.task,
                version=wanted,
                lease_epoch=0,
                sequence=0,
                at_ms=0,
                reason=reason,
                served_as=served_name(self.task, wanted) if wanted and self.fleet.remote else "",
                previous=current,
                canary_share=rollout.canary_share if forward else 0.0,
                fallback=current if forward else "",
            )
        )
        crash_point("rollout.after_record")
        log.info("%s: %s serves now, after %s", self.task, wanted or "the base", current or "the base")
        self.steps[0].at = 0.0  # 5, as the servers' next turn

    def _tend(self) -> None:
        """Gives every server what it lacks and takes away what nobody uses: after a switch, a restart, an outage."""
        serving, promoted = self.serving, self._promoted()
        versions = (serving.version, serving.fallback, serving.previous) if serving else ()
        needed = versions if serving and serving.canary_share else versions[:2]
        wanted = [entry.version for entry in promoted[-1:]]
        self.fleet.tend([v for v in dict.fromkeys(needed) if v], {*versions, *wanted})

    def _watch(self) -> None:
        """Looks at a version that has a canary beside it, and takes it back or gives it all cases."""
        serving = self.serving
        if serving is None or not serving.canary_share:
            self.watch = ""
            return
        task = self.settings.task(self.task)
        if self.guard is None or self.guarded != serving:
            production = task.first_attempt == "production"
            self.guard = Guard(self.settings.gold, serving, task.rollout, production_first=production)
            self.guarded = serving
        finding = self.guard.look()
        self.watch = finding.reason
        if finding.decision == "drop":
            self._take_back(serving, finding)
        elif finding.decision == "as_good":
            self.writer.refresh()
            if self.serving == serving:
                reason = f"guard: {finding.reason}"
                self.writer.append(msgspec.structs.replace(serving, canary_share=0.0, reason=reason))
                log.info("%s: %s has all cases now: %s", self.task, serving.version, finding.reason)

    def _take_back(self, serving: AdapterRecord, finding: Finding) -> None:
        """Appends to the promotion log that the version before should serve; the next poll switches."""
        promoted = self._promoted()
        if not promoted or promoted[-1].version != serving.version:
            return  # somebody has decided otherwise meanwhile
        crash_point("rollout.before_rollback")
        registry, why = self.settings.adapters, finding.reason
        try:
            promote(registry, self.task, serving.previous, by="guard", reason=why, after=len(promoted))
        except Overtaken:
            return
        crash_point("rollout.after_rollback")
        log.error("%s: %s is taken back: %s", self.task, serving.version, finding.reason)
        before, now = serving.version, serving.previous
        self.webhook.send(make_event("rollback", self.task, now, previous=before, by="guard", reason=finding.reason))

    def _tell(self) -> None:
        """Writes the status file where something changed, atomically."""
        promoted, serving = self._known_promotions(), self.serving
        status = RolloutStatus(
            task=self.task,
            wanted=promoted[-1].version if promoted else "",
            serving=serving.version if serving else "",
            previous=serving.previous if serving else "",
            canary_share=serving.canary_share if serving else 0.0,
            servers=dict(self.fleet.states),
            watch=self.watch,
            errors={step.name: step.error for step in self.steps if step.error},
            updated_ms=self.status.updated_ms,
        )
        path = rollout_status_path(self.settings, self.task)
        if status == self.status and path.exists():
            return
        self.status = msgspec.structs.replace(status, updated_ms=int(time.time() * 1000))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")  # one writer: the lease's holder
            temporary.write_bytes(msgspec.json.encode(self.status))
            temporary.replace(path)
        except OSError as error:  # a full disk must not end the switching
            log.warning("%s: the status file cannot be written: %s", self.task, error)

    def _known_promotions(self) -> list[Promotion]:
        try:
            return self._promoted()
        except GoldstreamError:
            return []  # the switch step says so


def _read_patiently(records: RecordLog, stop: threading.Event) -> list[AdapterRecord] | None:
    """Reads the records once Kafka answers; None where stopped before."""
    while not stop.is_set():
        try:
            return records.read()
        except (GoldstreamError, OSError) as error:
            log.error("waiting for the adapter records: %s", error)
            stop.wait(FIRST_RETRY_S)
    return None
