"""What a log record costs intake: `make bench-intake` prints records a second on one core, for each shape.

Records are those of the row `sniffing` (bench.sniffing). `read` is sniffing and mapping to the canonical record, next
to json.loads of the same bytes; `admit` is all that intake does up to the bytes it produces, without Kafka.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import msgspec

from bench.row import ratios
from bench.sniffing import Sample, bench_settings, cost_of, cost_us, figures, samples
from schemas.case import Source, encode_case
from schemas.settings import Settings
from schemas.settings.admission import Redact
from schemas.tables import print_table
from streams.admission.admit import Admission


def without_redaction(settings: Settings) -> Settings:
    """Returns the settings with every personal value left where it is."""
    tasks = {name: msgspec.structs.replace(task, redact=Redact(kinds=())) for name, task in settings.tasks.items()}
    return msgspec.structs.replace(settings, tasks=tasks)


def cost_to_intake(sample: Sample, settings: Settings, rounds: int, repeats: int) -> dict[str, Any] | None:
    """Returns the figures of one sample, times in microseconds; None for one that holds no call."""
    cost, admission = cost_of(sample, rounds, repeats), Admission(settings)
    if cost is None:
        return None
    source = Source(cluster="c", topic=sample.topic, partition=0, offset=0)

    def admit() -> None:
        for case in admission.admit(sample.value, sample.headers, source):
            encode_case(case)

    admit_us = ratios([(cost_us(admit, repeats), 1.0) for _ in range(rounds)]).median
    return {
        "sample": sample.name,
        **figures(cost),
        "admit_us": round(admit_us, 1),
        "records_per_s": round(cost.records * 1e6 / admit_us),
    }


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--no-redaction", action="store_true", help="leave personal values where they are")
    options = parser.parse_args()
    settings = without_redaction(bench_settings()) if options.no_redaction else bench_settings()
    found = [cost_to_intake(sample, settings, options.rounds, options.repeats) for sample in samples()]
    rows = [row for row in found if row is not None]
    columns = list(rows[0])
    print_table(columns, [[row[name] for name in columns] for row in rows], as_json=False)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
