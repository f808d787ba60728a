"""What a check objects to."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """An objection; `hinge` quotes the answer, "" where something is missing; an empty fix is the rule's text."""

    hinge: str
    why: str
    fix: str = ""
