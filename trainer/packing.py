"""Rows to train on: the sequences of a case share their beginning, and several cases share a row.

A and B of a case are x followed by different tokens: A goes on with the empty think block, B with the strategy. A row
holds what they share once, [x | A | B], and forwards P + a + b tokens instead of 2P + a + b. Pure functions of the
examples; trainer.loop forwards the rows, trainer.attention keeps branches and cases apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.attention import Segment
from trainer.dataset import Example


class Row(NamedTuple):
    """One forward pass; T tokens with padding, N trained tokens, example by example in the order of `examples`."""

    examples: tuple[Example, ...]
    segments: tuple[Segment, ...]
    tokens_T: Tensor  # int64; the last token of a sequence predicts nothing and is left out
    positions_T: Tensor  # int64; every branch goes on where the shared part ends
    source_N: Tensor  # int64: the place in the row whose output predicts the token
    targets_N: Tensor  # int64: the token
    weights_N: Tensor  # fp32, above 0
    sequence_N: Tensor  # int64: which of `examples` the token belongs to
    tokens: int  # T without padding


class _Packed(NamedTuple):
    """A case on its way into a row."""

    examples: tuple[Example, ...]
    prefix: int
    branches: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.prefix + sum(self.branches)


def group_by_case(examples: Sequence[Example]) -> list[list[Example]]:
    """Returns the examples of each case, in an order that does not depend on that of `examples`.

    Copies that quality sampling made of a case are cases of their own.
    """
    by_case: dict[tuple[str, int], list[Example]] = {}
    for example in sorted(examples, key=lambda e: (e.case_id, e.copy, e.branch)):
        by_case.setdefault((example.case_id, example.copy), []).append(example)
    return list(by_case.values())


def pack_rows(
    cases: Sequence[Sequence[Example]], limit: int, *, share: bool = True, pack: bool = True, multiple: int = 1
) -> list[Row]:
    """Packs cases into rows of at most `limit` tokens, first fit by falling length; a longer case has its own row.

    Without `share` each example stands alone; without `pack` each has a row of its own besides, for models that keep
    their own attention. Rows are padded to a multiple of `multiple` tokens. The same cases give the same rows.
    """
    units = cases if share else [[example] for case in cases for example in case]
    packed = sorted((_packed(unit) for unit in units), key=_falling)
    bins: list[list[_Packed]] = []
    room: list[int] = []
    for case in packed:
        place = next((i for i, free in enumerate(room) if case.length <= free), None) if pack else None
        if place is None:
            bins.append([])
            room.append(limit)
            place = len(bins) - 1
        bins[place].append(case)
        room[place] -= case.length
    return [_row(members, multiple) for members in bins]


def shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Returns how many tokens all sequences begin with alike, at most one less than the shortest has."""
    first, shortest = sequences[0], min(map(len, sequences)) - 1
    for other in sequences[1:]:
        if tuple(other[:shortest]) != tuple(first[:shortest]):
            alike = takewhile(lambda pair: pair[0] == pair[1], zip(first[:shortest], other, strict=False))
            shortest = sum(1 for _ in alike)
    return shortest


def _packed(examples: Sequence[Example]) -> _Packed:
    prefix = shared_prefix([e.input_ids for e in examples])
    return _Packed(tuple(examples), prefix, tuple(len(e.input_ids) - 1 - prefix for e in examples))


def _falling(case: _Packed) -> tuple[int, str, int, str]:
    first = case.examples[0]
    return -case.length, first.case_id, first.copy, first.branch


def _row(cases: Sequence[_Packed], multiple: int) -> Row:
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    trained: list[tuple[int, int, float, int]] = []  # source, target, weight, sequence
    examples: list[Example] = []
    for case in cases:
        start, prefix = len(tokens), case.prefix
        segments.append(Segment(start, prefix, case.branches))
        tokens += case.examples[0].input_ids[:prefix]
        positions += range(prefix)
        for example, length in zip(case.examples, case.branches, strict=True):
            branch = len(tokens) - prefix  # a token of this branch lies here, counted from the sequence's beginning
            tokens += example.input_ids[prefix:-1]
            positions += range(prefix, prefix + length)
            for place, (target, weight) in enumerate(zip(example.input_ids[1:], example.weights[1:], strict=True)):
                if weight > 0:
                    trained.append((place + (start if place < prefix else branch), target, weight, len(examples)))
            examples.append(example)
    real = len(tokens)
    padding = [0] * (-real % multiple)
    source, targets, weights, sequence = zip(*trained, strict=True) if trained else ((), (), (), ())
    return Row(
        tuple(examples),
        tuple(segments),
        torch.tensor([*tokens, *padding]),
        torch.tensor([*positions, *padding]),
        torch.tensor(source, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
        torch.tensor(weights, dtype=torch.float32),
        torch.tensor(sequence, dtype=torch.long),
        real,
    )
