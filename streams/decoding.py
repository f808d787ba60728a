"""JSON as loggers write it, also in lines, with NaN, half a surrogate pair or a byte order mark. For streams.reader."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from schemas.errors import RecordError

decode = msgspec.json.Decoder().decode  # raises one of NOT_JSON
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_otherwise(value: bytes, error: Exception) -> Any:
    """Returns what bytes hold that `decode` raised an error for, lines of JSON as an array. Raises RecordError."""
    try:
        value.decode("utf-8")
    except UnicodeDecodeError as why:
        hint = "; protobuf? Have the collector write otlp_json" if value[:1] in b"\x0a\x12\x1a" else ""
        raise RecordError("not_utf8", f"byte {why.start} is not UTF-8{hint}") from None
    if isinstance(error, RecursionError):
        raise RecordError("not_json", "nested too deeply")
    if value[:3] == b"\xef\xbb\xbf":
        return _decode_rest(value[3:])
    if value.lstrip()[:1] in (b"{", b"[") and b"\n" in value.strip():
        try:
            return msgspec.json.Decoder().decode_lines(value)
        except (msgspec.DecodeError, RecursionError):
            pass
    try:
        return _lenient(value)
    except (ValueError, RecursionError):
        raise RecordError("not_json", str(error)) from None


def _decode_rest(value: bytes) -> Any:
    try:
        return decode(value)
    except NOT_JSON as error:
        return decode_otherwise(value, error)


def _lenient(value: bytes) -> Any:
    """Returns what JSON as Python's own library writes it holds: NaN becomes null, half a surrogate pair `?`."""
    held = json.loads(value, parse_constant=lambda _: None)
    return msgspec.json.decode(json.dumps(held, ensure_ascii=False).encode("utf-8", "replace"))
