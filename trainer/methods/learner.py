"""The model every row of the benchmark trains: one base, one LoRA, one optimiser, one sampler.

Each LoRA layer is applied as one merged matrix W + s·BA, which on a base this small is several times as fast as three
products, and gives the same gradients. Axes: B rows, T positions, V vocabulary, N trained tokens, flat.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from schemas.errors import TrainingError

CLIP_NORM = 1.0
FORWARD_TOKENS = 2048  # padded tokens of one forward pass; a larger batch accumulates gradients
SHRINK_AT = 0.75  # rows leave a batch of samples once fewer than this share of them still run


class Row(NamedTuple):
    """One sequence. `weights[i]` is the loss weight of predicting `ids[i]`; 0 is masked."""

    ids: Sequence[int]
    weights: Sequence[float]


class Sample(NamedTuple):
    """One answer drawn from a model: its prompt, its tokens with the end of turn, and its text."""

    prompt: Sequence[int]
    tokens: list[int]
    text: str

    def row(self) -> Row:
        """Returns the sample as a row whose every answer token is trained on."""
        return Row([*self.prompt, *self.tokens], [0.0] * len(self.prompt) + [1.0] * len(self.tokens))


class Trained(NamedTuple):
    """What a forward pass gives: log-probabilities [N] in nats, their weights [N] and the row [N] each belongs to."""

    logprobs_N: Tensor
    weights_N: Tensor
    row_N: Tensor


class Learner:
    """A frozen base with one LoRA adapter and its optimiser (AdamW, constant rate, no decay, norm clipped at 1).

    The adapter is PEFT's: on every linear layer but the output, A uniform as Kaiming has it, B zero, scale alpha/rank.
    """

    def __init__(self, base: Path, *, rank: int, alpha: int, learning_rate: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = load_model(base)
        self.tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        self._sampler = copy.deepcopy(self.model)
        self._scale = alpha / rank
        self._lora: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        for name, layer in self.model.model.named_modules():
            if isinstance(layer, nn.Linear):
                down = torch.empty(rank, layer.in_features)
                nn.init.kaiming_uniform_(down, a=math.sqrt(5))
                self._lora[f"{name}.weight"] = (nn.Parameter(down), nn.Parameter(torch.zeros(layer.out_features, rank)))
        self._weights = dict(self.model.model.named_parameters())
        self._trainable = [p for pair in self._lora.values() for p in pair]
        self._optimizer = torch.optim.AdamW(self._trainable, lr=learning_rate, weight_decay=0.0, fused=True)
        self._leaves: dict[str, Tensor] = {}
        self.steps = 0

    def lora(self) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
        """Returns (A, B) of each adapted layer, by the name of its weight in the model's body."""
        return self._lora

    def merged(self) -> dict[str, Tensor]:
        """Returns W + s·BA of every adapted layer, differentiable in A and B."""
        return {
            name: torch.addmm(self._weights[name], up, down, alpha=self._scale)
            for name, (down, up) in self._lora.items()
        }

    def begin(self) -> None:
        """Starts a step: `trained` gathers the gradients of the merged matrices from here on."""
        self._merged = self.merged()
        self._leaves = {name: weight.detach().requires_grad_() for name, weight in self._merged.items()}

    def trained(self, rows: Sequence[Row]) -> Trained:
        """Returns the log-probabilities of the rows' trained tokens under the adapter as of `begin`."""
        return trained_logprobs(self.model, rows, self._leaves)

    def finish(self, loss: float) -> None:
        """Ends a step: from the gradients of W + s·BA to those of A and B, clip, update.

        Raises TrainingError where the loss is no number.
        """
        if not math.isfinite(loss):
            raise TrainingError(f"the loss became {loss} at step {self.steps + 1}; lower the method's learning rate.")
        gradients = [leaf.grad for leaf in self._leaves.values()]
        torch.autograd.backward(list(self._merged.values()), gradients)
        torch.nn.utils.clip_grad_norm_(self._trainable, CLIP_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    def reference(self, rows: Sequence[Row]) -> Trained:
        """Returns the log-probabilities under the base, adapter off."""
        with torch.no_grad():
            return trained_logprobs(self.model, rows, {})

    def sample(
        self, prompts: Sequence[Sequence[int]], *, temperature: float, max_tokens: int, seed: int
    ) -> list[Sample]:
        """Returns one answer a prompt from the adapter as it is now."""
        with torch.no_grad():
            own = dict(self._sampler.model.named_parameters())
            for name, weight in self.merged().items():
                own[name].copy_(weight)
        return sample(self._sampler, self.tokenizer, prompts, temperature=temperature, max_tokens=max_tokens, seed=seed)


def load_model(path: Path) -> Any:
    """Loads a causal language model, frozen, fp32."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
    return model.eval().requires_grad_(False)


def parts(rows: Sequence[Row], limit: int = FORWARD_TOKENS) -> Iterator[list[int]]:
    """Splits rows, by number, into parts of like length with at most `limit` padded tokens each (or one row)."""
    part: list[int] = []
    for index in sorted(range(len(rows)), key=lambda i: (len(rows[i].ids), i)):
        if part and (len(part) + 1) * len(rows[index].ids) > limit:
            yield part
            part = []
        part.append(index)
    if part:
        yield part


def trained_logprobs(model: Any, rows: Sequence[Row], merged: dict[str, Tensor]) -> Trained:
    """Returns the log-probabilities of the rows' trained tokens; `merged` replaces weights of the model's body.

    Rows are padded on the right, where a causal model never looks, and only trained positions meet the output layer.
    """
    longest = max(len(row.ids) for row in rows)
    tokens_BT = torch.tensor([[*row.ids, *[0] * (longest - len(row.ids))] for row in rows])
    weights_BT = torch.tensor([[*row.weights, *[0.0] * (longest - len(row.weights))] for row in rows])[:, 1:]
    inputs = {"input_ids": tokens_BT[:, :-1], "use_cache": False}
    hidden_BTD = functional_call(model.model, merged, (), inputs).last_hidden_state
    trained_BT = weights_BT > 0
    logits_NV = functional.linear(hidden_BTD[trained_BT], model.lm_head.weight)
    targets_N = tokens_BT[:, 1:][trained_BT]
    logprobs_N = -functional.cross_entropy(logits_NV, targets_N, reduction="none")
    return Trained(logprobs_N, weights_BT[trained_BT], trained_BT.nonzero()[:, 0])


def sample(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, temperature: float, max_tokens: int, seed: int
) -> list[Sample]:
    """Draws one answer a prompt in one batch, greedy at temperature 0; the same seed draws the same answers."""
    generator = torch.Generator().manual_seed(seed)
    width = max(len(prompt) for prompt in prompts)
    ids_BP = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask_BT = torch.ones(len(prompts), width + max_tokens, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        mask_BT[row, : width - len(prompt)] = 0
    position_BP = (mask_BT[:, :width].cumsum(-1) - 1).clamp(min=0)
    alive = list(range(len(prompts)))  # the prompt each row of the tensors answers
    drawn: list[list[int]] = [[] for _ in prompts]
    stop = tokenizer.eos_token_id
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        for step in range(max_tokens):
            logits_BV = model(
                input_ids=ids_BP,
                attention_mask=mask_BT[:, : width + step],
                position_ids=position_BP,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            if temperature > 0:
                token_B1 = torch.multinomial((logits_BV / temperature).softmax(-1), 1, generator=generator)
            else:
                token_B1 = logits_BV.argmax(-1, keepdim=True)
            ended = set()
            for row, token in enumerate(token_B1[:, 0].tolist()):
                tokens = drawn[alive[row]]
                if not tokens or tokens[-1] != stop:
                    tokens.append(token)
                if tokens[-1] == stop:
                    ended.add(row)
            if len(ended) == len(alive):
                break
            ids_BP, position_BP = token_B1, position_BP[:, -1:] + 1
            if len(alive) - len(ended) < SHRINK_AT * len(alive):
                kept = [row for row in range(len(alive)) if row not in ended]
                index = torch.tensor(kept)
                cache.batch_select_indices(index)
                ids_BP, position_BP, mask_BT = ids_BP[index], position_BP[index], mask_BT[index]
                alive = [alive[row] for row in kept]
    texts = tokenizer.batch_decode(drawn, skip_special_tokens=True)
    return [Sample(p, tokens, text.strip()) for p, tokens, text in zip(prompts, drawn, texts, strict=True)]
