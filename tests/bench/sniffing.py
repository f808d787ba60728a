"""Row `sniffing`: from bytes to the mapped record, for every shape that is read, against json.loads of the same bytes.

Each sample of deploy/samples that holds a call is brought to about 2 KB by lengthening the longest text said in it,
also where that lies in JSON within a text or in base64; what is longer already, since it holds several spans or calls,
stays.
It is read as intake reads it: envelopes off, shape recognised, mapped. Redaction, hashing and producing come after it.
The worst shape decides. Avro is not JSON, so it has no ratio; its time stands in the detail.
"""

from __future__ import annotations

import base64
import json
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from pipeline import STUB_TASK

from bench.row import Ratios, Result, ratios
from schemas.errors import RecordError
from schemas.settings import Mapping, SchemaRegistry, Settings
from streams.reader import Headers, Reader

SAMPLES = Path(__file__).parents[2] / "deploy" / "samples"
SIZE = 2048
FILLER = "The patient sleeps badly, walks 2 km a day and takes metformin 500 mg with breakfast. "
ROUNDS, REPEATS = 15, 120
LIMIT = 3.0  # the row's target; how many are above it is told beside the worst


class Sample(NamedTuple):
    """One Kafka message; `documents` is what a user's json.loads would be given, none where it is not JSON."""

    name: str
    value: bytes
    headers: Headers
    topic: str
    documents: tuple[bytes, ...]


class Cost(NamedTuple):
    """What reading one sample costs: both ratios are paired, times in microseconds."""

    shape: str
    size: int
    records: int
    read_us: float
    to_loads: Ratios | None
    to_msgspec: Ratios | None


def measure(room: Path) -> Result:
    """Returns the ratio of the shape that costs most."""
    costs = {sample.name: cost for sample in samples() if (cost := cost_of(sample, ROUNDS, REPEATS)) is not None}
    beside = {name: cost.to_loads for name, cost in costs.items() if cost.to_loads is not None}
    worst = max(beside, key=lambda name: beside[name].median)
    found, plain = beside[worst], sorted(one.median for one in beside.values())
    to_msgspec = costs[worst].to_msgspec
    return Result(
        figure=found.median,
        low=found.low,
        high=found.high,
        ours=f"{found.ours:.1f} us ({worst}); {sum(one > LIMIT for one in plain)} of {len(plain)} samples above "
        f"{LIMIT:g}x, median {plain[len(plain) // 2]:.2f}x",
        theirs=f"{found.theirs:.1f} us" + (f"; {to_msgspec.median:.1f}x msgspec" if to_msgspec else ""),
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
    }


def cost_of(sample: Sample, rounds: int, repeats: int) -> Cost | None:
    """Returns what reading a sample costs; None for one that holds no call."""
    reader = Reader(bench_settings())
    found = reader.read(sample.value, sample.headers, sample.topic)
    shapes = [one.shape for one in found if not isinstance(one.record, RecordError)]
    if not shapes:
        return None
    sides: tuple[Callable[[], Any], ...] = (
        lambda: reader.read(sample.value, sample.headers, sample.topic),
        _each(json.loads, sample.documents),
        _each(msgspec.json.decode, sample.documents),
    )
    rows = []
    for number in range(rounds + 1):  # the first warms up
        order = (0, 1, 2) if number % 2 else (2, 1, 0)
        took = {side: cost_us(sides[side], repeats) for side in order}
        if number:
            rows.append((took[0], took[1], took[2]))
    read_us = ratios([(own, 1.0) for own, _, _ in rows]).median
    if not sample.documents:
        return Cost(shapes[0], len(sample.value), len(shapes), read_us, None, None)
    to_loads, to_msgspec = (ratios([(row[0], row[side]) for row in rows]) for side in (1, 2))
    return Cost(shapes[0], len(sample.value), len(shapes), read_us, to_loads, to_msgspec)


def _each(decode: Callable[[bytes], Any], documents: Sequence[bytes]) -> Callable[[], Any]:
    if len(documents) == 1:
        (document,) = documents
        return lambda: decode(document)
    return lambda: [decode(document) for document in documents]


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
    if text[:2] == "ey":  # {" in base64
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
