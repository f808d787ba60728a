"""Exact and numeric match with a reference: a constant of the settings, or what the prompt itself states."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Sequence

from agents.verifiers.finding import Finding
from agents.verifiers.patterns import TooSlow, group, search
from schemas.case import Message
from schemas.settings.verifiers import ExactCheck, NumericCheck

NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,40})(?:\.\d{1,40})?(?:[eE][-+]?\d{1,3})?"
_NUMBER = re.compile(rf"(?<![\w.,]){NUMBER}")


def check_exact(check: ExactCheck, messages: Sequence[Message], answer: str) -> list[Finding]:
    """Compares the answer, or the part a pattern takes from it, with the reference.

    A prompt that states no reference makes a violation: what cannot be compared must not pass.
    """
    try:
        reference = check.value if check.value is not None else _stated(check.prompt_pattern, messages)
        said = _said(check.answer_pattern, answer)
    except TooSlow as error:
        return [Finding("", str(error))]
    if reference is None:
        return [_no_reference(check.prompt_pattern)]
    if said is None:
        return [Finding("", f"nothing in the answer matches {check.answer_pattern}")]
    if _folded(said, check) == _folded(reference, check):
        return []
    return [Finding(said.strip(), "it differs from the reference", f"Say exactly: {reference.strip()}")]


def check_numeric(check: NumericCheck, messages: Sequence[Message], answer: str) -> list[Finding]:
    """Compares a number of the answer with the reference number, within the tolerance."""
    try:
        stated = None if check.value is not None else _stated(check.prompt_pattern, messages)
        said = _said(check.answer_pattern, answer) if check.answer_pattern else _last_number(answer)
    except TooSlow as error:
        return [Finding("", str(error))]
    reference = check.value if check.value is not None else _number(stated)
    if reference is None:
        return [_no_reference(check.prompt_pattern)]
    number = _number(said)
    if number is None:
        return [Finding("", "the answer holds no number to compare", f"State the number {reference:g}.")]
    slack = max(check.tolerance, check.relative_tolerance * abs(reference))
    if abs(number - reference) <= slack + 1e-9 * max(abs(reference), abs(number)):  # 0.1 + 0.2 is 0.3
        return []
    why = f"{number:g} is not {reference:g}" + (f" within {slack:g}" if slack else "")
    return [Finding(str(said).strip(), why, f"The number is {reference:g}.")]


def _no_reference(pattern: str) -> Finding:
    return Finding("", f"the conversation states nothing that matches {pattern}, so there is nothing to compare with")


def _stated(pattern: str, messages: Sequence[Message]) -> str | None:
    """Returns what a pattern finds in the conversation; where it is stated twice the later one counts."""
    match = search(pattern, "\n\n".join(message.text() for message in messages), last=True)
    return None if match is None else group(match)


def _said(pattern: str, answer: str) -> str | None:
    if not pattern:
        return answer
    match = search(pattern, answer)
    return None if match is None else group(match)


def _last_number(answer: str) -> str | None:
    found = deque(_NUMBER.finditer(answer), maxlen=1)
    return found[0][0] if found else None


def _number(text: str | None) -> float | None:
    match = re.search(NUMBER, text) if text else None
    number = float(match[0].replace(",", "")) if match else math.nan
    return number if math.isfinite(number) else None


def _folded(text: str, check: ExactCheck) -> str:
    text = " ".join(text.split()) if check.ignore_space else text.strip()
    return text.casefold() if check.ignore_case else text
