"""The row of the gold set: one outcome, with everything that led to it.

The sink writes these rows, DuckDB and the trainer read them. Columns are only ever added, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa

from schemas.case import Attempt, Case, Message, Strategy, encode_case

_violation = pa.struct([(name, pa.string()) for name in ("rule", "severity", "hinge", "why", "fix")])
_attempt = pa.struct(
    [
        ("round", pa.int32()),
        ("source", pa.string()),
        ("text", pa.string()),
        ("model", pa.string()),
        ("adapter", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("logprob", pa.float64()),
        ("latency_s", pa.float64()),
        ("cost_usd", pa.float64()),
        ("passed", pa.bool_()),
        ("score", pa.float64()),
        ("max_score", pa.float64()),
        ("judge", pa.string()),
        ("judge_kind", pa.string()),
        ("rubric", pa.string()),
        ("violations", pa.list_(_violation)),
        ("votes", pa.int32()),
        ("agreement", pa.float64()),  # share of the votes that decided as the verdict does
        ("misquoted", pa.int32()),
        ("refiner", pa.string()),
        ("rewrote", pa.int32()),
        ("changed", pa.float64()),
        ("tool_calls", pa.string()),  # JSON, null where the answer calls none
    ]
)
_charge = pa.struct(
    [
        ("role", pa.string()),
        ("model", pa.string()),
        ("round", pa.int32()),
        ("calls", pa.int32()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("model_s", pa.float64()),
    ]
)
_message = pa.struct([("role", pa.string()), ("content", pa.string()), ("json", pa.string())])

OUTCOME_SCHEMA = pa.schema(
    [
        ("schema_version", pa.int32()),
        ("case_id", pa.string()),
        ("epoch", pa.int32()),
        ("task", pa.string()),
        ("split", pa.string()),
        ("dt", pa.string()),  # date the case ended, UTC
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("stage", pa.string()),
        ("detail", pa.string()),
        ("pipeline", pa.string()),
        ("source_cluster", pa.string()),
        ("source_topic", pa.string()),
        ("source_partition", pa.int32()),
        ("source_offset", pa.int64()),
        ("source_index", pa.int32()),
        ("source_at", pa.timestamp("ms", "UTC")),
        ("trace_id", pa.string()),
        ("session", pa.string()),
        ("user", pa.string()),
        ("workload", pa.string()),
        ("body_sha256", pa.string()),
        ("messages", pa.list_(_message)),  # json holds the whole message where it is more than role and text
        ("prompt", pa.string()),
        ("answer", pa.string()),  # the accepted answer, null unless one passed; calls of tools as blocks in it
        ("production_answer", pa.string()),
        ("production_model", pa.string()),
        ("attempts", pa.list_(_attempt)),
        ("rounds", pa.int32()),
        ("first_attempt_passed", pa.bool_()),
        ("first_adapter", pa.string()),
        ("corrected", pa.bool_()),  # the first attempt failed and a later one passed
        ("accepted_by", pa.string()),
        ("accepted_kind", pa.string()),
        ("rubric", pa.string()),
        ("score", pa.float64()),
        ("max_score", pa.float64()),
        ("strategy_mistake", pa.string()),
        ("strategy_guardrail", pa.string()),
        ("strategy_model", pa.string()),
        ("ref_logprob", pa.float64()),  # of the answer under the reference checkpoint, where it was measured
        ("calls", pa.int32()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("model_s", pa.float64()),
        ("created_at", pa.timestamp("ms", "UTC")),
        ("ended_at", pa.timestamp("ms", "UTC")),
        ("kafka_partition", pa.int32()),
        ("kafka_offset", pa.int64()),
        ("case_json", pa.binary()),  # dead and unresolved cases whole, so that they can be redriven
        ("strategy_id", pa.string()),
        ("review", pa.string()),  # accept, edit or reject; null where no expert has decided
        ("reviewer", pa.string()),
        ("review_reason", pa.string()),
        ("review_rules", pa.list_(pa.string())),  # that the judged answer breaks, as the expert says
        ("review_sampled", pa.bool_()),
        ("reviewed_at", pa.timestamp("ms", "UTC")),
        ("judge_passed", pa.bool_()),  # what the judge had said of the answer that the expert decided on
        ("judge_name", pa.string()),
        ("judge_rules", pa.list_(pa.string())),
        ("source_count", pa.int32()),  # cases the source record became
        ("shape", pa.string()),
        ("event_at", pa.timestamp("ms", "UTC")),
        ("tools", pa.string()),  # this and what follows to feedback: JSON, null where there is none
        ("params", pa.string()),
        ("production_tool_calls", pa.string()),
        ("feedback", pa.string()),
        ("production_finish", pa.string()),
        ("production_prompt_tokens", pa.int64()),
        ("production_completion_tokens", pa.int64()),
        ("production_cost_usd", pa.float64()),
        ("placeholders", pa.list_(pa.string())),  # that stand for personal values in the texts
        ("charges", pa.list_(_charge)),  # the spend by role, model and round
        ("trace_key", pa.string()),  # keyed hash of trace_id, as user is of the user's: erasure finds rows by them
        ("answer_tool_calls", pa.string()),  # of the accepted answer: JSON, null where it calls none
    ]
)


def outcome_row(case: Case, partition: int, offset: int) -> dict[str, Any]:
    """Returns the row of an ended case that lies at (partition, offset) of gs.outcomes."""
    if case.outcome is None:
        raise ValueError(f"case {case.case_id} has no outcome; only ended cases become rows")
    out, source, spend = case.outcome, case.source, case.spend
    first = case.attempts[0] if case.attempts else None
    last = case.attempts[-1] if case.attempts else None
    first_passed = first.verdict.passed if first and first.verdict else None
    verdict = last.verdict if last else None
    accepted = verdict if verdict and verdict.passed else None
    strategy, review = case.strategy, case.review
    return {
        "schema_version": case.schema_version,
        "case_id": case.case_id,
        "epoch": case.epoch,
        "task": case.task,
        "split": case.split,
        "dt": datetime.fromtimestamp(out.at_ms / 1000, UTC).strftime("%Y-%m-%d"),
        "outcome": out.kind,
        "reason": out.reason,
        "stage": out.stage,
        "detail": out.detail,
        "pipeline": case.pipeline,
        "source_cluster": source.cluster,
        "source_topic": source.topic,
        "source_partition": source.partition,
        "source_offset": source.offset,
        "source_index": source.index,
        "source_at": source.timestamp_ms,
        "trace_id": case.trace_id,
        "session": case.session,
        "user": case.user,
        "workload": case.workload,
        "body_sha256": case.body_sha256,
        "messages": [_message_row(message) for message in case.messages],
        "prompt": case.prompt(),
        "answer": last.text if last and accepted else None,
        "production_answer": case.production_answer,
        "production_model": case.production_model,
        "attempts": [_attempt_row(attempt) for attempt in case.attempts],
        "rounds": case.rounds,
        "first_attempt_passed": first_passed,
        "first_adapter": first.adapter if first else None,
        "corrected": first_passed is False and accepted is not None,
        "accepted_by": accepted.judge if accepted else None,
        "accepted_kind": accepted.kind if accepted else None,
        "rubric": verdict.rubric if verdict else None,
        "score": verdict.score if verdict else None,
        "max_score": verdict.max_score if verdict else None,
        "strategy_mistake": strategy.mistake if strategy else None,
        "strategy_guardrail": strategy.guardrail if strategy else None,
        "strategy_model": strategy.model if strategy else None,
        "ref_logprob": None,
        "calls": spend.calls,
        "prompt_tokens": spend.prompt_tokens,
        "completion_tokens": spend.completion_tokens,
        "cost_usd": spend.cost_usd,
        "model_s": spend.model_s,
        "created_at": case.created_ms,
        "ended_at": out.at_ms,
        "kafka_partition": partition,
        "kafka_offset": offset,
        "case_json": encode_case(case) if out.kind in ("dead", "unresolved") else None,
        "strategy_id": strategy.id if strategy else None,
        "review": review.decision if review else None,
        "reviewer": review.by if review else None,
        "review_reason": review.reason if review else None,
        "review_rules": list(review.rules) if review else None,
        "review_sampled": review.sampled if review else None,
        "reviewed_at": review.at_ms if review else None,
        "judge_passed": review.judged_passed if review else None,
        "judge_name": review.judged_by if review else None,
        "judge_rules": list(review.judged_rules) if review else None,
        "source_count": source.count,
        "shape": case.shape,
        "event_at": case.event_ms or None,
        "tools": _json(case.tools),
        "params": _json(case.params),
        "production_tool_calls": _json(case.production_tool_calls),
        "feedback": _json(case.feedback),
        "production_finish": case.production_finish,
        "production_prompt_tokens": case.production_prompt_tokens or None,
        "production_completion_tokens": case.production_completion_tokens or None,
        "production_cost_usd": case.production_cost_usd,
        "placeholders": list(case.placeholders) or None,
        "charges": [msgspec.structs.asdict(charge) for charge in case.charges],
        "trace_key": case.trace_key or None,
        "answer_tool_calls": _json(last.tool_calls) if last and accepted else None,
    }


def outcome_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Returns rows as a table of OUTCOME_SCHEMA."""
    return pa.Table.from_pylist(list(rows), schema=OUTCOME_SCHEMA)


