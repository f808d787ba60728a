"""Verdicts: reading what a model judge says, finding its quotes in the answer, and what violations come to.

Pure; agents.judge asks the models.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from agents.prompts import read_json
from schemas.case import Verdict, Violation
from schemas.errors import BadAnswer
from schemas.settings import Rubric

_ELLIPSIS = re.compile(r"\s*(?:\[(?:\.{3}|\u2026)\]|\.{3,}|\u2026)\s*")
_LONGEST_GAP = 300  # characters that an ellipsis in a quote may stand for, with what follows it
_MOST_STARTS = 50  # places tried where a quote may begin
_QUOTES = {"'": "['\u2018\u2019\u201b`]", '"': '["\u201c\u201d\u201e\u00ab\u00bb]'}
_QUOTES |= {mark: group for group in _QUOTES.values() for mark in group[1:-1]}


class Told(NamedTuple):
    """What a model judge says of an answer."""

    violations: tuple[Violation, ...]
    misquoted: tuple[Violation, ...]  # those whose quote is not in the answer, without the quote
    grade: float | None  # where the rubric has a scale


def make_verdict(
    rubric: Rubric,
    violations: Sequence[Violation],
    judge: str,
    kind: str,
    *,
    grade: float | None = None,
    misquoted: int = 0,
) -> Verdict:
    """Returns the verdict on an answer with these violations.

    The score is the points of the unbroken rules, on the rubric's scale where it has one. A model's grade stands in
    its place, less the share of the rules that checks found broken: the model was not asked about those.
    """
    broken = {violation.rule for violation in violations}
    counted = [rule for rule in rubric.rules if grade is None or rule.check is not None]
    lost = sum(rule.points for rule in counted if rule.id in broken)
    if rubric.scale is None:
        score = rubric.points - lost
    else:
        lowest, highest = rubric.scale.lowest, rubric.scale.highest
        score = (highest if grade is None else grade) - (highest - lowest) * lost / rubric.points
        score = max(lowest, round(score, 6))
    critical = any(rule.severity == "critical" and rule.id in broken for rule in rubric.rules)
    return Verdict(
        passed=score >= rubric.mark and not (critical and rubric.critical_fails),
        score=score,
        max_score=rubric.max_score,
        violations=tuple(violations),
        judge=judge,
        kind="programmatic" if kind == "programmatic" else "model",
        rubric=rubric.version(),
        misquoted=misquoted,
    )


def read_vote(text: str, rubric: Rubric, answer: str) -> Told:
    """Reads a model judge's verdict: one JSON object and nothing around it (agents.prompts.read_json).

    Raises BadAnswer for anything else, where a rule is named that the judge was not asked about, or a grade is missing
    or off the scale: a doubtful verdict must never read as a pass.
    """
    grade = None
    if rubric.scale is None:
        told = read_json(text, _ModelVerdict).violations
    else:
        graded = read_json(text, _GradedVerdict)
        told, grade = graded.violations, graded.score
        if not rubric.scale.lowest <= grade <= rubric.scale.highest:
            raise BadAnswer(
                f"the judge's score is not on the scale from {rubric.scale.lowest:g} to {rubric.scale.highest:g}."
            )
    severities = {rule.id: rule.severity for rule in rubric.model_rules}
    unknown = sum(v.rule not in severities for v in told)
    if unknown:  # its names may quote the answer, so they are not told
        raise BadAnswer(
            f"{unknown} of the judge's {len(told)} violations name a rule the rubric does not have; expected some "
            f"of {', '.join(severities)}."
        )
    quoted: list[Violation] = []
    misquoted: list[Violation] = []
    for v in told:
        hinge = find_hinge(v.hinge, answer)
        made_up = bool(v.hinge.strip()) and not hinge
        (misquoted if made_up else quoted).append(Violation(v.rule, severities[v.rule], hinge, v.why, v.fix))
    return Told(tuple(quoted), tuple(misquoted), grade)


def find_hinge(quoted: str, answer: str) -> str:
    """Returns the piece of `answer` that a judge quoted, exactly as it stands there; "" where it does not.

    White space, Unicode composition, case, the form of quotation marks and an ellipsis for up to 300 characters may
    differ: models copy loosely.
    """
    if quoted in answer:
        return quoted.strip() and quoted
    pieces = [piece for piece in _ELLIPSIS.split(quoted) if piece.strip()]
    for form in ("NFC", "NFD"):
        patterns = [re.compile(_loosely(unicodedata.normalize(form, piece)), re.IGNORECASE) for piece in pieces]
        for first in itertools.islice(patterns[0].finditer(answer), _MOST_STARTS) if patterns else ():
            end = _end_of_rest(patterns[1:], answer, first.end())
            if end is not None:
                return answer[first.start() : end]
    return ""


def _end_of_rest(patterns: Sequence[re.Pattern[str]], answer: str, end: int) -> int | None:
    """Returns where the last of the patterns ends, each found near the one before; None where one is not."""
    for pattern in patterns:  # the nearest one each: to try them all would take a hostile answer for ever
        match = pattern.search(answer, end, end + _LONGEST_GAP)
        if match is None:
            return None
        end = match.end()
    return end


def _loosely(text: str) -> str:
    words = ("".join(_QUOTES.get(character) or re.escape(character) for character in word) for word in text.split())
    return r"\s+".join(words)


class _ModelViolation(msgspec.Struct):
    rule: str
    hinge: str = ""
    why: str = ""
    fix: str = ""


class _ModelVerdict(msgspec.Struct, forbid_unknown_fields=True):
    violations: list[_ModelViolation]


class _GradedVerdict(msgspec.Struct, forbid_unknown_fields=True):
    violations: list[_ModelViolation]
    score: float
