"""The model as trainer.loop runs it: base with a LoRA adapter, and the log-probabilities of a row's trained tokens.

Small on purpose around transformers and PEFT: which attention, which number format, whether W + s·BA is multiplied out
before the forward pass, and what is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from schemas.adapters import MANIFEST, base_fingerprint, verify_adapter
from schemas.errors import TrainingError
from schemas.settings import Trainer
from trainer.attention import ATTENTION, layout_on, shares_prompts
from trainer.dataset import Example
from trainer.packing import Row, group_by_case, pack_rows
from trainer.resident import Resident

WEIGHTS = "adapter_model.safetensors"
# Tokens of one forward pass; a larger batch accumulates gradients. On a CPU small rows stay in its cache, and too small
# ones waste it on weights: on a 0.5 M parameter model 2048 is 1.04-1.16 times as fast as 1024, 1.2-1.5 times as 512.
FORWARD_TOKENS = {"cpu": 2048, "cuda": 16384}
ROW_MULTIPLE = {"cpu": 1, "cuda": 128}  # the size of FlexAttention's blocks


class Packing(NamedTuple):
    """How a run's rows are made."""

    tokens: int  # of a row, unless one case is longer
    share: bool
    pack: bool
    multiple: int

    def rows(self, cases: Sequence[Sequence[Example]]) -> list[Row]:
        """Returns the rows of these cases."""
        return pack_rows(cases, self.tokens, share=self.share, pack=self.pack, multiple=self.multiple)


def packing_of(settings: Trainer, config: Any, device: torch.device) -> Packing:
    """Returns how rows are made for a model; windows, sinks and capped scores keep one sequence a row."""
    own = shares_prompts(config)
    tokens = settings.forward_tokens or FORWARD_TOKENS[device.type]
    return Packing(tokens, settings.share_prompts and own, own, ROW_MULTIPLE[device.type] if own else 1)


def load_base(base: Path, settings: Trainer, device: torch.device, resident: Resident | None = None) -> Any:
    """Loads a base to train on, or takes the one that is `resident`."""

    def read() -> Any:
        return read_base(base, settings, device)

    return (resident.model(settings, device.type, read) if resident else read()).to(device)


def read_base(base: Path, settings: Trainer, device: torch.device) -> Any:
    """Reads a base into main memory: fp32 for the CPU and bf16 for a GPU, unless trainer.dtype says otherwise."""
    disable_progress_bar()  # where it cannot be written, as on a full disk, it keeps its lock: the next load would hang
    automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(settings.dtype, automatic)
    own = shares_prompts(AutoConfig.from_pretrained(base, local_files_only=True))
    options = {"attn_implementation": ATTENTION} if own else {}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, local_files_only=True, **options)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def check_context(examples: Sequence[Example], base: Path) -> None:
    """Raises TrainingError where sequences are longer than the base's context; none is ever cut."""
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    beyond = [e for e in examples if context and len(e.input_ids) > context]
    if beyond:
        longest = max(beyond, key=lambda e: len(e.input_ids))
        raise TrainingError(
            f"{len(beyond)} of {len(examples)} sequences exceed the base's context of {context} tokens; the longest is "
            f"case {longest.case_id}, branch {longest.branch}, with {len(longest.input_ids)}. Set trainer.max_length "
            f"to {context} or less, which leaves them out and counts them, or choose a base with a longer context."
        )


