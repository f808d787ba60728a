"""OTLP/JSON traces: spans of model calls, by the GenAI conventions of today and before, or by OpenInference.

A message holds many spans, of which most are no model call. streams.shapes.otlp_layout knows which attributes hold
what, streams.shapes.otlp_messages reads the prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from schemas.errors import RecordError
from schemas.tracing.context import joined
from streams.records import Found, Record, set_field
from streams.shapes.otlp_export import MAX_DEPTH, Export, attributes_in, whole_number
from streams.shapes.otlp_layout import Attributes, layout_of
from streams.shapes.otlp_messages import Events, answered_by, asked_of, offered_to
from streams.shapes.values import amount, first, kind, number, obj, params, time_ms

_CHAT = ("chat", "text_completion", "generate_content", "completion", "message")


def is_otlp(body: dict[str, Any]) -> bool:
    """Whether an object is an export of traces."""
    return "resourceSpans" in body


class Spans:
    """The spans of one export. `seen` counts them all, so that a call's number stays when we learn to read more."""

    def __init__(self, body: dict[str, Any] | Export, start: int) -> None:
        self._body = body
        self.seen = start

    def calls(self) -> Iterator[Found]:
        """Yields the model calls among the spans; a broken span is an item of its own.

        Raises RecordError where the export itself is broken.
        """
        return self._in_export(self._body) if isinstance(self._body, Export) else self._in_object(self._body)

    def _in_export(self, export: Export) -> Iterator[Found]:
        for resource in export.resourceSpans:
            of_resource: Attributes | None = None
            for span in resource.spans():
                index = self.seen
                self.seen += 1
                try:
                    attributes = attributes_in(span.attributes)
                    convention = _convention(attributes)
                    if not convention:
                        continue
                    _check_status(span.status, attributes)
                    if of_resource is None:
                        of_resource = attributes_in(resource.resource.attributes if resource.resource else None)
                    events: Events = ()
                    if span.events:
                        events = [(first(event.name), attributes_in(event.attributes)) for event in span.events]
                    trace_id, span_id = span.traceId, span.spanId
                    ids = (
                        trace_id if trace_id.__class__ is str else first(trace_id),
                        span_id if span_id.__class__ is str else first(span_id),
                        span.flags,
                    )
                    record = _read_span(ids, span.startTimeUnixNano, attributes, events, of_resource, convention)
                    yield Found(index, record, convention)
                except RecordError as error:
                    yield Found(index, error, "otlp")

    def _in_object(self, body: dict[str, Any]) -> Iterator[Found]:
        for resource in _objects(body["resourceSpans"], "resourceSpans"):
            of_resource: Attributes | None = None
            scopes = resource.get("scopeSpans", resource.get("instrumentationLibrarySpans"))
            for scope in _objects(scopes if scopes is not None else [], "scopeSpans"):
                for span in _objects(scope["spans"] if scope.get("spans") is not None else [], "spans"):
                    index = self.seen
                    self.seen += 1
                    try:
                        attributes = attributes_of(span.get("attributes"))
                        convention = _convention(attributes)
                        if not convention:
                            continue
                        if of_resource is None:
                            of_resource = attributes_of(obj(resource.get("resource")).get("attributes"))
                        _check_status(span.get("status"), attributes)
                        events = [
                            (first(event.get("name")), attributes_of(event.get("attributes")))
                            for event in (_objects(span["events"], "events") if span.get("events") else ())
                        ]
                        ids = (first(span.get("traceId")), first(span.get("spanId")), span.get("flags"))
                        began = span.get("startTimeUnixNano")
                        record = _read_span(ids, began, attributes, events, of_resource, convention)
                        yield Found(index, record, convention)
                    except RecordError as error:
                        yield Found(index, error, "otlp")


def attributes_of(raw: Any, depth: int = 0, where: str = "attributes") -> Attributes:
    """Returns OTLP's array of {key, value} as an object with plain values."""
    if raw.__class__ is list:
        try:
            found: Attributes = {
                item["key"]: value["stringValue"] if "stringValue" in (value := item["value"]) else _plain(value, depth)
                for item in raw
            }
            "".join(found)  # raises for a name that is no text
            return found
        except (KeyError, TypeError):
            pass  # some are not as they should be
    found = {}
    for item in _objects(raw, where) if raw is not None else ():
        key = item.get("key")
        if key.__class__ is str:
            found[key] = _plain(item.get("value"), depth)
    return found


