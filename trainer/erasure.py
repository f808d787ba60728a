"""What the trainer's files hold of the forgotten, and taking it out: gate pages, and data of runs that were killed.

Weights cannot be made to forget; schemas.lineage tells which to train anew. Figures of a gate stay: they are numbers
about an adapter, and the same questions are asked again, less the forgotten. `goldstream forget` calls `erase_texts`;
the trainer's service before every run, for what was forgotten on another machine, and behind every gate, for what was
forgotten while it ran.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from threading import Event

import msgspec

from schemas.forgotten import read_forgotten
from schemas.gold import read_outcomes
from schemas.settings import Settings
from trainer.holdout import HOLDOUT
from trainer.registry import GATE, REPORT, lease, replace_file
from trainer.report import without_examples

RUN_DATA = "job.msgpack"  # the examples of a run on several devices, as tokens


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """What was taken out of the trainer's files, or would be."""

    pages: tuple[str, ...] = ()  # "task/version", whose gate.html had a text of theirs
    holdout: dict[str, int] = {}  # cases that leave the frozen holdout, by task
    runs: tuple[str, ...] = ()  # unfinished runs whose data was removed; they begin anew


def erase_texts(settings: Settings, case_ids: Collection[str], dry_run: bool = False) -> Erased:
    """Takes the texts of forgotten cases out of the trainer's files, and returns what that was.

    `case_ids` are the cases besides those that the gold set knows to be forgotten. A gate at work now asks what it
    had read when it began; its page is cleaned as soon as it lies there. Can be repeated.
    """
    pages: list[str] = []
    holdout: dict[str, int] = {}
    runs: list[str] = []
    registry = settings.adapters
    for folder in sorted(path for path in registry.glob("*") if path.is_dir()):
        task = folder.name
        gone = _gone(settings, task, case_ids)
        if not gone:
            continue
        pages += _clean_pages(registry, task, gone, dry_run)
        left = len(_frozen(folder) & gone)
        if left:
            holdout[task] = left
        runs += _clean_runs(settings, task, dry_run)
    return Erased(pages=tuple(pages), holdout=holdout, runs=tuple(runs))


def _gone(settings: Settings, task: str, case_ids: Collection[str]) -> set[str]:
    """Returns the cases that the task's files name and the gold set no longer shows, where anything is forgotten."""
    named = set(case_ids)
    if read_forgotten(settings.gold):
        shown = {case for folder in _versions(settings.adapters, task) for case in _examples(folder)}
        shown |= _frozen(settings.adapters / task)
        if shown:
            there = set(read_outcomes(settings.gold, ("case_id",), task=task)["case_id"].to_pylist())
            named |= shown - there
    return named


def _clean_pages(registry: Path, task: str, gone: set[str], dry_run: bool) -> list[str]:
    cleaned = []
    for folder in _versions(registry, task):
        page = folder / REPORT
        try:
            before = page.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # there is none, or its weights were removed and the page with them
        after = without_examples(before, gone)
        if after != before:
            cleaned.append(f"{task}/{folder.name}")
            if not dry_run:
                name = str(page.relative_to(registry / task))
                replace_file(registry, task, name, after.encode("utf-8", "replace"))
    return cleaned


def _clean_runs(settings: Settings, task: str, dry_run: bool) -> list[str]:
    """Removes what killed runs have left of their data; a trainer at work keeps its own, and drops it at its end."""
    found = sorted((settings.state / "trainer" / "runs" / task).glob(f"*/**/{RUN_DATA}"))
    if not found:
        return []
    with lease(settings.adapters / task / "lease", Event(), wait=False) as held:
        if held is None:
            return []
        if not dry_run:
            for path in found:
                path.unlink(missing_ok=True)
        return [f"{task}/{path.relative_to(settings.state / 'trainer' / 'runs' / task).parts[0]}" for path in found]


def _versions(registry: Path, task: str) -> list[Path]:
    return sorted(path for path in (registry / task).glob("v*") if path.is_dir())


def _examples(folder: Path) -> set[str]:
    """Returns the cases whose texts a gate page may show, as its gate.json names them."""
    try:
        report = msgspec.json.decode((folder / GATE).read_bytes())
        return {example["case_id"] for example in report.get("examples", [])}
    except (OSError, msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return set()


def _frozen(folder: Path) -> set[str]:
    try:
        return set(msgspec.json.decode((folder / HOLDOUT).read_bytes(), type=list[str]))
    except (OSError, msgspec.DecodeError):
        return set()
