"""Keeping what a run was trained on: trained_on.parquet, written beside the weights before they are published.

schemas.lineage reads it back, from either side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.adapters import read_manifest
from schemas.errors import AdapterError, TrainingError
from schemas.forgotten import read_forgotten
from schemas.gold import read_outcomes
from schemas.lineage import TRAINED_ON, TRAINED_ON_SCHEMA, read_trained_on, version_folder
from schemas.settings import Settings
from trainer.dataset import Example

ROW_COLUMNS = ("case_id", "pairs", "times", "epochs", "through", "now")


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


def trained_rows(settings: Settings, task: str, version: str) -> list[tuple[str, str, int, float, str, str]]:
    """Returns the rows a version was trained on as rows of ROW_COLUMNS, with those of the versions it went on from.

    `times` counts a case's sequences in one pass. Raises AdapterError for the base, and where no record was kept.
    """
    if not version:
        raise AdapterError("the base was trained on no row of yours; name a version of `goldstream adapters list`.")
    there = set(read_outcomes(settings.gold, ("case_id",), task=task)["case_id"].to_pylist())
    rows: list[tuple[str, str, int, float, str, str]] = []
    through = version
    while through:
        folder = version_folder(settings.adapters, task, through)
        manifest, uses = read_manifest(folder), read_trained_on(folder)
        if uses is None:
            raise AdapterError(
                f"{through} keeps no record of its rows; it was trained before there was one. All gold of the train "
                f"split below its watermark may be in it: goldstream gold sql ... --as-of {task}/{through}"
            )
        epochs = float(manifest.settings.get("epochs", 1))
        pairs: dict[str, dict[str, int]] = {}
        for use in uses:
            pairs.setdefault(use.case_id, {})[use.pair] = use.times
        rows += [
            (case_id, "+".join(kinds), sum(kinds.values()), epochs, "" if through == version else through,
             "in the gold set" if case_id in there else "forgotten or gone")
            for case_id, kinds in pairs.items()
        ]  # fmt: skip
        through = manifest.initial
    return rows
