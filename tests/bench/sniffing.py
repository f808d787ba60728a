"""Row `sniffing`: from bytes to the mapped record, for every shape that is read, against json.loads of the same bytes.

Each sample of deploy/samples that holds a call is brought to about 2 KB by lengthening the longest text said in it,
also where that lies in JSON within a text or in base64. What is longer already, since it holds several spans or calls,
stays as it is. Each is read as intake reads it: envelopes off, shape recognised, mapped. Redaction, hashing and
producing come after it. The worst shape decides. Avro is not JSON, so it has no ratio; its time stands in the detail.

Beside the worst stands what decoding alone takes: of the record, and of the JSON that lies in its texts. The detail has
that of each, and how many bytecodes a read executes, which no other work on the machine changes.
"""

from __future__ import annotations

import base64
import json
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import msgspec
from pipeline import STUB_TASK

from bench.row import Ratios, Result, ratios
from schemas.errors import RecordError
from schemas.settings import Mapping, SchemaRegistry, Settings
from streams.reader import Headers, Reader
from streams.records import Found

SAMPLES = Path(__file__).parents[2] / "deploy" / "samples"
SIZE = 2048
FILLER = "The patient sleeps badly, walks 2 km a day and takes metformin 500 mg with breakfast. "
ROUNDS, REPEATS = 15, 120
BASE64 = "ey"  # {" in it
LIMIT = 3.0  # the row's target; how many are above it is told beside the worst

_decode = msgspec.json.Decoder().decode


class Sample(NamedTuple):
    """One Kafka message; `documents` is what a user's json.loads would be given, none where it is not JSON."""

    name: str
    value: bytes
    headers: Headers
    topic: str
    documents: tuple[bytes, ...]


class Cost(NamedTuple):
    """What reading one sample costs: the ratios are paired, times in microseconds."""

    shape: str
    size: int
    records: int
    read_us: float
    bytecodes: int
    to_loads: Ratios | None
    to_msgspec: Ratios | None
    decoding: Ratios | None  # all that has to be decoded, as the reader does, to json.loads of the record


def measure(room: Path) -> Result:
    """Returns the ratio of the shape that costs most."""
    costs = {sample.name: cost for sample in samples() if (cost := cost_of(sample, ROUNDS, REPEATS)) is not None}
    beside = {name: cost.to_loads for name, cost in costs.items() if cost.to_loads is not None}
    worst = max(beside, key=lambda name: beside[name].median)
    found, plain = beside[worst], [one.median for one in beside.values()]
    together = sum(one.ours for one in beside.values()) / sum(one.theirs for one in beside.values())
    above, decoding = sum(one > LIMIT for one in plain), costs[worst].decoding
    alone = f" ({decoding.median:.1f}x to decode)" if decoding else ""
    return Result(
        figure=found.median,
        low=found.low,
        high=found.high,
        ours=f"{found.ours:.1f} us {Path(worst).stem}{alone}; {above} of {len(plain)} above, all {together:.2f}x",
        theirs=f"{found.theirs:.1f} us",
        detail={name: figures(cost) for name, cost in costs.items()},
    )


def figures(cost: Cost) -> dict[str, Any]:
    """Returns what is kept of a sample's cost."""
    return {
        "shape": cost.shape,
        "bytes": cost.size,
        "records": cost.records,
        "read_us": round(cost.read_us, 1),
        "to_json_loads": round(cost.to_loads.median, 2) if cost.to_loads else None,
        "to_msgspec_decode": round(cost.to_msgspec.median, 2) if cost.to_msgspec else None,
        "decoding_to_json_loads": round(cost.decoding.median, 2) if cost.decoding else None,
        "bytecodes": cost.bytecodes,
    }


def cost_of(sample: Sample, rounds: int, repeats: int) -> Cost | None:
    """Returns what reading a sample costs; None for one that holds no call."""
    reader = Reader(bench_settings())
    found = reader.read(sample.value, sample.headers, sample.topic)
    shapes = [one.shape for one in found if not isinstance(one.record, RecordError)]
    if not shapes:
        return None
    inner = [text for document in sample.documents for text in layers(json.loads(document))]

    def read() -> list[Found]:
        return reader.read(sample.value, sample.headers, sample.topic)

    sides: tuple[Callable[[], Any], ...] = (
        read,
        _each(json.loads, sample.documents),
        _each(msgspec.json.decode, sample.documents),
        _each(_decoded, [*sample.documents, *inner]),
    )
    rows = []
    for number in range(rounds + 1):  # the first warms up
        order = range(len(sides))
        took = {side: cost_us(sides[side], repeats) for side in (order if number % 2 else reversed(order))}
        if number:
            rows.append(took)
    read_us = ratios([(row[0], 1.0) for row in rows]).median
    shape, size, count = shapes[0], len(sample.value), bytecodes(read)
    if not sample.documents:
        return Cost(shape, size, len(shapes), read_us, count, None, None, None)
    to_loads, to_msgspec = (ratios([(row[0], row[side]) for row in rows]) for side in (1, 2))
    decoding = ratios([(row[3], row[1]) for row in rows])
    return Cost(shape, size, len(shapes), read_us, count, to_loads, to_msgspec, decoding)


