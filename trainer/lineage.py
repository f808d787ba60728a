"""Keeping what a run was trained on: trained_on.parquet, written beside the weights before they are published.

schemas.lineage reads it back, from either side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import TrainingError
from schemas.forgotten import read_forgotten
from schemas.gold import read_outcomes
from schemas.lineage import TRAINED_ON, TRAINED_ON_SCHEMA
from trainer.dataset import Example


class ForgottenMeanwhile(TrainingError):
    """A case was forgotten while a run trained on it; the run is dropped, and the next leaves the case out."""


def write_trained_on(out: Path, examples: Sequence[Example]) -> Path:
    """Writes which pairs of which cases a run was trained on, and how often each in one pass over the data."""
    counted = Counter((example.case_id, example.branch) for example in examples)
    columns = list(zip(*((*key, times) for key, times in sorted(counted.items())), strict=True)) or [(), (), ()]
    path = out / TRAINED_ON
    pq.write_table(pa.table([list(column) for column in columns], schema=TRAINED_ON_SCHEMA), path, compression="zstd")
    return path


def refuse_forgotten(gold: Path, task: str, case_ids: Iterable[str]) -> None:
    """Raises ForgottenMeanwhile where a case of a run is forgotten by now, so that its adapter is not published."""
    if not read_forgotten(gold):
        return
    there = set(read_outcomes(gold, ("case_id",), task=task)["case_id"].to_pylist())
    gone = set(case_ids) - there
    if gone:
        raise ForgottenMeanwhile(
            f"{len(gone)} of the cases that {task} was being trained on were forgotten meanwhile. The run is dropped "
            "before anything of it is published; the next one starts at once, without them."
        )
