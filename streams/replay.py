"""Judging stored attempts again under another rubric, to see which rows would flip before it is adopted.

Reads the gold set and writes nothing. `goldstream replay` prints what is found.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from agents.judge import ask_programs, load_rubric, make_verdict
from agents.judging import Item, Judged, judge_all, total_spend
from schemas.case import Message, Spend, Verdict, Violation
from schemas.errors import GoldError
from schemas.outcomes import row_messages
from schemas.record import RECORD_COLUMNS, row_record
from schemas.settings import Rubric, Rule, Settings
from schemas.settings.rubric_file import VERSION, kept_path, read_rubric
from streams.gold import open_gold

Which = Literal["last", "first", "all"]


class Stored(NamedTuple):
    """An attempt of the gold set with the verdict it has."""

    case_id: str
    outcome: str
    messages: Sequence[Message]
    text: str
    round: int
    passed: bool
    share: float  # of the best score
    rubric: str
    by: str  # programmatic, model or expert
    violations: tuple[Violation, ...]
    record: dict[str, Any]


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that the new rubric judges otherwise."""

    case_id: str
    outcome: str
    round: int
    now: Literal["passed", "failed"]
    score_before: float  # shares of the best score
    score_after: float
    rules_before: tuple[str, ...]
    rules_after: tuple[str, ...]
    judged_by: str  # before
    violations: tuple[Violation, ...]  # after


class RuleChange(msgspec.Struct, frozen=True, kw_only=True):
    """How many attempts break a rule; None where a rubric does not have it."""

    rule: str
    before: int
    after: int | None
    change: Literal["new", "changed", "gone", ""]  # "" also where the text of the older rubric was not kept
    newly_failed: int  # attempts that passed, fail now, and break it now
    newly_passed: int  # attempts that failed for it among others, and pass now


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """What another rubric would have said."""

    task: str
    rubric_before: dict[str, int]  # version -> attempts judged by it
    rubric_after: str
    attempts: int
    judged: int
    still_passed: int
    still_failed: int
    passed_to_failed: int
    failed_to_passed: int
    score_before: float | None  # means of shares of the best score, over what was judged again
    score_after: float | None
    rules: tuple[RuleChange, ...]
    flips: tuple[Flip, ...]
    unjudged: dict[str, int]  # reason -> attempts
    spend: Spend
    seconds: float


def stored_attempts(settings: Settings, task: str, last: int, which: Which) -> list[Stored]:
    """Returns judged attempts of the `last` cases that ended, the newest first; raises GoldError where none is."""
    with open_gold(settings.gold) as connection:
        result = connection.execute(_CASES, [task, last])
        names = [column[0] for column in result.description or []]
        rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    found: list[Stored] = []
    for row in rows:
        judged = [attempt for attempt in row["attempts"] if attempt["passed"] is not None]
        chosen = {"last": judged[-1:], "first": judged[:1], "all": judged}[which]
        messages, record = row_messages(row), row_record(row)
        for one in chosen:
            found.append(
                Stored(
                    row["case_id"],
                    row["outcome"],
                    messages,
                    one["text"],
                    one["round"],
                    one["passed"],
                    one["score"] / one["max_score"] if one["max_score"] else 0.0,
                    one["rubric"] or "unknown",
                    one["judge_kind"] or "unknown",
                    tuple(msgspec.convert(told, Violation) for told in one["violations"] or ()),
                    record,
                )
            )
    if not found:
        raise GoldError(
            f"the gold set at {settings.gold} holds no judged attempt of task {task}; there is nothing to replay yet."
        )
    return found


async def replay(
    settings: Settings,
    task: str,
    rubric: Rubric,
    attempts: Sequence[Stored],
    *,
    at_once: int = 8,
    max_calls: int | None = None,
    programs_only: bool = False,
    progress: Callable[[int], None] = lambda done: None,
    wait: bool = False,
) -> Replay:
    """Judges attempts again by `rubric`; with `programs_only` what a model had found of the rubric's rules stands."""
    started = time.monotonic()
    chosen = msgspec.structs.replace(settings.task(task), rubric=rubric)
    changed = msgspec.structs.replace(settings, tasks={**settings.tasks, task: chosen})
    if programs_only:
        judged = await _by_programs(rubric, attempts, progress)
    else:
        items = [Item(one.messages, one.text, one.record) for one in attempts]
        judged = await judge_all(
            changed, task, items, at_once=at_once, max_calls=max_calls, progress=progress, purpose="replay", wait=wait
        )
    older = older_rules(settings, task, {one.rubric for one in attempts})
    return compare(task, rubric, older, attempts, judged, time.monotonic() - started)


