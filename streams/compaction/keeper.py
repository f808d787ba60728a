"""Compaction beside the sink: starts it as a process of its own when it is due, so that the sink never waits for it."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from schemas.errors import Fenced, GoldstreamError
from schemas.gold import landing_folder, landing_name, landing_partitions, landing_starts
from schemas.manifests import latest_manifest
from schemas.settings.gold import Gold
from streams.compaction.cleaning import next_at_ms
from streams.compaction.plan import why_due

log = logging.getLogger("goldstream.sink")

_LOOK_EVERY_S = 5.0
_AFTER_FAILURE_S = 60.0
_NICENESS = 10
_STOP_S = 10.0


class Keeper:
    """Looks every few seconds whether compaction is due; the sink calls `tick` every turn and `stop` at the end."""

    def __init__(self, gold: Path, settings: Gold, clock: Callable[[], float] = time.monotonic) -> None:
        self._gold, self._settings, self._clock = gold, settings, clock
        self._next = clock() + _LOOK_EVERY_S
        self._process: subprocess.Popen[bytes] | None = None

    def tick(self) -> None:
        """Notes the end of a compaction, and starts one where it is due."""
        if not self._settings.compact or self._clock() < self._next:
            return
        self._next = self._clock() + _LOOK_EVERY_S
        if self._process is not None:
            if self._process.poll() is None:
                return
            if self._process.returncode > 0:
                log.warning("compaction ended with %d; its own lines say why", self._process.returncode)
                self._next = self._clock() + _AFTER_FAILURE_S
                self._process = None
                return
            self._process = None
        why = due(self._gold, self._settings)
        if why is None and _past_grace(self._gold, self._settings):
            why = "files past their grace period"
        if why is not None:
            log.info("compaction is due: %s", why)
            self._process = start(self._gold, self._settings)

    def stop(self) -> None:
        """Ends a compaction that runs; killed at any instruction it loses nothing."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None


def due(gold: Path, settings: Gold) -> str | None:
    """Returns why compaction is due, from names alone; None while it is not."""
    watermark = latest_manifest(gold).watermark
    paths = [
        landing_folder(gold, partition) / landing_name(partition, start)
        for partition in landing_partitions(gold)
        for start in landing_starts(gold, partition)
        if start >= watermark.get(partition, 0)
    ]
    oldest_s = max((time.time() - path.stat().st_mtime for path in paths), default=0.0)
    return why_due(len(paths), oldest_s, settings)


def _past_grace(gold: Path, settings: Gold) -> bool:
    at_ms = next_at_ms(gold, settings.grace_s)
    return at_ms is not None and time.time() * 1000 >= at_ms


def start(gold: Path, settings: Gold) -> subprocess.Popen[bytes]:
    """Starts a compaction as a process of its own, in no hurry; it ends with this one."""
    said = msgspec.json.encode(msgspec.structs.replace(settings, publish=type(settings.publish)()))
    return subprocess.Popen(
        [sys.executable, "-m", "streams.compaction.keeper", str(gold), said.decode()], stdin=subprocess.DEVNULL
    )


def main() -> None:
    """The process: compacts once. `python -m streams.compaction.keeper GOLD SETTINGS`, with the settings as JSON."""
    import signal

    from schemas.process import signal_at_parents_death, work_in_background
    from streams.compaction.compact import compact

    signal_at_parents_death(signal.SIGTERM)
    work_in_background(_NICENESS)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    settings = msgspec.json.decode(sys.argv[2], type=Gold)
    try:
        report = compact(Path(sys.argv[1]), settings)
    except Fenced:
        return  # another is at work
    except GoldstreamError as error:
        log.error("%s", error)
        sys.exit(1)
    log.info(
        "compacted %d landing files, merged %d: %d rows in %.1f s; the gold set is %d files",
        report.landing_files, report.merged_files, report.rows, report.seconds, report.files,
    )  # fmt: skip


if __name__ == "__main__":
    main()
