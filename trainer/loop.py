"""The training loop: a LoRA adapter from examples, read top to bottom in `train_lora`.

Called by trainer.service with the examples of trainer.dataset. Every run starts from the base and
sees all gold rows so far (DAgger aggregation); it is reproducible bit by bit on a CPU with one thread.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from transformers import AutoModelForCausalLM

from schemas.errors import TrainingError
from schemas.settings import Trainer
from trainer.dataset import Example
from trainer.objectives import cross_entropy

STEPS_LOG = "steps.jsonl"
WEIGHTS = "adapter_model.safetensors"
CLIP_NORM = 1.0
# Padded tokens of one forward pass; a larger batch accumulates gradients. On a CPU small parts stay in its cache:
# measured on a 0.5 M parameter model, 1024 is 1.15-1.35 times as fast as 8192.
FORWARD_TOKENS = {"cpu": 1024, "cuda": 16384}

Progress = Callable[[int, int, float, float], None]  # step, steps, loss, tokens per second


class TrainingStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did; kept in the adapter's manifest."""

    steps: int
    examples: int
    tokens: int  # forwarded, over all epochs, without padding
    trained_tokens: int  # of them, those with a loss
    first_loss: float
    last_loss: float  # mean over the last tenth of the steps
    seconds: float
    tokens_per_s: float


def train_lora(
    base: Path,
    examples: Sequence[Example],
    settings: Trainer,
    out: Path,
    *,
    base_name: str = "",
    progress: Progress = lambda step, steps, loss, tokens_per_s: None,
) -> TrainingStats:
    """Trains an adapter and writes it, its config and steps.jsonl into `out`.

    `base_name` is the name under which the base is served; vLLM compares it with the adapter's config.
    Raises TrainingError where the loss is no number; whatever `progress` raises ends the run.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)  # before LoRA's random A matrices and dropout
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    out.mkdir(parents=True, exist_ok=True)

    # Model: base frozen, fp32 on the CPU, bf16 on a GPU with the adapter itself in fp32.
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, local_files_only=True).to(device)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
    )
    model = get_peft_model(model, lora).train()
    merge = device.type == "cpu" and settings.dropout == 0 and merging_is_cheaper(model, settings.rank)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=0.0, fused=True)

    # Data: both branches of a case stay in one batch; the order depends on the seed and the case ids only.
    by_case: dict[str, list[Example]] = {}
    for example in sorted(examples, key=lambda e: (e.case_id, e.branch)):
        by_case.setdefault(example.case_id, []).append(example)
    batches_per_epoch = math.ceil(len(by_case) / settings.batch_size)
    steps = batches_per_epoch * settings.epochs

    losses: list[float] = []
    tokens = trained_tokens = 0
    started = time.perf_counter()
    with (out / STEPS_LOG).open("w") as log:
        for epoch in range(settings.epochs):
            order = list(by_case)
            random.Random(f"{settings.seed}:{epoch}").shuffle(order)
            for first in range(0, len(order), settings.batch_size):
                step_started = time.perf_counter()
                batch = [e for case_id in order[first : first + settings.batch_size] for e in by_case[case_id]]
                batch_weight = sum(sum(e.weights) for e in batch)
                step_loss = 0.0
                merged = merged_weights(model) if merge else {}
                leaves = {name: weight.detach().requires_grad_() for name, weight in merged.items()}
                for part in forward_parts(batch, FORWARD_TOKENS[device.type]):
                    tokens_BT, weights_BT = collate(part, device)
                    logprobs_N, weights_N = trained_logprobs(model, tokens_BT, weights_BT, leaves)
                    loss = cross_entropy(logprobs_N, weights_N) * (weights_N.sum() / batch_weight)
                    loss.backward()  # type: ignore[no-untyped-call]
                    step_loss += loss.item()
                if not math.isfinite(step_loss):
                    raise TrainingError(
                        f"the loss became {step_loss} at step {len(losses) + 1} of {steps} (epoch {epoch + 1}). "
                        f"Nothing was published. Lower trainer.learning_rate ({settings.learning_rate:g}) or "
                        f"alpha / rank ({settings.alpha} / {settings.rank}), and check the base's weights."
                    )
                if merge:  # from the gradient of W + s·BA to those of A and B
                    torch.autograd.backward(list(merged.values()), [leaf.grad for leaf in leaves.values()])
                torch.nn.utils.clip_grad_norm_(trainable, CLIP_NORM)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

                losses.append(step_loss)
                batch_tokens = sum(len(e.input_ids) for e in batch)
                tokens += batch_tokens
                trained_tokens += sum(w > 0 for e in batch for w in e.weights)
                rate = batch_tokens / max(time.perf_counter() - step_started, 1e-9)
                line = {"step": len(losses), "epoch": epoch, "loss": step_loss, "tokens": batch_tokens}
                log.write(json.dumps(line | {"tokens_per_s": round(rate)}) + "\n")
                log.flush()
                progress(len(losses), steps, step_loss, rate)
    seconds = time.perf_counter() - started

    # Save: weights as safetensors and the config; PEFT's own save would add a model card and ask the hub.
    lora.base_model_name_or_path = base_name or base.name
    lora.inference_mode = True
    lora.save_pretrained(str(out))
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, out / WEIGHTS, metadata={"format": "pt"})

    tail = losses[-math.ceil(len(losses) / 10) :]
    return TrainingStats(
        steps=steps,
        examples=len(examples),
        tokens=tokens,
        trained_tokens=trained_tokens,
        first_loss=losses[0],
        last_loss=sum(tail) / len(tail),
        seconds=seconds,
        tokens_per_s=tokens / max(seconds, 1e-9),
    )


def forward_parts(batch: Sequence[Example], limit: int) -> Iterator[list[Example]]:
    """Splits a batch into parts of similar length with at most `limit` padded tokens each (or one example)."""
    part: list[Example] = []
    for example in sorted(batch, key=lambda e: (len(e.input_ids), e.case_id, e.branch)):
        if part and (len(part) + 1) * len(example.input_ids) > limit:
            yield part
            part = []
        part.append(example)
    if part:
        yield part


def collate(examples: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns (tokens_BT, weights_BT), padded on the right with token 0 and weight 0.

    A causal model never looks right, so that padding there needs no attention mask.
    """
    longest = max(len(e.input_ids) for e in examples)
    tokens = [[*e.input_ids, *[0] * (longest - len(e.input_ids))] for e in examples]
    weights = [[*e.weights, *[0.0] * (longest - len(e.weights))] for e in examples]
    return torch.tensor(tokens, device=device), torch.tensor(weights, device=device)