def older_rules(settings: Settings, task: str, versions: Collection[str]) -> dict[str, Rule] | None:
    """Returns the rules that attempts were judged by, by id; None where the text of a version was not kept."""
    now = settings.task(task).rubric
    rules: dict[str, Rule] = {}
    for version in versions:
        if version == now.version():
            rules |= {rule.id: rule for rule in now.rules}
        elif VERSION.fullmatch(version) and kept_path(settings.state, version).exists():
            rules |= {rule.id: rule for rule in read_rubric(kept_path(settings.state, version)).rules}
        else:
            return None
    return rules


def compare(
    task: str,
    rubric: Rubric,
    older: Mapping[str, Rule] | None,
    attempts: Sequence[Stored],
    judged: Sequence[Judged],
    seconds: float,
) -> Replay:
    """Says what changes. Pure."""
    pairs = [(one, new.verdict) for one, new in zip(attempts, judged, strict=True) if new.verdict is not None]
    turned = Counter((old.passed, new.passed) for old, new in pairs)
    flips = [_flip(old, new) for old, new in pairs if old.passed != new.passed]
    shares = [(old.share, new.score / new.max_score if new.max_score else 0.0) for old, new in pairs]
    return Replay(
        task=task,
        rubric_before=dict(Counter(one.rubric for one in attempts).most_common()),
        rubric_after=rubric.version(),
        attempts=len(attempts),
        judged=len(pairs),
        still_passed=turned[True, True],
        still_failed=turned[False, False],
        passed_to_failed=turned[True, False],
        failed_to_passed=turned[False, True],
        score_before=sum(old for old, _ in shares) / len(shares) if shares else None,
        score_after=sum(new for _, new in shares) / len(shares) if shares else None,
        rules=_rule_changes(rubric, older, pairs),
        flips=tuple(flips),
        unjudged=dict(Counter(one.error[:200] for one in judged if one.verdict is None).most_common()),
        spend=total_spend(judged),
        seconds=seconds,
    )


async def _by_programs(rubric: Rubric, attempts: Sequence[Stored], progress: Callable[[int], None]) -> list[Judged]:
    load_rubric(rubric)
    kept_rules = {rule.id: rule.severity for rule in rubric.model_rules}
    judged: list[Judged] = []
    for one in attempts:
        found, name = await ask_programs(rubric, one.messages, one.text, one.record)
        kept = [msgspec.structs.replace(v, severity=kept_rules[v.rule]) for v in one.violations if v.rule in kept_rules]
        verdict = make_verdict(rubric, [*found, *kept], f"verifier:{name}", "programmatic")
        judged.append(Judged(verdict, "", Spend()))
        progress(len(judged))
        await asyncio.sleep(0)
    return judged


def _flip(old: Stored, new: Verdict) -> Flip:
    return Flip(
        case_id=old.case_id,
        outcome=old.outcome,
        round=old.round,
        now="passed" if new.passed else "failed",
        score_before=old.share,
        score_after=new.score / new.max_score if new.max_score else 0.0,
        rules_before=_rules(old.violations),
        rules_after=_rules(new.violations),
        judged_by=old.by,
        violations=new.violations,
    )


def _rule_changes(
    rubric: Rubric, older: Mapping[str, Rule] | None, pairs: Sequence[tuple[Stored, Verdict]]
) -> tuple[RuleChange, ...]:
    before = Counter(rule for old, _ in pairs for rule in _rules(old.violations))
    after = Counter(rule for _, new in pairs for rule in _rules(new.violations))
    failed = Counter(rule for old, new in pairs if old.passed and not new.passed for rule in _rules(new.violations))
    passed = Counter(rule for old, new in pairs if new.passed and not old.passed for rule in _rules(old.violations))
    present = {rule.id: rule for rule in rubric.rules}
    gone = sorted({*before, *(older or ())} - present.keys())
    return tuple(
        RuleChange(
            rule=rule,
            before=before[rule],
            after=after[rule] if rule in present else None,
            change="gone" if rule not in present else _change(present[rule], older),
            newly_failed=failed[rule],
            newly_passed=passed[rule],
        )
        for rule in (*present, *gone)
    )


def _change(rule: Rule, older: Mapping[str, Rule] | None) -> Literal["new", "changed", ""]:
    if older is None or older.get(rule.id) == rule:
        return ""
    return "changed" if rule.id in older else "new"


def _rules(violations: Sequence[Violation]) -> tuple[str, ...]:
    return tuple(sorted({violation.rule for violation in violations}))


_CASES = f"""
SELECT case_id, outcome, messages, attempts, {", ".join(RECORD_COLUMNS)}
FROM outcomes
WHERE task = ? AND outcome IN ('gold', 'unresolved', 'holdout')
  AND len(list_filter(attempts, lambda attempt: attempt.passed IS NOT NULL)) > 0
ORDER BY ended_at DESC, case_id
LIMIT ?
"""
