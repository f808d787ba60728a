"""The gate: candidate and incumbent answer the same frozen holdout, the task's own judge decides.

Called by trainer.service after every run. Generation is greedy with thinking off, as in production.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from schemas.adapters import GateReport, adapter_folder
from schemas.case import Message, Verdict
from schemas.errors import AdapterError, ModelError, ModelRefused, ModelUnavailable
from schemas.gold import read_outcomes
from schemas.outcomes import row_messages
from schemas.settings import Gate, Settings
from trainer.registry import replace_file

HOLDOUT = "holdout.json"
JUDGED_AT_ONCE = 16

Judge = Callable[[Sequence[Message], str], Awaitable[Verdict]]
AnswerCache = dict[str, dict[str, str]]  # version -> case id -> answer
Decision = Literal["promote", "refuse", "undecided"]


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
        self, prompts: Sequence[Sequence[Message]], *, adapter: str, temperature: float, max_tokens: int
    ) -> Sequence[_Generation]:
        """Answers prompts in order; `adapter` "" is the base."""


class HoldoutCase(NamedTuple):
    """One prompt the gate asks."""

    case_id: str
    messages: list[Message]


def holdout_cases(gold: Path, task: str) -> list[HoldoutCase]:
    """Returns every holdout case of a task."""
    rows = read_outcomes(gold, ("case_id", "outcome", "split", "messages"), task=task)
    rows = rows.filter(pc.and_(pc.equal(rows["outcome"], "holdout"), pc.equal(rows["split"], "holdout")))
    return [HoldoutCase(row["case_id"], row_messages(row)) for row in _to_rows(rows)]


def freeze_holdout(registry: Path, task: str, cases: Sequence[HoldoutCase], limit: int) -> list[HoldoutCase]:
    """Returns the at most `limit` cases the gate asks, remembering them in holdout.json.

    Ids once written stay, in their order, so that gates of one task ask the same questions and their pass rates can
    be compared. While there are fewer than `limit`, new ones are appended at the end. A case whose row is gone
    (erased, or superseded by another outcome) is left out and its place filled. New ids come in the order of their
    hash: producers' ids may grow with time, and a sample of the first days only would not be one of the traffic.
    The caller holds the task's lease.
    """
    by_id = {case.case_id: case for case in cases}
    path = registry / task / HOLDOUT
    try:
        frozen = msgspec.json.decode(path.read_bytes(), type=list[str]) if path.exists() else []
    except (msgspec.DecodeError, OSError) as error:
        raise AdapterError(f"{path} cannot be read: {error}. Restore it, or remove it to freeze a new one.") from error
    present = [case_id for case_id in frozen if case_id in by_id]
    fresh = sorted(by_id.keys() - set(frozen), key=lambda case_id: hashlib.sha256(case_id.encode()).digest())
    added = fresh[: max(0, limit - len(present))]
    if added:
        replace_file(registry, task, HOLDOUT, msgspec.json.encode([*frozen, *added]))
    return [by_id[case_id] for case_id in [*present, *added][:limit]]


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
) -> GateReport:
    """Compares a candidate version with the incumbent ("" for the base) on the frozen holdout.

    `judge` is by default the task's own, from agents; `cache` keeps answers by version between gates. A case that
    the judge cannot judge for either side counts for neither. Raises AdapterError for an adapter that must not be
    loaded, ModelUnavailable where too few cases could be judged to decide anything.
    """
    started = time.monotonic()
    gate = settings.task(task).gate
    cache = {} if cache is None else cache
    if len(cases) < gate.min_holdout:
        decision, reason = decide(gate, len(cases), 0, 0, 1.0)
        undecided: dict[str, Any] = {"cases": len(cases), "before": 0.0, "after": 0.0, "gained": 0, "lost": 0}
        return GateReport(
            task=task,
            version=candidate,
            incumbent=incumbent,
            decision=decision,
            reason=reason,
            p_value=1.0,
            **undecided,
        )
    answers = {version: _answers(settings, task, engine, cases, version, cache) for version in (incumbent, candidate)}
    for stale in cache.keys() - answers.keys():
        del cache[stale]
    verdicts = asyncio.run(_judge_all(settings, task, judge, cases, answers))
    before, after = verdicts[incumbent], verdicts[candidate]
    both = [case.case_id for case in cases if case.case_id in before and case.case_id in after]
    if len(both) < gate.min_holdout:
        raise ModelUnavailable(
            f"only {len(both)} of {len(cases)} holdout answers of {task} could be generated and judged for both sides; "
            f"gate.min_holdout asks for {gate.min_holdout}. Check the judge model; the gate runs again."
        )
    gained = sum(after[i].passed and not before[i].passed for i in both)
    lost = sum(before[i].passed and not after[i].passed for i in both)
    passed_before, passed_after = sum(before[i].passed for i in both), sum(after[i].passed for i in both)
    p_value = mcnemar(gained, lost)
    decision, reason = decide(gate, len(both), passed_before, passed_after, p_value)
    if len(both) < len(cases):
        reason += f"; {len(cases) - len(both)} cases could not be judged and count for neither"
    return GateReport(
        task=task,
        version=candidate,
        incumbent=incumbent,
        decision=decision,
        reason=reason,
        cases=len(both),
        before=passed_before / len(both),
        after=passed_after / len(both),
        gained=gained,
        lost=lost,
        p_value=p_value,
        seconds=time.monotonic() - started,
        violations_before=_rules_broken([before[i] for i in both]),
        violations_after=_rules_broken([after[i] for i in both]),
    )


def mcnemar(gained: int, lost: int) -> float:
    """Returns the exact two-sided p-value of McNemar's test: a fair coin over the cases that changed."""
    changed = gained + lost
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1))
    p_value: float = 2 * tail / 2**changed
    return min(1.0, p_value)