def merging_is_cheaper(model: Any, rank: int) -> bool:
    """Tells whether a forward pass through W + s·BA, one matrix, beats PEFT's through W, A and B.

    Per token and layer of i inputs and o outputs, the gradient of W costs i·o and A and B cost 3·rank·(i + o), plus
    as much in small operations on a CPU. Published LoRA ranks on a tiny base: 2.7 times as fast at 256 on width 96.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    sizes = [(int(layer.in_features), int(layer.out_features)) for layer in layers]
    return sum(i * o for i, o in sizes) <= sum(6 * rank * (i + o) for i, o in sizes)


def merged_weights(model: Any) -> dict[str, Tensor]:
    """Returns W + s·BA of every adapted layer by parameter name, differentiable in A and B."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    return {
        f"{name}.base_layer.weight": module.base_layer.weight + module.get_delta_weight("default")
        for name, module in layers.items()
    }


def trained_logprobs(
    model: Any, tokens_BT: Tensor, weights_BT: Tensor, merged: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns the fp32 log-probabilities and weights of the tokens that carry a weight, flat over the batch.

    The output layer sees only the positions that predict such a token: over a large vocabulary the logits of the
    prompt would cost more memory than everything else. `merged` replaces weights and adapter, where it is not empty.
    """
    trained_BT = weights_BT[:, 1:] > 0

    def pick(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BTD = args[0]
        return (hidden_BTD[trained_BT].unsqueeze(0),)

    hook = model.get_base_model().get_output_embeddings().register_forward_pre_hook(pick)
    try:
        inputs = {"input_ids": tokens_BT[:, :-1], "use_cache": False}
        if merged:
            with model.disable_adapter():
                logits_1NV = functional_call(model, dict(merged), (), inputs).logits
        else:
            logits_1NV = model(**inputs).logits
    finally:
        hook.remove()
    targets_N = tokens_BT[:, 1:][trained_BT]
    logprobs_N = -functional.cross_entropy(logits_1NV.squeeze(0).float(), targets_N, reduction="none")
    return logprobs_N, weights_BT[:, 1:][trained_BT]