def _each(decode: Callable[[Any], Any], documents: Sequence[Any]) -> Callable[[], Any]:
    if len(documents) == 1:
        (document,) = documents
        return lambda: decode(document)
    return lambda: [decode(document) for document in documents]


def _decoded(document: bytes | str) -> Any:
    return _decode(msgspec.convert(document, bytes) if document[:2] == BASE64 else document)


def bytecodes(run: Callable[[], Any]) -> int:
    """Returns how many bytecodes a call executes, those of comprehensions and of all that it calls included."""
    count, before = 0, sys.gettrace()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def cost_us(run: Callable[[], Any], repeats: int) -> float:
    """Returns the CPU time of one call in microseconds."""
    began = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - began) / repeats * 1e6


def samples() -> list[Sample]:
    """Returns every sample of deploy/samples, brought to about 2 KB."""
    return [of_2_kb(path.name) for path in sorted(SAMPLES.iterdir()) if path.is_file()]


def of_2_kb(name: str) -> Sample:
    """Returns a sample of about 2 KB as its logger would write it; Avro stays as it is."""
    raw, topic = (SAMPLES / name).read_bytes(), "mapped" if name == "unknown.json" else "logs"
    if name.endswith("lines.jsonl"):  # as `kcat -P` sends a file of lines: several calls in a message
        return Sample(name, raw, (), topic, tuple(raw.splitlines()))
    if ".kcat." in name:
        line = json.loads(raw)
        headers = [(key, text.encode()) for key, text in zip(line["headers"][::2], line["headers"][1::2], strict=True)]
        value = dumped(json.loads(line["payload"]))
        return Sample(name, value, headers, topic, (value,))
    if name.endswith(".bin"):
        begin = raw.find(b"{")
        try:
            body = json.loads(raw[begin:])
        except ValueError:
            return Sample(name, raw, (), topic, ())
        value = dumped(body)
        return Sample(name, raw[:begin] + value, (), topic, (value,))
    value = dumped(json.loads(raw))
    return Sample(name, value, (), topic, (value,))


def dumped(body: Any) -> bytes:
    """Returns a record as Python's loggers write it, at about 2 KB."""
    said = max((text for text in texts(body) if " " in text and text[:5] != "data:"), key=len, default="")
    value, more = json.dumps(body).encode(), 0
    while said and len(value) < SIZE - 8:
        more += max((SIZE - len(value)) * 3 // 4, 1)
        longer = said + (FILLER * (more // len(FILLER) + 1))[:more]
        value = json.dumps(swapped(body, said, longer)).encode()
    return value


def texts(value: Any) -> list[str]:
    """Returns what is said in a record: its texts, of JSON in a text and of base64 those inside."""
    if isinstance(value, str):
        inner, _ = opened(value)
        return [value] if inner is None else texts(inner)
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in items for text in texts(one)]


def layers(value: Any) -> list[str]:
    """Returns the texts of a record that hold JSON, be it in base64, at any depth; those of a stream do not count."""
    if isinstance(value, str):
        inner, _ = opened(value)
        return [] if inner is None else [value, *layers(inner)]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in items for text in layers(one)]


def swapped(value: Any, old: str, new: str) -> Any:
    """Returns a record with another text wherever it held one."""
    if isinstance(value, str):
        inner, close = opened(value)
        return (new if value == old else value) if inner is None else close(swapped(inner, old, new))
    if isinstance(value, dict):
        return {name: swapped(held, old, new) for name, held in value.items()}
    return [swapped(one, old, new) for one in value] if isinstance(value, list) else value


def opened(text: str) -> tuple[Any, Callable[[Any], str]]:
    """Returns (what a text of JSON or of base64 with JSON holds, what makes such a text of it); None for plain ones."""
    if text[:1] in ("{", "["):
        return json.loads(text), json.dumps
    if text[:2] == BASE64:
        return json.loads(base64.b64decode(text)), lambda held: base64.b64encode(json.dumps(held).encode()).decode()
    return None, str


def bench_settings() -> Settings:
    """Returns settings with two topics, one of which has a mapping for deploy/samples/unknown.json."""
    mapping = Mapping(
        prompt="llm.dialogue.question",
        system="llm.dialogue.systemPrompt",
        completion="llm.dialogue.reply",
        event_id="meta.uid",
        ts="meta.at",
        session_id="visit",
        model="llm.engine",
        usage="llm.tokens",
    )
    table = tomllib.loads(STUB_TASK.format(topic='logs", "mapped', api_base="http://127.0.0.1:9"))
    settings = msgspec.convert(table, Settings)
    registry = SchemaRegistry(folder=str(SAMPLES / "schemas"))
    return msgspec.structs.replace(settings, map={"mapped": mapping}, schema_registry=registry)
