"""When a run starts: enough corrected rows, some that have waited long enough, or the clock.

`due` is a pure function of what came since the last run; trainer.service asks it every few seconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from schemas.gold import Watermark, read_outcomes
from schemas.settings import Trainer

HOUR_MS = 3_600_000
LONGEST_WAIT = 10  # times quiet_s, where gold never stops coming


class Arrivals(NamedTuple):
    """The gold of a task's train split that no run has seen yet."""

    corrected_ms: tuple[int, ...]  # when each corrected case ended, oldest first; its first attempt had failed
    rows: int  # those that passed at once included


def arrivals(gold: Path, task: str, above: Mapping[int, int], upto: Watermark, *, strategies: bool = True) -> Arrivals:
    """Returns the gold train rows with above <= offset < upto in each partition.

    A row written anew for a case that was gold below `above` already is new only where what is trained of it changed:
    an expert's edit does, a reworded strategy does where `strategies` are trained on; a strategy's new name, or an
    expert who agrees, does not.
    """
    columns = ("case_id", "epoch", "outcome", "split", "corrected", "ended_at", "kafka_partition", "kafka_offset")
    rows = read_outcomes(gold, columns, task=task, watermark=upto, above=above)
    rows = rows.filter(pc.and_(pc.equal(rows["outcome"], "gold"), pc.equal(rows["split"], "train")))
    places = zip(rows["kafka_partition"].to_pylist(), rows["kafka_offset"].to_pylist(), strict=True)
    rows = rows.filter(pa.array([offset >= above.get(partition, 0) for partition, offset in places], pa.bool_()))
    again = rows.filter(pc.greater(rows["epoch"], 0))["case_id"].to_pylist()
    if again:
        same = _unchanged(gold, task, again, above, upto, strategies)
        rows = rows.filter(pc.invert(pc.is_in(rows["case_id"], value_set=pa.array(sorted(same), pa.string()))))
    corrected = rows.filter(pc.fill_null(rows["corrected"], False))
    ended = pc.fill_null(pc.cast(corrected["ended_at"], "int64"), 0).to_pylist()
    return Arrivals(tuple(sorted(ended)), len(rows))


def _unchanged(
    gold: Path, task: str, case_ids: list[str], above: Mapping[int, int], upto: Watermark, strategies: bool
) -> set[str]:
    """Returns those of some cases that were gold at `above` with the text that they have at `upto`."""
    texts = ("answer", "answer_tool_calls", *(("strategy_mistake", "strategy_guardrail") if strategies else ()))

    def trained(watermark: Watermark) -> dict[str, tuple[str | None, ...]]:
        rows = read_outcomes(gold, ("case_id", "outcome", "split", *texts), task=task, watermark=watermark)
        wanted = pc.is_in(rows["case_id"], value_set=pa.array(case_ids, pa.string()))
        gold_rows = pc.and_(pc.equal(rows["outcome"], "gold"), pc.equal(rows["split"], "train"))
        found = rows.filter(pc.and_(wanted, gold_rows)).to_pylist()
        return {row["case_id"]: tuple(row[name] for name in texts) for row in found}

    before, now = trained(dict(above)), trained(upto)
    return {case_id for case_id, text in now.items() if before.get(case_id) == text}


def due(trainer: Trainer, new: Arrivals, *, last_ms: int, now_ms: int) -> str:
    """Returns why a run should start now, "" where none should.

    `last_ms` is when the last run began or, before the first, when watching began. The clock starts no run where no
    gold has come since: it would train the same adapter again.
    """
    corrected = len(new.corrected_ms)
    if corrected >= trainer.min_corrected_rows:
        return f"{corrected} new corrected rows, trainer.min_corrected_rows is {trainer.min_corrected_rows}"
    if trainer.max_age_hours:
        old = bisect_right(new.corrected_ms, now_ms - trainer.max_age_hours * HOUR_MS)
        if old >= trainer.min_rows_at_age:
            return (
                f"{old} corrected rows are older than trainer.max_age_hours {trainer.max_age_hours:g}, "
                f"trainer.min_rows_at_age is {trainer.min_rows_at_age}"
            )
    at_ms = next_scheduled(trainer, last_ms)
    if at_ms is not None and at_ms <= now_ms and new.rows:
        planned = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(" ", "minutes").replace("+00:00", " UTC")
        return f"it was planned for {planned}, and {new.rows} gold rows are new"
    return ""


def is_quiet(trainer: Trainer, since_last_s: float, since_first_s: float) -> bool:
    """Tells whether gold has stopped coming for now, or has come for so long that steady traffic must not wait more."""
    return since_last_s >= trainer.quiet_s or since_first_s >= LONGEST_WAIT * trainer.quiet_s


def next_scheduled(trainer: Trainer, last_ms: int) -> int | None:
    """Returns the first planned time after `last_ms`, ms since the epoch; None where no schedule is set."""
    times: list[int] = []
    if trainer.every_hours:
        times.append(last_ms + int(trainer.every_hours * HOUR_MS))
    if trainer.daily_at:
        hour, minute = map(int, trainer.daily_at.split(":"))
        last = datetime.fromtimestamp(last_ms / 1000, UTC)
        at = last.replace(hour=hour, minute=minute, second=0, microsecond=0)
        times.append(int((at if at > last else at + timedelta(days=1)).timestamp() * 1000))
    return min(times, default=None)