def add_adapter(model: Any, settings: Trainer, base: Path, initial: Path | None) -> tuple[Any, LoraConfig]:
    """Puts a LoRA adapter on the linear layers of trainer.target_modules: a fresh one, or that of the folder `initial`.

    Raises AdapterError where `initial` is of another base, TrainingError where its rank or alpha is another or no layer
    of the base has one of the names.
    """
    linear = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
    if missing := [name for name in settings.target_modules if name not in linear]:
        raise TrainingError(
            f"trainer.target_modules: the base has no linear layer named {', '.join(missing)}; it has "
            f"{', '.join(linear)}. Leave the setting out for all of them."
        )
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=list(settings.target_modules) or "all-linear",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
    )
    model = get_peft_model(model, lora).train()
    if initial is not None:
        if (initial / MANIFEST).exists():
            verify_adapter(initial, base_fingerprint(base))
        there = PeftConfig.from_pretrained(str(initial))
        if (there.r, there.lora_alpha) != (settings.rank, settings.alpha):
            raise TrainingError(
                f"{initial} has rank {there.r} and alpha {there.lora_alpha}; the settings ask for {settings.rank} and "
                f'{settings.alpha}. Set trainer.rank and alpha to its own, or trainer.continue_from = "base".'
            )
        weights = load_file(initial / WEIGHTS)
        unused = set_peft_model_state_dict(model, weights).unexpected_keys
        expected = sum(p.requires_grad for p in model.parameters())
        if unused or len(weights) != expected:
            raise TrainingError(
                f"{initial} holds {len(weights)} matrices, {len(unused)} of them for no layer of this base, which "
                f'takes {expected}: it adapts other layers. Set trainer.continue_from = "base".'
            )
    return model, lora


def may_merge(model: Any, settings: Trainer) -> bool:
    """Tells whether W + s·BA is multiplied out before a batch: never in bf16, whose rounding would drop s·BA.

    Nor on a GPU, with dropout, or where activations are computed anew in the backward pass, with the base's weights.
    """
    weight = next(model.parameters())
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    usable = plain and settings.dropout == 0 and not settings.gradient_checkpointing
    return usable and merging_is_cheaper(model, settings.rank)


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


def trained_logprobs(model: Any, row: Row, merged: Mapping[str, Tensor] | None = None) -> Tensor:
    """Returns log p (N,) of a row's trained tokens, nats, in fp32 or wider.

    The output layer sees only the places that predict such a token: over a large vocabulary the logits of the prompt
    would cost more memory than everything else. `merged` replaces weights and adapter, where it is not empty.
    """
    embedding = model.get_input_embeddings().weight
    device = embedding.device
    source_N, targets_N = row.source_N.to(device), row.targets_N.to(device)

    def pick(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_1TD = args[0]
        return (hidden_1TD.index_select(1, source_N),)

    inputs = {
        "input_ids": row.tokens_T.unsqueeze(0).to(device),
        "position_ids": row.positions_T.unsqueeze(0).to(device),
        "use_cache": False,
    }
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base.config._attn_implementation == ATTENTION:
        inputs["layout"] = layout_on(row.segments, len(row.tokens_T), device)
    hook = base.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        if merged:
            with model.disable_adapter():
                logits_1NV = functional_call(model, dict(merged), (), inputs).logits
        else:
            logits_1NV = model(**inputs).logits
    finally:
        hook.remove()
    logits_NV = logits_1NV.squeeze(0)
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    return -functional.cross_entropy(logits_NV, targets_N, reduction="none")


@torch.no_grad()
def base_logprobs(model: Any, packing: Packing, examples: Sequence[Example]) -> Iterator[Tensor]:
    """Yields log p (n,) under the base, adapters off, of every example's trained tokens, in their order."""
    found: dict[tuple[str, int, str], Tensor] = {}
    with model.disable_adapter():
        for row in packing.rows(group_by_case(examples)):
            logprobs_N = trained_logprobs(model, row)
            counts = row.sequence_N.bincount(minlength=len(row.examples)).tolist()
            for example, logprobs in zip(row.examples, torch.split(logprobs_N, counts), strict=True):
                found[example.case_id, example.copy, example.branch] = logprobs
    yield from (found[e.case_id, e.copy, e.branch] for e in examples)


@contextmanager
def parameters_as(parameters: Sequence[Tensor], values: Iterable[Tensor]) -> Iterator[None]:
    """Gives parameters other values for a while, as for the forward pass of their moving average."""
    own = [parameter.data for parameter in parameters]
    try:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        yield
    finally:
        for parameter, data in zip(parameters, own, strict=True):
            parameter.data = data
