"""A user's regular expressions on text that nobody vouches for: each search is given a time.

The `regex` package ends a search that takes too long, and lets other threads run meanwhile. A search without an end
is a violation: whoever writes an answer that no pattern can be held against must not pass by it.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Any

import regex

from agents.verifiers.finding import Finding
from schemas.settings.verifiers import RegexCheck

TIME_LIMIT_S = 0.25  # a pattern; honest ones take microseconds


class TooSlow(Exception):
    """A pattern was not done in time."""


def search(pattern: str, text: str, *, ignore_case: bool = False, last: bool = False) -> Any:
    """Returns the first match of a pattern in `text`, or the last one; None where there is none. Raises TooSlow."""
    try:
        if not last:
            return _compiled(pattern, ignore_case).search(text, timeout=TIME_LIMIT_S, concurrent=True)
        found = _compiled(pattern, ignore_case).finditer(text, timeout=TIME_LIMIT_S, concurrent=True)
        return next(iter(deque(found, maxlen=1)), None)
    except TimeoutError:
        raise TooSlow(f"the pattern {pattern} was not done with this text in {TIME_LIMIT_S} s") from None


def group(match: Any) -> str:
    """Returns what a match stands for: its first group where it has one, else the whole of it."""
    return str(match[1] or "") if match.re.groups else str(match[0])


def check_patterns(check: RegexCheck, answer: str) -> list[Finding]:
    """Finds the patterns that are missing from the answer, and those that should be."""
    found: list[Finding] = []
    for pattern in check.must:
        match, slow = _searched(pattern, answer, check.ignore_case)
        if slow:
            found.append(Finding("", slow))
        elif match is None:
            found.append(Finding("", f"nothing in the answer matches {pattern}"))
    for pattern in check.must_not:
        match, slow = _searched(pattern, answer, check.ignore_case)
        if slow:
            found.append(Finding("", slow))
        elif match is not None:
            found.append(Finding(match[0], f"the answer must not contain what matches {pattern}"))
    return found


def _searched(pattern: str, text: str, ignore_case: bool) -> tuple[Any, str]:
    try:
        return search(pattern, text, ignore_case=ignore_case), ""
    except TooSlow as error:
        return None, str(error)


@lru_cache(maxsize=1024)
def _compiled(pattern: str, ignore_case: bool) -> Any:
    return regex.compile(pattern, regex.MULTILINE | (regex.IGNORECASE if ignore_case else 0))
