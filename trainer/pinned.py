"""run.json: what a run is a function of, kept beside it so that a killed one is continued and not merely repeated."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec

from schemas.gold import Watermark

RUN = "run.json"


class Pinned(msgspec.Struct, frozen=True, kw_only=True):
    """One run: it trains on the gold below its watermark, whenever it is taken up again."""

    task: str
    version: str
    watermark: Watermark
    base_sha256: str
    parent: str  # who should serve when the run began
    initial: str = ""  # version it continues from, "" for the base
    revision: str
    started_ms: int
    tries: int = 1  # starts in a row that got no further
    furthest: int = 0  # step


def read_pinned(folder: Path) -> Pinned | None:
    """Returns what a run's folder pins, None where there is nothing readable."""
    try:
        return msgspec.json.decode((folder / RUN).read_bytes(), type=Pinned)
    except (OSError, msgspec.DecodeError):
        return None


def keep_pinned(folder: Path, pinned: Pinned) -> None:
    """Writes run.json anew, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{RUN}.tmp"
    temporary.write_bytes(msgspec.json.encode(pinned))
    temporary.replace(folder / RUN)


def git_revision() -> str:
    """Returns the commit Goldstream runs from, "" where it was installed without its repository."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
