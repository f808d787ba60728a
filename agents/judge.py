"""The judge: says whether an answer is acceptable, and if not, which rule it breaks, where and why.

Programs come first: the rubric's verifier, or the checks of its rules (agents.verifiers). What no program decides is
asked of a model with structured output, or of several (agents.panel). The stream stage judges cases, the trainer's
gate judges answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from agents.models import Models
from agents.panel import decided, first_asked, merged, seats
from agents.prompts import Tools, judge_messages, verdict_schema
from agents.verdict import find_hinge, make_verdict, read_vote
from agents.verifiers import load_functions, run_checks
from agents.verifiers.python import load_verifier
from agents.verifiers.reference import Record
from schemas.case import Case, Message, Spend, Verdict, Violation
from schemas.errors import BadAnswer, ModelError, SettingsError
from schemas.record import case_record
from schemas.settings import Model, Rubric, Settings

__all__ = [
    "ask_programs", "find_hinge", "judge", "judge_answer", "load_rubric", "load_verifier", "make_verdict", "read_vote",
]  # fmt: skip


async def judge(case: Case, settings: Settings, models: Models | None, *, deadline: float) -> Case:
    """Returns the case with a verdict on its last attempt. Raises ModelError as agents.models does."""
    last = case.attempts[-1]
    verdict, spend = await judge_answer(
        settings, models, case.task, case.messages, last.text, deadline=deadline, record=case_record(case)
    )
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
    record: Record = None,
) -> tuple[Verdict, Spend]:
    """Judges one answer by the task's rubric; returns the verdict and what it cost.

    1. programs: the verifier, and the checks
    2. models, where rules are left; not where the checks have failed the answer and rubric.ask_model says so
    `record` is what checks may compare with (schemas.record); `models` may be None where no model is asked. Raises
    BadAnswer where too few votes can be read to decide.
    """
    rubric = settings.task(task).rubric
    # 1.
    found, name = await ask_programs(rubric, messages, answer, record)
    if not rubric.needs_model or rubric.ask_model == "unless_failed":
        by_programs = make_verdict(rubric, found, f"verifier:{name}", "programmatic")
        if not rubric.needs_model or not by_programs.passed:
            return by_programs, Spend()
    # 2.
    if models is None:
        raise SettingsError(f"tasks.{task} is judged by a model, but no model access was given")
    tools = (record or {}).get("tools") or ()
    return await _Bench(settings, models, task, messages, answer, found, deadline, tools).verdict()


def load_rubric(rubric: Rubric) -> None:
    """Loads the functions a rubric names; raises SettingsError for one that is not there."""
    if rubric.verifier:
        load_verifier(rubric.verifier)
    load_functions(rubric.rules)


async def ask_programs(
    rubric: Rubric, messages: Sequence[Message], answer: str, record: Record = None
) -> tuple[list[Violation], str]:
    """Returns the violations that the rubric's programs find, and the name they go by."""
    found: list[Violation] = []
    if rubric.verifier:
        checked = {rule.id for rule in rubric.rules if rule.check is not None}
        found = [v for v in load_verifier(rubric.verifier)(messages, answer) if v.rule not in checked]
    if any(rule.check is not None for rule in rubric.rules):  # in a thread: a hostile answer can keep a pattern busy
        found += await asyncio.to_thread(run_checks, rubric.rules, messages, answer, record)
    return found, rubric.verifier or "checks"


class _Bench:
    """The models that judge one answer."""

    def __init__(
        self,
        settings: Settings,
        models: Models,
        task: str,
        messages: Sequence[Message],
        answer: str,
        found: Sequence[Violation],
        deadline: float,
        tools: Tools,
    ) -> None:
        self._task, self._models, self._deadline, self._tools = task, models, deadline, tools
        self._judge, self._panel = settings.task(task).judge, settings.task(task).panel
        self._rubric = settings.task(task).rubric
        self._messages, self._answer, self._found = messages, answer, found
        self._spend = Spend()

    async def verdict(self) -> tuple[Verdict, Spend]:
        """Asks as many judges as it takes; raises the error of one that is missing for a decision, with all it cost."""
        try:
            return await self._decided(), self._spend
        except ModelError as error:
            error.spend = self._spend
            raise

    async def _decided(self) -> Verdict:
        asked = seats(self._judge, self._panel)
        if len(asked) == 1:
            return await self._vote(asked[0])
        at_once = first_asked(self._panel, len(asked))
        votes: list[Verdict] = []
        errors: list[ModelError] = []
        for some in (asked[:at_once], asked[at_once:]):
            told = await asyncio.gather(*(self._vote(model) for model in some), return_exceptions=True)
            for one in told:
                if isinstance(one, ModelError):
                    errors.append(one)
                elif isinstance(one, BaseException):
                    raise one
                else:
                    votes.append(one)
            verdict = decided(votes, len(asked), self._panel)
            if verdict is not None:
                return verdict
        if self._panel.decide == "escalate" and votes:
            last = await self._vote(self._panel.tie_break)
            return merged([last], [last, *votes])
        raise next((error for error in errors if error.transient), errors[0])

    async def _vote(self, model: Model) -> Verdict:
        """Asks one judge, once more where its verdict cannot be read or rests on quotes that it made up.

        A violation whose quote is not in the answer is dropped, and counted. Where the answer would pass without it,
        the judge is asked again; if it insists, the violation stays, without the quote: doubt never reads as a pass.
        """
        misquoted = 0
        schema = verdict_schema(self._rubric)
        chosen: dict[str, Any] = {} if model is self._judge else {"model": model}
        for is_last in (False, True):
            prompt = judge_messages(self._messages, self._answer, self._rubric, self._tools)
            try:
                completion = await self._models.complete(
                    "judge", self._task, prompt, deadline=self._deadline, response_format=schema, **chosen
                )
                self._spend = self._spend.plus(completion.spend())
                told = read_vote(completion.text, self._rubric, self._answer)
            except BadAnswer as error:
                self._spend = self._spend.plus(error.spend or Spend())  # of an empty answer
                if is_last:
                    raise
                continue
            misquoted += len(told.misquoted)
            verdict = self._made(told.violations, completion.model, told.grade, misquoted)
            if not told.misquoted:
                return verdict
            insisting = self._made((*told.violations, *told.misquoted), completion.model, told.grade, misquoted)
            if verdict.passed == insisting.passed:
                return verdict
        return insisting

    def _made(self, told: Sequence[Violation], judge: str, grade: float | None, misquoted: int) -> Verdict:
        return make_verdict(self._rubric, [*self._found, *told], judge, "model", grade=grade, misquoted=misquoted)
