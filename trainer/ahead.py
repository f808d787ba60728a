"""Preparing a task's next run while its gold lands, a little at a time; trainer.service calls it between its looks.

What it does a run would do itself: whatever goes wrong here, the run meets again and tells.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from schemas.gold import Watermark
from schemas.settings import Settings
from trainer.dataset import tokenise_ahead, train_rows
from trainer.resident import Resident

log = logging.getLogger("goldstream.trainer")


class Ahead:
    """One task's preparation: rows up to `wanted` tokenised, torch imported, the base loaded."""

    def __init__(self, settings: Settings, task: str, resident: Resident) -> None:
        self.settings, self.task, self.resident = settings, task, resident
        self.wanted: Watermark = {}
        self._done: Watermark = {}
        self._steps: Iterator[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether something is left to do."""
        return self._steps is not None

    def want(self, watermark: Watermark) -> None:
        """Asks for everything below a watermark."""
        if self.resident.limit and watermark != self.wanted:
            self.wanted = watermark
            self._steps = self._prepare(watermark)

    def go_on(self, seconds: float) -> None:
        """Goes on for about so long; the first import of torch takes longer."""
        until = time.monotonic() + seconds
        try:
            while self._steps is not None and time.monotonic() < until:
                next(self._steps)
        except StopIteration:
            self._steps = None
        except Exception as error:  # its text may hold a prompt's
            self._steps = None
            log.debug("%s: not prepared any further: %s", self.task, type(error).__name__)

    def _prepare(self, watermark: Watermark) -> Iterator[None]:
        task = self.settings.task(self.task)
        pairs = self.resident.pairs(self.settings.gold)
        yield
        above = self._done if len(pairs) else {}  # of another tokenizer, or emptied by a forgetting: all rows
        rows = train_rows(self.settings.gold, self.task, watermark, task.trainer.recipe, above)
        yield from tokenise_ahead(
            rows, pairs, task.trainer, student_model=task.student.model, tools=task.carry_over.tools
        )
        self._done = watermark
        if task.trainer.processes == 1 and not self.resident.has_model and self.resident.may_keep():
            yield
            from trainer.distributed import this_world  # with torch, which the service idles without
            from trainer.forward import read_base
            from trainer.loop import train_lora as train_lora  # imported for the run to come

            yield
            device = this_world().device
            self.resident.keep(read_base(self.resident.base, task.trainer, device), task.trainer, device.type)
