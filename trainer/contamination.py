"""Leaving out of training what the gate's questions would give away; called by trainer.run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import TrainingError
from schemas.gold import read_outcomes
from schemas.ngrams import TEMPLATE_PROMPTS, HeldOut
from schemas.outcomes import row_messages

_BATCH = 1000


def held_out(gold: Path, task: str, watermark: Mapping[int, int]) -> HeldOut:
    """Returns the runs of words of a task's holdout below the watermark: its prompts and what was answered to them."""
    rows = read_outcomes(gold, ("case_id", "outcome", "prompt", "production_answer"), task=task, watermark=watermark)
    rows = rows.filter(pc.equal(rows["outcome"], "holdout"))
    found = HeldOut()
    for batch in rows.to_batches(max_chunksize=_BATCH):
        for row in batch.to_pylist():
            found.add(row["case_id"], row["prompt"], row["production_answer"])
    return found


def uncontaminated(
    rows: pa.Table, gold: Path, task: str, watermark: Mapping[int, int], max_overlap: float
) -> tuple[pa.Table, int]:
    """Returns the rows that share no more than `max_overlap` of their runs of words with the holdout, and how many do.

    The holdout is that of the watermark too, so that a run that is continued leaves out the same rows. The template of
    a product's prompts is told from these rows and the holdout. Raises TrainingError where nothing is left: while there
    are few different prompts, a template cannot be told from a copy.
    """
    if max_overlap >= 1 or not len(rows):
        return rows, 0
    holdout = held_out(gold, task, watermark)
    if not len(holdout):
        return rows, 0
    kept = [found.share <= max_overlap for found in holdout.overlaps(_asked_and_answered(rows))]
    if not any(kept):
        raise TrainingError(
            f"nothing to train on: each of {len(rows)} rows shares more than trainer.max_overlap ({max_overlap:g}) of "
            f"its runs of words with the holdout of {len(holdout)}. A template looks like a copy until "
            f"{TEMPLATE_PROMPTS} different prompts have it: let more come, see `goldstream contamination`, or switch "
            "this off with max_overlap = 1."
        )
    return rows.filter(pa.array(kept, pa.bool_())), kept.count(False)


def _asked_and_answered(rows: pa.Table) -> Iterator[tuple[str, str | None]]:
    for batch in rows.select(["messages", "answer"]).to_batches(max_chunksize=_BATCH):
        for row in batch.to_pylist():
            yield next((m.text() for m in reversed(row_messages(row)) if m.role == "user"), ""), row["answer"]
