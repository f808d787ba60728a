"""How far each group is behind, as series: by partition under kminion's names, and by stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from schemas.metrics import Labels
from schemas.settings import Settings
from streams.backlog import Backlog, BacklogReader
from streams.exporter import families as f


class LagReading:
    """Reads backlogs over one connection, made anew after an error."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reader: BacklogReader | None = None

    def read(self) -> None:
        """Shows what a reading finds. Raises BrokerError, and shows nothing then: no lag is better than an old one."""
        try:
            if self._reader is None:
                self._reader = BacklogReader(self._settings).__enter__()
            show_backlog(self._settings, self._reader.read())
        except Exception:
            for family in f.LAG_FAMILIES:
                family.set({})
            self.close()
            raise

    def close(self) -> None:
        """Closes the connection."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.__exit__()


def show_backlog(settings: Settings, rows: Sequence[Backlog]) -> None:
    """Shows one reading."""
    ends = {(row.topic, str(row.partition)): float(row.end) for row in rows}
    f.HIGH_WATER_MARK.set(ends)
    f.HIGH_WATER_MARK_SUM.set(((topic,), end) for (topic, _), end in ends.items())
    by_group: dict[str, list[Backlog]] = defaultdict(list)
    by_topic: dict[Labels, list[Backlog]] = defaultdict(list)
    for row in rows:
        by_group[row.group].append(row)
        by_topic[settings.topic(row.group), row.topic].append(row)
    f.MEMBERS.set({(settings.topic(group),): float(own[0].members) for group, own in by_group.items()})
    f.TOPIC_MEMBERS.set({key: float(len(_members(own))) for key, own in by_topic.items()})
    f.ASSIGNED.set({key: float(sum(bool(row.member) for row in own)) for key, own in by_topic.items()})
    f.OFFSET_SUM.set({key: float(sum(row.committed or 0 for row in own)) for key, own in by_topic.items()})
    f.PARTITION_LAG.set(((settings.topic(row.group), row.topic, str(row.partition)), float(row.lag)) for row in rows)
    f.TOPIC_LAG.set({key: float(sum(row.lag for row in own)) for key, own in by_topic.items()})
    f.STAGE_LAG.set({(group,): float(sum(row.lag for row in own)) for group, own in by_group.items()})
    f.STAGE_TREND.set(((row.group,), row.trend) for row in rows if row.trend is not None)
    f.STAGE_AGE.set(_ages(by_group))


def _members(rows: Iterable[Backlog]) -> set[str]:
    return {row.member for row in rows if row.member}


def _ages(by_group: dict[str, list[Backlog]]) -> dict[Labels, float]:
    """Returns the oldest age by stage and topic; none where something waits and its age is not known."""
    found: dict[Labels, float] = {}
    for group, rows in by_group.items():
        for topic in dict.fromkeys(row.topic for row in rows):
            waiting = [row for row in rows if row.topic == topic and row.lag]
            ages = [row.oldest_s for row in waiting if row.oldest_s is not None]
            if ages or not waiting:
                found[group, topic] = max(ages, default=0.0)
    return found