def row_messages(row: dict[str, Any]) -> list[Message]:
    """Returns the prompt messages of a row as they were."""
    return [
        msgspec.json.decode(m["json"], type=Message) if m["json"] else Message(m["role"], m["content"])
        for m in row["messages"] or []
    ]


def row_strategy(row: dict[str, Any]) -> Strategy | None:
    """Returns the strategy of a row, None where the case needed none."""
    if not row["strategy_guardrail"]:
        return None
    name = row.get("strategy_id") or ""
    return Strategy(row["strategy_mistake"], row["strategy_guardrail"], row["strategy_model"] or "", name)


def _json(value: Any) -> str | None:
    return msgspec.json.encode(value).decode() if value else None


def _message_row(message: Message) -> dict[str, Any]:
    plain = isinstance(message.content, str) and not (message.name or message.tool_calls or message.tool_call_id)
    whole = None if plain else msgspec.json.encode(message).decode()
    return {"role": message.role, "content": message.text(), "json": whole}


def _attempt_row(attempt: Attempt) -> dict[str, Any]:
    verdict = attempt.verdict
    return {
        "round": attempt.round,
        "source": attempt.source,
        "text": attempt.text,
        "model": attempt.model,
        "adapter": attempt.adapter,
        "prompt_tokens": attempt.prompt_tokens,
        "completion_tokens": attempt.completion_tokens,
        "logprob": attempt.logprob,
        "latency_s": attempt.latency_s,
        "cost_usd": attempt.cost_usd,
        "passed": verdict.passed if verdict else None,
        "score": verdict.score if verdict else None,
        "max_score": verdict.max_score if verdict else None,
        "judge": verdict.judge if verdict else None,
        "judge_kind": verdict.kind if verdict else None,
        "rubric": verdict.rubric if verdict else None,
        "violations": [msgspec.structs.asdict(v) for v in verdict.violations] if verdict else [],
        "votes": verdict.votes if verdict else None,
        "agreement": verdict.agreement if verdict else None,
        "misquoted": verdict.misquoted if verdict else None,
        "refiner": attempt.refiner or None,
        "rewrote": attempt.rewrote,
        "changed": attempt.changed,
        "tool_calls": _json(attempt.tool_calls),
    }
