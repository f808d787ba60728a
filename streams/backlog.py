"""`goldstream lag`: what each consumer group has yet to read, how that changes, how old it is and who reads it.

Groups are ours; intake's topics are the product's own. The columns are those of `kafka-consumer-groups`, with the trend
between two readings and the age of the oldest record that waits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from kafka import TopicPartition
from kafka.errors import KafkaError

from schemas.errors import BrokerError
from schemas.settings import Settings
from streams.lag import Lag, LagReader
from streams.lookup import make_reader

STEADY = 0.05  # records/s; a smaller change is none
FETCH_S = 3.0  # to look at the oldest records; an age that is not known by then is left out


class Backlog(NamedTuple):
    """One partition as a group sees it."""

    group: str
    topic: str
    partition: int
    end: int
    committed: int | None  # None where the group has never committed
    lag: int
    trend: float | None  # records/s by which lag grows, negative where it shrinks; None before the second reading
    oldest_s: float | None  # age of the oldest record that waits; None where none does, or it could not be read
    member: str  # client that reads it, "" for none
    members: int  # of the group


class BacklogReader:
    """Reads backlogs over connections it keeps, each reading compared with the one before. A context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lag = LagReader(settings)
        self._before: dict[tuple[str, str, int], tuple[float, int]] = {}
        self._oldest_ms: dict[tuple[str, str, int], int] = {}  # when the oldest record that waits was written
        self._owners: dict[str, dict[tuple[str, int], str]] = {}

    def __enter__(self) -> BacklogReader:
        self._lag.__enter__()
        self._reader = make_reader(self._settings)
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.close()
        self._lag.__exit__(*error)

    def read(self, look: bool = True) -> list[Backlog]:
        """Returns one row per group, topic and partition. Raises BrokerError where no Kafka answers.

        Without `look` only offsets are read, which is cheap: ages and members are those of the last look.
        """
        rows, now = self._lag.read(), time.monotonic()
        if look:
            self._oldest_ms = self._first_written(rows)
            try:
                self._owners = self._lag.members(dict.fromkeys(row.group for row in rows))
            except KafkaError as error:
                raise BrokerError(f"groups could not be described: {error!r}. Try `goldstream doctor`.") from error
        ages = {key: max(time.time() - written / 1000, 0.0) for key, written in self._oldest_ms.items()}
        found = []
        for row in rows:
            key = (row.group, row.topic, row.partition)
            before = self._before.get(key)
            trend = None if before is None or now <= before[0] else (row.lag - before[1]) / (now - before[0])
            self._before[key] = now, row.lag
            members = self._owners.get(row.group, {})
            found.append(
                Backlog(
                    group=row.group,
                    topic=row.topic,
                    partition=row.partition,
                    end=row.end,
                    committed=row.committed if row.committed >= 0 else None,
                    lag=row.lag,
                    trend=None if trend is None else 0.0 if abs(trend) < STEADY else trend,
                    oldest_s=ages.get(key) if row.lag else None,
                    member=members.get((row.topic, row.partition), ""),
                    members=len({client for client in members.values() if client}),
                )
            )
        return found

    def _first_written(self, rows: Sequence[Lag]) -> dict[tuple[str, str, int], int]:
        """Returns when the first record each group has yet to read was written, in ms, where it can be read in time."""
        waiting = {(row.group, row.topic, row.partition): row for row in rows if row.lag}
        written: dict[tuple[str, str, int], int] = {}
        by_group: dict[str, list[Lag]] = {}
        for row in waiting.values():
            by_group.setdefault(row.group, []).append(row)
        for group, behind in by_group.items():
            for (topic, partition), timestamp in self._first_timestamps(behind).items():
                written[group, topic, partition] = timestamp
        return written

    def _first_timestamps(self, behind: Sequence[Lag]) -> dict[tuple[str, int], int]:
        tps = {TopicPartition(row.topic, row.partition): row for row in behind}
        found: dict[tuple[str, int], int] = {}
        try:
            self._reader.assign(list(tps))
            for tp, row in tps.items():
                if row.committed >= 0:
                    self._reader.seek(tp, row.committed)
                else:
                    self._reader.seek_to_beginning(tp)
            deadline = time.monotonic() + FETCH_S
            while len(found) < len(tps) and time.monotonic() < deadline:
                for tp, records in self._reader.poll(timeout_ms=200).items():
                    if records:
                        found.setdefault((tp.topic, tp.partition), records[0].timestamp)
                        self._reader.pause(tp)
        except KafkaError as error:
            raise BrokerError(f"records could not be read: {error!r}. Is the broker up? `goldstream doctor`") from error
        finally:
            self._reader.resume(*self._reader.paused())
        return found


def totals(rows: Sequence[Backlog]) -> list[list[Any]]:
    """Returns a line per group: group, topics, lag, trend, oldest_s, members."""
    lines = []
    for group in dict.fromkeys(row.group for row in rows):
        own = [row for row in rows if row.group == group]
        trends = [row.trend for row in own if row.trend is not None]
        ages = [row.oldest_s for row in own if row.oldest_s is not None]
        lines.append(
            [
                group,
                len({row.topic for row in own}),
                sum(row.lag for row in own),
                sum(trends) if trends else None,
                max(ages, default=None),
                own[0].members,
            ]
        )
    return lines
