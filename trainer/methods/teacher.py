"""Models the benchmark makes for itself from the demo's student, all with its tokenizer, kept in its folder.

teacher: twice the layers, trained in full on gold notes; it is SFT's teacher and that of on-policy distillation.
hard: the student's own size, trained in full on the worst of wrong drafts, so that none of its samples pass.
"""

from __future__ import annotations

import copy
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer.methods.learner import Row, load_model, parts, trained_logprobs
from trainer.methods.world import STUDENT, World

LAYERS_ADDED = 3
TEACHER_NOTES = 1200
HARD_NOTES = 1000
BATCH = 16
LEARNING_RATE = 1e-3


def model_path(folder: Path, name: str) -> Path:
    """Returns where a model lies: "student" in the repository, the others in the benchmark's folder."""
    return STUDENT if name == "student" else folder / "models" / name


def make_models(folder: Path, world: World, names: tuple[str, ...]) -> None:
    """Makes the named models that are not there yet; the caller sees to it that nobody else does so at once."""
    for name in names:
        path = model_path(folder, name)
        if not path.exists():
            model, notes = grow(load_model(STUDENT), LAYERS_ADDED if name == "teacher" else 0), _notes(world, name)
            train_in_full(model, notes)
            unfinished = path.with_name(f"{name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            model.save_pretrained(unfinished)
            AutoTokenizer.from_pretrained(STUDENT, local_files_only=True).save_pretrained(unfinished)
            unfinished.rename(path)


def grow(model: Any, layers: int) -> Any:
    """Returns a copy with `layers` more transformer layers that add nothing yet: their output projections are zero."""
    config = model.config.to_dict() | {"num_hidden_layers": model.config.num_hidden_layers + layers}
    config.pop("layer_types", None)
    grown = AutoModelForCausalLM.from_config(type(model.config)(**config), dtype=torch.float32)
    source = model.model.layers
    with torch.no_grad():
        grown.model.embed_tokens.load_state_dict(model.model.embed_tokens.state_dict())
        grown.model.norm.load_state_dict(model.model.norm.state_dict())
        for number, layer in enumerate(grown.model.layers):
            layer.load_state_dict(copy.deepcopy(source[min(number, len(source) - 1)].state_dict()))
            if number >= len(source):
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
    grown.tie_weights()
    grown.generation_config = model.generation_config
    return grown


def train_in_full(model: Any, rows: list[Row], learning_rate: float = LEARNING_RATE) -> None:
    """Trains every weight, one pass over the rows, with a linear warm-up over the first tenth of the steps."""
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    steps = -(-len(rows) // BATCH)
    for step in range(steps):
        batch = rows[step * BATCH : (step + 1) * BATCH]
        total = sum(sum(row.weights) for row in batch)
        for part in parts(batch):
            found = trained_logprobs(model, [batch[i] for i in part], {})
            torch.autograd.backward(-(found.weights_N * found.logprobs_N).sum() / total)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / max(1, steps // 10))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.eval().requires_grad_(False)


def _notes(world: World, name: str) -> list[Row]:
    """Returns notes on prompts of a stream that nothing else of the benchmark uses."""
    tokenizer = AutoTokenizer.from_pretrained(STUDENT, local_files_only=True)
    rng = random.Random(f"notes:{name}")
    write = world.gold_note if name == "teacher" else world.wrong_note
    rows = []
    for prompt in world.prompts(f"model:{name}", TEACHER_NOTES if name == "teacher" else HARD_NOTES):
        ids = world.encode(tokenizer, prompt.messages)
        note = tokenizer(write(prompt, rng), add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        rows.append(Row([*ids, *note], [0.0] * len(ids) + [1.0] * len(note)))
    return rows
