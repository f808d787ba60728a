"""Claims about when a run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from toys import STRATEGY, a_case, add_gold

from schemas.case import Case, Review
from schemas.gold import current_watermark
from schemas.settings import Trainer
from trainer.trigger import Arrivals, arrivals, due, is_quiet


def test_the_trigger_counts_corrected_gold_above_the_last_watermark_only(tmp_path: Path) -> None:
    add_gold(tmp_path, [a_case("old", "red", "stop")])
    above = current_watermark(tmp_path)
    fresh = [
        a_case("new", "red", "stop"),
        a_case("passed at once", "red", "stop", corrected=False),
        a_case("held", "red", "stop", split="holdout"),
        a_case("failed", "red", kind="unresolved"),
        a_case("other", "red", "stop", task="other"),
    ]
    add_gold(tmp_path, fresh)
    add_gold(tmp_path, [a_case("elsewhere", "red", "stop")], partition=1)
    upto = current_watermark(tmp_path)
    add_gold(tmp_path, [a_case("later", "red", "stop")])
    assert arrivals(tmp_path, "toy", {}, upto) == ((1, 1, 1), 4)
    assert arrivals(tmp_path, "toy", above, upto) == ((1, 1), 3)


def test_a_row_written_anew_is_new_only_where_what_is_trained_of_it_changed(tmp_path: Path) -> None:
    known = [a_case(str(n), "red", "stop", strategy=STRATEGY) for n in range(6)]
    known.append(a_case("6", "red", kind="unresolved"))
    add_gold(tmp_path, known)
    above = current_watermark(tmp_path)

    def anew(number: int, **changes: Any) -> Case:
        return msgspec.structs.replace(known[number], epoch=1, **changes)

    def edited(case: Case) -> Case:
        last = msgspec.structs.replace(case.attempts[-1], text="halt")
        return msgspec.structs.replace(case, attempts=(*case.attempts[:-1], last))

    reviewed = Review(decision="accept", by="ann", at_ms=1)
    add_gold(
        tmp_path,
        [
            anew(0, strategy=msgspec.structs.replace(STRATEGY, id="s-1")),  # merged: another name, the same words
            anew(1, review=reviewed),  # an expert agrees
            anew(2, strategy=msgspec.structs.replace(STRATEGY, guardrail="leave it out")),  # reworded: pair B
            edited(anew(3)),
            anew(4).ended("unresolved", "judge", 1, "rejected"),
            msgspec.structs.replace(a_case("6", "red", "stop"), epoch=1, review=reviewed),  # gold only now
        ],
    )
    upto = current_watermark(tmp_path)
    assert arrivals(tmp_path, "toy", above, upto).rows == 3
    assert arrivals(tmp_path, "toy", above, upto, strategies=False).rows == 2, "without pair B no rewording counts"
    assert arrivals(tmp_path, "toy", {}, upto).rows == 6


NOON = 1_763_640_000_000  # 2025-11-20 12:00 UTC
HOUR = 3_600_000


def came(*ages_h: float, passed: int = 0) -> Arrivals:
    """Corrected rows that ended this many hours before noon, and some that passed at once."""
    return Arrivals(tuple(sorted(int(NOON - age * HOUR) for age in ages_h)), len(ages_h) + passed)


@pytest.mark.parametrize(
    ("trainer", "new", "last_h", "starts"),
    [
        (Trainer(min_corrected_rows=2), came(1, 1), 1, "2 new corrected rows"),
        (Trainer(min_corrected_rows=2), came(1, passed=50), 1, ""),
        (Trainer(min_corrected_rows=9), came(90, 90, 90), 99, ""),  # age counts for nothing unless it is set
        (Trainer(max_age_hours=6, min_rows_at_age=2), came(7, 6, 1), 9, "2 corrected rows are older"),
        (Trainer(max_age_hours=6, min_rows_at_age=2), came(7, 5, 1), 9, ""),
        (Trainer(every_hours=3), came(passed=1), 3, "planned for 2025-11-20 12:00 UTC"),
        (Trainer(every_hours=3), came(passed=1), 2.9, ""),
        (Trainer(every_hours=3), came(), 99, ""),  # the clock trains nothing twice
        (Trainer(daily_at="11:30"), came(1), 2, "planned for 2025-11-20 11:30 UTC"),
        (Trainer(daily_at="11:30"), came(1), 0.25, ""),  # today's was done
        (Trainer(daily_at="12:30"), came(1), 2, ""),
        (Trainer(daily_at="12:30"), came(1), 30, "planned for 2025-11-19 12:30 UTC"),  # missed while it was down
        (Trainer(daily_at="23:00", every_hours=1), came(1), 2, "planned for 2025-11-20 11:00 UTC"),
    ],
)
def test_a_run_starts_by_number_by_age_or_by_the_clock(
    trainer: Trainer, new: Arrivals, last_h: float, starts: str
) -> None:
    said = due(trainer, new, last_ms=int(NOON - last_h * HOUR), now_ms=NOON)
    assert starts in said
    assert bool(said) == bool(starts)


@pytest.mark.parametrize(
    ("since_last_s", "since_first_s", "quiet"),
    [(2.9, 2.9, False), (3.0, 3.0, True), (0.5, 29.0, False), (0.5, 30.0, True), (4.0, 30.0, True)],
)
def test_a_due_run_waits_for_quiet_and_steady_traffic_cannot_put_it_off_for_ever(
    since_last_s: float, since_first_s: float, quiet: bool
) -> None:
    assert is_quiet(Trainer(quiet_s=3.0), since_last_s, since_first_s) is quiet
    assert is_quiet(Trainer(), 0.0, 0.0)


@pytest.mark.parametrize("time_of_day", ["24:00", "7:30", "12:60", "noon"])
def test_a_time_of_day_that_is_none_is_refused(time_of_day: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"daily_at": time_of_day}, Trainer)
