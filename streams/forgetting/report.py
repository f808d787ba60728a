"""What a forgetting reaches, what it cannot, and what is left for a person: what `goldstream forget` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from schemas.lineage import Row as LineageRow
from schemas.lineage import Trained, adapters_of
from schemas.settings import Settings
from streams.forgetting.forget import Done, Row, lonely_strategies
from streams.forgetting.reach import Held, held

_SHOWN = 20  # case ids printed; --json has all


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is to be told. Names nobody: whom it is about, the caller knows."""

    kind: str
    key: str
    dry_run: bool
    already: bool  # it was forgotten before, and nothing new had come since
    at_ms: int
    withdrawn_ms: int  # 0 where it stands
    rows: int
    cases: list[str]
    by_outcome: dict[str, int]
    adapters: list[Trained]
    held: list[Held] | None  # None where the topics were not looked at
    strategies: list[tuple[str, str]]  # task and name, taught by these rows alone
    rewritten: Any = None  # what the trainer's side took out of its files
    by_hand: list[str]


def make_report(
    settings: Settings, done: Done, *, dry_run: bool = False, scan: bool = True, rewritten: Any = None
) -> Report:
    """Returns what a forgetting did, or would do. `scan` reads our own topics for copies of the cases."""
    record, rows = done.record, done.rows
    adapters = adapters_of(settings.adapters, [LineageRow(r.case_id, r.task, r.split, r.place) for r in rows])
    strategies = lonely_strategies(settings, rows)
    topics = held(settings, record, rows) if scan and not record.until_ms else None
    return Report(
        kind=record.kind,
        key=record.key,
        dry_run=dry_run,
        already=done.was is not None and done.was == record,
        at_ms=record.at_ms,
        withdrawn_ms=record.until_ms,
        rows=len(rows),
        cases=sorted({row.case_id for row in rows}),
        by_outcome=dict(Counter(row.outcome for row in rows).most_common()),
        adapters=adapters,
        held=topics,
        strategies=strategies,
        rewritten=rewritten,
        by_hand=list(_by_hand(settings, rows, adapters, strategies, topics)),
    )


def tell_report(report: Report) -> list[str]:
    """Returns a report as lines for people."""
    if report.withdrawn_ms:
        at = _time(report.withdrawn_ms)
        return [
            f"this {report.kind} is {'to be ' if report.dry_run else ''}withdrawn: what is logged from {at} on is let "
            "in again; what was logged before stays forgotten"
        ]
    lines = [_first_line(report)]
    if report.rows:
        kinds = ", ".join(f"{count} {outcome}" for outcome, count in report.by_outcome.items())
        gone = "would be" if report.dry_run else "are"
        lines.append(
            f"{report.rows} rows of {len(report.cases)} cases ({kinds}) {gone} gone from every query now, and from the "
            "files at the next compaction"
        )
        shown = ", ".join(report.cases[:_SHOWN])
        more = f" and {len(report.cases) - _SHOWN} more (--json)" if len(report.cases) > _SHOWN else ""
        lines.append(f"  {shown}{more}")
    elif not report.already:
        lines.append("nothing on disk matches; what comes from now on is dropped before its text is written anywhere")
    lines += ["", "adapters trained on them:"] if report.adapters else []
    lines += [f"  {line}" for line in tell_adapters(report.adapters)]
    lines += _told_rewritten(report)
    if report.held is not None:
        lines += ["", "still on topics:" if report.held else "no topic holds anything of it"]
        lines += [f"  {_told_held(one)}" for one in report.held]
    lines += ["", "left to you:"] if report.by_hand else []
    lines += [f"  - {line}" for line in report.by_hand]
    return lines


def tell_adapters(adapters: Iterable[Trained]) -> list[str]:
    """Returns a line for each adapter that was trained on some cases."""
    lines = []
    for one in adapters:
        said = ", ".join(f"{times} x pair {pair}" for pair, times in one.pairs.items())
        if not one.recorded:
            said = "possibly: it keeps no record of its rows, and these lie below its watermark"
        elif one.inherited_from:
            said = f"through {one.inherited_from}, from which it went on ({said})"
        marks = [word for word, holds in (("serves", one.serves), ("weights removed", one.removed)) if holds]
        cases = f"{one.cases} case{'s' if one.cases != 1 else ''}"
        marked = f"  [{', '.join(marks)}]" if marks else ""
        lines.append(f"{one.task}/{one.version}  {cases}, {said}, {one.epochs:g} epochs{marked}")
    return lines


def _first_line(report: Report) -> str:
    name = f"this {report.kind} (hash {report.key[:8]}...)"
    if report.dry_run:
        return f"dry run: {name} {'is forgotten already' if report.already else 'would be forgotten'}; nothing written"
    if report.already:
        return f"{name} was forgotten already, on {_time(report.at_ms)}"
    return f"{name} is forgotten from now on: rows, cases on their way, and whatever is logged later"


def _told_rewritten(report: Report) -> list[str]:
    found = report.rewritten
    if found is None:
        return []
    lines = []
    verb = "would be " if report.dry_run else ""
    if found.pages:
        lines.append(f"gate pages whose texts of it {verb or 'were '}taken out: {', '.join(found.pages)}")
    for task, cases in found.holdout.items():
        lines.append(f"{cases} cases {'would ' if verb else ''}leave the frozen holdout of {task}; the next gate fills")
        lines[-1] += " their places, and says with another holdout_sha256 that it asked other questions"
    if found.runs:
        lines.append(f"data of unfinished runs {verb or 'was '}removed: {', '.join(found.runs)}")
    return ["", *lines] if lines else []


def _told_held(one: Held) -> str:
    what = f"{one.topic}: {one.records} records, the oldest at {one.oldest_offset}"
    if one.retention_ms is None or one.gone_from_ms is None or one.gone_by_ms is None:
        return f"{what}; the topic keeps them for ever"
    return f"{what}; gone between {_time(one.gone_from_ms)} and {_time(one.gone_by_ms)}"


def _by_hand(
    settings: Settings,
    rows: list[Row],
    adapters: list[Trained],
    strategies: list[tuple[str, str]],
    topics: list[Held] | None,
) -> Iterable[str]:
    for task in sorted({one.task for one in adapters if not one.removed}):
        fresh = ""
        if task in settings.tasks and settings.tasks[task].trainer.continue_from != "base":
            fresh = f" --set tasks.{task}.trainer.continue_from=base"
        yield (
            f"train {task} anew without them: goldstream trainer once --task {task}{fresh}; then remove the old "
            "versions: goldstream adapters gc"
        )
    sources = {row.source[0] for row in rows}
    kept = sorted({one.topic for one in topics or () if one.topic in sources})
    if kept:
        yield (
            f"{', '.join(kept)} belongs to the product: delete there what must not wait for retention "
            "(kafka-delete-records deletes everything below an offset)"
        )
    for task, name in strategies:
        yield (
            f"strategy {name} of {task} was learned from these cases alone, and strategists are still shown its words: "
            f"read them with `goldstream strategies list --task {task}`; where they tell something of the cases: "
            f'goldstream strategies reword {name} --task {task} --mistake "..." --guardrail "..."'
        )
    if rows:
        yield (
            "exports made earlier (folders with an export.json), published snapshots, backups of state_dir and of "
            "Kafka cannot be recalled: deploy/erasure.md says how to find the rows in them"
        )


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M UTC}"
