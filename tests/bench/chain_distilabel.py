"""The row `chain` as a user of distilabel would run it for throughput; in its own environment, with nothing of ours.

`python chain_distilabel.py WORK.json OUT.parquet [--batch N] [--replicas N]` prints JSON: when what happened, on the
clock that all processes share. A Pipeline of TextGeneration steps, each an OpenAILLM that calls asynchronously.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

BATCH, REPLICAS = 400, 1


def main() -> None:
    """Runs the chain once."""
    times = {"started": time.monotonic()}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--replicas", type=int, default=REPLICAS)
    options = parser.parse_args()
    work = json.loads(options.work.read_text())

    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts, StepResources
    from distilabel.steps.tasks import TextGeneration

    def task(step: dict[str, Any], columns: list[str]) -> Any:
        *system, user = (message["content"] for message in step["messages"])
        return TextGeneration(
            name=step["column"],
            llm=OpenAILLM(
                model=step["model"],
                base_url=work["api_base"],
                api_key="none",
                generation_kwargs={"max_new_tokens": 1024, "temperature": 0.0},
            ),
            system_prompt=system[0] if system else None,
            template=user,
            columns=[name for name in columns if f"{{{{ {name} }}}}" in user],
            input_batch_size=options.batch,
            output_mappings={"generation": step["column"], "model_name": f"{step['column']}_model"},
            add_raw_input=False,
            add_raw_output=False,
            resources=StepResources(replicas=options.replicas),
        )

    with Pipeline(name="chain", cache_dir=options.out.parent / "distilabel") as pipeline:
        data = [{"prompt": text} for text in work["prompts"]]
        last: Any = LoadDataFromDicts(name="load", data=data, batch_size=options.batch)
        columns = ["prompt"]
        for step in work["steps"]:
            one = task(step, columns)
            last >> one
            last = one
            columns.append(step["column"])
    times["imported"] = time.monotonic()
    made = pipeline.run(use_cache=False)
    times["ran"] = time.monotonic()
    made["default"]["train"].select_columns(columns).to_parquet(str(options.out))
    times["written"] = time.monotonic()
    print(json.dumps(times))


if __name__ == "__main__":
    main()
