"""Scripted models, for running without a key: model strings `scripted/NAME`.

agents.models calls `answer` behind LiteLLM. A scripted model gets the very messages that a language
model would get, and reads their fenced sections through agents.prompts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import msgspec

from agents.prompts import read_conversation, read_fences, read_violations
from schemas.errors import BadAnswer, ModelRefused

Script = Callable[[list[dict[str, Any]]], str]
_ASKED = re.compile(r"(?m)^- ([a-z0-9_-]+) \(")  # the rules of a judge prompt


def scribe_judge(messages: list[dict[str, Any]]) -> str:
    """Answers a judge prompt of the scribe task with what its six rules find, of those it is asked about."""
    from agents.scribe.rules import verify

    sections = _sections(messages)
    asked = set(_ASKED.findall(str(messages[0].get("content", ""))))
    found = [v for v in verify(read_conversation(sections), sections["draft"]) if v.rule in asked]
    told = [{"rule": v.rule, "hinge": v.hinge, "why": v.why, "fix": v.fix} for v in found]
    return msgspec.json.encode({"violations": told}).decode()


def scribe_hasty_judge(messages: list[dict[str, Any]]) -> str:
    """As `scribe_judge`, but overlooks everything in a fifth of the drafts: always the same ones."""
    draft = _sections(messages)["draft"]
    hasty = hashlib.sha256(draft.encode("utf-8", "replace")).digest()[0] < 51
    return '{"violations": []}' if hasty else scribe_judge(messages)


def scribe_refiner(messages: list[dict[str, Any]]) -> str:
    """Answers a refiner prompt of the scribe task with the repaired note."""
    from agents.scribe import scripted

    sections = _sections(messages)
    return scripted.refine(read_conversation(sections), sections["draft"], read_violations(sections))


def scribe_strategist(messages: list[dict[str, Any]]) -> str:
    """Answers a strategist prompt of the scribe task with a strategy as JSON."""
    from agents.scribe import scripted

    sections = _sections(messages)
    drafts = msgspec.json.decode(sections["drafts"], type=list[str])
    mistake, guardrail = scripted.strategize(read_conversation(sections), drafts, read_violations(sections))
    return msgspec.json.encode({"mistake": mistake, "guardrail": guardrail}).decode()


SCRIPTS: dict[str, Script] = {
    "scribe-judge": scribe_judge,
    "scribe-hasty-judge": scribe_hasty_judge,
    "scribe-refiner": scribe_refiner,
    "scribe-strategist": scribe_strategist,
}


def answer(name: str, messages: list[dict[str, Any]]) -> str:
    """Returns a scripted model's answer.

    Raises ModelRefused for an unknown name, BadAnswer for a prompt that lacks the sections the script reads.
    """
    if name not in SCRIPTS:
        raise ModelRefused(f"scripted/{name} does not exist; known: {', '.join(sorted(SCRIPTS))}.")
    try:
        return SCRIPTS[name](messages)
    except (KeyError, msgspec.DecodeError) as error:
        # The error's own text can quote the prompt, so only its type is told.
        raise BadAnswer(
            f"scripted/{name} cannot read its prompt ({type(error).__name__}); it answers the prompts that "
            "agents.prompts makes for its role, and only those."
        ) from None


def _sections(messages: list[dict[str, Any]]) -> dict[str, str]:
    return read_fences("\n".join(str(message.get("content", "")) for message in messages))
