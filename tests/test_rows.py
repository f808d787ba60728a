"""The way back from a row: nothing that a row holds is lost when an expert's decision supersedes it."""

from __future__ import annotations

from pathlib import Path

import msgspec
from ended_cases import ended, land

from schemas.case import Attempt, Case, Charge, Message, Review, Source, Strategy, Verdict
from schemas.gold import read_outcomes
from schemas.outcomes import OUTCOME_SCHEMA, outcome_row, outcome_table
from schemas.rows import row_case
from streams.gold import story

# Filled by the sink or the trainer, or derived; the rest of a row must come from somewhere in the case.
NOT_OF_THE_CASE = {"ref_logprob", "case_json", "reason", "detail"}


def full() -> Case:
    """Returns a case that fills every column."""
    verdict = Verdict(passed=True, score=2, max_score=2, judge="j", kind="model", rubric="r", votes=3, agreement=0.7)
    tool = {"type": "function", "function": {"name": "look_up"}}
    attempt = Attempt(
        round=1, source="refiner", text="42", model="m", adapter="v1", prompt_tokens=3, completion_tokens=2,
        logprob=-1.5, latency_s=0.5, cost_usd=0.1, verdict=msgspec.structs.replace(verdict, misquoted=1),
        refiner="student", rewrote=0, changed=0.25, tool_calls=(tool,),
    )  # fmt: skip
    first = ended(1).attempts[0]
    review = Review(
        decision="accept", by="ann", at_ms=1_790_000_000_123, reason="good", rules=("a",), sampled=True,
        judged_passed=True, judged_by="j", judged_rules=("b",),
    )  # fmt: skip
    return msgspec.structs.replace(
        ended(1),
        epoch=2,
        source=Source(cluster="c", topic="t", partition=1, offset=5, index=1, timestamp_ms=1_790_000_000_001, count=2),
        pipeline="p", trace_id="t", session="s", workload="w", trace_key="k1", user="u",
        messages=(Message("user", [{"type": "text", "text": "hi"}]), Message("assistant", None, tool_calls=[tool])),
        production_answer="41", production_model="gpt", shape="openai-chat", event_ms=1_790_000_000_002,
        tools=(tool,), params={"temperature": 0.5}, production_tool_calls=(tool,), production_finish="stop",
        production_prompt_tokens=7, production_completion_tokens=8, production_cost_usd=0.01,
        feedback={"rating": 1}, placeholders=("EMAIL_1",), attempts=(first, attempt),
        strategy=Strategy("m", "g", "model", "s-1"), charges=(Charge(role="judge", model="j", round=1),), review=review,
    )  # fmt: skip


def test_the_case_of_a_row_makes_the_same_row() -> None:
    case = full()
    row = outcome_table([outcome_row(case, 3, 9)]).to_pylist()[0]
    assert {name for name in OUTCOME_SCHEMA.names if row[name] in (None, "", [])} == NOT_OF_THE_CASE
    assert row_case(row) == case
    assert outcome_table([outcome_row(row_case(row), 3, 9)]).to_pylist() == [row]


def test_duckdb_gives_the_same_case_as_pyarrow(tmp_path: Path) -> None:
    land(tmp_path, [full(), ended(2, "unresolved")])
    told = story(tmp_path, "req-1")
    assert told is not None
    assert row_case(told) == full()
    (unresolved,) = (r for r in read_outcomes(tmp_path).to_pylist() if r["case_id"] == "req-2")
    assert row_case(unresolved) == ended(2, "unresolved")
