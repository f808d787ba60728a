"""Row `sink`: rows a second that the sink lands, against a bare pyarrow writer of the same schema and codec.

Ours is the whole write path of a landing file: Parquet, checksum, seal, fsync, link, fsync of the folder. Theirs is
`pq.write_table` without any fsync. Reading from Kafka and decoding are not in it: `make bench-gold` has the rest. Each
file has as many rows as a busy sink puts into one.
"""

from __future__ import annotations

import os
from pathlib import Path

from bench.gold import batch, write_ratio
from bench.row import Result, cores

ROWS, ROUNDS = 5000, 41


def measure(room: Path) -> Result:
    """Returns the ratio over files of ROWS rows."""
    ours, _ = cores()
    os.sched_setaffinity(0, ours)
    found = write_ratio(room, batch(ROWS), ROUNDS)
    return Result(
        figure=found.median,
        low=found.low,
        high=found.high,
        ours=f"{found.ours:,.0f} rows/s",
        theirs=f"{found.theirs:,.0f} rows/s",
        detail={"rows_per_file": ROWS, "rounds": ROUNDS},
    )
