"""The gate: candidate and incumbent answer the same frozen holdout, the task's own judge decides.

Called by trainer.run after every run. Generation is greedy with thinking off, as in production; with gate.thinking
both are asked with thinking on too, for the report alone.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from schemas.adapters import Comparison, GateExample, GateReport, adapter_folder
from schemas.case import Message, Verdict, Violation
from schemas.errors import BudgetHeld, ModelError, ModelRefused, ModelUnavailable
from schemas.settings import Settings, Task
from schemas.tools import read_answer, template_tools
from trainer.holdout import HoldoutCase, holdout_sha256
from trainer.paired import compare, decide

JUDGED_AT_ONCE = 16

Judge = Callable[[Sequence[Message], str], Awaitable[Verdict]]
Record = Mapping[str, Any] | None  # what checks may compare with: schemas.record
Side = tuple[str, bool]  # version ("" for the base), thinking
AnswerCache = dict[Side, dict[str, str]]  # side -> case id -> answer
VerdictCache = dict[tuple[str, str, str], Verdict]  # (rubric, case id, answer) -> verdict


class TaskJudge(Protocol):
    """A task's own judge: a Judge that can look into the record too."""

    def __call__(self, messages: Sequence[Message], answer: str, record: Record = None) -> Awaitable[Verdict]: ...


class _Generation(Protocol):
    @property
    def text(self) -> str: ...


class Engine(Protocol):
    """What the gate needs of agents.local.LocalEngine."""

    @property
    def base_sha256(self) -> str:
        """Fingerprint of the base it serves."""

    def close(self) -> None:
        """Ends its thread."""

    def load_adapter(self, name: str, folder: Path) -> Any:
        """Verifies an adapter and loads it under a name; raises AdapterError."""

    def unload_adapter(self, name: str) -> Any:
        """Forgets it again."""

    def generate_batch(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        adapter: str,
        temperature: float,
        max_tokens: int,
        thinking: bool,
        tools: Sequence[Sequence[dict[str, Any]]] = (),
    ) -> Sequence[_Generation]:
        """Answers prompts in order; `adapter` "" is the base, `tools` are those that each prompt offers."""


class Shown(NamedTuple):
    """One holdout case with its texts, for gate.html."""

    case_id: str
    change: Literal["lost", "gained", "failed"]  # the last: on both sides, with other answers
    messages: Sequence[Message]
    before: str
    after: str
    violations_before: Sequence[Violation]
    violations_after: Sequence[Violation]


class GateResult(NamedTuple):
    """The report, and the texts that only its page shows."""

    report: GateReport
    shown: list[Shown]


