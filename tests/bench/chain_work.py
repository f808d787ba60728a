"""The work of the row `chain`: what every side is given, and what the stub answers.

The chain is the one that a failed answer of the product goes through here, a call each: the student drafts, the judge
judges, the refiner rewrites, the judge judges the rewrite, the strategist says what was learned. The prompts are our
agents' own; for the others they are templates with a blank where an earlier answer goes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from agents.prompts import judge_messages, refiner_messages, strategist_messages
from bench.task import TEXT
from schemas.case import Attempt, Case, Message, Source, Verdict, Violation
from schemas.chat import to_chat
from schemas.settings.rubric import Rubric, Rule

RULE = "It asks the patient to call back, and says please."
RUBRIC = Rubric(rules=(Rule("please", RULE),))
DRAFT = "Take 500 mg of metformin with breakfast every day, drink plenty of water, and call us about the cough. " * 2
REFINED = DRAFT + "Would you please call back on Monday?"
VIOLATION = {"rule": "please", "hinge": "call us", "why": "It does not say please.", "fix": "Say please."}
FAILED, PASSED = json.dumps({"violations": [VIOLATION]}), json.dumps({"violations": []})
STRATEGY = json.dumps({"mistake": "The answer was curt.", "guardrail": "Ask for a call back, and say please."})


class Step(NamedTuple):
    """A call of the chain: the column its answer goes to, the model, and its messages with `{{ column }}` as blanks."""

    column: str
    model: str
    messages: list[dict[str, Any]]


def answer(model: str, body: bytes) -> str:
    """Says what the stub answers: the student forgets `please`, the judge notices, the refiner says it."""
    if model == "judge":
        return PASSED if b"please call back on Monday" in body else FAILED
    return {"student": DRAFT, "refiner": REFINED, "strategist": STRATEGY}[model]


def prompts(round: str, items: int) -> list[str]:
    """Returns the prompts of a round, no two alike."""
    return [f"Case {round}-{number}. {TEXT}" for number in range(items)]


def steps() -> list[Step]:
    """Returns the calls of the chain, worded as our agents word them."""
    asked = (Message("user", "{{ prompt }}"),)
    source = Source(cluster="", topic="", partition=0, offset=0)
    violation = Violation("please", "major", "{{ verdict }}")
    failed = Verdict(passed=False, score=0, max_score=1, violations=(violation,), judge="judge", kind="model")
    draft = Attempt(round=0, source="student", text="{{ draft }}", model="", verdict=failed)
    case = Case(case_id="", task="", split="train", source=source, created_ms=0, messages=asked, attempts=(draft,))
    again = replace(case, attempts=(draft, Attempt(round=1, source="refiner", text="{{ refined }}", model="")))
    return [
        Step("draft", "student", _plain(asked)),
        Step("verdict", "judge", _plain(judge_messages(asked, "{{ draft }}", RUBRIC))),
        Step("refined", "refiner", _plain(refiner_messages(case, draft, RUBRIC))),
        Step("checked", "judge", _plain(judge_messages(asked, "{{ refined }}", RUBRIC))),
        Step("strategy", "strategist", _plain(strategist_messages(again, RUBRIC))),
    ]


def write(path: Path, api_base: str, texts: Sequence[str]) -> None:
    """Writes the work for a side that runs in an environment of its own."""
    path.write_text(json.dumps({"api_base": api_base, "prompts": texts, "steps": [one._asdict() for one in steps()]}))


def _plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [{"role": one["role"], "content": one["content"]} for one in to_chat(list(messages))]
