"""Gold rows that share runs of words with the holdout, for `goldstream contamination`. Training leaves out some.

Both sides are streamed from DuckDB, gold twice: first to tell the template that its prompts share with the holdout's.
In memory are the holdout's runs, 18 bytes each, a number for each different prompt, and the rows that are shown.
"""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

from schemas.ngrams import HeldOut
from schemas.settings import Settings
from streams.gold import open_gold

_ROWS = 1000  # at a time


class Contaminated(NamedTuple):
    """One gold row, and the held-out case it has most in common with."""

    overlap: float  # share of its runs of words, of prompt or answer, whichever is larger
    runs: int
    case_id: str
    holdout: str
    left_out: bool  # of training, by trainer.max_overlap


class Contamination(NamedTuple):
    """What the check found in one task."""

    task: str
    holdout: int
    gold: int
    sharing: int  # gold rows with any run in common
    left_out: int  # of them, by trainer.max_overlap
    max_overlap: float
    worst: list[Contaminated]


def contamination(settings: Settings, task: str, show: int = 20) -> Contamination:
    """Compares a task's gold rows with its holdout."""
    limit = settings.task(task).trainer.max_overlap
    holdout = HeldOut()
    gold = sharing = left_out = 0
    worst: list[tuple[float, int, str, str, bool]] = []
    with open_gold(settings.gold) as connection:
        held = connection.execute("SELECT case_id, prompt, production_answer FROM holdout WHERE task = ?", [task])
        for case_id, prompt, answer in _each(held):
            holdout.add(case_id, prompt, answer)
        gold_rows = "SELECT case_id, prompt, answer FROM gold WHERE task = ? AND split = 'train' ORDER BY "
        if len(holdout):
            for _, prompt, answer in _each(connection.execute(gold_rows + "kafka_partition, kafka_offset", [task])):
                holdout.count(prompt, answer)
        rows = connection.execute(gold_rows + "case_id", [task])
        for case_id, prompt, answer in _each(rows):
            gold += 1
            found = holdout.overlap(prompt, answer)
            if not found.runs:
                continue
            out = found.share > limit
            sharing, left_out = sharing + 1, left_out + out
            entry = (found.share, found.runs, case_id, found.case_id, out)
            if len(worst) < show:
                heapq.heappush(worst, entry)
            elif show:
                heapq.heappushpop(worst, entry)
    shown = [Contaminated(*entry) for entry in sorted(worst, reverse=True)]
    return Contamination(task, len(holdout), gold, sharing, left_out, limit, shown)


def _each(result: Any) -> Any:
    while rows := result.fetchmany(_ROWS):
        yield from rows
