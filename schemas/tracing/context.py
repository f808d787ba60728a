"""W3C trace context: which trace a case belongs to, and which span its next one hangs under. Knows no OpenTelemetry.

The readers of log shapes take the product's context from here, the stream processes their own from Kafka headers.
What a product wrote is believed only where it has the exact form; anything else counts as absent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
LONGEST = 512  # of either header; W3C asks that this much of tracestate be kept
SAMPLED = 1

_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_USUAL = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[01]")  # as nearly all are, and as we write them
_IDS = re.compile(r"(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}")
_TRACE = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_SPAN = re.compile(r"[0-9a-f]{16}")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16

Headers = Iterable[tuple[str, bytes | None]]


class Parent(NamedTuple):
    """The span that the next one hangs under; both ids in lower-case hexadecimal."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""  # the tracestate beside it, unread

    @property
    def header(self) -> str:
        """The traceparent that says so."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"


def read_traceparent(text: str, state: str = "") -> Parent | None:
    """Returns what a traceparent says; None for one that is malformed, all zeros, too long or of version ff."""
    if len(text) > LONGEST:
        return None
    found = _FORM.fullmatch(text)
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5] is not None):
        return None
    if found[2] == _NO_TRACE or found[3] == _NO_SPAN:
        return None
    return Parent(found[2], found[3], bool(int(found[4], 16) & SAMPLED), state if len(state) <= LONGEST else "")


def header_of(text: str) -> str:
    """Returns a traceparent as we write it, "" for one that says nothing."""
    if _USUAL.fullmatch(text):
        return text
    parent = read_traceparent(text)
    return "" if parent is None else parent.header


def parent_in(headers: Headers | Mapping[str, bytes | None] | None) -> Parent | None:
    """Returns the context in a Kafka record's headers; None where there is none, or more than one."""
    if not headers:
        return None
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in (TRACEPARENT, TRACESTATE) and value is not None:
            if name == TRACEPARENT and name in found:
                return None
            found.setdefault(name, bytes(value[: LONGEST + 1]).decode("ascii", "replace"))
    return read_traceparent(found[TRACEPARENT], found.get(TRACESTATE, "")) if TRACEPARENT in found else None


def carried(headers: Headers | None) -> list[tuple[str, bytes]]:
    """Returns the headers of a record that hold its context, to be sent on as they came."""
    return [(name, value) for name, value in headers or () if name in (TRACEPARENT, TRACESTATE) and value is not None]


def logged_parent(*places: Mapping[str, Any]) -> str:
    """Returns the traceparent that a log record holds in one of its objects, "" for none.

    Either as it is, or as `trace_id` and `span_id`, with `trace_flags` as loggers of OpenTelemetry write them; a span
    that is named without its flags counts as sampled.
    """
    for place in places:
        if (text := place.get(TRACEPARENT)).__class__ is str and (header := header_of(text)):
            return header
        if "span_id" in place and (header := joined(place.get("trace_id"), place["span_id"], place.get("trace_flags"))):
            return header
    return ""


def joined(trace_id: Any, span_id: Any, flags: Any = None) -> str:
    """Returns the traceparent of a span that a log names, "" where its ids have another form."""
    if trace_id.__class__ is not str or span_id.__class__ is not str:
        return ""
    ids = f"{trace_id}-{span_id}"
    if not _IDS.fullmatch(ids):
        trace, span = trace_of(trace_id), span_id.lower()
        if not trace or not _SPAN.fullmatch(span) or span == _NO_SPAN:
            return ""
        ids = f"{trace}-{span}"
    if isinstance(flags, str):
        flags = int(flags, 16) if re.fullmatch(r"[0-9a-fA-F]{1,2}", flags) else None
    return f"00-{ids}-00" if isinstance(flags, int) and not flags & SAMPLED else f"00-{ids}-01"


def trace_of(logged_id: str) -> str:
    """Returns a logged trace id as W3C writes it, "" for one of another form; a UUID is one."""
    found = logged_id.lower()
    if len(found) > 36 or not _TRACE.fullmatch(found):
        return ""
    found = found.replace("-", "")
    return "" if found == _NO_TRACE else found


def case_trace(case_id: str, logged_id: str = "") -> str:
    """Returns the trace of a case that continues no span: the one its log names, else one made of its id.

    The same case has the same trace whenever and wherever it is asked for, so replays and redrives join it.
    """
    return trace_of(logged_id) or hashlib.sha256(b"goldstream case " + case_id.encode()).hexdigest()[:32]


def run_parent(task: str, version: str) -> Parent:
    """Returns the span of the training run that made an adapter: whoever uses the adapter can link to it."""
    digest = hashlib.sha256(f"goldstream run {task} {version}".encode()).hexdigest()
    return Parent(digest[:32], digest[32:48], True)
