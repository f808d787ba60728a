"""What `goldstream audit` counts: cases on their way and rows of the gold set, each source record at its furthest."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from kafka import TopicPartition
from numpy.typing import NDArray

from schemas.case import Source
from schemas.settings import Settings
from schemas.topics import ACCEPTED, ATTEMPTS, OUTCOMES, PROMPTS, REFINE
from streams.gold import open_gold


class Place(NamedTuple):
    """A source record; one that holds several calls is named once for each that is missing."""

    topic: str
    partition: int
    offset: int


class Waiting(NamedTuple):
    """Cases of one source topic that lie before one stage."""

    source: str
    topic: str  # ours
    cases: int


class _Verdict(msgspec.Struct, frozen=True):
    passed: bool


class _Try(msgspec.Struct, frozen=True):
    verdict: _Verdict | None = None


class _End(msgspec.Struct, frozen=True):
    kind: str


class Glance(msgspec.Struct, frozen=True, kw_only=True):
    """What of a case tells which one it is and how far it is; the rest is not decoded."""

    case_id: str
    source: Source
    epoch: int = 0
    attempts: tuple[_Try, ...] = ()
    retries: int = 0
    outcome: _End | None = None


class Books:
    """Cases on their way and the rows of the gold set in one DuckDB, each source record once at its furthest."""

    def __init__(
        self, settings: Settings, moving: Iterable[tuple[Glance | None, str]], cluster: str, topics: list[str] | None
    ) -> None:
        self.notes: list[str] = []
        self.counts: dict[Any, dict[str, Any]] = {}  # source partition -> fields of its balance
        self.waiting: list[Waiting] = []
        on_their_way = self._furthest(moving, cluster, topics)
        self._gold: Path = settings.gold
        self._connection = open_gold(self._gold)
        self._connection.register("moving", on_their_way)
        self._connection.execute(_ROWS, {"topics": topics})
        self._connection.execute(_KNOWN, {"cluster": cluster})
        self._count(settings)
        foreign = self._connection.execute(_FOREIGN, [cluster]).fetchall()
        self.notes += [f"{n} rows were read from another cluster, {name}; not compared" for name, n in foreign]

    def __enter__(self) -> Books:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def offsets(self, tp: Any) -> NDArray[np.int64]:
        """Returns the source offsets of a partition that some case accounts for, sorted."""
        result = self._connection.execute(_OFFSETS, [tp.topic, tp.partition]).fetchnumpy()
        return np.asarray(result["source_offset"], np.int64)

    def incomplete(self, tp: Any, first: int, position: int) -> list[Place]:
        """Returns the records of several calls that lack some, once for each, at first <= offset < position."""
        result = self._connection.execute(_INCOMPLETE, [tp.topic, tp.partition, first, position]).fetchall()
        return [Place(tp.topic, tp.partition, offset) for offset, lacking in result for _ in range(lacking)]

    def double(self) -> list[dict[str, Any]]:
        """Returns the cases that have more than one row of an epoch, and the records that became two cases."""
        found = []
        for query in (_TWICE, _TWO_CASES):
            result = self._connection.execute(query)
            names = [column[0] for column in result.description or []]
            found += [dict(zip(names, row, strict=True)) for row in result.fetchall()]
        return found

    def _furthest(
        self, moving: Iterable[tuple[Glance | None, str]], cluster: str, topics: list[str] | None
    ) -> pa.Table:
        best: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        strangers = undecodable = 0
        order = {name: number for number, name in enumerate((PROMPTS, ATTEMPTS, REFINE, ACCEPTED, OUTCOMES))}
        for case, name in moving:
            if case is None:
                undecodable += 1
                continue
            source = case.source
            if source.cluster != cluster:
                strangers += 1
                continue
            if topics is not None and source.topic not in topics:
                continue
            judged = bool(case.attempts) and case.attempts[-1].verdict is not None
            ended = case.outcome is not None
            # Among copies of a case the furthest has most behind it; a retry topic comes before what it returns to.
            rank = (case.epoch, ended, len(case.attempts), judged, case.retries, order.get(name, -1))
            place = (source.topic, source.partition, source.offset, source.index)
            if place not in best or rank > best[place][0]:
                best[place] = (rank, source.count, case.epoch, int(ended), name)
        if undecodable:
            self.notes.append(f"{undecodable} messages on our topics are no cases; they become dead, undecodable_case")
        if strangers:
            self.notes.append(f"{strangers} cases on our topics were read from another cluster; not compared")
        rows = [(*place, *rest) for place, (_, *rest) in best.items()]
        columns: list[Any] = list(zip(*rows, strict=True)) or [[] for _ in _MOVING]
        return pa.table([pa.array(values, field.type) for values, field in zip(columns, _MOVING, strict=True)], _MOVING)

    def _count(self, settings: Settings) -> None:
        ours = re.compile(
            re.escape(settings.kafka.topic_prefix) + r"(prompts|attempts|refine|accepted|retry\.\d+s|outcomes)"
        )
        waiting: dict[tuple[str, str], int] = {}
        strays = 0
        for topic, partition, step, name, number in self._connection.execute(_COUNTS).fetchall():
            if ours.fullmatch(topic):  # a message of ours that was no case: its coordinates are on our own topics
                strays += number
                continue
            counts = self.counts.setdefault(
                TopicPartition(topic, partition), {"records": 0, "ended": {}, "in_flight": 0, "not_landed": 0}
            )
            counts["records"] += number
            if step == _LANDED:
                counts["ended"][name] = number
            elif step == _ENDED:
                counts["not_landed"] += number
            else:
                counts["in_flight"] += number
                waiting[topic, name] = waiting.get((topic, name), 0) + number
        self.waiting = [Waiting(source, settings.topic(name), n) for (source, name), n in sorted(waiting.items())]
        if strays:
            self.notes.append(f"{strays} messages on our own topics were no cases and are dead, undecodable_case")


_MOVING_STEP, _ENDED, _LANDED = 0, 1, 2

_MOVING = pa.schema(
    [
        ("source_topic", pa.string()),
        ("source_partition", pa.int32()),
        ("source_offset", pa.int64()),
        ("source_index", pa.int32()),
        ("source_count", pa.int32()),
        ("epoch", pa.int32()),
        ("step", pa.int32()),
        ("name", pa.string()),
    ]
)

_PLACE = "source_topic, source_partition, source_offset, source_index"

_ROWS = f"""
CREATE TEMP TABLE written AS
SELECT source_cluster, {_PLACE}, coalesce(source_count, 1) AS source_count, case_id, epoch,
       if(gone.kind IS NULL, outcome, 'dropped') AS outcome
