"""How far a run is: a bar with the time left for people at a terminal, log lines now and then for everybody else.

trainer.run calls it with every step of trainer.loop.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TextIO

log = logging.getLogger("goldstream.trainer")

BAR_EVERY_S = 0.2
LINE_EVERY_S = 10.0
_WIDTH = 24


class ProgressReport:
    """Says what a run's step `step` of `steps` came to."""

    def __init__(self, task: str, stream: TextIO | None = None) -> None:
        self.task, self.stream = task, stream or sys.stderr
        self.first: tuple[int, float] | None = None  # step and time of the first call, for the time left
        self.said_at = -LINE_EVERY_S

    def __call__(self, step: int, steps: int, loss: float, tokens_per_s: float) -> None:
        """Draws the bar anew, or logs a line, where it is time to; always at the last step."""
        now = time.monotonic()
        first_step, first_at = self.first = self.first or (step, now)
        bar = self.stream.isatty()
        if step < steps and now - self.said_at < (BAR_EVERY_S if bar else LINE_EVERY_S):
            return
        self.said_at = now
        done = step - first_step
        left = time_left((now - first_at) / done * (steps - step)) if done and step < steps else ""
        if not bar:
            log.info(
                "%s: step %d of %d, loss %.3f, %.0f tokens/s%s",
                *(self.task, step, steps, loss, tokens_per_s, left and f", {left} left"),
            )
            return
        filled = _WIDTH * step // steps
        text = f"{self.task} [{'=' * filled}{' ' * (_WIDTH - filled)}] {step}/{steps}  loss {loss:.3f}"
        text += f"  {tokens_per_s:,.0f} tokens/s" + (f"  {left} left" if left else "")
        self.stream.write(f"\r\x1b[K{text}" + ("\n" if step == steps else ""))
        self.stream.flush()


def time_left(seconds: float) -> str:
    """Returns a duration as people say it: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
