"""What each adapter was trained on, case by case, and from a case back to the adapters.

The trainer puts trained_on.parquet beside the weights, its SHA-256 in the manifest. It holds ids and counts, no text;
it stays when the weights are removed, and when a case is forgotten: it is what tells who must be trained anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.adapters import MANIFEST, VERSION, AdapterManifest, read_manifest
from schemas.errors import AdapterError
from schemas.promotions import promotions

TRAINED_ON = "trained_on.parquet"
TRAINED_ON_SCHEMA = pa.schema([("case_id", pa.string()), ("pair", pa.string()), ("times", pa.int32())])

Place = tuple[int, int]  # partition and offset of a row on gs.outcomes


class Use(NamedTuple):
    """One pair of one case in one run: A is prompt -> answer, B prompt -> strategy, answer."""

    case_id: str
    pair: str
    times: int  # in one pass over the data


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter owes to some cases. `pairs` counts sequences in one pass, which `epochs` multiply.

    Where no record was kept, as before there were any, `recorded` is false and `cases` counts those of the task's train
    split below its watermark: it may have been trained on them.
    """

    task: str
    version: str
    cases: int
    pairs: dict[str, int] = {}
    epochs: float = 0.0
    inherited_from: str = ""  # it went on from this version, which was trained on them
    recorded: bool = True
    removed: bool = False  # its weights are gone
    serves: bool = False  # it is the one that should serve now


class Row(NamedTuple):
    """What must be known of a case to find its adapters."""

    case_id: str
    task: str
    split: str
    place: Place


def read_trained_on(folder: Path) -> list[Use] | None:
    """Returns what a version was trained on; None where no record was kept. Raises AdapterError for a damaged one."""
    path = folder / TRAINED_ON
    try:
        rows = pq.ParquetFile(path).read().to_pylist()
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        raise AdapterError(f"{path} cannot be read ({error}); restore the version from a backup.") from error
    return [Use(row["case_id"], row["pair"], row["times"]) for row in rows]


def adapters_of(registry: Path, rows: Collection[Row]) -> list[Trained]:
    """Returns the adapters that were trained on any of these rows, oldest first, with how much of each.

    An adapter that went on from another has also learned what that one had.
    """
    found: list[Trained] = []
    for task in sorted({row.task for row in rows}):
        mine = [row for row in rows if row.task == task]
        wanted = {row.case_id for row in mine}
        log = promotions(registry, task)
        serving = log[-1].version if log else ""
        touched: dict[str, Trained] = {}
        for folder, manifest in _versions(registry, task):
            trained = _trained(folder, manifest, mine, wanted, manifest.version == serving)
            before = touched.get(manifest.initial)
            if trained is None and before is not None:
                origin = before.inherited_from or before.version
                trained = msgspec.structs.replace(
                    before,
                    version=manifest.version,
                    inherited_from=origin,
                    removed=_is_removed(folder),
                    serves=manifest.version == serving,
                )
            if trained is not None:
                touched[manifest.version] = trained
        found += touched.values()
    return found


def version_folder(registry: Path, task: str, version: str) -> Path:
    """Returns the folder of a version, or what is kept of one whose weights were removed."""
    folder = registry / task / version
    return folder if (folder / MANIFEST).is_file() else registry / task / "removed" / version


def _trained(
    folder: Path, manifest: AdapterManifest, rows: list[Row], wanted: set[str], serves: bool
) -> Trained | None:
    uses = read_trained_on(folder)
    touched = Trained(
        task=manifest.task,
        version=manifest.version,
        cases=0,
        epochs=float(manifest.settings.get("epochs", 1)),
        recorded=uses is not None,
        removed=_is_removed(folder),
        serves=serves,
    )
    if uses is None:
        cases = {row.case_id for row in rows if row.split == "train" and _below(row.place, manifest.watermark)}
        return msgspec.structs.replace(touched, cases=len(cases)) if cases else None
    mine = [use for use in uses if use.case_id in wanted]
    pairs = {pair: sum(use.times for use in mine if use.pair == pair) for pair in sorted({use.pair for use in mine})}
    return msgspec.structs.replace(touched, cases=len({use.case_id for use in mine}), pairs=pairs) if mine else None


def _versions(registry: Path, task: str) -> Iterable[tuple[Path, AdapterManifest]]:
    folders = [*(registry / task).glob("v*"), *(registry / task / "removed").glob("v*")]
    named = [folder for folder in folders if VERSION.fullmatch(folder.name) and (folder / MANIFEST).is_file()]
    for folder in sorted(named, key=lambda one: (int(one.name[1:].partition("-")[0]), one.name)):
        yield folder, read_manifest(folder)


def _below(place: Place, watermark: dict[int, int]) -> bool:
    return place[1] < watermark.get(place[0], 0)


def _is_removed(folder: Path) -> bool:
    return folder.parent.name == "removed"
