"""The sink's spans: one for each landing file, linked to the cases in it, and the last one of each of these cases."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any, NamedTuple

from opentelemetry.trace import SpanKind

from schemas.tracing.context import Parent, parent_in
from schemas.tracing.sdk import MOST_LINKS, Tracer, parent_of


class _Read(NamedTuple):
    offset: int
    case_id: str
    parent: Parent
    at_ns: int


class Landing:
    """What the sink has read of sampled cases and not written yet, by partition."""

    def __init__(self, tracer: Tracer, topic: str, group: str) -> None:
        self._tracer, self._topic, self._group = tracer, topic, group
        self._waiting: dict[Any, list[_Read]] = defaultdict(list)

    def read(self, partition: Any, record: Any) -> None:
        """Notes a record that a writer took."""
        parent = parent_in(record.headers)
        if parent is not None and parent.sampled:
            key = (record.key or b"").decode("utf-8", "replace")
            self._waiting[partition].append(_Read(record.offset, key, parent, time.time_ns()))

    def dropped(self, partition: Any) -> None:
        """Forgets a partition that changed hands: its next owner reads it again."""
        self._waiting.pop(partition, None)

    def written(self, partition: Any, tip: int) -> None:
        """Makes the spans of a file that holds everything below `tip`.

        A span links to MOST_LINKS cases at most; a larger file's says how many it holds.
        """
        found = [one for one in self._waiting[partition] if one.offset < tip]
        if not found:
            return
        self._waiting[partition] = [one for one in self._waiting[partition] if one.offset >= tip]
        place = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.destination.name": self._topic,
            "messaging.destination.partition.id": str(partition.partition),
            "messaging.consumer.group.name": self._group,
            "goldstream.stage": "sink",
        }
        batch = self._tracer.start(
            f"land {self._topic}",
            SpanKind.CONSUMER,
            attributes={
                **place,
                "messaging.operation.name": "land",
                "messaging.batch.message_count": len(found),
                "goldstream.tip": tip,
            },
            links=[one.parent for one in found[:MOST_LINKS]],
            start_ns=found[0].at_ns,
        )
        landed = parent_of(batch)
        for one in found:
            span = self._tracer.start(
                f"process {self._topic}",
                SpanKind.CONSUMER,
                one.parent,
                attributes={
                    **place,
                    "messaging.operation.name": "process",
                    "messaging.kafka.offset": one.offset,
                    "goldstream.case_id": one.case_id,
                },
                links=[landed],
                start_ns=one.at_ns,
            )
            span.end()
        batch.end()
