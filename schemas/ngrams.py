"""Runs of words that a training text shares with held-out texts: the contamination check of trainer and command line.

A gate says nothing about a candidate that was trained on what the gate asks. The split keeps whole conversations on one
side, but not two people who paste the same letter. Runs of 8 words (Touvron et al. 2023 use 10 tokens, Brown et al.
2020 13 words) find that; runs that many held-out texts have are the product's template and count for nothing.
"""

from __future__ import annotations

import math
import re
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WORDS = 8
_WORD = re.compile(r"\w+")
_FACTOR = 0x9E3779B97F4A7C15
_CACHED_WORDS = 200_000

Grams = NDArray[np.uint64]  # (n,), sorted, each once


class Overlap(NamedTuple):
    """How much of a training text is held out: the share of its own runs, 0 to 1, and where most of them are."""

    share: float
    runs: int
    case_id: str  # of the held-out case, "" for none


class HeldOut:
    """The runs of words of all held-out texts, 12 bytes each; `add` all, then ask for `overlap`."""

    def __init__(self, words: int = WORDS, common_share: float = 0.05) -> None:
        self._words = words
        self._common_share = common_share
        self._grams: list[Grams] = []
        self._rows: list[NDArray[np.int32]] = []
        self._ids: list[str] = []
        self._sealed = False
        self._hash = _Words()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, case_id: str, *texts: str | None) -> None:
        """Adds a held-out case with its prompt and answers."""
        found = [self._of(text) for text in texts if text]
        grams = np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)
        self._grams.append(grams)
        self._rows.append(np.full(len(grams), len(self._ids), np.int32))
        self._ids.append(case_id)
        self._sealed = False

    def overlap(self, prompt: str | None, answer: str | None) -> Overlap:
        """Returns the overlap of a training row: that of its prompt or of its answer, whichever is larger.

        An answer of less than a run of words is none that could be learned by heart.
        """
        if not self._sealed:
            self._seal()
        parts = [
            part for part in (prompt, answer) if part and (part is prompt or len(_WORD.findall(part)) >= self._words)
        ]
        found = [self._one(self._of(part)) for part in parts]
        return max(found, key=lambda overlap: (overlap.share, overlap.runs), default=Overlap(0.0, 0, ""))

    def _one(self, grams: Grams) -> Overlap:
        grams = grams[~_among(grams, self._common)[0]]
        if not len(grams) or not len(self._all):
            return Overlap(0.0, 0, "")
        shared, at = _among(grams, self._all)
        if not shared.any():
            return Overlap(0.0, 0, "")
        rows, counts = np.unique(self._row[at[shared]], return_counts=True)
        runs = int(shared.sum())
        return Overlap(runs / len(grams), runs, self._ids[int(rows[counts.argmax()])])

    def _seal(self) -> None:
        grams = np.concatenate([np.zeros(0, np.uint64), *self._grams])
        rows = np.concatenate([np.zeros(0, np.int32), *self._rows])
        order = np.argsort(grams, kind="stable")
        grams, rows = grams[order], rows[order]
        self._grams, self._rows = [grams], [rows]
        first = (
            np.flatnonzero(np.concatenate(([True], grams[1:] != grams[:-1]))) if len(grams) else np.zeros(0, np.int64)
        )
        repeats = np.diff(np.append(first, len(grams)))
        limit = max(2, math.ceil(self._common_share * len(self._ids)))
        self._common = grams[first[repeats > limit]]
        self._all, self._row = grams[first], rows[first]
        self._sealed = True

    def _of(self, text: str) -> Grams:
        """Returns the runs of a text; a shorter text is one run."""
        words = self._hash.of(_WORD.findall(text.lower()))
        if not len(words):
            return np.zeros(0, np.uint64)
        length = min(self._words, len(words))
        grams = np.zeros(len(words) - length + 1, np.uint64)
        for place in range(length):
            grams = grams * np.uint64(_FACTOR) + words[place : len(words) - length + place + 1]
        return np.unique(grams)


class _Words:
    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, words: list[str]) -> Grams:
        if len(self._known) > _CACHED_WORDS:
            self._known.clear()
        known = self._known
        for word in words:
            if word not in known:
                known[word] = int.from_bytes(
                    blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
                )
        return np.array([known[word] for word in words], np.uint64)


def _among(grams: Grams, sorted_all: Grams) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Returns which of the runs are among the others, and where there."""
    at = np.searchsorted(sorted_all, grams)
    inside = np.minimum(at, max(len(sorted_all) - 1, 0))
    found = sorted_all[inside] == grams if len(sorted_all) else np.zeros(len(grams), np.bool_)
    return found, inside
