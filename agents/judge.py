"""The judge: says whether an answer is acceptable, and if not, which rule it breaks, where and why.

Verifiers in code come first; a rubric judge (a model with structured output) is asked where no
verifier is set. The stream stage judges cases, the trainer's gate judges answers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache

import msgspec

from agents.models import Models
from agents.prompts import judge_messages, verdict_schema
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
    prompt = judge_messages(messages, answer, rubric)
    schema = verdict_schema(rubric)
    first = await models.complete("judge", task, prompt, deadline=deadline, response_format=schema)
    try:
        violations = read_violations(first.text, rubric, answer)
        return make_verdict(rubric, violations, first.model, "model"), first.spend()
    except BadAnswer:
        # Asked once more; sampling may give a readable verdict. A second failure is the case's end.
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
    """Reads a model judge's verdict; repairs it once where JSON stands inside other text.

    A quote that is not really in the answer is blanked: the rule may still be broken, but not there.
    Raises BadAnswer where nothing readable is found or a rule is named that the rubric does not have.
    """
    severities = {rule.id: rule.severity for rule in rubric.rules}
    for candidate in (text, text[text.find("{") : text.rfind("}") + 1]):
        try:
            found = msgspec.json.decode(candidate.encode(), type=_ModelVerdict).violations
        except (msgspec.DecodeError, UnicodeEncodeError):
            continue
        unknown = sorted({v.rule for v in found} - set(severities))
        if unknown:
            raise BadAnswer(f"the judge named rules the rubric does not have: {unknown}")
        return [
            Violation(v.rule, severities[v.rule], v.hinge if v.hinge in answer else "", v.why, v.fix) for v in found
        ]
    raise BadAnswer("the judge's verdict is not the JSON it was asked for")


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


class _ModelVerdict(msgspec.Struct):
    violations: list[_ModelViolation]
