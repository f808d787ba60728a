"""The rows of `make bench`, in the order in which they are measured and printed."""

from __future__ import annotations

from bench.row import Row

ROWS = (
    Row("hops", "CPU of a case through all hops, models answering at once", "stock Faust agents", 2.0, "less"),
    Row("calls", "CPU of a call to an OpenAI-compatible server", "litellm.acompletion", 8.0, "more"),
    Row("in_flight", "512 calls in flight in one worker, 1 s stub", "N / latency", 0.95, "more"),
    Row(
        "chain",
        "draft, judge, refine to Parquet, 100 ms stub, one core",
        "distilabel, curator",
        4.0,
        "more",
        at_most_s=480,
    ),
    Row("sniffing", "sniffing and mapping records of 2 KB, worst shape", "json.loads alone", 3.0, "less"),
    Row("sink", "sink with fsync and link", "bare pyarrow writer", 0.8, "more"),
    Row("adapter", "gold threshold reached to first answer under the new adapter", "cold start", 10.0, "more"),
    Row("workers", "4 workers, 1 s stub the limit (a quarter of the rate)", "one worker", 0.9, "more"),
    Row("memory", "memory of a worker with 512 cases in flight", "", 400.0, "less", "MB"),
)
