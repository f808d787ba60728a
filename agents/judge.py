"""The judge: says whether an answer is acceptable, and if not, which rule it breaks, where and why.

Verifiers in code come first; a rubric judge (a model with structured output) is asked where no
verifier is set. The stream stage judges cases, the trainer's gate judges answers.
"""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

import msgspec

from agents.models import Models
from agents.prompts import judge_messages, read_json, verdict_schema
from schemas.case import Case, Message, Spend, Verdict, Violation
from schemas.errors import BadAnswer, SettingsError
from schemas.settings import Rubric, Settings

Verifier = Callable[[Sequence[Message], str], list[Violation]]


async def judge(case: Case, settings: Settings, models: Models | None, *, deadline: float) -> Case:
    """Returns the case with a verdict on its last attempt. Raises ModelError as agents.models does."""
    last = case.attempts[-1]
    verdict, spend = await judge_answer(settings, models, case.task, case.messages, last.text, deadline=deadline)
    judged = msgspec.structs.replace(last, verdict=verdict)
    return msgspec.structs.replace(case, attempts=(*case.attempts[:-1], judged), spend=case.spend.plus(spend))


async def judge_answer(
    settings: Settings,
    models: Models | None,
    task: str,
    messages: Sequence[Message],
    answer: str,
    *,
    deadline: float,
) -> tuple[Verdict, Spend]:
    """Judges one answer by the task's rubric; returns the verdict and what it cost.

    `models` may be None where the rubric has a verifier. Raises BadAnswer where a model judge gives no
    readable verdict twice.
    """
    rubric = settings.task(task).rubric
    if rubric.verifier:
        violations = load_verifier(rubric.verifier)(messages, answer)
        return make_verdict(rubric, violations, f"verifier:{rubric.verifier}", "programmatic"), Spend()
    if models is None:
        raise SettingsError(f"tasks.{task} is judged by a model, but no model access was given")
    schema = verdict_schema(rubric)
    prompt = judge_messages(messages, answer, rubric)
    first = await models.complete("judge", task, prompt, deadline=deadline, response_format=schema)
    try:
        violations = read_violations(first.text, rubric, answer)
        return make_verdict(rubric, violations, first.model, "model"), first.spend()
    except BadAnswer:
        # Asked once more; sampling may give a readable verdict. A second failure is the case's end.
        prompt = judge_messages(messages, answer, rubric)
        second = await models.complete("judge", task, prompt, deadline=deadline, response_format=schema)
        violations = read_violations(second.text, rubric, answer)
        return make_verdict(rubric, violations, second.model, "model"), first.spend().plus(second.spend())


def make_verdict(rubric: Rubric, violations: Sequence[Violation], judge: str, kind: str) -> Verdict:
    """Returns the verdict on an answer with these violations: points of the unbroken rules against the pass mark."""
    broken = {violation.rule for violation in violations}
    score = sum(rule.points for rule in rubric.rules if rule.id not in broken)
    mark = rubric.max_score if rubric.pass_mark is None else rubric.pass_mark
    return Verdict(
        passed=score >= mark,
        score=score,
        max_score=rubric.max_score,
        violations=tuple(violations),
        judge=judge,
        kind="programmatic" if kind == "programmatic" else "model",
        rubric=rubric.version(),
    )


def read_violations(text: str, rubric: Rubric, answer: str) -> list[Violation]:
    """Reads a model judge's verdict: one JSON object and nothing around it (agents.prompts.read_json).

    A quote that is not really in the answer is blanked: the rule may still be broken, but not there.
    Raises BadAnswer for anything else, or where a rule is named that the rubric does not have: a doubtful verdict
    must never read as a pass.
    """
    severities = {rule.id: rule.severity for rule in rubric.rules}
    found = read_json(text, _ModelVerdict).violations
    unknown = sum(v.rule not in severities for v in found)
    if unknown:  # its names may quote the answer, so they are not told
        raise BadAnswer(
            f"{unknown} of the judge's {len(found)} violations name a rule the rubric does not have; expected some "
            f"of {', '.join(severities)}."
        )
    return [Violation(v.rule, severities[v.rule], find_hinge(v.hinge, answer), v.why, v.fix) for v in found]


def find_hinge(quoted: str, answer: str) -> str:
    """Returns the piece of `answer` that a judge quoted, exactly as it stands there; "" where it does not.

    White space and Unicode composition may differ: models copy both loosely.
    """
    if quoted in answer:
        return quoted.strip() and quoted
    for form in ("NFC", "NFD"):
        words = [re.escape(word) for word in unicodedata.normalize(form, quoted).split()]
        match = re.search(r"\s+".join(words), answer) if words else None
        if match:
            return match[0]
    return ""


@cache
def load_verifier(name: str) -> Verifier:
    """Returns the function "package.module:function"; raises SettingsError where there is none."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"rubric.verifier {name!r} cannot be loaded: {error}. Expected package.module:function, importable from "
            "where Goldstream runs."
        ) from error
    verifier: Verifier = found
    return verifier


class _ModelViolation(msgspec.Struct):
    rule: str
    hinge: str = ""
    why: str = ""
    fix: str = ""


class _ModelVerdict(msgspec.Struct, forbid_unknown_fields=True):
    violations: list[_ModelViolation]
