"""The tokens of pair A and pair B, and a memory of those already made.

Tokenising a row takes hundreds of times as long as looking it up, and a run trains on all gold so far: the service
tokenises rows as they land, and a run that is due finds all but the newest here. Called by trainer.dataset.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from typing import Any, Literal, NamedTuple

import msgspec

from schemas.case import Message
from schemas.chat import render_answer, render_prompt, strategy_text
from schemas.errors import TrainingError
from schemas.outcomes import row_messages, row_strategy
from schemas.tools import answer_words, template_tools
from trainer.recipes import Chosen, LeftOut

Branch = Literal["A", "B"]
BRANCHES: tuple[Branch, ...] = ("A", "B")
ENTRY_BYTES = 400  # of an entry besides its tokens: key, tuples, the dictionary's share

_Tools = list[dict[str, Any]]  # that the prompt offers


class Part(NamedTuple):
    """Some of what is completed behind the prompt."""

    ids: list[int]
    strategy: bool  # weighs trainer.strategy_weight


class Pair(NamedTuple):
    """One sequence before it is weighted."""

    prompt: list[int]
    parts: list[Part]


class _Entry(msgspec.Struct, gc=False):
    prompt: bytes
    parts: tuple[tuple[bytes, bool], ...]
    reason: str  # why it is left out; "" where it is not
    used: int  # the pass that last asked for it

    @property
    def size(self) -> int:
        return ENTRY_BYTES + len(self.prompt) + sum(len(ids) for ids, _ in self.parts)


class PairMemory:
    """Pairs that one tokenizer made, by a hash of all else that decides their tokens.

    A row that changed has another hash, so nothing here is ever stale; weights and limits of length are applied
    later. It holds `limit` bytes at most: what comes when it is full is made anew each time.
    """

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        self.size = 0
        self.made = 0  # how often a pair was tokenised
        self._entries: dict[bytes, _Entry] = {}
        self._pass = 0

    def __len__(self) -> int:
        return len(self._entries)

    def pair(self, branch: Branch, chosen: Chosen, tools: bool) -> Pair:
        """Returns a pair; raises LeftOut and TrainingError as `make_pair` does."""
        key = _key(branch, chosen, tools)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._made(branch, chosen, tools)
            if self.size + entry.size <= self.limit:
                self._entries[key] = entry
                self.size += entry.size
        entry.used = self._pass
        if entry.reason:
            raise LeftOut(entry.reason)
        return Pair(_ids(entry.prompt), [Part(_ids(ids), strategy) for ids, strategy in entry.parts])

    def begin(self) -> None:
        """Begins a pass over all rows that count."""
        self._pass += 1

    def sweep(self) -> None:
        """Drops what nobody asked for since `begin`: rows that were rewritten, forgotten, or count no more."""
        self._entries = {key: entry for key, entry in self._entries.items() if entry.used == self._pass}
        self.size = sum(entry.size for entry in self._entries.values())

    def clear(self) -> None:
        """Drops everything."""
        self._entries, self.size = {}, 0

    def _made(self, branch: Branch, chosen: Chosen, tools: bool) -> _Entry:
        self.made += 1
        try:
            pair = make_pair(branch, chosen, self.tokenizer, tools)
        except LeftOut as reason:
            return _Entry(b"", (), str(reason), self._pass)
        parts = tuple((_packed(part.ids), part.strategy) for part in pair.parts)
        return _Entry(_packed(pair.prompt), parts, "", self._pass)


def make_pair(branch: Branch, chosen: Chosen, tokenizer: Any, tools: bool) -> Pair:
    """Tokenises pair A, x -> y*, or B, x -> think block with the strategy, then y*.

    A stands on the prompt of inference, with its empty think block. `tools` offers those of the product's call. Raises
    LeftOut for what is not trained on, TrainingError where the chat template does not know enable_thinking.
    """
    messages = row_messages(chosen.row)
    offered = template_tools(_json(chosen.row["tools"])) if tools else []
    if branch == "A":
        prompt = _encode(tokenizer, _render(tokenizer, messages, offered, thinking=False))
        return Pair(prompt, [Part(_answer(chosen, tokenizer, messages, offered), False)])
    strategy = row_strategy(chosen.row)
    assert strategy is not None
    text = _render(tokenizer, messages, offered, thinking=True)
    if text == _render(tokenizer, messages, offered, thinking=False):
        raise TrainingError(
            f"the chat template of {name_of(tokenizer)} does not know enable_thinking, so "
            'that pair B would teach thinking where inference wants none. Set trainer.recipe = "isft", or choose a '
            "hybrid base such as Qwen3 (not its Instruct-2507 variants)."
        )
    block = strategy_text(strategy)
    _refuse_control_text(tokenizer, block)
    # Some templates open the block themselves.
    opening = "" if text.rstrip().endswith("<think>") else "<think>\n"
    thought = _encode(tokenizer, f"{opening}{block}\n</think>\n\n")
    answer = _answer(chosen, tokenizer, messages, offered)
    return Pair(_encode(tokenizer, text), [Part(thought, True), Part(answer, False)])


def name_of(tokenizer: Any) -> str:
    """Returns where a tokenizer came from, for people."""
    return getattr(tokenizer, "name_or_path", "") or "the base"


def _key(branch: Branch, chosen: Chosen, tools: bool) -> bytes:
    """Returns a hash of everything that `make_pair` reads besides the tokenizer."""
    row = chosen.row
    strategy = (row["strategy_mistake"], row["strategy_guardrail"]) if branch == "B" else ()
    read = (branch, row["messages"], chosen.answer, chosen.calls, (row["tools"],) if tools else (), strategy)
    return hashlib.sha256(msgspec.msgpack.encode(read)).digest()


def _answer(chosen: Chosen, tokenizer: Any, messages: list[Message], tools: _Tools) -> list[int]:
    """Returns the answer's tokens; calls of tools as the base's template writes them, which is what servers read."""
    text = chosen.answer
    if not text:
        raise LeftOut("empty_answer")
    _refuse_control_text(tokenizer, text)
    if calls := _json(chosen.calls):
        answer = Message("assistant", answer_words(text, calls), tool_calls=calls)
        try:
            text = render_answer(tokenizer, messages, answer, tools)
        except TrainingError as error:
            raise LeftOut("no_call_template") from error
    return [*_encode(tokenizer, text), tokenizer.eos_token_id]


def _json(text: str | None) -> list[dict[str, Any]]:
    return json.loads(text) if text else []


def _render(tokenizer: Any, messages: list[Message], tools: _Tools, *, thinking: bool) -> str:
    from jinja2 import TemplateError

    try:
        return render_prompt(tokenizer, messages, thinking, tools)
    except (TemplateError, TypeError) as error:  # a template that knows no system message, or no message without text
        raise LeftOut("unrenderable") from error


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Tokenises one part by itself, as inference does with the prompt: tokens never span a seam."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _refuse_control_text(tokenizer: Any, text: str) -> None:
    if any(tag in text for tag in (*tokenizer.all_special_tokens, "<think>", "</think>")):
        raise LeftOut("control_text")


def _packed(ids: list[int]) -> bytes:
    return array("I", ids).tobytes()


def _ids(packed: bytes) -> list[int]:
    ids = array("I")
    ids.frombytes(packed)
    return ids.tolist()
