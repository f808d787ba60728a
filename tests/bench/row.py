"""A row of the benchmark table: what is measured, ratios of paired measurements, cores and their seconds."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import psutil


class Row(NamedTuple):
    """What a row measures, against what, and what it is to reach."""

    name: str  # the module that measures it: bench.<name>, with `measure(room: Path) -> Result`
    what: str
    against: str
    target: float
    better: Literal["less", "more"]
    unit: str = "x"
    at_most_s: float = 300.0  # a row that takes longer is ended


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a row found. `figure` is compared with the row's target; `ours` and `theirs` say what stands behind it."""

    figure: float
    low: float | None = None  # of the paired ratios: lower and upper quartile
    high: float | None = None
    ours: str
    theirs: str = ""
    also: tuple[tuple[str, bool], ...] = ()  # further demands of the row: (what was found, whether it is met)
    versions: dict[str, str] = {}  # of what it was measured against
    detail: dict[str, Any] = {}

    def met(self, row: Row) -> bool:
        """Tells whether the target and all further demands are met."""
        reached = self.figure <= row.target if row.better == "less" else self.figure >= row.target
        return reached and all(one for _, one in self.also)


class Ratios(NamedTuple):
    """The median of paired ratios with its quartiles, and the medians of both sides."""

    median: float
    low: float
    high: float
    ours: float
    theirs: float


def paired(ours: Callable[[], float], theirs: Callable[[], float], rounds: int, warm: int = 1) -> Ratios:
    """Measures two sides in turns, in changing order, and returns ours / theirs; the first `warm` rounds do not count.

    Each side returns what it took (seconds, ms of CPU) or did (items a second).
    """
    pairs: list[tuple[float, float]] = []
    for number in range(rounds + warm):
        order = ("ours", "theirs") if number % 2 else ("theirs", "ours")
        took = {side: (ours if side == "ours" else theirs)() for side in order}
        if number >= warm:
            pairs.append((took["ours"], took["theirs"]))
    return ratios(pairs)


def ratios(pairs: Sequence[tuple[float, float]]) -> Ratios:
    """Returns the ratios ours / theirs of pairs already measured."""
    quotients = sorted(own / other for own, other in pairs)
    if len(quotients) > 1:
        low, _, high = statistics.quantiles(quotients, n=4, method="inclusive")
    else:
        low = high = quotients[0]
    return Ratios(
        statistics.median(quotients),
        low,
        high,
        statistics.median(own for own, _ in pairs),
        statistics.median(other for _, other in pairs),
    )


def cpu_s(process: psutil.Process) -> float:
    """Returns the seconds of CPU that a process has taken so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def cores() -> tuple[set[int], set[int]]:
    """Returns the cores for what is measured, and for stub and broker; the same where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return ({usable[-1]}, set(usable[:-1])) if len(usable) > 1 else (set(usable), set(usable))
