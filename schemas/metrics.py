"""What processes count and show: families of series, kept in plain dictionaries.

Counting is a dictionary entry, so that it may stand where a case passes, and needs no package: the trainer on a GPU
machine may have none. schemas.metrics_server turns families into what Prometheus reads. Every label has few values,
from the settings or from tables of ours; ids never are one. Which families a process shows is in schemas.measures.
"""

from __future__ import annotations

import contextlib
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Labels = tuple[str, ...]  # values, in the order of the family's label names

MOST_SERIES = 2000  # of a family; what would be more is counted under OTHER
OTHER = "other"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 45.0)  # the last: an event's deadline


class Sample(NamedTuple):
    """One line of a scrape. `suffix` follows the family's name: _total, _bucket, _sum or _count."""

    suffix: str
    labels: dict[str, str]
    value: float


class _Added:
    """Numbers by labels that are counted here, or read from a source at each scrape."""

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = name, help, tuple(labels)
        self._values: dict[Labels, float] = {}
        self._source: Callable[[], Mapping[Any, float]] = dict

    def add(self, *labels: str, by: float = 1.0) -> None:
        """Changes a series by `by`. One thread writes a family; a scrape reads beside it."""
        values = self._values
        if labels in values:
            values[labels] += by
        else:
            labels = _bounded(labels, values)
            values[labels] = values.get(labels, 0.0) + by

    def read_from(self, source: Callable[[], Mapping[Any, float]]) -> None:
        """Takes what `source` has counted already, at each scrape and from its thread."""
        self._source = source


class Counter(_Added):
    """Numbers that only grow, by labels. Its name here is without _total."""

    kind = "counter"

    @contextlib.contextmanager
    def seconds(self, *labels: str) -> Iterator[None]:
        """Counts the seconds that a block takes."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(*labels, by=time.perf_counter() - started)

    def samples(self) -> list[Sample]:
        """Returns the lines of a scrape."""
        found = {**({} if self.labels else {(): 0.0}), **self._values.copy(), **self._source()}
        return [Sample("_total", _named(self.labels, key), value) for key, value in sorted(found.items())]


class Gauge(_Added):
    """Numbers that rise and fall, by labels."""

    kind = "gauge"

    def set(self, values: Mapping[Any, float] | Iterable[tuple[Labels, float]]) -> None:
        """Replaces all series at once; of those with the same labels the values are added."""
        found: dict[Labels, float] = {}
        for labels, value in values.items() if isinstance(values, Mapping) else values:
            labels = _bounded(labels, found)
            found[labels] = found.get(labels, 0.0) + value
        self._values = found

    def put(self, *labels: str, value: float) -> None:
        """Replaces one series."""
        self._values[_bounded(labels, self._values)] = value

    def samples(self) -> list[Sample]:
        """Returns the lines of a scrape."""
        found = {**self._values.copy(), **self._source()}
        return [Sample("", _named(self.labels, key), value) for key, value in sorted(found.items())]


class Histogram:
    """How often something took how many seconds, by labels."""

    kind = "histogram"

    def __init__(self, name: str, help: str, labels: Sequence[str] = (), bounds: Sequence[float] = SECONDS) -> None:
        self.name, self.help, self.labels, self.bounds = name, help, tuple(labels), tuple(bounds)
        self._values: dict[Labels, list[float]] = {}  # a count a bucket, +Inf the last, and then the sum

    def add(self, *labels: str, seconds: float) -> None:
        """Notes one that took `seconds`."""
        values = self._values.get(labels)
        if values is None:
            labels = _bounded(labels, self._values)
            values = self._values.setdefault(labels, [0.0] * (len(self.bounds) + 2))
        values[bisect_left(self.bounds, seconds)] += 1
        values[-1] += seconds

    def samples(self) -> list[Sample]:
        """Returns the lines of a scrape; the count is that of the last bucket, also while one is being noted."""
        found: list[Sample] = []
        for key, kept in sorted(self._values.copy().items()):
            labels, reached = _named(self.labels, key), 0.0
            for bound, count in zip((*map(_plain, self.bounds), "+Inf"), kept.copy(), strict=False):
                reached += count
                found.append(Sample("_bucket", labels | {"le": bound}, reached))
            found += [Sample("_count", labels, reached), Sample("_sum", labels, kept[-1])]
        return found


Family = Counter | Gauge | Histogram


def known(value: str, table: Iterable[str]) -> str:
    """Returns a label's value if it is one of a table's, else OTHER; "" stays ""."""
    return value if not value or value in table else OTHER


def _bounded(labels: Labels, values: Mapping[Labels, object]) -> Labels:
    return labels if labels in values or len(values) < MOST_SERIES else (OTHER,) * len(labels)


def _named(names: Sequence[str], values: Labels) -> dict[str, str]:
    return dict(zip(names, values, strict=True))


def _plain(bound: float) -> str:
    return str(float(bound))
