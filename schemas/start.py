"""Where reading of a log topic begins, as the settings and `goldstream estimate --start` say it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal

_UNITS_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_start(text: str, now_ms: int) -> Literal["latest", "earliest"] | int:
    """Returns "latest", "earliest", or a time in ms since the epoch; a time without a zone is UTC.

    Raises ValueError for anything else.
    """
    if text == "latest":
        return "latest"
    if text == "earliest":
        return "earliest"
    back = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if back:
        return max(now_ms - int(back[1]) * _UNITS_MS[back[2]], 0)
    if not re.match(r"\d{4}-\d\d-\d\d", text):  # fromisoformat takes shorter forms, such as 20261101
        raise ValueError(text)
    at = datetime.fromisoformat(text)
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
