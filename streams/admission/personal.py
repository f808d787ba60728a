"""Where personal values stand in a text: emails, phones, cards, SSN-like numbers, IP addresses.

streams.admission.redaction puts placeholders there. Precision comes before recall for bare numbers: doses, dates,
times, versions and identifiers are what a task is about, so a number counts as a phone only where its form or a word
before it says so. Every pattern is bounded, so that time grows with the length of a text and not faster.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

from streams.admission.phones import FEWEST_DIGITS, MOST_DIGITS, national_number


class Span(NamedTuple):
    """One value: where it stands, what it is, and what is the same in every spelling of it."""

    start: int
    end: int
    kind: str
    key: str


def personal_spans(text: str, kinds: Collection[str], regions: tuple[str, ...] = ()) -> list[Span]:
    """Returns the personal values of these kinds in their order; none overlap.

    `regions` are those whose phone numbers count as they are written at home, without a word that says what they are.
    """
    spans: list[Span] = []
    if "email" in kinds and "@" in text:
        spans += _emails(text)
    if "ip" in kinds and text.count(":") > 1:
        spans += _ipv6(text)
    if not _NUMBERS.isdisjoint(kinds):
        spans += _numbers(text, kinds, regions)
    if len(spans) < 2:
        return spans
    spans.sort(key=lambda span: (span.start, _FIRST.index(span.kind)))
    apart = spans[:1]
    for span in spans[1:]:
        if span.start >= apart[-1].end:
            apart.append(span)
    return apart


_FIRST = ("email", "ip", "card", "ssn", "phone")  # of those that begin at one place
_NUMBERS = frozenset({"phone", "card", "ssn", "ip"})
_LOCAL = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.!#$%&*+/?^_`|~-"
_DOMAIN = re.compile(r"@((?:[^\W_](?:[\w-]{0,62})\.){1,8}[^\W\d_]{2,24})(?![\w@-])")
_BEFORE_LOCAL = 64


def _emails(text: str) -> Iterator[Span]:
    for found in _DOMAIN.finditer(text):
        at = found.start()
        before = text[max(0, at - _BEFORE_LOCAL) : at]
        if before.isascii():
            size = len(before) - len(before.rstrip(_LOCAL))
        else:  # letters of any alphabet
            size = next((n for n, c in enumerate(reversed(before)) if not (c.isalnum() or c in _LOCAL)), len(before))
        local = before[len(before) - size :].lstrip(".!#$%&*+/?^`|~-")
        if local:
            yield Span(at - len(local), found.end(), "email", (local + found[0]).lower())


_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_HEX = "0123456789abcdefABCDEF:"
_LONGEST_IPV6 = 39


def _ipv6(text: str) -> Iterator[Span]:
    past = 0
    while found := _COLONS.search(text, past):
        before = text[max(past, found.start() - _LONGEST_IPV6) : found.start()]
        start = found.start() - (len(before) - len(before.rstrip(_HEX)))
        after = text[found.end() : found.end() + _LONGEST_IPV6]
        end = found.end() + len(after) - len(after.lstrip(_HEX))
        past = end
        if _is_word(text, start - 1) or _is_word(text, end):
            continue
        value = text[start:end]
        if value.endswith(":") and not value.endswith("::"):  # a colon of the sentence
            value, end = value[:-1], end - 1
        groups = [group for group in value.split(":") if group]
        if len(groups) < 2 or not any(c.isdigit() for c in value):
            continue  # ::1, and what code is full of: a::b, std::
        try:
            yield Span(start, end, "ip", IPv6Address(value).compressed)
        except AddressValueError:
            continue


def _is_word(text: str, at: int) -> bool:
    return 0 <= at < len(text) and (text[at].isalnum() or text[at] == "_")


# What is worth a closer look: seven or more characters of digits and what stands between those of a number.
_CANDIDATE = re.compile(r"[0-9][0-9 ().\-/\u2010\u2011\u2013\u00a0]{5,}[0-9]")
_PLAIN = {0x2010: "-", 0x2011: "-", 0x2013: "-", 0x00A0: " "}
_SEPARATORS = str.maketrans("", "", "+ ().-/\u2010\u2011\u2013\u00a0")
_CONTEXT = 40  # characters before a number in which a word can say what it is

_CARD = re.compile(
    r"(?<!\w)(?:[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}|3[0-9]{3}([ -])[0-9]{6}\2[0-9]{4,5}|[2-6][0-9]{11,18})"
    r"(?!\w|[.,][0-9])"
)
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)[0-9]{3}([ -]?)(?!00)[0-9]{2}\1(?!0000)[0-9]{4}(?![\w-])")
_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\w|\.[0-9])")

_INTERNATIONAL = re.compile(
    r"(?<![\w+])(?:\+1[ .-]?\(?[0-9]{3}\)?[ .-]?[0-9]{3}[ .-]?[0-9]{4}"
    r"|\+(?!1)[0-9]{1,3}(?:[ .\-/]?\(0\))?(?:[ .\-/]?\(?[0-9]{2,5}\)?)(?:[ .\-/]?[0-9]{2,8}){1,4})(?!\w)"
)
_NANP = re.compile(
    r"(?<![\w+./-])(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?[2-9][0-9]{2}[ .-]?|[2-9][0-9]{2}([.-])[2-9][0-9]{2}\1)"
    r"[0-9]{4}(?!\w|[./-][0-9])"
)
_NATIONAL = re.compile(
    r"(?<![\w+.,/-])(?:\(?0[0-9]{2,4}\)?(?:[ -][0-9]{3,4}[ -][0-9]{3,5}|[ /-][0-9]{6,8})"
    r"|0[1-9](?:([ .-])[0-9]{2})(?:\1[0-9]{2}){3})(?!\w|[.,/ -][0-9])"
)
_CUED = re.compile(r"\+?\(?[0-9](?:[ .()\-/]{0,2}[0-9]){6,14}(?!\w)")
_PHONE_HINTS = (
    "phone",
    "tel",
    "cell",
    "mob",
    "fax",
    "what",
    "call",
    "dial",
    "ring",
    "sms",
    "text",
    "handy",
    "page",
    "beep",
    "tél",
)
_PHONE_WORD = re.compile(
    r"(?<!\w)(?:(?:tele|smart|cell|mobile )?phone|telefon|t[eé]l[eé](?:fono|phone)|tel|cell|mobile|mob|handy|fax"
    r"|whatsapp|call(?:ed|ing)?|dial|ring|sms|text|pager|beeper)\.?"
    r"(?:\s{0,2}(?:no|nr|number|nummer|me|us|him|her|them|back|at|on|is|was)\.?(?!\w)){0,3}[\s:#=\"']{0,4}$"
)
_SSN_WORD = re.compile(r"(?<!\w)(?:ssn|social security(?: (?:no|number))?)\.?(?: is)?[\s:#=\"']{0,4}$")
_VERSION_WORD = re.compile(r"(?<!\w)(?:v|ver|versions?|release|build|section|chapter|rev|firmware)\.?[ :=]?$")
_DATE = re.compile(
    r"(?:(?:19|20)[0-9]{2}([./-])(?:0?[1-9]|1[0-2])\1(?:[0-2]?[0-9]|3[01])"
    r"|(?:[0-2]?[0-9]|3[01])([./-])(?:[0-2]?[0-9]|3[01])\2(?:(?:19|20)[0-9]{2}|[0-9]{2})"
    r"|(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:[0-2][0-9]|3[01]))(?![0-9])"
)


_MARKS = bytes(ord("#") if chr(c) in "0123456789 ().-/?\u00a0" else ord(" ") for c in range(256))


def _candidates(text: str) -> Iterator[re.Match[str]]:
    """Yields what is worth a closer look.

    First in bytes, one a character, with a mark for all that may stand in a number: finding a run of marks takes a
    tenth of the time of the pattern.
    """
    marks = text.encode("latin-1", "replace").translate(_MARKS)
    past = 0
    while (past := marks.find(b"#######", past)) >= 0:
        end = marks.find(b" ", past)
        end = end if end >= 0 else len(marks)
        yield from _CANDIDATE.finditer(text, past, end)
        past = end


def _numbers(text: str, kinds: Collection[str], regions: tuple[str, ...]) -> Iterator[Span]:
    for candidate in _candidates(text):
        number = candidate[0]
        if len(number) <= 10 and _DATE.fullmatch(number):
            continue
        size = len(number.translate(_SEPARATORS))
        dots = number.count(".")
        if size < 7 and dots < 3:
            continue
        first = max(0, candidate.start() - _CONTEXT)
        begin = candidate.start() - first
        part = text[first : candidate.end() + 2]
        if not part.isascii():
            part = part.translate(_PLAIN)
        found = False
        for span in _of_known_form(part, begin, size, dots, kinds):
            found = True
            yield Span(first + span.start, first + span.end, span.kind, span.key)
        if not found and size >= 7 and "phone" in kinds:
            cued = _cued_phone(part, begin)
            if cued:
                yield Span(first + cued[0], first + cued[1], "phone", _digits(part[cued[0] : cued[1]]))
            elif regions and size != len(number) and FEWEST_DIGITS <= size <= MOST_DIGITS:
                yield from _at_home(part, first, begin, begin + len(number), regions)


def _at_home(part: str, first: int, begin: int, end: int, regions: tuple[str, ...]) -> Iterator[Span]:
    """Yields a candidate that is, as a whole, a phone number as one of the regions writes it."""
    if begin and part[begin - 1] in "(+":
        begin -= 1
    if _is_word(part, begin - 1) or _is_word(part, end) or (begin and part[begin - 1] in "+.,/-"):
        return
    if key := national_number(part[begin:end], regions):
        yield Span(first + begin, first + end, "phone", key)


def _of_known_form(part: str, begin: int, size: int, dots: int, kinds: Collection[str]) -> Iterator[Span]:
    """Yields what in a candidate of `size` digits that begins at `begin` has the form of a personal value."""
    opens = part[max(0, begin - 2) : begin]
    plain = part[begin : begin + size].isdigit()
    if size >= 12 and "card" in kinds:
        yield from _all(_CARD, part, begin, "card", _card)
    if (size == 9 if plain else size > 8) and "ssn" in kinds:
        yield from _all(_SSN, part, begin, "ssn", _ssn)
    if dots >= 3 and "ip" in kinds:
        yield from _all(_IPV4, part, begin, "ip", _ipv4)
    if "phone" in kinds:
        if "+" in opens or (size > 15 and "+" in part):
            yield from _all(_INTERNATIONAL, part, begin - len(opens), "phone", _international)
        if size >= 10 and not plain:
            yield from _all(_NANP, part, begin - len(opens), "phone", _nanp)
        if size >= 9 and not plain and "0" in part:
            yield from _all(_NATIONAL, part, begin - len(opens), "phone", _national)


def _all(
    pattern: re.Pattern[str], part: str, begin: int, kind: str, key_of: Callable[[str, str, int], str]
) -> Iterator[Span]:
    """Yields what the pattern finds and `key_of(value, part, its place)` accepts; what it refuses may hide another."""
    while found := pattern.search(part, begin):
        key = key_of(found[0], part, found.start())
        begin = found.end() if key else found.start() + 1
        if key:
            yield Span(found.start(), found.end(), kind, key)


def _card(value: str, part: str, start: int) -> str:
    digits = _digits(value)
    return digits if _issued(digits) and _luhn(digits) else ""


def _issued(digits: str) -> bool:
    """Whether a card of so many digits can begin like this."""
    size, four = len(digits), int(digits[:4])
    return any(size in sizes and first <= four <= last for first, last, sizes in _ISSUERS)


_ISSUERS: tuple[tuple[int, int, tuple[int, ...]], ...] = (
    (4000, 4999, (13, 16, 19)),  # Visa
    (5100, 5599, (16,)),  # Mastercard, and below
    (2221, 2720, (16,)),
    (3400, 3499, (15,)),  # American Express, and below
    (3700, 3799, (15,)),
    (3000, 3059, (14,)),  # Diners, and the two below
    (3600, 3699, (14,)),
    (3800, 3999, (14,)),
    (3528, 3589, (16, 17, 18, 19)),  # JCB
    (6000, 6999, (16, 17, 18, 19)),  # Discover, UnionPay, Maestro
    (5000, 5099, (12, 13, 14, 15, 16, 17, 18, 19)),  # Maestro, and below
    (5600, 5899, (12, 13, 14, 15, 16, 17, 18, 19)),
)


_VALUE = bytes.maketrans(b"0123456789", bytes(range(10)))
_DOUBLED = bytes.maketrans(bytes(range(10)), bytes((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)))


def _luhn(digits: str) -> bool:
    """Whether the check digit is right (ISO/IEC 7812-1)."""
    values = digits.encode().translate(_VALUE)
    return (sum(values[-1::-2]) + sum(values[-2::-2].translate(_DOUBLED))) % 10 == 0


def _ssn(value: str, part: str, start: int) -> str:
    return _digits(value) if "-" in value or _says(_SSN_WORD, part, start) else ""


def _ipv4(value: str, part: str, start: int) -> str:
    if _says(_VERSION_WORD, part, start):
        return ""
    try:
        address = IPv4Address(value)
    except AddressValueError:
        return ""
    return "" if address.is_loopback or address.packed[0] in (0, 255) else str(address)  # those are nobody's


def _international(value: str, part: str, start: int) -> str:
    digits = _digits(value)
    return digits if 7 <= len(digits) <= 15 else ""


def _nanp(value: str, part: str, start: int) -> str:
    digits = _digits(value)
    return digits if len(digits) == 11 else f"1{digits}"


def _national(value: str, part: str, start: int) -> str:
    groups = re.findall(r"[0-9]+", value)
    clocks = all(re.fullmatch(r"(?:[01][0-9]|2[0-3])[0-5][0-9]", group) for group in groups)
    if clocks or (len(groups) == 5 and groups == sorted(groups)):
        return ""  # "0800 1200 1600", "08 12 16 20 24": times of day
    digits = _digits(value)
    return digits if 9 <= len(digits) <= 12 else ""


def _cued_phone(part: str, begin: int) -> tuple[int, int] | None:
    """Returns where a phone number begins and ends whose form says nothing, after a word that does."""
    start = begin
    while start and part[start - 1] in "(+":
        start -= 1
    found = _CUED.match(part, start)
    if not found or _DATE.match(part, begin):
        return None
    before = part[:start].lower()
    if not any(hint in before for hint in _PHONE_HINTS) or not _PHONE_WORD.search(before):
        return None
    return found.start(), found.end()


def _says(word: re.Pattern[str], part: str, start: int) -> bool:
    """Whether this word stands right before a place."""
    return word.search(part[max(0, start - _CONTEXT) : start].lower()) is not None


def _digits(value: str) -> str:
    return value.translate(_SEPARATORS)
