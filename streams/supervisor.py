"""Starts Goldstream's processes, restarts those that die, and stops them together: `goldstream up` and the demo.

Each child is one `goldstream COMMAND` with the same settings; its output goes to <state>/logs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from schemas.errors import GoldstreamError
from schemas.process import NAME, ready_file
from schemas.settings import Settings

log = logging.getLogger(__name__)

BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
STEADY_S = 60.0  # a child that lived this long starts its backoff anew
STOP_TIMEOUT_S = 12.0  # beside what a worker's calls in flight are given to end


class Child:
    """One supervised process."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        settings: Settings,
        program: Sequence[str],
        backoff_s: Sequence[float] = BACKOFF_S,
    ) -> None:
        self.name = name
        self.restarts = 0
        self.environment: dict[str, str] = {}  # besides ours, from its next start on
        self.process: subprocess.Popen[bytes] | None = None
        self._command = [sys.executable, *program, *arguments]
        self._state = settings.state
        self._backoff_s = backoff_s
        self._failures = 0
        self._started = 0.0
        self._again = 0.0

    @property
    def log_path(self) -> Path:
        """Where its output goes."""
        return self._state / "logs" / f"{self.name}.log"

    @property
    def ready(self) -> bool:
        """Tells whether the present process has announced that it is working."""
        try:
            return self.process is not None and int(ready_file(self._state, self.name).read_text()) == self.process.pid
        except (OSError, ValueError):
            return False

    def start(self) -> None:
        """Starts the process."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {NAME: self.name, "PYTHONUNBUFFERED": "1"} | self.environment
        with self.log_path.open("ab") as output:
            self.process = subprocess.Popen(
                self._command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which then stops the children in order
            )
        self._started = time.monotonic()

    def check(self) -> str:
        """Restarts the process if it died and its backoff has passed; returns what happened, "" for nothing."""
        if self.process is None:
            if time.monotonic() < self._again:
                return ""
            self.restarts += 1
            self.start()
            return f"{self.name} restarted"
        code = self.process.poll()
        if code is None:
            return ""
        self._failures = 1 if time.monotonic() - self._started > STEADY_S else self._failures + 1
        pause_s = self._backoff_s[min(self._failures, len(self._backoff_s)) - 1]
        self._again = time.monotonic() + pause_s
        self.process = None
        return f"{self.name} ended ({_exit_text(code)}); again in {pause_s:.3g} s. Its log: {self.log_path}"

    def tail(self, lines: int = 5) -> str:
        """Returns the end of its log."""
        try:
            return "\n".join(self.log_path.read_text(errors="replace").strip().splitlines()[-lines:])
        except OSError:
            return ""


class Supervisor:
    """A set of children: `goldstream` commands, and other Python `programs` where a benchmark needs them.

    Use as a context manager: leaving it stops them all, also after an error.
    """

    def __init__(
        self,
        settings: Settings,
        commands: Mapping[str, Sequence[str]],
        programs: Mapping[str, Sequence[str]] | None = None,
        backoff_s: Sequence[float] = BACKOFF_S,
    ) -> None:
        ours = ["-m", "goldstream"]
        self.children = [Child(name, words, settings, ours, backoff_s) for name, words in commands.items()]
        self.children += [Child(name, words, settings, [], backoff_s) for name, words in (programs or {}).items()]
        self.peak_bytes = 0
        self._state = settings.state
        self._stop_timeout_s = STOP_TIMEOUT_S + settings.worker.drain_s

    def __enter__(self) -> Supervisor:
        for child in self.children:
            ready_file(self._state, child.name).unlink(missing_ok=True)
            child.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def check(self) -> list[str]:
        """Restarts what died; returns what happened, for people."""
        return [happened for child in self.children if (happened := child.check())]

    def wait_ready(self, timeout_s: float = 120.0) -> None:
        """Waits until every child has announced itself; raises GoldstreamError naming the one that does not."""
        deadline = time.monotonic() + timeout_s
        while waiting := [child for child in self.children if not child.ready]:
            for happened in self.check():
                log.warning("%s", happened)
            late = waiting[0]
            if time.monotonic() > deadline or late.restarts > 2:
                raise GoldstreamError(f"{late.name} did not come up; the end of {late.log_path}:\n{late.tail()}")
            self.measure()
            time.sleep(0.1)

    def measure(self, *besides: int) -> int:
        """Returns the resident memory of all children and `besides` in bytes, and remembers the peak.

        Proportional where the system tells it: pages that processes share count once.
        """
        pids = [child.process.pid for child in self.children if child.process is not None]
        total = sum(_memory_bytes(pid) for pid in [*pids, *besides, os.getpid()])
        self.peak_bytes = max(self.peak_bytes, total)
        return total

    def stop(self) -> None:
        """Stops the children in the order of the flow; kills those that do not end in time."""
        running = [child for child in self.children if child.process is not None]
        for child in running:
            with contextlib.suppress(ProcessLookupError):
                assert child.process is not None
                child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._stop_timeout_s
        for child in running:
            assert child.process is not None
            try:
                child.process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait(10)
            child.process = None


def _memory_bytes(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        info = process.memory_full_info()
        return int(getattr(info, "pss", 0) or info.rss)
    except psutil.Error:
        return 0


def _exit_text(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
