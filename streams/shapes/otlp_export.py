"""OTLP exports as nearly all are, decoded straight into structs: only what is read, in two thirds of the time.

What does not fit (another type somewhere, JSON in a text, an attribute without a name) is no fault yet: the reader
then decodes the message as any other, and streams.shapes.otlp says what is wrong with which span.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET

from schemas.errors import RecordError
from streams.shapes.otlp_layout import Attributes

EXPORT = b'"resourceSpans"'
BEGINNING = 64  # bytes in which an export says what it is
MAX_DEPTH = 32


class _Struct(msgspec.Struct, gc=False):  # never part of a cycle
    pass


class _Array(_Struct):
    values: list[_Value] | None = None


class _Table(_Struct):
    values: list[_Attribute] | None = None


class _Value(_Struct):
    """OTLP's AnyValue: one of these is set."""

    stringValue: Any = UNSET
    intValue: Any = UNSET
    kvlistValue: _Table | msgspec.UnsetType = UNSET
    arrayValue: _Array | msgspec.UnsetType = UNSET
    doubleValue: Any = UNSET
    boolValue: Any = UNSET
    bytesValue: Any = UNSET


class _Attribute(_Struct):
    key: str
    value: _Value


class _Resource(_Struct):
    attributes: list[_Attribute] | None = None


class Event(_Struct):
    """Something that happened within a span; older instrumentations keep messages so."""

    name: Any = None
    attributes: list[_Attribute] | None = None


class Span(_Struct):
    """One span, without what nobody reads."""

    traceId: Any = None
    spanId: Any = None
    flags: Any = None
    startTimeUnixNano: Any = None
    status: Any = None
    attributes: list[_Attribute] | None = None
    events: list[Event] | None = None


class _Scope(_Struct):
    spans: list[Span] | None = None


class _OfResource(_Struct):
    resource: _Resource | None = None
    scopeSpans: list[_Scope] | msgspec.UnsetType | None = UNSET
    instrumentationLibrarySpans: list[_Scope] | None = None

    def spans(self) -> list[Span]:
        """Returns the spans of all scopes."""
        scopes = self.instrumentationLibrarySpans if self.scopeSpans is UNSET else self.scopeSpans
        return [span for scope in scopes or () for span in scope.spans or ()]


class Export(_Struct):
    """One message of a collector."""

    resourceSpans: list[_OfResource]
    specversion: Any = UNSET  # an envelope after all


_decode = msgspec.json.Decoder(Export).decode


def read_export(value: bytes) -> Export | None:
    """Returns the export that bytes hold, None where they hold something else or one to be read with more care."""
    try:
        if not value.isascii():
            value.decode()  # what nobody reads is decoded by nobody
        export = _decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return export if export.specversion is UNSET else None


def attributes_in(given: list[_Attribute] | None, depth: int = 0) -> Attributes:
    """Returns attributes as an object with plain values."""
    return {
        one.key: value if (value := one.value.stringValue) is not UNSET else _plain(one.value, depth)
        for one in given or ()
    }


def whole_number(held: Any) -> Any:
    """Returns an int64, which comes as text; anything else as it is."""
    if held.__class__ is str and (held.isdecimal() or held.lstrip("-").isdecimal()) and len(held) < 21:
        return int(held)
    return held


def _plain(value: _Value, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise RecordError("too_deep", "an attribute is nested too deeply")
    if value.intValue is not UNSET:
        return whole_number(value.intValue)
    if isinstance(value.kvlistValue, _Table):
        return attributes_in(value.kvlistValue.values, depth + 1)
    if isinstance(value.arrayValue, _Array):
        return [
            said if (said := one.stringValue) is not UNSET else _plain(one, depth + 1)
            for one in value.arrayValue.values or ()
        ]
    if value.doubleValue is not UNSET:
        return value.doubleValue
    if value.boolValue is not UNSET:
        return value.boolValue
    return None if value.bytesValue is UNSET else value.bytesValue
