"""Puts superseded files aside before they go: not listed by a query that begins, opened by one that has begun.

A client with views.sql lists files and opens them afterwards, so that a removed name fails its query. Aside means: the
file lies under superseded/<time>/, and its old name is a symbolic link to it, which DuckDB's `**` does not list. The
link takes the name's place in one step. cleaning decides what is put aside, and when it goes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from schemas.faults import crash_point
from streams.compaction.rewrite import TEMP
from streams.durable import make_folder

_FOLDER = "superseded"


def put_aside(gold: Path, path: Path, now_ms: int) -> None:
    """Makes a file's name a link to the file; nothing where it is one. Killed anywhere, the name still leads to it."""
    if path.is_symlink():
        if not path.exists():  # a power cut took the file and left its link
            path.unlink()
        return
    kept = gold / _FOLDER / f"{now_ms:013d}" / path.relative_to(gold)
    make_folder(kept.parent)
    if not kept.exists():  # by one that was killed before it had made the link
        os.link(path, kept)
        crash_point("compact.after_aside")
    link = gold / "tmp" / f"{TEMP}link"  # under the compaction lock: nobody else makes one
    link.unlink(missing_ok=True)
    link.symlink_to(_target(kept, path))
    link.replace(path)
    crash_point("compact.after_link_aside")


def remove_aside(gold: Path, grace_s: float, now_ms: int) -> Iterator[str]:
    """Removes what was put aside longer ago than the grace period, and yields where it had lain, below `gold`."""
    for at_ms, folder in _folders(gold):
        if now_ms - at_ms < grace_s * 1000:
            continue
        for kept in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = kept.relative_to(folder)
            link = gold / name
            if link.is_symlink() and link.readlink() == _target(kept, link):
                link.unlink()
                crash_point("compact.after_link_removal")
            kept.unlink()
            yield name.as_posix()
        for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            inner.rmdir()
        folder.rmdir()


def oldest_aside_ms(gold: Path) -> int | None:
    """Returns when the oldest of what lies aside was put there; None where there is nothing."""
    return min((at_ms for at_ms, _ in _folders(gold)), default=None)


def _target(kept: Path, link: Path) -> Path:
    return Path(os.path.relpath(kept, link.parent))  # so that the gold set can be moved


def _folders(gold: Path) -> list[tuple[int, Path]]:
    folder = gold / _FOLDER
    if not folder.is_dir():
        return []
    return sorted((int(path.name), path) for path in folder.iterdir() if path.name.isdigit())
