"""Only-from-source: numbers, doses, dates and names of an answer that the conversation does not hold.

Written differently is the same: 1,000 and 1000, two and 2; agents.verifiers.amounts reads doses and dates. Names are
capitalised words where no sentence or heading begins; a name at the beginning of a sentence is not seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import msgspec

from agents.verifiers.amounts import MONTHS, NUMBER, Mention, decimal, read_dates, read_doses
from agents.verifiers.finding import Finding
from schemas.case import Message
from schemas.settings.verifiers import Entity, SourceCheck

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety hundred"
_WORD_NUMBERS = {
    **{word: str(number) for number, word in enumerate(_SMALL.split())},
    **{word: str(30 + 10 * place) for place, word in enumerate(_TENS.split())},
    "once": "1",
    "twice": "2",
}
_WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday"
_NO_NAMES = frozenset((*MONTHS, *_WEEKDAYS.split(), "i", "ok"))

_WORD = re.compile(r"[^\W\d_][\w'\u2019]*")
_LINE_BEGINNING = r"[\s\"'\u201c\u2018()\[\]*_#>\u2022-]{0,20}(?:\d{1,3}[.)]\s{0,4})?[*_\"\u201c]{0,3}$"
_BEGINNING = re.compile(rf"[.!?:;\u2026\n]{_LINE_BEGINNING}")
_TITLE = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|Prof|St)\.\s{0,3}$")
_LIST_NUMBER = re.compile(r"(?m)^[ \t>*#-]{0,12}\d{1,3}[.)](?=\s)")
_HEADING = re.compile(r"(?m)^[ \t]{0,8}(?:#{1,6}[^\n]{0,120}|\*\*[^\n*]{1,80}\*\*:?|[^\n:.!?]{1,60}:)(?=\s|$)")
_SEEN_BEFORE = 32  # characters before a word that tell whether a sentence begins


def check_source(check: SourceCheck, messages: Sequence[Message], answer: str) -> list[Finding]:
    """Finds what the answer says and the conversation does not: texts of messages and arguments of tool calls."""
    source = "\n".join((*_source_texts(messages), *check.allow))
    taken = _marked(answer, _LIST_NUMBER)
    found: list[tuple[int, Finding]] = []
    for kind in _READERS:  # a date's day is no number of its own, nor is a dose's
        known: set[object] | None = None
        for mention in _READERS[kind](answer):
            if 1 in taken[mention.start : mention.end] or (kind == "dates" and "may" in mention.text):  # the verb
                continue
            taken[mention.start : mention.end] = b"\1" * (mention.end - mention.start)
            if kind in check.entities:
                known = _known(kind, source) if known is None else known
                if not mention.keys & known:
                    found.append((mention.start, _finding(kind, mention.text)))
    if "names" in check.entities:
        words = {_bare(word) for word in set(_WORD.findall(source))}
        found += [(start, _finding("names", name)) for start, name in _unknown_names(answer, words)]
    return [finding for _, finding in sorted(found, key=lambda one: one[0])]


def read_numbers(text: str) -> Iterator[Mention]:
    """Yields the numbers of a text, except digits within a word such as B12."""
    for match in NUMBER.finditer(text):
        before = text[match.start() - 1 : match.start()]
        if not (before.isalpha() or before == "_"):
            yield Mention(*match.span(), match[0], frozenset((decimal(match[0]),)))


_READERS: dict[Entity, Callable[[str], Iterator[Mention]]] = {
    "dates": read_dates,
    "doses": read_doses,
    "numbers": read_numbers,
}


def _known(kind: Entity, source: str) -> set[object]:
    """Returns what the source holds of a kind: numbers wherever digits or number words stand, dates also in part."""
    if kind == "numbers":
        said = {word.casefold() for word in set(_WORD.findall(source))}
        words = {decimal(number) for word, number in _WORD_NUMBERS.items() if word in said}
        return {decimal(match[0]) for match in NUMBER.finditer(source)} | words
    keys = {key for mention in _READERS[kind](source) for key in mention.keys}
    if kind == "dates":
        keys |= {part for y, m, d in keys for part in ((0, m, d), (y, m, 0))}
    return set(keys)


def _unknown_names(answer: str, words: set[str]) -> Iterator[tuple[int, str]]:
    """Yields runs of capitalised words, at least one of which the source does not hold, with where they begin."""
    headings = _marked(answer, _HEADING)
    start = end = 0
    unknown = False
    for match in _WORD.finditer(answer):
        continues = end > start and answer[end : match.start()] in (" ", "-", "\u00a0")
        if not _is_name(answer, match, continues):
            continue
        if not continues:
            if unknown:
                yield start, answer[start:end]
            start, unknown = match.start(), False
        end = match.end()
        unknown = unknown or (_bare(match[0]) not in words and not headings[start])
    if unknown:
        yield start, answer[start:end]


def _is_name(answer: str, match: re.Match[str], continues: bool) -> bool:
    if not match[0][0].isupper() or re.split("['\u2019]", match[0])[0].casefold() in _NO_NAMES:
        return False
    if continues:
        return True
    begins = max(0, match.start() - _SEEN_BEFORE)
    before = answer[begins : match.start()] if begins else "\n" + answer[: match.start()]
    return bool(_TITLE.search(before) or not _BEGINNING.search(before))


def _marked(text: str, pattern: re.Pattern[str]) -> bytearray:
    """Returns a mark for each character that a pattern covers."""
    marks = bytearray(len(text))
    for match in pattern.finditer(text):
        marks[match.start() : match.end()] = b"\1" * (match.end() - match.start())
    return marks


def _bare(word: str) -> str:
    """Returns a word in lower case, without a possessive ending."""
    return re.sub(r"['\u2019]s?$", "", word).casefold()


def _finding(kind: Entity, text: str) -> Finding:
    what = {"numbers": "number", "doses": "dose", "dates": "date", "names": "name"}[kind]
    fix = f"Use only what the conversation says, or leave this {what} out."
    return Finding(text, f"the conversation holds no {what} {text}", fix)


def _source_texts(messages: Sequence[Message]) -> Iterator[str]:
    for message in messages:
        yield message.text()
        if message.tool_calls:
            yield msgspec.json.encode(message.tool_calls).decode()
