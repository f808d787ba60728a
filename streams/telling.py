"""A case's story as lines for people: where it came from, each attempt and what the judge said, what was learned, cost.

`goldstream case`, `gold why`, `dlq show` and `review show` print this.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from schemas.case import Attempt, Case, Charge, Message, Review, Spend, Strategy, Verdict
from schemas.rows import row_case
from schemas.tables import printable
from schemas.tools import answer_text


def tell(found: dict[str, Any]) -> list[str]:
    """Returns {"where": ..., "case": a row of the gold set or a case as JSON holds it} as lines for people."""
    case = _case(found["case"])
    lines = [*_where(case, found["where"]), *_prompt(case)]
    for attempt in case.attempts:
        lines += _attempt(attempt)
    lines += [*_strategy(case.strategy), *_review(case.review), "", *_spend(case)]
    return [printable(line) for line in lines]


def _case(known: dict[str, Any]) -> Case:
    if "kafka_offset" in known:
        return row_case({**known, "case_json": None})
    return msgspec.convert(known, Case)


def _where(case: Case, where: str) -> Iterator[str]:
    source, outcome = case.source, case.outcome
    index = f", call {source.index + 1} of {source.count}" if source.count > 1 else ""
    yield f"case {case.case_id}   task {case.task or '-'}   split {case.split}"
    facts = [f"read from {source.topic}[{source.partition}] at offset {source.offset}{index}", _at(source.timestamp_ms)]
    facts += [case.shape, f"trace {case.trace_id}" if case.trace_id else ""]
    facts += [f"workload {case.workload}" if case.workload else ""]
    yield "   ".join(filter(None, facts))
    kind, reason = (outcome.kind, outcome.reason) if outcome else ("in flight", "")
    now = f"now: {kind}{f' ({reason})' if reason else ''}, in the {where}".replace("in the topic", "on topic")
    yield now + (f", since {_at(outcome.at_ms)}, epoch {case.epoch}" if outcome else "")
    if outcome and outcome.detail:
        yield f"     {outcome.detail}"


def _prompt(case: Case) -> Iterator[str]:
    for message in case.messages:
        yield from ("", f"{message.role}:", *_indented(message.text()), *_calls(message))
    if case.tools:
        names = [str((tool.get("function") or tool).get("name", "?")) for tool in case.tools]
        yield from ("", f"tools offered: {', '.join(names)}")
    if case.placeholders:
        yield from ("", f"personal values stand as: {', '.join(case.placeholders)}")
    if answer := answer_text(case.production_answer or "", case.production_tool_calls):
        by = f", by {case.production_model}" if case.production_model else ""
        yield from ("", f"the product's answer{by}:", *_indented(answer))


def _calls(message: Message) -> Iterator[str]:
    for call in message.tool_calls or ():
        function = call.get("function") or {}
        yield f"  calls {function.get('name', '?')}({function.get('arguments', '')})"


def _attempt(attempt: Attempt) -> Iterator[str]:
    by = attempt.model + (f" with adapter {attempt.adapter}" if attempt.adapter else "")
    rewrote = f", rewriting attempt {attempt.rewrote}" if attempt.rewrote is not None else ""
    rewrote += f" ({attempt.changed:.0%} of its words changed)" if attempt.changed is not None else ""
    who = f"{attempt.source} ({attempt.refiner})" if attempt.refiner else attempt.source
    yield from ("", f"attempt {attempt.round}, by {who} {by}{rewrote}:", *_indented(attempt.text))
    if attempt.verdict is not None:
        yield from _verdict(attempt.verdict)


def _verdict(verdict: Verdict) -> Iterator[str]:
    judged = "passed" if verdict.passed else "failed"
    agreed = f" ({verdict.votes} votes, {verdict.agreement:.0%} of them so)" if verdict.votes > 1 else ""
    rubric = f" with rubric {verdict.rubric}" if verdict.rubric else ""
    yield f"  {judged}, {verdict.score:g} of {verdict.max_score:g}, judged by {verdict.judge}{rubric}{agreed}"
    for violation in verdict.violations:
        quote = f' at "{violation.hinge}"' if violation.hinge else ""
        yield f"    {violation.severity} {violation.rule}{quote}: {violation.why}"
        if violation.fix:
            yield f"      to mend it: {violation.fix}"
    if verdict.misquoted:
        yield f"    and {verdict.misquoted} with a quote that is not in the answer, not counted"


def _strategy(strategy: Strategy | None) -> Iterator[str]:
    if strategy is None:
        return
    name = " ".join(filter(None, (strategy.id, f"by {strategy.model}" if strategy.model else "")))
    yield from ("", f"strategy {name}:" if name else "strategy:")
    yield from (f"  mistake:   {strategy.mistake}", f"  guardrail: {strategy.guardrail}")


def _review(review: Review | None) -> Iterator[str]:
    if review is None:
        return
    drawn = ", drawn as a sample" if review.sampled else ""
    yield from ("", f"expert {review.by} said {review.decision}, {_at(review.at_ms)}{drawn}")
    if review.reason:
        yield f"  {review.reason}"
    if review.rules:
        yield f"  rules the expert finds broken: {', '.join(review.rules)}"
    if review.judged_passed is not None:
        said = "passed" if review.judged_passed else f"failed on {', '.join(review.judged_rules) or 'no rule'}"
        yield f"  the judge {review.judged_by} had said: {said}"


def _spend(case: Case) -> Iterator[str]:
    yield f"spend: {_sum(case.spend)}"
    by_role: dict[tuple[str, str], Spend] = {}
    for charge in case.charges:
        key = (charge.role, charge.model)
        by_role[key] = by_role.get(key, Spend()).plus(_as_spend(charge))
    for (role, model), spend in by_role.items():
        yield f"  {role}, {model}: {_sum(spend)}"


def _as_spend(charge: Charge) -> Spend:
    return Spend(charge.calls, charge.prompt_tokens, charge.completion_tokens, charge.cost_usd, charge.model_s)


def _sum(spend: Spend) -> str:
    tokens = spend.prompt_tokens + spend.completion_tokens
    return f"{spend.calls} calls, {tokens} tokens, {spend.cost_usd:.6f} USD, {spend.model_s:.1f} s"


def _at(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if ms else ""


def _indented(text: str) -> list[str]:
    return ["  " + line for line in text.splitlines()]
