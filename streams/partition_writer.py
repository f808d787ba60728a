"""One partition of gs.outcomes on its way into landing files: the sink's rules, with no Kafka in sight.

streams.sink feeds it records in offset order; what it writes is the chain of streams.landing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import pyarrow as pa

from schemas.case import Case, Source, coordinates_id, decode_case
from schemas.errors import GoldError, RecordError
from schemas.forgotten import Forgotten, bare_case, bare_row
from schemas.measures import SINK_REPEATS
from schemas.outcomes import outcome_row, outcome_table
from schemas.settings import Sink as SinkSettings
from streams.dedup import COLUMNS, OutcomeIndex
from streams.landing import LandingChain
from streams.measuring import count_written

log = logging.getLogger("goldstream.sink")

BYTES_PER_FILE = 64 << 20  # of messages; bounds the memory of a partition
_LAST_MS = 253_402_300_799_000  # the end of the year 9999, the last a date can have


class Record(Protocol):
    """What of a Kafka record the sink looks at."""

    offset: int
    value: bytes | None
    timestamp: int  # ms, -1 where unknown


class PartitionWriter:
    """The rows of one partition on their way to the next landing file.

    The range of that file runs from the chain's tip to the last offset consumed, with no gap: offsets that carry
    no record (transaction markers, compacted records) belong to it too.
    """

    def __init__(
        self,
        chain: LandingChain,
        *,
        start: int,
        cluster: str,
        topic: str,
        settings: SinkSettings,
        clock: Callable[[], float] = time.monotonic,
        forgotten: Callable[[], Forgotten] = Forgotten,
        split_key: str = "",  # of the hashes that tell what is forgotten
    ) -> None:
        self.chain = chain
        self.start = self.end = start
        self.index = OutcomeIndex()
        self.index.load(chain.rows(COLUMNS))
        self._cluster, self._topic = cluster, topic
        self._settings = settings
        self._clock = clock
        self._forgotten, self._split_key = forgotten, split_key
        self._rows: list[dict[str, Any]] = []
        self._timestamps_ms: list[int] = []  # of the rows' records
        self._bytes = 0
        self._since_s = 0.0  # when the first offset of the range arrived

    def add(self, record: Record) -> None:
        """Takes the record at the next offset; raises GoldError for one that lies behind it.

        A message that is no ended case becomes a dead row of its own and never stops the chain.
        """
        if record.offset < self.end:
            raise GoldError(
                f"{self._topic}-{self.chain.partition} went back from offset {self.end} to {record.offset}: the topic "
                "was truncated or made anew under a gold set that is ahead of it. Give the new topic another state_dir."
            )
        self.reached(record.offset + 1)
        self._bytes += len(record.value or b"")
        try:
            row = self._row(record)
        except (RecordError, ValueError, OverflowError, OSError) as error:  # dates beyond the calendar raise the last
            row = self._dead_row(record.offset, record.timestamp, str(error))
        if row is None:
            SINK_REPEATS.add()
        else:
            self._rows.append(row)
            self._timestamps_ms.append(record.timestamp)

    def reached(self, position: int) -> None:
        """Notes that every offset below `position` has been consumed."""
        if position > self.end:
            if self.end == self.start:
                self._since_s = self._clock()
            self.end = position

    @property
    def due(self) -> bool:
        """Whether the range is long, large or old enough for a file."""
        return self.end > self.start and (
            len(self._rows) >= self._settings.rows_per_file
            or self._bytes >= BYTES_PER_FILE
            or self._clock() - self._since_s >= self._settings.seconds_per_file
        )

    def forget(self) -> None:
        """Leaves nothing of the rows that wait for their file and were forgotten meanwhile."""
        forgotten, key = self._forgotten(), self._split_key
        self._rows = [bare_row(row) if forgotten.covers_row(row, key) else row for row in self._rows]

    def flush(self) -> int | None:
        """Writes the range to a landing file and returns the new tip; None where nothing was consumed."""
        if self.end == self.start:
            return None
        try:
            table = outcome_table(self._rows)
        except (pa.ArrowException, ValueError, OverflowError, TypeError):
            table = outcome_table(list(map(self._sound, self._rows, self._timestamps_ms)))
        path = self.chain.write(self.start, self.end, table)
        count_written(table, path)
        log.info("wrote %s: offsets %d to %d, %d rows", path.name, self.start, self.end, len(table))
        self.start, self._bytes = self.end, 0
        self._rows, self._timestamps_ms = [], []
        return self.end

    def _row(self, record: Record) -> dict[str, Any] | None:
        case = decode_case(record.value)
        if case.outcome is None:
            raise RecordError("undecodable_case", f"case {case.case_id} has no outcome; only ended cases belong here")
        if self._forgotten().covers(case, self._split_key):
            case = bare_case(case, case.outcome.stage, case.outcome.at_ms)
        admitted = self.index.admit(case)
        return outcome_row(admitted, self.chain.partition, record.offset) if admitted else None

    def _dead_row(self, offset: int, timestamp_ms: int, detail: str) -> dict[str, Any]:
        at_ms = min(max(timestamp_ms, 0), _LAST_MS)
        source = Source(
            cluster=self._cluster,
            topic=self._topic,
            partition=self.chain.partition,
            offset=offset,
            timestamp_ms=at_ms,
        )
        case = Case(case_id=coordinates_id(source), task="", split="train", source=source, created_ms=at_ms)
        case = case.ended("dead", "sink", at_ms, "undecodable_case", detail)
        # There is no case to redrive: the message stays where the coordinates say.
        return outcome_row(case, self.chain.partition, offset) | {"case_json": None}

    def _sound(self, row: dict[str, Any], timestamp_ms: int) -> dict[str, Any]:
        """Returns the row, or a dead row in its place where a value does not fit its column."""
        try:
            outcome_table([row])
            return row
        except (pa.ArrowException, ValueError, OverflowError, TypeError) as error:
            return self._dead_row(row["kafka_offset"], timestamp_ms, f"{type(error).__name__}: a value fits no column")
