"""Attention over rows in which the answers to one prompt stand side by side: [x | A | B], several cases a row.

trainer.packing says where the cases of a row lie; trainer.loop loads the model with `ATTENTION` and passes a
`Layout` with every forward pass, which reaches `branch_attention` in every layer. On a CPU each branch is a call of
the scaled-dot-product kernel: a dense T x T mask cost 2.0 times as much at 2000 + 300 + 360 tokens. On a GPU it is
FlexAttention with a block mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

ATTENTION = "goldstream_branches"


class Segment(NamedTuple):
    """One case in a row: `prefix` shared tokens from `start` on, then its branches, by their lengths."""

    start: int
    prefix: int
    branches: tuple[int, ...]

    @property
    def end(self) -> int:
        """The first token behind the case."""
        return self.start + self.prefix + sum(self.branches)


class Layout(NamedTuple):
    """Who sees whom in a row of `length` tokens; tokens behind the last segment are padding."""

    segments: tuple[Segment, ...]
    length: int
    block_mask: BlockMask | None = None  # for FlexAttention; None: branch by branch
    masks: dict[tuple[int, int], Tensor] = {}  # by (prefix, branch) lengths, shared by all layers


def layout_on(segments: Sequence[Segment], length: int, device: torch.device, *, flex: bool | None = None) -> Layout:
    """Returns a row's layout with its masks on `device`; `flex` is by default whether that is a GPU."""
    chosen = tuple(segments)
    if flex if flex is not None else device.type == "cuda":
        return Layout(chosen, length, block_mask=_block_mask(chosen, length, device))
    shapes = {(s.prefix, b) for s in chosen for b in s.branches[1:] if b}
    return Layout(chosen, length, masks={shape: _branch_mask(*shape, device) for shape in shapes})


def visible(segments: Sequence[Segment], length: int) -> tuple[Tensor, Tensor]:
    """Returns for every token of a row (T,) its case and its branch; 0 is the prompt, and padding is case -1.

    Token k is visible to q iff k <= q, both are of one case, and k is of the prompt or of q's branch.
    """
    case_T = torch.full((length,), -1)
    branch_T = torch.zeros(length, dtype=torch.long)
    for number, segment in enumerate(segments):
        case_T[segment.start : segment.end] = number
        for branch, (start, end) in enumerate(_branches(segment), start=1):
            branch_T[start:end] = branch
    return case_T, branch_T


def branch_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Returns attention (1, T, heads, head size) of query, key and value (1, heads, T, head size) along a layout.

    Without a layout it is ordinary causal attention. The signature is that of transformers' attention interface.
    """
    if layout is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
        return plain
    if layout.block_mask is not None:
        flex: Any = _compiled_flex() if query.device.type == "cuda" else flex_attention
        heads = query.shape[1]
        if heads & (heads - 1):  # its kernels group heads by powers of two only
            key, value = (repeat_kv(states, heads // states.shape[1]) for states in (key, value))
        output = flex(query, key, value, block_mask=layout.block_mask, scale=scaling, enable_gqa=True)
        return output.transpose(1, 2), None
    attend = functools.partial(scaled_dot_product_attention, dropout_p=dropout, scale=scaling, enable_gqa=True)
    parts = [part for segment in layout.segments for part in _by_branch(attend, query, key, value, segment, layout)]
    padding = layout.length - layout.segments[-1].end
    if padding:
        parts.append(query.new_zeros((*query.shape[:2], padding, value.shape[-1])))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def shares_prompts(config: Any) -> bool:
    """Tells whether branches may share a row: windows, sinks and capped scores keep a model's own attention."""
    text = config.get_text_config()
    windows = any(kind != "full_attention" for kind in getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None) is not None and getattr(text, "use_sliding_window", True)
    return not (windows or window or getattr(text, "attn_logit_softcapping", None))


def _by_branch(
    attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, segment: Segment, layout: Layout
) -> Iterator[Tensor]:
    """Yields the outputs of a case: prompt and first branch as one causal square, then each other branch."""
    start, prefix = segment.start, slice(segment.start, segment.start + segment.prefix)
    branches = list(_branches(segment))
    square = slice(start, branches[0][1])
    yield attend(query[:, :, square], key[:, :, square], value[:, :, square], is_causal=True)
    for first, end in branches[1:]:
        if end == first:
            continue
        keys = torch.cat([key[:, :, prefix], key[:, :, first:end]], dim=2)
        values = torch.cat([value[:, :, prefix], value[:, :, first:end]], dim=2)
        mask = layout.masks[segment.prefix, end - first]
        yield attend(query[:, :, first:end], keys, values, attn_mask=mask)


def _branches(segment: Segment) -> Iterator[tuple[int, int]]:
    """Yields where each branch of a case begins and ends."""
    first = segment.start + segment.prefix
    for length in segment.branches:
        yield first, first + length
        first += length


def _branch_mask(prefix: int, branch: int, device: torch.device) -> Tensor:
    """Returns which of (prefix + branch) keys each query of a branch sees: all of the prompt, and itself causally."""
    return torch.ones(branch, prefix + branch, dtype=torch.bool, device=device).tril(prefix)


def _block_mask(segments: tuple[Segment, ...], length: int, device: torch.device) -> BlockMask:
    case_T, branch_T = (ids.to(device) for ids in visible(segments, length))

    def see(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own = (branch_T[k] == 0) | (branch_T[k] == branch_T[q])
        return (k <= q) & (case_T[k] == case_T[q]) & own

    return create_block_mask(see, None, None, length, length, device=device, _compile=device.type == "cuda")


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    """FlexAttention as a kernel; dynamic, since every new length would cost seconds of compilation."""
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return compiled


AttentionInterface.register(ATTENTION, branch_attention)
