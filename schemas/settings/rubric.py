"""What makes an answer acceptable: rules, points, the verifier."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.case import Severity
from schemas.settings.section import Section


class Rule(Section, frozen=True):
    """One rule of a rubric; an answer without a violation of it earns its points."""

    id: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    text: str
    severity: Severity = "major"
    points: Annotated[float, Meta(gt=0)] = 1.0


class Rubric(Section, frozen=True):
    """What makes an answer acceptable."""

    verifier: str = ""  # "package.module:function" of (messages, answer) -> list of Violation
    rules: tuple[Rule, ...] = ()
    pass_mark: float | None = None  # default: every point
    guidance: str = ""  # free text for a model judge

    @property
    def max_score(self) -> float:
        """The score of an answer that breaks no rule."""
        return sum(rule.points for rule in self.rules)

    def version(self) -> str:
        """Returns a short hash that changes whenever the rubric does."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:12]
