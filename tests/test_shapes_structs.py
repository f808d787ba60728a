"""What is decoded into structs reads as what is decoded into objects, and what does not fit a struct is read too."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_shapes import EXPECTED, chat, read_one, sample

from schemas.settings import Settings
from streams.reader import Reader
from streams.shapes.cloudevents import STRUCTURED
from streams.shapes.otlp_export import BEGINNING


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(Settings())


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r", "\n: still here\n\n"])
def test_a_stream_of_events_is_put_together_however_its_lines_end(reader: Reader, end: str) -> None:
    def event(said: str, finish: str | None = None) -> str:
        choice = {"index": 0, "delta": {"content": said}, "finish_reason": finish}
        return "data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}, ensure_ascii=False)

    events = [event("a\u2028b\n\n"), event("data: c"), event("", "stop"), "data: [DONE]"]
    record = read_one(reader, {"request": chat(), "response": "".join(one + end for one in events)})
    assert (record.answer, record.finish_reason) == ("a\u2028b\n\ndata: c", "stop")


@pytest.mark.parametrize("name", [name for name in EXPECTED if name.startswith("otlp-")])
def test_an_export_reads_the_same_with_and_without_structs(reader: Reader, name: str) -> None:
    value, headers = sample(name)
    away = b" " * BEGINNING  # behind which nobody looks for an export
    first, second = (reader.read(one, headers, "logs") for one in (value, away + value))
    assert [(one.index, one.shape) for one in first] == [(one.index, one.shape) for one in second]
    for one, other in zip(first, second, strict=True):
        assert one.record == other.record or str(one.record) == str(other.record)  # errors are told


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"of_their_own": 1},
        {"traceparent": 7, "time": None, "id": 12},
        {"data_base64": None},
        {"data_base64": None, "data": chat()},
        {"data_base64": 5},
        {"data_base64": "no base64"},
        {"data_base64": ""},
        {"data_base64": "W3sibWVzc2FnZXMiOiBbeyJyb2xlIjogInVzZXIiLCAiY29udGVudCI6ICJxIn1dfV0="},
        {"data": chat()},
    ],
)
def test_an_event_reads_the_same_with_and_without_structs(reader: Reader, changed: dict[str, Any]) -> None:
    event = json.loads(sample("cloudevents-base64.json")[0]) | changed
    value = json.dumps(event).encode()
    assert value.startswith(STRUCTURED)
    first, second = (reader.read(one, (), "logs")[0] for one in (value, b" " + value))
    assert first.shape == second.shape
    assert first.record == second.record or str(first.record) == str(second.record)
