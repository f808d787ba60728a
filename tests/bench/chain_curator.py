"""The row `chain` as a user of curator would run it for throughput; in its own environment, with nothing of ours.

`python chain_curator.py WORK.json OUT.parquet [--at-once N]` prints JSON: when what happened, on the clock that all
processes share. A curator.LLM a step on its online OpenAI backend, each over the whole dataset of the one before.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

AT_ONCE = 256
WARM = 8  # items


def main() -> None:
    """Runs the chain on a few items, so that nothing is left to import, then on all."""
    times = {"started": time.monotonic()}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--at-once", type=int, default=AT_ONCE)
    options = parser.parse_args()
    work = json.loads(options.work.read_text())
    os.environ["TIKTOKEN_CACHE_DIR"] = _tokenizers()

    from bespokelabs import curator
    from datasets import Dataset

    backend = {
        "base_url": work["api_base"],
        "api_key": "none",
        "max_requests_per_minute": 10_000_000,
        "max_tokens_per_minute": 1_000_000_000_000,
        "max_concurrent_requests": options.at_once,
    }

    class Step(curator.LLM):  # type: ignore[misc]
        def __init__(self, column: str, model: str, messages: list[dict[str, Any]]) -> None:
            self.column, self.messages = column, messages
            generation = {"temperature": 0.0, "max_tokens": 1024}
            super().__init__(model_name=model, backend="openai", backend_params=backend, generation_params=generation)

        def prompt(self, row: dict[str, Any]) -> list[dict[str, Any]]:
            return [{"role": one["role"], "content": _filled(one["content"], row)} for one in self.messages]

        def parse(self, row: dict[str, Any], response: str) -> dict[str, Any]:
            return {**row, self.column: response}

    steps = [Step(**step) for step in work["steps"]]

    def run(texts: list[str], out: Path) -> None:
        rows = Dataset.from_list([{"prompt": text} for text in texts])
        for step in steps:
            rows = step(rows, working_dir=str(options.out.parent / "curator")).dataset
        rows.to_parquet(str(out))

    times["imported"] = time.monotonic()
    run([f"warm {text}" for text in work["prompts"][:WARM]], options.out.with_suffix(".warm"))
    times["warmed"], cpu_s = time.monotonic(), time.process_time()
    run(work["prompts"], options.out)
    times["written"], times["cpu_s"] = time.monotonic(), time.process_time() - cpu_s
    print(json.dumps(times))


def _tokenizers() -> str:
    """Returns where LiteLLM's package holds the tokenizer that the OpenAI backend would fetch from the network."""
    found = importlib.util.find_spec("litellm")
    return str(Path(str(found and found.origin)).parent / "litellm_core_utils" / "tokenizers")


def _filled(text: str, row: dict[str, Any]) -> str:
    for column, value in row.items():
        text = text.replace(f"{{{{ {column} }}}}", value)
    return text


if __name__ == "__main__":
    main()
