"""What somebody does without a service: one script that trains on the Parquet files, and one that serves the result.

Plain pyarrow, transformers, PEFT and torch, none of our packages. `bench.adapter` starts each in a fresh process, the
second when the first has ended, and times both together. Each prints one line of JSON: the trainer how long its steps
took, the server its first answer. Same rows, pairs, LoRA, batches and steps as our trainer's run; no checks, no
manifest, no fsync, no broker and no HTTP, all of which a real one would have.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any


def train(
    base: Path, gold: Path, out: Path, *, batch_size: int, rank: int, alpha: int, rate: float, weight: float
) -> None:
    """Trains a LoRA adapter on pair A and B of every gold row, one epoch, and saves it.

    `rate` is the learning rate, `weight` the loss weight of the strategy's tokens.
    """
    import pyarrow.compute as pc
    import pyarrow.dataset as ds
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=rank, lora_alpha=alpha)
    model = get_peft_model(model, lora).train()
    columns = ["messages", "answer", "strategy_mistake", "strategy_guardrail"]
    wanted = (pc.field("outcome") == "gold") & (pc.field("split") == "train")
    rows = ds.dataset(gold / "landing", format="parquet").to_table(columns=columns, filter=wanted).to_pylist()
    cases = [_pairs(tokenizer, row, weight) for row in rows]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    order = torch.randperm(len(cases)).tolist()
    steps, began = 0, time.perf_counter()
    for start in range(0, len(cases), batch_size):
        batch = [pair for index in order[start : start + batch_size] for pair in cases[index]]
        width = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row, _ in batch])
        weights = torch.tensor([row + [0.0] * (width - len(row)) for _, row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row, _ in batch])
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        ((losses * weights[:, 1:]).sum() / weights[:, 1:].sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
    seconds = time.perf_counter() - began
    model.save_pretrained(out)
    print(json.dumps({"rows": len(rows), "steps": steps, "seconds": seconds}), flush=True)


def _pairs(tokenizer: Any, row: dict[str, Any], weight: float) -> list[tuple[list[int], list[float]]]:
    """Returns (tokens, loss weights) of x -> answer and of x -> strategy, answer."""
    messages = [{"role": m["role"], "content": m["content"]} for m in _messages(row["messages"])]

    def prompt(thinking: bool) -> list[int]:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        return _ids(tokenizer, text)

    answer = [*_ids(tokenizer, row["answer"]), tokenizer.eos_token_id]
    plain = prompt(False)
    pairs = [(plain + answer, [0.0] * len(plain) + [1.0] * len(answer))]
    if row["strategy_guardrail"]:
        strategy = f"Mistake: {row['strategy_mistake']}\nGuardrail: {row['strategy_guardrail']}"
        thought, opened = _ids(tokenizer, f"<think>\n{strategy}\n</think>\n\n"), prompt(True)
        weights = [0.0] * len(opened) + [weight] * len(thought) + [1.0] * len(answer)
        pairs.append((opened + thought + answer, weights))
    return pairs


def _messages(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def serve(base: Path, adapter: Path, prompt: str, max_tokens: int) -> None:
    """Loads base and adapter, answers one prompt and prints it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    asked = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        made = model.generate(**asked, max_new_tokens=max_tokens, do_sample=False)
    answer = tokenizer.decode(made[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    print(json.dumps({"answer": answer}), flush=True)


def main() -> None:
    """Parses the command line."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "serve"))
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--gold", type=Path)
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--prompt", default="")
    parser.add_argument("--max-tokens", type=int, default=8)
    options = parser.parse_args()
    if options.what == "train":
        train(options.base, options.gold, options.adapter, **options.settings)
    else:
        serve(options.base, options.adapter, options.prompt, options.max_tokens)


if __name__ == "__main__":
    main()