def run_gate(
    settings: Settings,
    task: str,
    engine: Engine,
    cases: Sequence[HoldoutCase],
    *,
    candidate: str,
    incumbent: str,
    judge: Judge | None = None,
    cache: AnswerCache | None = None,
    judged: VerdictCache | None = None,
) -> GateResult:
    """Compares a candidate version with the incumbent ("" for the base) on the frozen holdout.

    `judge` is by default the task's own, from agents; `cache` keeps answers between gates of one base, `judged` the
    verdicts of a gate that was broken off, so that they are not paid for twice. A case that the judge cannot judge for
    either side counts for neither. Raises AdapterError for an adapter that must not be loaded, ModelUnavailable where
    too few cases could be judged to decide anything, BudgetHeld where the task's budget of the day is used up before.
    """
    started = time.monotonic()
    gate = settings.task(task).gate
    cache = {} if cache is None else cache
    old, new = (incumbent, False), (candidate, False)
    sides = [old, new, *([(incumbent, True), (candidate, True)] if gate.thinking else [])]
    found = Comparison(cases=len(cases), before=0.0, after=0.0, gained=0, lost=0, p_value=1.0)
    thinking, shown, judged_by = None, list[Shown](), None
    broken_before, broken_after = dict[str, int](), dict[str, int]()
    if len(cases) < gate.min_holdout:
        decision, reason = decide(gate, found)
    else:
        answers = {side: _answers(settings, task, engine, cases, side, cache) for side in sides}
        for stale in cache.keys() - answers.keys():
            del cache[stale]
        verdicts = asyncio.run(_judge_all(settings, task, judge, cases, answers, {} if judged is None else judged))
        both = _judged_on_both(cases, verdicts[old], verdicts[new])
        if len(both) < gate.min_holdout:
            raise ModelUnavailable(
                f"only {len(both)} of {len(cases)} holdout answers of {task} could be generated and judged for both "
                f"sides; gate.min_holdout asks for {gate.min_holdout}. Check the judge model; the gate runs again."
            )
        found = compare(gate, verdicts[old], verdicts[new], both)
        decision, reason = decide(gate, found)
        if len(both) < len(cases):
            reason += f"; {len(cases) - len(both)} cases could not be judged and count for neither"
        if gate.thinking:
            before, after = verdicts[incumbent, True], verdicts[candidate, True]
            thought = _judged_on_both(cases, before, after)
            thinking = compare(gate, before, after, thought) if thought else None
        broken_before = _rules_broken([verdicts[old][i] for i in both])
        broken_after = _rules_broken([verdicts[new][i] for i in both])
        shown = choose_examples(cases, answers[old], answers[new], verdicts[old], verdicts[new], gate.report_examples)
        judged_by = verdicts[new][both[0]]
    report = GateReport(
        task=task,
        version=candidate,
        incumbent=incumbent,
        decision=decision,
        reason=reason,
        cases=found.cases,
        before=found.before,
        after=found.after,
        gained=found.gained,
        lost=found.lost,
        p_value=found.p_value,
        seconds=time.monotonic() - started,
        violations_before=broken_before,
        violations_after=broken_after,
        test=gate.test,
        promotion=gate.promotion,
        score_before=found.score_before,
        score_after=found.score_after,
        score_low=found.score_low,
        score_high=found.score_high,
        thinking=thinking,
        base_sha256=engine.base_sha256,
        holdout_sha256=holdout_sha256(cases),
        rubric=judged_by.rubric if judged_by else "",
        judge=judged_by.judge if judged_by else "",
        at_ms=int(time.time() * 1000),
        examples=tuple(
            GateExample(
                case_id=one.case_id,
                change=one.change,
                rules_before=_rules(one.violations_before),
                rules_after=_rules(one.violations_after),
            )
            for one in shown
        ),
    )
    return GateResult(report, shown)


def choose_examples(
    cases: Sequence[HoldoutCase],
    answers_before: Mapping[str, str],
    answers_after: Mapping[str, str],
    before: Mapping[str, Verdict],
    after: Mapping[str, Verdict],
    limit: int,
) -> list[Shown]:
    """Returns at most `limit` cases that show what changed: losses and gains in turn, then failures that differ."""
    messages = {case.case_id: case.messages for case in cases}
    lost, gained, failed = list[Shown](), list[Shown](), list[Shown]()
    for case_id in _judged_on_both(cases, before, after):
        old, new = before[case_id], after[case_id]
        if (old.passed and new.passed) or (
            old.passed == new.passed and answers_before[case_id] == answers_after[case_id]
        ):
            continue
        change: Literal["lost", "gained", "failed"] = "lost" if old.passed else "gained" if new.passed else "failed"
        into = {"lost": lost, "gained": gained, "failed": failed}[change]
        texts = (answers_before[case_id], answers_after[case_id])
        into.append(Shown(case_id, change, messages[case_id], *texts, old.violations, new.violations))
    paired = [one for pair in zip(lost, gained, strict=False) for one in pair]
    rest = [*lost[len(gained) :], *gained[len(lost) :]]
    return [*paired, *rest, *failed][:limit]


def task_judge(settings: Settings, task: str, models: Any = None) -> TaskJudge:
    """Returns the judge of a task as production judges it; without a verifier it needs agents.models.Models."""
    from agents.judge import judge_answer  # trainer/ imports without the agents' dependencies
    from agents.outside import patiently

    async def judge(messages: Sequence[Message], answer: str, record: Record = None) -> Verdict:
        async def ask(deadline: float) -> tuple[Verdict, Any]:
            return await judge_answer(settings, models, task, messages, answer, deadline=deadline, record=record)

        verdict, _ = await patiently(ask, settings.worker.event_deadline_s)
        return verdict

    return judge


