"""Runs of words that a training text shares with held-out texts: the contamination check of trainer and command line.

A gate says nothing about a candidate that was trained on what the gate asks. The split keeps whole conversations on one
side, but not two people who paste the same letter. Runs of 8 words (Touvron et al. 2023 use 10 tokens, Brown et al.
2020 13 words) find that; the runs of the product's template count for nothing. A run is template where many held-out
cases have it, or many different prompts of both sides: what one held-out case cannot show, the rows beside it can.
Text alone does not tell a template from a text that many ask with a word changed: both are template here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WORDS = 8
TEMPLATE_PROMPTS = 10  # different ones with a run in common; fewer may be copies of one another
TEMPLATE_SHARE = 0.1  # of all different prompts
_WORD = re.compile(r"\w+")
_FACTOR = 0x9E3779B97F4A7C15
_CACHED_WORDS = 200_000

Grams = NDArray[np.uint64]  # (n,), sorted, each once


class Overlap(NamedTuple):
    """How much of a training text is held out: the share of its own runs, 0 to 1, and where most of them are."""

    share: float
    runs: int
    case_id: str  # of the held-out case, "" for none


class _Shared(NamedTuple):
    """What a text shares with the holdout, template and all."""

    runs: int  # of the text
    at: NDArray[np.int32]  # (shared,), places in HeldOut._all


class HeldOut:
    """The runs of words of all held-out texts: `add` them all, `count` the training rows, then ask for `overlap`.

    `overlaps` counts and answers in one go. A run takes 18 bytes, a different prompt a number in a set.
    """

    def __init__(self, words: int = WORDS, common_share: float = 0.05) -> None:
        self._words = words
        self._common_share = common_share
        self._grams: list[Grams] = []
        self._rows: list[NDArray[np.int32]] = []
        self._ids: list[str] = []
        self._first: list[bool] = []  # of its prompt, by case
        self._prompts: set[int] = set()  # different ones of both sides
        self._template: NDArray[np.bool_] | None = None  # over _all; None until it is asked for
        self._sealed = False
        self._hash = _Words()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, case_id: str, prompt: str | None, answer: str | None = None) -> None:
        """Adds a held-out case. Raises ValueError once a row was counted or compared."""
        if self._sealed:
            raise ValueError(f"held-out case {case_id} comes after training rows; expected all of the holdout first")
        asked, answered = self._hash.of(prompt or ""), self._hash.of(answer or "")
        grams = np.unique(np.concatenate([self._of(asked), self._of(answered)]))
        self._grams.append(grams)
        self._rows.append(np.full(len(grams), len(self._ids), np.int32))
        self._ids.append(case_id)
        self._first.append(bool(len(asked)) and self._new(asked))

    def count(self, prompt: str | None, answer: str | None) -> None:
        """Counts a training row, from which the template is told; of rows with the same prompt only the first."""
        self._compare(prompt, answer, count=True)

    def overlap(self, prompt: str | None, answer: str | None) -> Overlap:
        """Returns the overlap of a training row: that of its prompt or of its answer, whichever is larger.

        An answer of less than a run of words is none that could be learned by heart.
        """
        return self._largest(self._compare(prompt, answer, count=False))

    def overlaps(self, rows: Iterable[tuple[str | None, str | None]]) -> list[Overlap]:
        """Counts training rows, each its prompt and answer, and returns the overlap of each, reading a text once."""
        compared = [self._compare(prompt, answer, count=True) for prompt, answer in rows]
        return [self._largest(parts) for parts in compared]

    def _compare(self, prompt: str | None, answer: str | None, *, count: bool) -> list[_Shared]:
        if not self._sealed:
            self._seal()
        asked, answered = self._hash.of(prompt or ""), self._hash.of(answer or "")
        parts = [self._shared(self._of(asked))] if len(asked) else []
        if len(answered) >= self._words:
            parts.append(self._shared(self._of(answered)))
        if count and len(asked) and self._new(asked):
            self._having[np.concatenate([part.at for part in parts])] += 1  # once, too, where both parts have a run
            self._template = None
        return parts

    def _new(self, words: Grams) -> bool:
        """Tells whether no prompt before was of these words, and remembers it."""
        key = int.from_bytes(blake2b(words.tobytes(), digest_size=8).digest(), "big")
        if key in self._prompts:
            return False
        self._prompts.add(key)
        return True

    def _shared(self, grams: Grams) -> _Shared:
        if not len(self._all):
            return _Shared(len(grams), np.zeros(0, np.int32))
        at = np.minimum(np.searchsorted(self._all, grams), len(self._all) - 1)
        return _Shared(len(grams), at[self._all[at] == grams].astype(np.int32))

    def _largest(self, parts: list[_Shared]) -> Overlap:
        found = [self._weighed(part) for part in parts]
        return max(found, key=lambda overlap: (overlap.share, overlap.runs), default=Overlap(0.0, 0, ""))

    def _weighed(self, part: _Shared) -> Overlap:
        """Returns the overlap of a text without its template."""
        if self._template is None:
            enough = max(TEMPLATE_PROMPTS, math.ceil(TEMPLATE_SHARE * len(self._prompts)))
            self._template = self._common | (self._having >= enough)
        at = part.at[~self._template[part.at]]
        if not len(at):
            return Overlap(0.0, 0, "")
        rows, counts = np.unique(self._row[at], return_counts=True)
        own = part.runs - (len(part.at) - len(at))
        return Overlap(len(at) / own, len(at), self._ids[int(rows[counts.argmax()])])

    def _seal(self) -> None:
        grams = np.concatenate([np.zeros(0, np.uint64), *self._grams])
        rows = np.concatenate([np.zeros(0, np.int32), *self._rows])
        self._grams, self._rows = [], []
        order = np.argsort(grams, kind="stable")
        grams, rows = grams[order], rows[order]
        self._all, first = np.unique(grams, return_index=True)
        self._row = rows[first]
        repeats = np.diff(np.append(first, len(grams)))
        self._common = repeats > max(2, math.ceil(self._common_share * len(self._ids)))
        firsts = np.array(self._first, np.int32)[rows]
        self._having = np.add.reduceat(firsts, first, dtype=np.int32) if len(first) else firsts  # prompts with a run
        self._sealed = True

    def _of(self, words: Grams) -> Grams:
        """Returns the runs of a text's words; a shorter text is one run."""
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

    def of(self, text: str) -> Grams:
        """Returns a number for each word of a text."""
        words = _WORD.findall(text.lower())
        if len(self._known) > _CACHED_WORDS:
            self._known.clear()
        known = self._known
        for word in words:
            if word not in known:
                known[word] = int.from_bytes(
                    blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
                )
        return np.array([known[word] for word in words], np.uint64)