FROM stored LEFT JOIN (FROM forgotten WHERE kind = 'row') AS gone  -- a forgotten row ends as dropped once erased
  ON kafka_partition = gone."partition" AND kafka_offset = gone."offset"
WHERE $topics IS NULL OR list_contains($topics, source_topic)
"""

# A source record is where its latest epoch is; of one epoch, a row says more than a message.
_KNOWN = f"""
CREATE TEMP TABLE known AS
SELECT * FROM (
  SELECT {_PLACE}, source_count, epoch, {_LANDED} AS step, outcome AS name FROM written WHERE source_cluster = $cluster
  UNION ALL
  SELECT {_PLACE}, source_count, epoch, step, name FROM moving
)
QUALIFY row_number() OVER (PARTITION BY {_PLACE} ORDER BY epoch DESC, step DESC) = 1
"""

_COUNTS = "SELECT source_topic, source_partition, step, name, count(*) FROM known GROUP BY ALL ORDER BY ALL"

_OFFSETS = """
SELECT DISTINCT source_offset FROM known WHERE source_topic = ? AND source_partition = ? ORDER BY source_offset
"""

_INCOMPLETE = """
SELECT source_offset, max(source_count) - count(*) AS lacking FROM known
WHERE source_topic = ? AND source_partition = ? AND source_offset >= ? AND source_offset < ?
GROUP BY source_offset HAVING lacking > 0 ORDER BY source_offset
"""

_FOREIGN = "SELECT source_cluster, count(*) FROM written WHERE source_cluster <> ? GROUP BY ALL ORDER BY ALL"

_TWICE = """
SELECT 'rows of one case' AS what, case_id, epoch, count(*) AS rows
FROM written GROUP BY case_id, epoch HAVING count(*) > 1 ORDER BY case_id
"""

_TWO_CASES = f"""
SELECT 'cases of one record' AS what, {_PLACE}, epoch, list(DISTINCT case_id ORDER BY case_id) AS case_ids
FROM written GROUP BY source_cluster, {_PLACE}, epoch HAVING count(DISTINCT case_id) > 1 ORDER BY ALL
"""
