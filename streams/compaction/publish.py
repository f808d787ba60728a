"""Names the next manifest: created only if absent, so that of two compactions one is fenced."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from schemas.errors import Fenced
from schemas.faults import crash_point
from schemas.manifests import Manifest, manifest_path
from streams.compaction.rewrite import TEMP
from streams.durable import fsync_folder, make_folder, open_temp


def publish(gold: Path, manifest: Manifest) -> Path:
    """Writes a manifest under its number and returns its path; raises Fenced where another has that number.

    1. Write a temp file and fsync it. 2. Link it to its name, which fails where there is one. 3. fsync the folder.
    """
    target = manifest_path(gold, manifest.number)
    make_folder(target.parent)
    make_folder(gold / "tmp")
    # 1. Write
    file, temp = open_temp(gold / "tmp", f"{TEMP}manifest")
    try:
        with file:
            file.write(msgspec.json.encode(manifest))
            file.flush()
            os.fsync(file.fileno())
            crash_point("compact.before_manifest")
            # 2. Link
            os.link(temp, target)
            crash_point("compact.after_manifest")
            # 3. fsync the folder
            fsync_folder(target.parent)
    except FileExistsError as error:
        raise Fenced(
            f"{target}: another compaction published this manifest first, so this one must stop. Nothing is lost or "
            "doubled: what it wrote is not in use, and is removed in time."
        ) from error
    finally:
        temp.unlink(missing_ok=True)
    return target