def _judged_on_both(
    cases: Sequence[HoldoutCase], before: Mapping[str, Verdict], after: Mapping[str, Verdict]
) -> list[str]:
    return [case.case_id for case in cases if case.case_id in before and case.case_id in after]


def _answers(
    settings: Settings, task: str, engine: Engine, cases: Sequence[HoldoutCase], side: Side, cache: AnswerCache
) -> dict[str, str]:
    known = cache.setdefault(side, {})
    missing = [case for case in cases if case.case_id not in known]
    if not missing:
        return known
    version, thinking = side
    if version:
        engine.load_adapter(version, adapter_folder(settings.adapters, task, version))
    chosen = settings.task(task)
    max_tokens = chosen.student.max_tokens + (chosen.gate.thinking_tokens if thinking else 0)

    def generate(asked: Sequence[HoldoutCase]) -> None:
        prompts = [case.messages for case in asked]
        tools = offered_tools(chosen, asked)
        generations = engine.generate_batch(
            prompts,
            adapter=version,
            temperature=0.0,
            max_tokens=max_tokens,
            thinking=thinking,
            **({"tools": tools} if any(tools) else {}),
        )
        known.update(
            (case.case_id, read_answer(made.text)[0] if offered else made.text)
            for case, made, offered in zip(asked, generations, tools, strict=True)
        )

    try:
        generate(missing)
    except ModelRefused:  # a prompt beyond the context must not cost the whole gate
        for case in missing:
            with suppress(ModelRefused):
                generate([case])
    finally:
        if version:
            engine.unload_adapter(version)
    return known


def offered_tools(task: Task, cases: Sequence[HoldoutCase]) -> list[list[dict[str, Any]]]:
    """Returns each case's tools as the student is offered them in production."""
    return [template_tools((case.record or {}).get("tools") or ()) if task.carry_over.tools else [] for case in cases]


async def _judge_all(
    settings: Settings,
    task: str,
    judge: Judge | None,
    cases: Sequence[HoldoutCase],
    answers: Mapping[Side, Mapping[str, str]],
    known: VerdictCache,
) -> dict[Side, dict[str, Verdict]]:
    """Returns side -> case id -> verdict, without the cases that have no answer or cannot be judged.

    Raises BudgetHeld where a cap of the day is used up; `known` has what was judged until then.
    """
    models = None
    if judge is None and settings.task(task).rubric.needs_model:
        from agents.models import Models

        models = Models(settings)
    own = task_judge(settings, task, models)
    verdicts: dict[Side, dict[str, Verdict]] = {side: {} for side in answers}
    at_once = asyncio.Semaphore(JUDGED_AT_ONCE)
    rubric = settings.task(task).rubric.version()
    held: BudgetHeld | None = None

    async def one(side: Side, case: HoldoutCase) -> None:
        nonlocal held
        async with at_once:
            text = answers[side][case.case_id]
            key = (rubric, case.case_id, text)
            if key not in known and held is None:
                try:
                    told = judge(case.messages, text) if judge else own(case.messages, text, case.record)
                    known[key] = await told
                except BudgetHeld as error:
                    held = error
                except ModelError:
                    return
            if key in known:
                verdicts[side][case.case_id] = known[key]

    asked = (one(side, case) for side in answers for case in cases if case.case_id in answers[side])
    if models is None:
        await asyncio.gather(*asked)
    else:
        from agents.outside import spending

        try:
            async with spending(settings, models, "gate"):
                await asyncio.gather(*asked)
        finally:
            await models.close()
    if held is not None:
        raise BudgetHeld(
            f"the gate is not done: {held} It goes on by itself, with what is judged already.", held.wait_s
        )
    return verdicts


def _rules(violations: Sequence[Violation]) -> tuple[str, ...]:
    return tuple(sorted({violation.rule for violation in violations}))


def _rules_broken(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Counts answers that break each rule; a rule broken twice in one answer counts once, as in the score."""
    broken = Counter(rule for verdict in verdicts for rule in _rules(verdict.violations))
    return dict(sorted(broken.items()))