def decide(gate: Gate, cases: int, passed_before: int, passed_after: int, p_value: float) -> tuple[Decision, str]:
    """Decides on a candidate from the paired counts; the reason is for people."""
    if cases < gate.min_holdout:
        return "undecided", f"{cases} holdout cases, gate.min_holdout asks for {gate.min_holdout}"
    before, after = passed_before / cases, passed_after / cases
    figures = f"{before:.1%} -> {after:.1%} of {cases} cases, p = {p_value:.3g}"
    if after < before and p_value <= gate.significance:
        return "refuse", f"significantly worse: {figures}"
    if after <= before:
        return "refuse", f"no gain: {figures}"
    if after - before <= gate.min_gain:
        return "refuse", f"gains no more than gate.min_gain {gate.min_gain:g}: {figures}"
    return "promote", f"better: {figures}"


def task_judge(settings: Settings, task: str, models: Any = None) -> Judge:
    """Returns the judge of a task as production judges it; without a verifier it needs agents.models.Models."""
    from agents.judge import judge_answer  # trainer/ imports without the agents' dependencies

    async def judge(messages: Sequence[Message], answer: str) -> Verdict:
        deadline = asyncio.get_running_loop().time() + settings.worker.event_deadline_s
        verdict, _ = await judge_answer(settings, models, task, messages, answer, deadline=deadline)
        return verdict

    return judge


def _answers(
    settings: Settings, task: str, engine: Engine, cases: Sequence[HoldoutCase], version: str, cache: AnswerCache
) -> dict[str, str]:
    known = cache.setdefault(version, {})
    missing = [case for case in cases if case.case_id not in known]
    if not missing:
        return known
    if version:
        engine.load_adapter(version, adapter_folder(settings.adapters, task, version))

    def generate(asked: Sequence[HoldoutCase]) -> None:
        prompts = [case.messages for case in asked]
        max_tokens = settings.task(task).student.max_tokens
        generations = engine.generate_batch(prompts, adapter=version, temperature=0.0, max_tokens=max_tokens)
        known.update((case.case_id, g.text) for case, g in zip(asked, generations, strict=True))

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


async def _judge_all(
    settings: Settings,
    task: str,
    judge: Judge | None,
    cases: Sequence[HoldoutCase],
    answers: Mapping[str, Mapping[str, str]],
) -> dict[str, dict[str, Verdict]]:
    """Returns version -> case id -> verdict, without the cases that have no answer or cannot be judged."""
    models = None
    if judge is None:
        if not settings.task(task).rubric.verifier:
            from agents.models import Models

            models = Models(settings)
        judge = task_judge(settings, task, models)
    verdicts: dict[str, dict[str, Verdict]] = {version: {} for version in answers}
    at_once = asyncio.Semaphore(JUDGED_AT_ONCE)

    async def one(version: str, case: HoldoutCase) -> None:
        async with at_once:
            with suppress(ModelError):
                verdicts[version][case.case_id] = await judge(case.messages, answers[version][case.case_id])

    try:
        await asyncio.gather(*(one(v, case) for v in answers for case in cases if case.case_id in answers[v]))
    finally:
        if models is not None:
            await models.close()
    return verdicts


def _rules_broken(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Counts answers that break each rule; a rule broken twice in one answer counts once, as in the score."""
    broken = Counter(rule for verdict in verdicts for rule in {v.rule for v in verdict.violations})
    return dict(sorted(broken.items()))


def _to_rows(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
