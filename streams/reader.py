"""Reading a product's log records: bytes of a shape we did not choose, to canonical records.

Intake, redrive and `goldstream map test` make one `Reader` and give it every message with its headers. Envelopes are
taken off one after the other, then the topic's mapping is tried, then the shapes we know, in a fixed order.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from schemas.errors import RecordError
from schemas.settings import Settings
from schemas.tracing.context import parent_in
from streams.decoding import NOT_JSON, decode, decode_otherwise
from streams.mapping import CompiledMapping
from streams.records import Found, Record, set_field
from streams.shapes.cloudevents import (
    STRUCTURED,
    fill_in,
    fill_in_trace,
    from_headers,
    is_structured,
    read_event,
    said_in,
    structured_data,
)
from streams.shapes.debezium import changed_row, fill_in_time, is_debezium, only_column
from streams.shapes.known import shape_of
from streams.shapes.otlp import Spans, is_otlp
from streams.shapes.otlp_export import BEGINNING, EXPORT, Export, read_export
from streams.shapes.schema_registry import Registry, named_in_headers, split_magic
from streams.shapes.streamed import is_chunk
from streams.shapes.values import keys, kind

log = logging.getLogger(__name__)

Headers = Sequence[tuple[str, bytes | None]]
# What the envelopes say, the nearest first, each with what writes it into a record where that says nothing itself.
Context = tuple[tuple[Callable[[Any, Record], None], Any], ...]

MAX_DEPTH = 8  # envelopes within envelopes
_MAGIC = 1  # bytes in a registry's format begin with this or 0

_ENVELOPES = frozenset(("specversion", "resourceSpans", "payload", "op", "__deleted"))  # one of these is in each


class Reader:
    """Reads messages of any topic; what it needs for that beyond the message, it looks up once and keeps."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = Registry(settings.schema_registry)
        self._mappings: dict[str, CompiledMapping | None] = {}

    def read(self, value: bytes | None, headers: Headers, topic: str) -> list[Found]:
        """Returns what the message holds: at least one item, each a record or the reason why it is none.

        A reason never quotes the record's text. Raises RegistryDown, and nothing else: then the same message can be
        read later.
        """
        try:
            mapping = self._mappings[topic]
        except KeyError:
            mapping = self._mappings[topic] = self._mapping(topic)
        walk = _Walk(self._registry, mapping)
        try:
            walk.message(value, headers)
        except RecordError as error:
            walk.found.append(Found(walk.index, error, walk.recognised()))
        except _UNFORESEEN as error:  # one record must never stop all that come after it
            at = traceback.extract_tb(error.__traceback__)[-1]  # where, never what: its text may quote the record
            unread = RecordError("reader_error", f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}")
            log.error("a record of %s could not be read: %s. Please report this.", topic, unread.detail)
            walk.found.append(Found(walk.index, unread, walk.recognised()))
        if not walk.found:
            walk.found.append(
                Found(0, RecordError("no_call", "no span of the message is a model call"), walk.recognised())
            )
        return walk.found

    def unwrapped(self, value: bytes | None, headers: Headers) -> list[dict[str, Any]]:
        """Returns the objects inside a message's envelopes, known shapes or not: what a mapping is tried on."""
        walk = _Walk(self._registry, None)
        walk.bodies = []
        with contextlib.suppress(RecordError):
            walk.message(value, headers)
        return walk.bodies

    def _mapping(self, topic: str) -> CompiledMapping | None:
        mapping = self._settings.mapping(topic)
        return CompiledMapping(mapping) if mapping.expressions() else None


