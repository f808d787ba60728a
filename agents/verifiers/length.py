"""Length limits: characters, words, lines, tokens."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from agents.verifiers.finding import Finding
from schemas.settings.verifiers import LengthCheck

_QUOTED = 80  # characters of what is too much


def check_length(check: LengthCheck, answer: str) -> list[Finding]:
    """Finds the limits an answer does not keep; of what is too long it quotes where the surplus begins."""
    most = check.max_characters
    surplus = "" if most is None else answer[most:]
    found = _findings("characters", len(answer), check.min_characters, most, surplus)
    for unit, least, most, pieces in (
        ("words", check.min_words, check.max_words, r"\S+"),
        ("lines", check.min_lines, check.max_lines, r"[^\n]*\S[^\n]*"),
    ):
        if least is not None or most is not None:
            starts = [match.start() for match in re.finditer(pieces, answer)]
            surplus = answer[starts[most] :] if most is not None and len(starts) > most else ""
            found += _findings(unit, len(starts), least, most, surplus)
    if check.min_tokens is not None or check.max_tokens is not None:
        encoded = _tokenizer(check.tokenizer).encode(answer, add_special_tokens=False)
        most = check.max_tokens
        surplus = answer[encoded.offsets[most][0] :] if most is not None and len(encoded.ids) > most else ""
        found += _findings("tokens", len(encoded.ids), check.min_tokens, most, surplus)
    return found


def _findings(unit: str, count: int, least: int | None, most: int | None, surplus: str) -> list[Finding]:
    if most is not None and count > most:
        why = f"the answer has {count} {unit}; at most {most} are allowed"
        return [Finding(surplus[:_QUOTED].strip(), why, f"Shorten it to {most} {unit}; keep what matters most.")]
    if least is not None and count < least:
        why = f"the answer has {count} {unit}; at least {least} are expected"
        return [Finding("", why, f"Lengthen it to {least} {unit}, from what the conversation says.")]
    return []


@cache
def _tokenizer(folder: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
