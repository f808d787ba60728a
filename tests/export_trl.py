"""Loads an export with `datasets` and trains one step on it with TRL; run by test_export_trl in TRL's environment.

    python export_trl.py EXPORT_FOLDER BASE_MODEL

Prints one JSON object: the columns, and of every row what TRL made of it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any


def main(folder: str, base: str) -> dict[str, Any]:
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    with tempfile.TemporaryDirectory() as scratch:
        loaded = load_dataset(folder, cache_dir=f"{scratch}/cache")
        dataset = loaded["train"]
        args = SFTConfig(
            output_dir=scratch,
            max_steps=1,
            per_device_train_batch_size=len(dataset),
            report_to=[],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = SFTTrainer(
            base, args=args, train_dataset=dataset, processing_class=AutoTokenizer.from_pretrained(base)
        )
        rows = [
            {"case_id": case_id, "pair": pair, "input_ids": row["input_ids"], "labels": row["labels"]}
            for case_id, pair, row in zip(dataset["case_id"], dataset["pair"], trainer.train_dataset, strict=True)
        ]
        result = trainer.train()
        return {
            "splits": sorted(loaded),
            "columns": dataset.column_names,
            "rows": rows,
            "steps": result.global_step,
            "loss": result.training_loss,
        }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
