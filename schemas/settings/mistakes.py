"""What msgspec says of a wrong setting, in our words."""

from __future__ import annotations

import re

from schemas.settings.verifiers import KINDS


def readable(error: str) -> str:
    """Turns msgspec's text into ours: the key first."""
    text, _, where = error.partition(" - at `$")
    place = where.rstrip("`").lstrip(".") or "top level"
    unknown = re.search(r"unknown field `([^`]+)`", text)
    if unknown:
        place = "" if place == "top level" else place + "."
        return f"unknown key {place}{unknown.group(1)}. Remove it or correct its spelling; README.md lists the keys."
    if place.endswith(".check.kind"):
        return f"{place}: {text}; expected one of {', '.join(KINDS)}"
    if place.endswith("_env"):
        return f"{place}: expected the name of a variable (A-Z, 0-9, _) that holds the secret, not the secret itself."
    return f"{place}: {text}"
