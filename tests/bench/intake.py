"""What reading a log record costs: `make bench-intake` prints records a second on one core, for each shape.

Records are of about 2 KB, made from deploy/samples. `read` is sniffing and mapping to the canonical record, next to
json.loads of the same bytes; `admit` is all that intake does up to the bytes it produces, without Kafka. The rounds
of all three are interleaved and the median of their ratios taken, so that a busy machine troubles all alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from pipeline import STUB_TASK

from schemas.case import Source, encode_case
from schemas.settings import Mapping, SchemaRegistry, Settings
from schemas.settings.admission import Redact
from schemas.tables import print_table
from streams.admission.admit import Admission
from streams.reader import Reader

SAMPLES = Path(__file__).parents[2] / "deploy" / "samples"
NAMES = (
    "openai-chat-halves.json",
    "openai-chat.json",
    "openai-responses.json",
    "litellm.json",
    "otlp-numbered.json",
    "otlp-genai.json",
    "otlp-openinference.json",
    "langfuse.json",
    "helicone.json",
    "flywheel.json",
    "cloudevents-structured.json",
    "debezium.json",
    "cloudevents-debezium-openai.json",
    "schema-registry-json.bin",
    "schema-registry-avro.bin",
    "unknown.json",
)
SIZE = 2048
FILLER = "The patient sleeps badly, walks 2 km a day and takes metformin 500 mg with breakfast. "


def grown(value: Any, by: int) -> Any:
    """Returns a record with `by` more characters in its longest text, unless all its texts are JSON."""
    plain = [text for text in texts(value) if " " in text and "{" not in text]
    if not plain or by <= 0:
        return value
    longest = json.dumps(max(plain, key=len))[1:-1]
    return json.loads(json.dumps(value).replace(longest, longest + (FILLER * (by // len(FILLER) + 1))[:by], 1))


def texts(value: Any) -> list[str]:
    """Returns all texts in a record."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in texts(one)]


def of_2_kb(name: str) -> bytes:
    """Returns a sample of about 2 KB as a logger would write it; raw samples stay as they are."""
    raw = (SAMPLES / name).read_bytes()
    if name.endswith(".bin"):
        return raw
    body = json.loads(raw)
    return json.dumps(grown(body, SIZE - len(json.dumps(body)))).encode()


def cost_us(run: Callable[[], Any], repeats: int) -> float:
    """Returns the CPU time of one call in microseconds."""
    began = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - began) / repeats * 1e6


def bench_settings(redact: bool) -> Settings:
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
    settings = msgspec.structs.replace(settings, map={"mapped": mapping}, schema_registry=registry)
    if redact:
        return settings
    tasks = {name: msgspec.structs.replace(task, redact=Redact(kinds=())) for name, task in settings.tasks.items()}
    return msgspec.structs.replace(settings, tasks=tasks)


def measure(name: str, settings: Settings, rounds: int, repeats: int) -> dict[str, Any]:
    """Returns the figures of one sample, times in microseconds; raw bytes are not compared with json.loads."""
    value, topic = of_2_kb(name), "mapped" if name == "unknown.json" else "logs"
    reader, admission = Reader(settings), Admission(settings)
    source = Source(cluster="c", topic=topic, partition=0, offset=0)

    def admit() -> None:
        for case in admission.admit(value, (), source):
            encode_case(case)

    cases = admission.admit(value, (), source)
    assert all(case.outcome is None for case in cases), name
    runs = [lambda: reader.read(value, (), topic), admit]
    runs += [lambda: json.loads(value)] if value[:1] == b"{" else []
    times = [[cost_us(run, repeats) for run in runs] for _ in range(rounds)]
    read, whole, *loads = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "sample": name,
        "bytes": len(value),
        "cases": len(cases),
        "json_loads_us": loads[0] if loads else None,
        "read_us": read,
        "read_to_json_loads": statistics.median(row[0] / row[2] for row in times) if loads else None,
        "admit_us": whole,
        "records_per_s": 1e6 / whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--no-redaction", action="store_true", help="leave personal values where they are")
    options = parser.parse_args()
    settings = bench_settings(redact=not options.no_redaction)
    rows = [measure(name, settings, options.rounds, options.repeats) for name in NAMES]
    columns = list(rows[0])
    print_table(columns, [[row[name] for name in columns] for row in rows], as_json=False)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
