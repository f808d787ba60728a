"""Reading a product's log records: bytes of a shape we did not choose, to canonical records.

Intake, redrive and `goldstream map test` make one `Reader` and give it every message with its headers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from schemas.errors import RecordError
from schemas.settings import Settings
from streams.records import Found
from streams.shapes.openai_chat import read_openai_chat

Headers = Sequence[tuple[str, bytes | None]]


class Reader:
    """Reads messages of any topic; what it needs for that beyond the message, it looks up once and keeps."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def read(self, value: bytes | None, headers: Headers, topic: str) -> list[Found]:
        """Returns what the message holds: at least one item, each a record or the reason why it is none.

        A reason never quotes the record's text. Raises RegistryDown, and nothing else: then the same message can be
        read later.
        """
        try:
            return [Found(index, _read_one(item)) for index, item in enumerate(_items(_parse(value)))]
        except RecordError as error:
            return [Found(0, error)]


def _items(body: Any) -> Iterator[Any]:
    if not isinstance(body, list):
        yield body
        return
    if not body:
        raise RecordError("no_call", "an empty array")
    if not any(isinstance(item, dict | list) for item in body):
        raise RecordError("wrong_shape", f"expected objects, found an array of {type(body[0]).__name__}")
    yield from body


def _read_one(body: Any) -> Any:
    try:
        if not isinstance(body, dict):
            raise RecordError("wrong_shape", f"expected a JSON object, found {type(body).__name__}")
        return read_openai_chat(body)
    except RecordError as error:
        return error


def _parse(value: bytes | None) -> Any:
    if value is None or not value.strip():
        raise RecordError("empty", "the record has no value")
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        try:
            value.decode("utf-8")
        except UnicodeDecodeError as why:
            raise RecordError("not_utf8", f"byte {why.start} is not UTF-8") from None
        detail = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RecordError("not_json", detail) from None
