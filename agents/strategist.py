"""The strategist: distils what the failed rounds taught into one transferable rule."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import msgspec

from agents.models import Models
from agents.prompts import read_json, strategist_messages, strategy_schema
from agents.strategies import Names
from schemas.case import Case, Strategy
from schemas.errors import BadAnswer
from schemas.settings import Settings

MAX_CHARACTERS = 400  # of mistake and guardrail together: one short sentence each was asked for
_COPIED = 4  # words in a row that give an answer away
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # ordinary spelling in Persian and Indic scripts
_MARKUP = re.compile(
    r"<[^\s<>][^<>]*>|</|<\||\|>|<<|>>|\[/?inst\]|\[marker removed\]|```|https?://|^\s*#"
    r"|^\s*(?:system|developer|assistant|user|human|tool)\s*:",
    re.IGNORECASE,
)
_STEERING = re.compile(
    r"(?<!not )(?<!never )(?<!n't )\b(?:ignore|disregard|forget|override|bypass|skip)\s+"
    r"(?:(?:all|any|the|your|these|those|of|my|our)\s+)*"
    r"(?:(?:previous|prior|above|earlier|preceding|foregoing|other|system)\s+)*"
    r"(?:instructions?|prompts?|rules|guardrails?|rubric|guidelines|judge)\b"
    r"|\bsystem prompt\b|\byou are now\b|\bjailbreak|\bnew instructions?\b"
    r"|\b(?:score|grade)\b.{0,20}\b(?:10|ten|full|perfect|maximum)\b|\bfull marks\b|\bperfect score\b"
    r"|\b(?:mark|judge|accept|report)\b.{0,30}\bas (?:passed|passing|correct|acceptable)\b",
    re.IGNORECASE,
)


async def distil(
    case: Case, settings: Settings, models: Models, *, deadline: float, names: Names | None = None
) -> Case:
    """Returns the case with a strategy, or without one where none is needed or usable.

    1. An attempt that passed at once has nothing to distil and costs no call.
    2. The strategist is shown what `names` knows, and may name one of these in place of a new wording.
    3. A strategy that gives the answer away, steers its reader, or cannot be read, is left out: the case is gold
       without one.
    4. `names` gives it the name and wording it was first learned under. Where those words give this answer away, it
       keeps its own under that name.
    Raises ModelError as agents.models does, except BadAnswer.
    """
    # 1.
    if case.rounds == 0:
        return case
    # 2.
    known = names.known(case) if names is not None else []
    prompt = strategist_messages(case, settings.task(case.task).rubric, known)
    schema = strategy_schema(known)
    try:
        answer = await models.complete("strategist", case.task, prompt, deadline=deadline, response_format=schema)
    except BadAnswer:
        return case
    case = msgspec.structs.replace(case, spend=case.spend.plus(answer.spend()))
    # 3.
    strategy = read_strategy(answer.text, answer.model, known)
    if strategy is None or not is_plain(strategy) or leaks(strategy, case):
        return case
    # 4.
    if names is not None and not strategy.id:
        named = await names.name(case, strategy)
        is_own = (named.mistake, named.guardrail) == (strategy.mistake, strategy.guardrail)
        kept = named if is_own or not leaks(named, case) else strategy
        strategy = msgspec.structs.replace(kept, id=named.id, model=answer.model)
    return msgspec.structs.replace(case, strategy=strategy)


def read_strategy(text: str, model: str, known: Sequence[Strategy] = ()) -> Strategy | None:
    """Reads {"mistake", "guardrail"}, or {"same_as"} a known one, from a strategist's answer.

    Returns None where it cannot be read, is empty, or names what it was not shown.
    """
    try:
        found = read_json(text, _ModelStrategy)
    except BadAnswer:
        return None
    mistake, guardrail = found.mistake.strip(), found.guardrail.strip()
    if found.same_as:
        same = next((one for one in known if one.id == found.same_as), None)
        if same is not None:
            return msgspec.structs.replace(same, model=model)
    return Strategy(mistake, guardrail, model) if mistake and guardrail else None


def is_plain(strategy: Strategy) -> bool:
    """Tells whether a strategy is short plain text: the student is trained to think it, so nothing in it may steer.

    Refused are control tokens and markup of any chat template, links, characters that do not show, and orders to set
    instructions aside, which hostile prompts plant in drafts. Refusing a harmless one costs one strategy.
    """
    for text in (strategy.mistake, strategy.guardrail):
        plain = unicodedata.normalize("NFKC", text)
        if _hides(text) or _MARKUP.search(plain) or _STEERING.search(plain):
            return False
    return len(strategy.mistake) + len(strategy.guardrail) <= MAX_CHARACTERS


def _hides(text: str) -> bool:
    if text.isascii():
        return not text.isprintable()
    return any(unicodedata.category(c) in _HIDDEN and c not in _JOINERS for c in text)


def leaks(strategy: Strategy, case: Case) -> bool:
    """Tells whether a strategy repeats four words in a row of the accepted answer, or a whole line of it.

    A rule that holds the answer teaches copying, and it does not transfer.
    """
    said = _words(f"{strategy.mistake} {strategy.guardrail}")
    text, whole = " ".join(said), frozenset(said)
    answer = case.attempts[-1].text
    tokens = _words(answer)
    for at, second in enumerate(tokens[1 : 2 - _COPIED]):
        # Only the ends of a run may be parts of longer words there, so that most runs need not be written out.
        if second in whole and " ".join(tokens[at : at + _COPIED]) in text:
            return True
    lines = (" ".join(_words(line)) for line in answer.splitlines())
    return any(len(line) > 12 and line in text for line in lines)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


class _ModelStrategy(msgspec.Struct):
    mistake: str = ""
    guardrail: str = ""
    same_as: str = ""
