"""The library of strategies: which of them say the same, and what each is called. Pure; streams.strategies feeds it.

A strategy's name is a hash of its first wording. `Library` is a fold over the records of gs.strategies in their
order: of two that say the same the earlier one is the entry, the later one another name of it, for every reader.

Two guardrails say the same where they share most of their words, after endings and small words are taken off. That
cannot know that two wordings without common words mean one thing: for that the strategist is shown what is known
(`Library.likely`). A negation, a number or an opposite (add, remove) in one alone keeps them apart.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Iterable
from typing import NamedTuple, Protocol

from schemas.case import Case, Strategy
from schemas.strategies import Merge, Proposal, Rewording, StrategyRecord

_SMALL = frozenset(
    re.findall(
        r"\w+",
        "a an the of in on at to and or is are was were be been it its this that these those which with for as by from "
        "any each every your their his her you they we i do does did has have had will must should can may if when "
        "then there so than into up very just also always please",
    )
)
_NEGATIONS = frozenset(("not", "never", "no", "none", "without", "avoid", "cannot", "nor"))
_OPPOSITES = (
    ("add", "remove"), ("include", "omit"), ("include", "exclude"), ("keep", "drop"), ("list", "leave"),
    ("more", "less"), ("more", "fewer"), ("before", "after"), ("first", "last"), ("short", "long"),
    ("shorten", "lengthen"), ("minimum", "maximum"), ("least", "most"), ("formal", "informal"), ("open", "close"),
    ("start", "end"), ("begin", "end"), ("accept", "reject"), ("confirm", "deny"), ("state", "infer"),
)  # fmt: skip


class Names(Protocol):
    """Gives a task's strategies their names; distil asks it."""

    def known(self, case: Case) -> list[Strategy]:
        """Returns the named strategies that a strategist should be shown for this case."""

    async def name(self, case: Case, strategy: Strategy) -> Strategy:
        """Returns the strategy under the name and wording it was first given."""


class Entry(NamedTuple):
    """One rule of a task, as it is called and worded everywhere."""

    id: str
    mistake: str
    guardrail: str
    rules: frozenset[str]  # broken in the case that taught it first
    at_ms: int
    said: tuple[frozenset[str], ...]  # the words of its guardrail: the first wording's, and the present one's

    def strategy(self, model: str = "") -> Strategy:
        """Returns it as a case carries it."""
        return Strategy(self.mistake, self.guardrail, model, self.id)


def strategy_id(task: str, mistake: str, guardrail: str) -> str:
    """Returns the name of a wording: the same for the same words, whatever their case, spacing and punctuation."""
    plain = " | ".join(" ".join(re.findall(r"\w+", _folded(text))) for text in (mistake, guardrail))
    return "s-" + hashlib.sha256(f"{task}\0{plain}".encode("utf-8", "surrogatepass")).hexdigest()[:10]


def similarity(one: Collection[str], other: Collection[str]) -> float:
    """Returns how much two sets of `words_of` share, from 0 to 1 (Dice); 0 where they cannot say the same."""
    left, right = frozenset(one), frozenset(other)
    if not left or not right:
        return 0.0
    if left.isdisjoint(_NEGATIONS) != right.isdisjoint(_NEGATIONS) or _numbers(left) != _numbers(right):
        return 0.0
    for pair in _OPPOSITE_STEMS:
        if left & pair and right & pair and left & pair != right & pair:
            return 0.0
    return 2 * len(left & right) / (len(left) + len(right))


def words_of(text: str) -> frozenset[str]:
    """Returns the words of a text that carry its meaning, without their endings."""
    plain = re.sub(r"n['\u2019]t\b", " not", _folded(text))
    return frozenset(_stem(word) for word in re.findall(r"\w+", plain) if word not in _SMALL)


def broken_rules(case: Case) -> frozenset[str]:
    """Returns the rules that the failed attempts of a case broke."""
    failed = (a.verdict for a in case.attempts if a.verdict is not None and not a.verdict.passed)
    return frozenset(violation.rule for verdict in failed for violation in verdict.violations)


