"""The formats by name: what a row of each is, where its files lie, and what a person must know to train on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from streams.export.chat import axolotl, openai, trl
from streams.export.llama_factory import llama_factory
from streams.export.pairs import Pair, Pairs
from streams.export.tables import table_row

Name = Literal["trl", "axolotl", "llama-factory", "openai", "parquet", "hf"]


class Format(NamedTuple):
    """One format. `row` makes what a line of JSON or a row of Parquet holds."""

    row: Callable[..., dict[str, Any]]
    file: str  # of a split and, where {n} stands, of its n-th part
    pairs: Pairs  # by default
    thinking: str  # where pair B's strategy stands
    use: str  # Markdown

    def line(self, pair: Pair, *, tools: bool, thinking: bool) -> dict[str, Any]:
        """Returns a pair as a row."""
        return self.row(pair, tools=tools, thinking=thinking)


_TRL = """`SFTTrainer` takes the rows as they are: it trains on `completion` alone, and each row's
`chat_template_kwargs` switches thinking off for pair A, as inference does, and on for pair B.

```python
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

dataset = load_dataset("{path}", split="train")
SFTTrainer("your/base", args=SFTConfig(output_dir="out"), train_dataset=dataset).train()
```"""
_AXOLOTL = """`"training"` is true of the last answer alone. Pair A is trained behind the empty think block that
templates of the Qwen3 family write before an answer without thinking.

```yaml
datasets:
  - path: {path}
    data_files: [train.jsonl]
    ds_type: json
    type: chat_template
    message_field_training: training
    roles_to_train: []
```"""
_LLAMA_FACTORY = """The folder is a `dataset_dir`. With `enable_thinking: null` pair B keeps its think block, and pair A
is trained behind an empty one, as inference asks; `false` would cut the strategies out. `mask_history` keeps the
loss off what assistants said earlier in a prompt.

```yaml
dataset_dir: {path}
dataset: {name}
mask_history: true
enable_thinking: null
```"""
_OPENAI = """Upload `train.jsonl` as a fine-tuning file. `"weight": 0` keeps the loss off what assistants said in
the prompt. The format has no place for thinking: pairs A alone are the default, and with `--pairs rgt` pair B begins
its answer with a think block, so that one prompt has two kinds of answers and nothing tells them apart."""
_PARQUET = """One file a split, with each pair's provenance in columns.

```sql
SELECT pair, count(*) FROM '{path}/train.parquet' GROUP BY pair;
```"""

FORMATS: dict[Name, Format] = {
    "trl": Format(trl, "{split}.jsonl", "rgt", "`reasoning_content` of the completion", _TRL),
    "axolotl": Format(axolotl, "{split}.jsonl", "rgt", "`reasoning_content` of the last message", _AXOLOTL),
    "llama-factory": Format(llama_factory, "{split}.jsonl", "rgt", "the think block of the answer", _LLAMA_FACTORY),
    "openai": Format(openai, "{split}.jsonl", "sft", "a think block before the answer", _OPENAI),
    "parquet": Format(table_row, "{split}.parquet", "rgt", "`reasoning_content` of the completion", _PARQUET),
    "hf": Format(table_row, "data/{split}-{n:05d}.parquet", "rgt", "`reasoning_content` of the completion", _TRL),
}
