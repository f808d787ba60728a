"""The live guard: is the adapter that serves now worse, on the same traffic, than the one before?

Rollout asks it after every switch that left a canary share on the version before. It reads how first attempts ended
from the gold set; what it finds is a function of those rows alone, so a restart forgets nothing.

The test. A hash put every case in an arm, so while the two versions are equally good, an arm says nothing about how a
case ends. Rows are cut into blocks of 20, in the order of each partition. Within a block, given how many rows each arm
has (m of n are new) and how many failed (k), the failures of the new arm are hypergeometric, whatever the traffic does
between blocks: a topic that becomes hard fails both arms of its blocks. The evidence of a block for failure odds that
are w times higher is the likelihood ratio w^x / E[w^X]; multiplied over blocks and averaged over some w, it is a
martingale that starts at 1. By Ville's inequality it ever reaches 1/alpha with a probability of at most alpha, however
often one looks (Fisher's exact test made sequential; the odds ratio is that of the noncentral hypergeometric law).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow.compute as pc

from schemas.adapters import AdapterRecord
from schemas.gold import Watermark, current_watermark, read_outcomes
from schemas.settings import Rollout

BLOCK = 20  # rows; what is conditioned away is about one row of them
ODDS = (1.25, 1.5, 2.0, 3.0, 5.0)  # how many times higher the odds of failing may be; each weighs the same

_COLUMNS = ("case_id", "epoch", "outcome", "stage", "first_attempt_passed", "first_adapter", "created_at")
_PLACE = ("kafka_partition", "kafka_offset")


class Trial(NamedTuple):
    """One first attempt since the switch."""

    new: bool  # made by the version that serves; else by the canary's
    passed: bool


class Block(NamedTuple):
    """Some trials in a row, counted."""

    new: int
    old: int
    failed_new: int
    failed_old: int


class Finding(NamedTuple):
    """What a look at the gold set found."""

    decision: Literal["watching", "drop", "as_good"]
    reason: str  # for people
    new: int = 0  # first attempts by the version that serves
    old: int = 0  # by the canary's
    passed_new: int = 0
    passed_old: int = 0
    evidence: float = 1.0  # reaches 1/alpha by chance with probability alpha at most
    drop: float = 0.0  # of the pass rate, stratified by block


class Guard:
    """Watches one switch; `look` reads what is new since the last look."""

    def __init__(self, gold: Path, record: AdapterRecord, rollout: Rollout, *, production_first: bool = False) -> None:
        self._gold, self._record, self._rollout = gold, record, rollout
        self._production_first = production_first
        self._read: Watermark = {}
        self._trials: dict[int, list[Trial]] = {}  # by partition, in the order of offsets

    def look(self) -> Finding:
        """Reads new rows and decides; raises ChainBroken where the gold set is damaged."""
        watermark = current_watermark(self._gold)
        if watermark != self._read:
            for partition, trial in self._new_trials(watermark):
                self._trials.setdefault(partition, []).append(trial)
            self._read = watermark
        return judge(self._trials.values(), self._record, self._rollout)

    def _new_trials(self, watermark: Watermark) -> Iterable[tuple[int, Trial]]:
        """Yields the first attempts that count, with their partition.

        - Only cases admitted since the switch, at their first epoch.
        - Only where the version of the case's arm answered: one that fell back to another says nothing about either.
        - A case that died at the student counts as failed: an adapter that answers nothing must not look untried.
        """
        columns = (*_COLUMNS, *(("production_answer",) if self._production_first else ()), *_PLACE)
        record, task = self._record, self._record.task
        rows = read_outcomes(self._gold, columns, task=task, watermark=watermark, above=self._read)
        since = pc.greater_equal(pc.cast(rows["created_at"], "int64"), record.at_ms)
        for row in rows.filter(since).to_pylist():
            if row["epoch"] or row.get("production_answer"):  # the latter's first attempt was no student's
                continue
            new = not record.in_canary(row["case_id"])
            died = row["outcome"] == "dead" and row["stage"] == "student"
            answered = row["first_adapter"] == (record.version if new else record.previous)
            if died or (answered and row["first_attempt_passed"] is not None):
                yield row["kafka_partition"], Trial(new, bool(row["first_attempt_passed"]) and not died)


def judge(partitions: Iterable[Sequence[Trial]], record: AdapterRecord, rollout: Rollout) -> Finding:
    """Decides on a switch from the trials of every partition, oldest first."""
    partitions = list(partitions)
    blocks = [block for trials in partitions for block in cut(trials)]
    new = sum(trial.new for trials in partitions for trial in trials)
    old = sum(map(len, partitions)) - new
    passed_new = sum(trial.new and trial.passed for trials in partitions for trial in trials)
    passed_old = sum(not trial.new and trial.passed for trials in partitions for trial in trials)
    found = evidence(blocks)
    drop = stratified_drop(blocks)
    figures = (
        f"first attempts since the switch pass {_rate(passed_new, new)} with {record.version} and "
        f"{_rate(passed_old, old)} with {record.previous or 'the base'}"
    )
    decision: Literal["watching", "drop", "as_good"] = "watching"
    if found >= 1 / rollout.significance and drop >= rollout.min_drop:
        decision = "drop"
        figures += f": a drop of {drop:.1%} on the same traffic, evidence {found:.3g} of {1 / rollout.significance:g}"
    elif old >= rollout.watch_cases:
        decision = "as_good"
        figures += f": no significant drop in {old} canary cases"
    return Finding(decision, figures, new, old, passed_new, passed_old, found, drop)


def cut(trials: Sequence[Trial]) -> list[Block]:
    """Returns the complete blocks of a partition; they never change when rows come after."""
    blocks = []
    for start in range(0, len(trials) - BLOCK + 1, BLOCK):
        block = trials[start : start + BLOCK]
        new = sum(trial.new for trial in block)
        failed_new = sum(trial.new and not trial.passed for trial in block)
        failed_old = sum(not trial.new and not trial.passed for trial in block)
        blocks.append(Block(new, len(block) - new, failed_new, failed_old))
    return blocks


def evidence(blocks: Iterable[Block]) -> float:
    """Returns the evidence that the new version fails more often; at least 1/alpha by chance with probability alpha."""
    logs = [0.0] * len(ODDS)
    for block in blocks:
        weights = _log_expected(block.new, block.old, block.failed_new + block.failed_old)
        for i, odds in enumerate(ODDS):
            logs[i] += block.failed_new * math.log(odds) - weights[i]
    highest = max(logs)
    return math.exp(min(highest, 700.0)) * sum(math.exp(log - highest) for log in logs) / len(logs)


def stratified_drop(blocks: Iterable[Block]) -> float:
    """Returns pass rate before minus after, each block weighed by new*old/(new+old) (Mantel and Haenszel)."""
    above = below = 0.0
    for new, old, failed_new, failed_old in blocks:
        if new and old:
            above += (failed_new * old - failed_old * new) / (new + old)
            below += new * old / (new + old)
    return above / below if below else 0.0


@cache
def _log_expected(new: int, old: int, failed: int) -> tuple[float, ...]:
    """Returns log E[w^X] for each w of ODDS; X of `failed` failures fall on the new arm, hypergeometrically."""
    ways = {
        x: math.comb(new, x) * math.comb(old, failed - x) for x in range(max(0, failed - old), min(new, failed) + 1)
    }
    total = math.comb(new + old, failed)
    return tuple(math.log(sum(count * odds**x for x, count in ways.items()) / total) for odds in ODDS)


def _rate(passed: int, cases: int) -> str:
    return f"{passed / cases:.1%} of {cases}" if cases else "none of 0"
