"""Numbers, doses and dates as text writes them, and what they stand for.

500 mg and 0.5 g are one dose, 12 March 2026 and 2026-03-12 one date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple


class Mention(NamedTuple):
    """Something a text mentions: where, how it is written, and what it stands for."""

    start: int
    end: int
    text: str
    keys: frozenset[Any]  # several where the writing is ambiguous


_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,9}|\d{1,40})(?:\.\d{1,40})?"
NUMBER = re.compile(_DIGITS)

_UNITS: dict[str, tuple[str, Decimal]] = {
    name: (base, Decimal(factor))
    for base, factor, names in (
        ("mg", "1", "mg milligram milligrams"),
        ("mg", "1000", "g gram grams"),
        ("mg", "0.001", "mcg ug \u00b5g \u03bcg microgram micrograms"),
        ("mg", "1000000", "kg kilogram kilograms"),
        ("ml", "1", "ml milliliter milliliters millilitre millilitres cc"),
        ("ml", "1000", "l liter liters litre litres"),
        ("iu", "1", "iu unit units"),
        ("mmol", "1", "mmol"),
        ("meq", "1", "meq"),
        ("tablet", "1", "tablet tablets tab tabs pill pills"),
        ("capsule", "1", "capsule capsules"),
        ("drop", "1", "drop drops"),
        ("puff", "1", "puff puffs"),
        ("percent", "1", "% percent"),
    )
    for name in names.split()
}
_UNIT = "|".join(sorted((re.escape(name) for name in _UNITS), key=len, reverse=True))
_DOSE = re.compile(rf"(?<![\w.])({_DIGITS})[ \t\u00a0-]?({_UNIT})(?!\w)", re.IGNORECASE)

_NAMES = "january february march april may june july august september october november december"
MONTHS = {
    **{name[:length]: number for number, name in enumerate(_NAMES.split(), 1) for length in (3, len(name))},
    "sept": 9,
}
_MONTH = rf"(?P<month>{'|'.join(sorted(MONTHS, key=len, reverse=True))})\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{4})"
_DATES = (
    re.compile(rf"\b{_YEAR}-(?P<month>\d{{1,2}})-(?P<day>\d{{1,2}})(?!\d)"),
    re.compile(rf"\b{_DAY} (?:of )?{_MONTH}(?:,? {_YEAR})?\b", re.IGNORECASE),
    re.compile(rf"\b{_MONTH} {_DAY}(?:,? {_YEAR})?\b", re.IGNORECASE),
    re.compile(rf"\b{_MONTH} {_YEAR}\b", re.IGNORECASE),
)
_SLASHED = re.compile(r"(?<![\d/.-])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})(?![\d/.-]?\d)")


def decimal(text: str) -> Decimal:
    """Returns what a number stands for, whatever its thousands separators and trailing zeros."""
    return Decimal(text.replace(",", "")).normalize()


def read_doses(text: str) -> Iterator[Mention]:
    """Yields amounts with a unit, in milligrams, millilitres or pieces."""
    for match in _DOSE.finditer(text):
        unit, factor = _UNITS[match[2].lower()]
        yield Mention(*match.span(), match[0], frozenset(((unit, (decimal(match[1]) * factor).normalize()),)))


def read_dates(text: str) -> Iterator[Mention]:
    """Yields dates as (year, month, day), year or day 0 where it is not said; 3/4/2026 is two dates at once."""
    for pattern in _DATES:
        for match in pattern.finditer(text):
            parts = match.groupdict()
            month = parts["month"].lower()
            date = (int(parts.get("year") or 0), MONTHS.get(month) or int(month), int(parts.get("day") or 0))
            yield Mention(*match.span(), match[0], frozenset((date,)))
    for match in _SLASHED.finditer(text):
        first, second, year = int(match[1]), int(match[3]), int(match[4])
        year += 2000 if year < 100 else 0
        yield Mention(*match.span(), match[0], frozenset(((year, first, second), (year, second, first))))