class _Walk(msgspec.Struct):
    """One message being taken apart. `index` numbers what could be a call, whether or not it is one."""

    registry: Registry
    mapping: CompiledMapping | None
    found: list[Found] = []
    index: int = 0
    trail: str = ""  # the envelopes so far, as "cloudevents/debezium/"
    shape: str = ""  # what is inside them, where it was recognised
    bodies: list[dict[str, Any]] | None = None  # what is inside them, where somebody asks for it

    def message(self, value: bytes | None, headers: Headers) -> None:
        """Takes a whole message."""
        context: Context = ()
        if headers:
            attributes = from_headers(headers)
            if attributes:
                self.trail, context = "cloudevents/", ((fill_in, said_in(attributes)),)
            if (parent := parent_in(headers)) is not None:  # nearer than what the event says of its own beginning
                context = ((fill_in_trace, parent.header), *context)
        if value is None:
            raise RecordError("deleted", "the record is a tombstone")
        if not value or value.isspace():
            raise RecordError("empty", "the record has no value")
        if headers and (named := named_in_headers(headers)) is not None:
            self.trail = "schema-registry/" + self.trail
            self._open(self.registry.decode(named, value), context, 1)
        else:
            self._bytes(value, context, 0)

    def _bytes(self, value: bytes, context: Context, depth: int) -> None:
        if not depth and value[:14] == STRUCTURED and (event := read_event(value)) is not None:
            said, data = event
            self.trail += "cloudevents/"
            context, depth = ((fill_in, said), *context) if context else ((fill_in, said),), 1
            if data.__class__ is not bytes:
                self._open(data, context, depth)
                return
            value = data
        if value and value[0] <= _MAGIC and (framed := split_magic(value)) is not None:
            self.trail += "schema-registry/"
            self._open(self.registry.decode(*framed), context, depth + 1)
        elif not depth and value.find(EXPORT, 0, BEGINNING) >= 0 and (export := read_export(value)) is not None:
            self._spans(export, context)
        else:
            try:
                body = decode(value)
            except NOT_JSON as error:
                body = decode_otherwise(value, error)
            self._open(body, context, depth)

    def _open(self, body: Any, context: Context, depth: int) -> None:
        """Takes a value apart, one envelope at a time. Raises RecordError where it holds one call at most."""
        if depth > MAX_DEPTH:
            raise RecordError("too_deep", f"more than {MAX_DEPTH} envelopes, one in the other")
        if body.__class__ is not dict:
            self._no_object(body, context, depth)
        elif _ENVELOPES.isdisjoint(body):
            self._call(body, context)
        elif "specversion" in body and is_structured(body):
            self.trail += "cloudevents/"
            data = structured_data(body)
            context = ((fill_in, said_in(body)), *context)
            if isinstance(data, bytes):
                self._bytes(data, context, depth + 1)
            else:
                self._open(data, context, depth + 1)
        elif is_otlp(body):
            self._spans(body, context)
        elif is_debezium(body):
            self.trail += "debezium/"
            row, ts_ms = changed_row(body)
            self._row(row, ((fill_in_time, ts_ms), *context) if ts_ms else context, depth + 1)
        else:
            self._call(body, context)

    def _no_object(self, body: Any, context: Context, depth: int) -> None:
        if isinstance(body, list):
            self._batch(body, context, depth)
        elif isinstance(body, str | bytes) and body[:1] in ("{", "[", "\x00", "\x01", b"{", b"[", b"\x00", b"\x01"):
            self._bytes(body.encode("utf-8", "replace") if isinstance(body, str) else body, context, depth + 1)
        else:
            raise RecordError("wrong_shape", f"expected a JSON object, found {kind(body)}")

    def _batch(self, items: list[Any], context: Context, depth: int) -> None:
        if not items:
            raise RecordError("no_call", "an empty array")
        if not any(isinstance(item, dict | list) for item in items):
            raise RecordError("wrong_shape", f"expected objects, found an array of {kind(items[0])}")
        if all(is_chunk(item) for item in items):
            raise RecordError("stream_chunk", "the pieces of a streamed answer, without its prompt")
        trail = self.trail
        context = tuple((_fill_in_but_id, one) for one in context)  # one id is not for many
        for item in items:
            self.trail = trail
            self._each(item, context, depth)

    def _each(self, item: Any, context: Context, depth: int) -> None:
        try:
            self._open(item, context, depth + 1)
        except RecordError as error:
            self._add(error)

    def _row(self, row: dict[str, Any], context: Context, depth: int) -> None:
        """Takes a table's row: a call, an envelope, or an outbox with one of these in a column."""
        known = self.mapping is not None or is_otlp(row) or is_structured(row) or shape_of(row) is not None
        column = None if known else only_column(row)
        self._open(row if column is None else column, context, depth)

    def _spans(self, body: dict[str, Any] | Export, context: Context) -> None:
        self.shape = "otlp"
        spans = Spans(body, self.index)
        for one in spans.calls():
            self.index, self.shape = one.index, one.shape
            self._add(one.record, context)
        self.index = spans.seen

    def _call(self, body: dict[str, Any], context: Context) -> None:
        mapping = self.mapping
        if self.bodies is not None:
            self.bodies.append(body)
        if mapping is None:
            self._add(self._known(body), context)
            return
        if mapping.batched:
            calls = mapping.items(body)
            if calls:
                for item in calls:
                    try:
                        self._add(self._mapped(item, mapping), context)
                    except RecordError as error:
                        self._add(error)
                return
        self._add(self._mapped(body, mapping), context)

    def _mapped(self, body: Any, mapping: CompiledMapping) -> Record:
        if mapping.reads_prompts and (record := mapping.read(body)) is not None:
            return record
        if not isinstance(body, dict):
            raise RecordError("wrong_shape", f"expected a JSON object, found {kind(body)}")
        try:
            return mapping.overlaid(self._known(body), body)
        except RecordError as error:
            unknown = mapping.reads_prompts and error.reason in _UNKNOWN
            raise (mapping.found_nothing(body) if unknown else error) from None

    def _known(self, body: dict[str, Any]) -> Record:
        shape = shape_of(body)
        if shape is None:
            raise RecordError("wrong_shape", f"no shape Goldstream reads; its keys are {keys(body)}")
        self.shape, read = shape
        return read(body)

    def _add(self, record: Record | RecordError, context: Context = ()) -> None:
        if record.__class__ is Record:
            shape = record.shape
            if self.trail:
                shape = self.trail + shape
                set_field(record, "shape", shape)
            for fill_in_from, told in context:
                fill_in_from(told, record)
        else:
            shape = self.recognised()
        self.found.append(Found(self.index, record, shape))
        self.index += 1
        self.shape = ""

    def recognised(self) -> str:
        """Returns the envelopes and the shape inside them, as far as they were recognised."""
        return (self.trail + self.shape).rstrip("/")


def _fill_in_but_id(one: tuple[Callable[[Any, Record], None], Any], record: Record) -> None:
    (fill_in_from, told), event_id = one, record.event_id
    fill_in_from(told, record)
    set_field(record, "event_id", event_id)


_UNFORESEEN = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_UNKNOWN = ("wrong_shape", "no_messages")