def _plain(value: Any, depth: int) -> Any:
    """Returns OTLP's AnyValue as a plain value; int64 comes as text."""
    if value.__class__ is not dict:
        return None
    if depth > MAX_DEPTH:
        raise RecordError("too_deep", "an attribute is nested too deeply")
    if "stringValue" in value:
        return value["stringValue"]
    if "intValue" in value:
        return whole_number(value["intValue"])
    if "kvlistValue" in value:
        return attributes_of(_values(value["kvlistValue"]), depth + 1, "kvlistValue")
    if "arrayValue" in value:
        return [_plain(one, depth + 1) for one in _objects(_values(value["arrayValue"]), "arrayValue")]
    return next((value[name] for name in ("doubleValue", "boolValue", "bytesValue") if name in value), None)


def _values(raw: Any) -> Any:
    return (raw if raw.__class__ is dict else obj(raw)).get("values") or []


def _convention(attributes: Attributes) -> str:
    """Returns which convention a span of a model call follows; "" for any other span."""
    of_openinference = attributes.get("openinference.span.kind")
    if of_openinference is not None:
        return "otlp-openinference" if of_openinference == "LLM" else ""
    operation = attributes.get("gen_ai.operation.name", attributes.get("llm.request.type"))
    if operation is not None:
        return "otlp-genai" if operation in _CHAT else ""
    if "gen_ai." not in (names := "\n".join(attributes)) and "llm." not in names:
        return ""
    for name in attributes:
        if name[:7] == "gen_ai." and name[7:13] in ("input.", "prompt", "reques", "system", "output"):
            return "otlp-genai"
        if name[:18] == "llm.input_messages":
            return "otlp-openinference"
    return ""


def _check_status(status: Any, attributes: Attributes) -> None:
    code = (status if status.__class__ is dict else obj(status)).get("code")
    if code in (2, "2", "STATUS_CODE_ERROR") or attributes.get("error.type"):
        raise RecordError("failed_call", "the span's status is an error")


def _read_span(
    ids: tuple[str, str, Any], began: Any, attributes: Attributes, events: Events, resource: Attributes, shape: str
) -> Record:
    """Returns the record of a span with ids (trace, span, flags) that began at a time in ns."""
    get, (trace_id, span_id, flags) = attributes.get, ids
    finish = get("gen_ai.response.finish_reasons")
    finish = finish[0] if isinstance(finish, list) and finish else finish
    layout = layout_of(attributes)
    numbered = {} if "gen_ai.input.messages" in attributes else layout.groups(attributes)
    completion, said_finish = answered_by(attributes, events, numbered)
    told: dict[str, Any] = {}
    for field, names in layout.names:
        value = attributes[names[0]]
        if value.__class__ is not str or not value:
            value = first(*[attributes[name] for name in names])
        told[field] = value
    for field, names in layout.counts:
        value = attributes[names[0]]
        if value is None:
            value = next((attributes[name] for name in names if attributes[name] is not None), None)
        told[field] = number(value)
    given: dict[str, Any] = {}
    for param, name in layout.params:
        if attributes[name] is not None:
            given[param] = attributes[name]
    if "llm.invocation_parameters" in attributes:
        given |= params(obj(attributes["llm.invocation_parameters"]))
    cost = get("gen_ai.usage.cost")
    record = Record(
        messages=asked_of(attributes, events, numbered),
        completion=completion,
        ts_ms=time_ms(began),
        source=first(resource.get("service.name")),
        trace_id=trace_id,
        traceparent=joined(trace_id, span_id, flags),
        tools=offered_to(attributes, numbered),
        params=given,
        finish_reason=first(finish, said_finish, get("llm.finish_reason")),
        cost_usd=amount(cost if cost is not None else get("llm.cost.total")),
        shape=shape,
        **told,
    )
    if not record.event_id and trace_id and span_id:
        set_field(record, "event_id", f"{trace_id}:{span_id}")
    return record


def _objects(raw: Any, where: str) -> list[dict[str, Any]]:
    if raw.__class__ is not list:
        raise RecordError("wrong_type", f"`{where}` is {kind(raw)}, expected an array")
    for item in raw:
        if item.__class__ is not dict:
            raise RecordError("wrong_type", f"one of `{where}` is {kind(item)}, expected an object")
    return raw