class Library:
    """The strategies of all tasks, as the records applied so far say."""

    def __init__(self) -> None:
        self._entries: dict[str, dict[str, Entry]] = {}  # task -> id -> entry, in the order they were learned
        self._names: dict[tuple[str, str], str] = {}  # (task, other name) -> what it became

    def apply(self, record: StrategyRecord) -> None:
        """Takes the next record of the log; one applied before changes nothing."""
        entries = self._entries.setdefault(record.task, {})
        if isinstance(record, Proposal):
            if record.id in entries or (record.task, record.id) in self._names:
                return
            said, rules = words_of(record.guardrail), frozenset(record.rules)
            # Only first wordings are compared: what an operator does later must not change what came before.
            like = [(similarity(said, e.said[0]), e) for e in entries.values() if _related(rules, e.rules)]
            best = max(like, key=lambda pair: pair[0], default=None)
            if best is not None and best[0] >= record.similarity:
                self._names[record.task, record.id] = best[1].id
            else:
                entries[record.id] = Entry(record.id, record.mistake, record.guardrail, rules, record.at_ms, (said,))
        elif isinstance(record, Merge):
            into = self.find(record.task, record.into)
            if into is not None and record.id in entries and into.id != record.id:
                self._names[record.task, record.id] = into.id
        elif isinstance(record, Rewording) and record.id in entries:
            entry = entries[record.id]
            both = (entry.said[0], words_of(record.guardrail))
            entries[record.id] = entry._replace(mistake=record.mistake, guardrail=record.guardrail, said=both)

    def find(self, task: str, name: str) -> Entry | None:
        """Returns the entry that a name stands for, None for an unknown one."""
        while (task, name) in self._names:
            name = self._names[task, name]
        return self._entries.get(task, {}).get(name)

    def alike(self, task: str, guardrail: str, rules: Collection[str], threshold: float) -> Entry | None:
        """Returns the entry that says what a guardrail says, the likest one; None where none does."""
        said, entries = words_of(guardrail), self._entries.get(task, {}).values()
        like = [(max(similarity(said, s) for s in e.said), e) for e in entries if _related(rules, e.rules)]
        best = max(like, key=lambda pair: pair[0], default=None)
        return self.find(task, best[1].id) if best is not None and best[0] >= threshold else None

    def likely(self, case: Case, limit: int) -> list[Entry]:
        """Returns the entries that a case is most likely to teach again, at most `limit`.

        They share a broken rule with it; first come those whose words the violations hold.
        """
        rules = broken_rules(case)
        failed = (a.verdict for a in case.attempts if a.verdict is not None and not a.verdict.passed)
        said = words_of(" ".join(f"{v.why} {v.fix}" for verdict in failed for v in verdict.violations))
        shared = [(-len(rules & e.rules), -len(said & e.said[-1]), n, e) for n, e in enumerate(self.entries(case.task))]
        return [entry for *_, entry in sorted(one for one in shared if one[0])[:limit]]

    def entries(self, task: str) -> list[Entry]:
        """Returns the entries of a task in the order they were learned; those merged into others are not among them."""
        return [e for e in self._entries.get(task, {}).values() if (task, e.id) not in self._names]

    def tasks(self) -> list[str]:
        """Returns the tasks of which something is known."""
        return sorted(self._entries)

    def other_names(self, task: str, name: str) -> list[str]:
        """Returns the names that stand for an entry besides its own."""
        return sorted(other for t, other in self._names if t == task and self._stands_for(task, other, name))

    def _stands_for(self, task: str, other: str, name: str) -> bool:
        found = self.find(task, other)
        return found is not None and found.id == name


def _numbers(words: Iterable[str]) -> set[str]:
    return {word for word in words if any(map(str.isdigit, word))}


def _related(rules: Collection[str], others: Collection[str]) -> bool:
    return not rules or not others or not frozenset(rules).isdisjoint(others)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _stem(word: str) -> str:
    for ending in ("ies", "ing", "ed", "es", "s", "ly", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            return word[: -len(ending)] + ("y" if ending == "ies" else "")
    return word


def _stems(words: Iterable[str]) -> frozenset[str]:
    return frozenset(_stem(word) for word in words)


_OPPOSITE_STEMS = tuple(_stems(pair) for pair in _OPPOSITES)
