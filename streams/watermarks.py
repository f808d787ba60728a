"""Points in the gold set's time: per partition, the first offset that is not in it.

A query, an export or a comparison `--as-of` one sees the rows below it and nothing that came later. An adapter's
manifest pins the one it was trained at; `goldstream gold watermark` prints today's, to be kept in a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from schemas.adapters import MANIFEST, VERSION, read_manifest
from schemas.errors import GoldError
from schemas.gold import Watermark, current_watermark
from schemas.settings import Settings
from streams.landing import cannot_open

NOW, START = "now", "start"


def find_watermark(settings: Settings, name: str) -> Watermark:
    """Returns the watermark that a name means: now, start, an adapter version, or a JSON file.

    A version is its name, its number or TASK/VERSION. A file holds {"partition": offset}, or has such an object
    under "watermark", as an adapter's manifest and an export.json have. Raises GoldError where there is none of the
    name, where two tasks have one, and where it says more than has landed.
    """
    if name == NOW:
        return _now(settings.gold)
    if name == START:
        return {}
    path = Path(name)
    found = _of_file(path) if path.is_file() else _of_version(settings, name)
    return _landed(settings, name, found)


def to_json(watermark: Watermark) -> str:
    """Returns a watermark as the JSON that `find_watermark` reads from a file."""
    return msgspec.json.encode({str(p): watermark[p] for p in sorted(watermark)}).decode()


def _now(gold: Path) -> Watermark:
    try:
        return current_watermark(gold)
    except OSError as error:
        raise cannot_open(error, gold, gold) from error


def _of_file(path: Path) -> Watermark:
    try:
        held: Any = msgspec.json.decode(path.read_bytes())
        if isinstance(held, dict) and "watermark" in held:
            held = held["watermark"]
        return msgspec.convert(held, Watermark, strict=False)
    except (msgspec.MsgspecError, OSError) as error:
        raise GoldError(
            f'{path} holds no watermark ({error}); expected JSON such as {{"0": 1200, "1": 1187}}, as '
            "`goldstream gold watermark` prints it."
        ) from error


def _of_version(settings: Settings, name: str) -> Watermark:
    task, _, version = name.rpartition("/")
    folders = sorted([*settings.adapters.glob("*/*/"), *settings.adapters.glob("*/removed/*/")])
    fits = [f for f in folders if _is_version(f, version) and (not task or _task(f) == task) and _finished(f)]
    if len(fits) == 1:
        return read_manifest(fits[0]).watermark
    if fits:
        names = ", ".join(f"{_task(folder)}/{folder.name}" for folder in fits)
        raise GoldError(f"{name}: more than one adapter has this number: {names}. Name one of these.")
    raise GoldError(
        f"{name[:80]!r} is no watermark: neither a file, nor an adapter of {settings.adapters}. Expected now, start, a "
        "version such as v0007-3fa9c2d1, 7 or support/7, or a JSON file. `goldstream adapters list --removed`."
    )


def _is_version(folder: Path, version: str) -> bool:
    """Tells whether a folder is the version meant, by its name or its number."""
    found = VERSION.fullmatch(folder.name)
    number = version.removeprefix("v")
    return found is not None and (folder.name == version or (number.isdigit() and int(found[1]) == int(number)))


def _finished(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _task(folder: Path) -> str:
    return folder.parents[1].name if folder.parent.name == "removed" else folder.parent.name


def _landed(settings: Settings, name: str, watermark: Watermark) -> Watermark:
    """Returns a watermark that this gold set has reached; the answer to a later one would change."""
    now = _now(settings.gold)
    beyond = {p: offset for p, offset in watermark.items() if offset > now.get(p, 0) or offset < 0}
    if beyond:
        partition, offset = min(beyond.items())
        raise GoldError(
            f"{name}: offset {offset} of partition {partition} is not in this gold set, which ends before "
            f"{now.get(partition, 0)}. Is it of another gold set, or is the sink behind? `goldstream lag` shows that."
        )
    return watermark
