"""A look at folders that costs next to nothing: has something come since the last one?

Trainer and rollout ask 20 times a second, and do their real work, which opens files, only where it is so. Folders tell
when an entry came or went, but on some network file systems late: nobody relies on a glance alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event
from typing import NamedTuple

GLANCE_S = 0.05
TICK_NS = 20_000_000  # file systems stamp with a clock of 1 to 10 ms


class Glance(NamedTuple):
    """When some folders last changed; where two glances differ, something came or went between them."""

    times: tuple[tuple[str, int], ...]
    settled: bool  # False: something may come in the same tick of the file system's clock, and not show

    def is_old(self, folders: Iterable[Path]) -> bool:
        """Tells whether something may have come since."""
        return not self.settled or glance(folders).times != self.times


def glance(folders: Iterable[Path]) -> Glance:
    """Looks at folders without opening anything; one that is not there never changed."""
    times = tuple((str(folder), _changed_ns(folder)) for folder in folders)
    newest = max((changed for _, changed in times), default=0)
    return Glance(times, abs(time.time_ns() - newest) > TICK_NS)


def wait_for_news(
    seen: Glance,
    folders: Callable[[], Iterable[Path]],
    stop: Event,
    longest_s: float,
    meanwhile: Callable[[], bool] = lambda: False,
) -> None:
    """Waits until something may have come since `seen` or `stop` is set, `longest_s` at most.

    `meanwhile` works for a moment and tells whether it has more to do; there is no pause then.
    """
    until = time.monotonic() + longest_s
    while not stop.is_set() and (left_s := until - time.monotonic()) > 0:
        if not meanwhile():
            stop.wait(min(GLANCE_S, left_s))
        if seen.is_old(folders()):
            return


def gold_folders(gold: Path) -> list[Path]:
    """Returns the folders where something comes when a gold set grows, is compacted or forgets."""
    landing = gold / "landing"
    return [gold / "manifests", gold / "forgotten", landing, *sorted(landing.glob("p=*"))]


def _changed_ns(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
