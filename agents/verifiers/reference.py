"""Exact and numeric match with a reference: a constant of the settings, what the prompt states, or what the log record
told besides."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from agents.verifiers.finding import Finding
from agents.verifiers.patterns import TooSlow, group, search
from schemas.case import Message
from schemas.settings.verifiers import ExactCheck, NumericCheck

Record = Mapping[str, Any] | None  # of schemas.record

NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,40})(?:\.\d{1,40})?(?:[eE][-+]?\d{1,3})?"
_NUMBER = re.compile(rf"(?<![\w.,]){NUMBER}")


def check_exact(check: ExactCheck, messages: Sequence[Message], answer: str, record: Record = None) -> list[Finding]:
    """Compares the answer, or the part a pattern takes from it, with the reference.

    Where no reference is found there is a violation: what cannot be compared must not pass.
    """
    try:
        reference = check.value if check.value is not None else _stated(check, messages, record)
        said = _said(check.answer_pattern, answer)
    except TooSlow as error:
        return [Finding("", str(error))]
    if reference is None:
        return [_no_reference(check)]
    if said is None:
        return [Finding("", f"nothing in the answer matches {check.answer_pattern}")]
    if _folded(said, check) == _folded(reference, check):
        return []
    return [Finding(said.strip(), "it differs from the reference", f"Say exactly: {reference.strip()}")]


def check_numeric(
    check: NumericCheck, messages: Sequence[Message], answer: str, record: Record = None
) -> list[Finding]:
    """Compares a number of the answer with the reference number, within the tolerance."""
    try:
        stated = None if check.value is not None else _stated(check, messages, record)
        said = _said(check.answer_pattern, answer) if check.answer_pattern else _last_number(answer)
    except TooSlow as error:
        return [Finding("", str(error))]
    reference = check.value if check.value is not None else _number(stated)
    if reference is None:
        return [_no_reference(check)]
    number = _number(said)
    if number is None:
        return [Finding("", "the answer holds no number to compare", f"State the number {reference:g}.")]
    slack = max(check.tolerance, check.relative_tolerance * abs(reference))
    if abs(number - reference) <= slack + 1e-9 * max(abs(reference), abs(number)):  # 0.1 + 0.2 is 0.3
        return []
    why = f"{number:g} is not {reference:g}" + (f" within {slack:g}" if slack else "")
    return [Finding(str(said).strip(), why, f"The number is {reference:g}.")]


def _no_reference(check: ExactCheck | NumericCheck) -> Finding:
    if check.record:
        return Finding("", f"the record holds no {check.record}, so there is nothing to compare with")
    why = f"the conversation states nothing that matches {check.prompt_pattern}, so there is nothing to compare with"
    return Finding("", why)


def _stated(check: ExactCheck | NumericCheck, messages: Sequence[Message], record: Record) -> str | None:
    """Returns the reference of the record, or what a pattern finds in the conversation; the later one counts."""
    if check.record:
        import jmespath

        found = jmespath.search(check.record, record or {})
        plain = isinstance(found, str | int | float) and not isinstance(found, bool)
        return str(found) if plain else None
    match = search(check.prompt_pattern, "\n\n".join(message.text() for message in messages), last=True)
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
