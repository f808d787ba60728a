"""Expert decisions on a real broker: they supersede the row once, whatever is repeated, and the first one stands."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from judged_cases import FAILED, PASSED, rows, toy
from kafka import TopicPartition
from pipeline import STUB_TASK, openai_record, processes, produce, wait_for
from steps import Make, cases_on, commit_to_the_end, put, running, sink_all, start, take_in, until

from agents.expert import Decision, check_decision, decided_case
from schemas.case import Case, Strategy
from schemas.errors import ReviewError
from schemas.settings import Review
from streams import review
from streams.audit import audit
from streams.gold import query, stats
from streams.review import decide, list_queue, read_queue, show_case
from streams.sink import run_sink
from streams.topics import connect_admin


def by(name: str, decision: Any, **more: Any) -> Decision:
    return Decision(decision=decision, by=name, **more)


def test_what_an_expert_says_stands_in_the_row_and_what_the_judge_said_beside_it() -> None:
    wrong = toy(1, FAILED, FAILED)
    accepted = decided_case(wrong, by("ann", "accept", round=0), 5, sampled=True)
    assert accepted.outcome is not None
    assert accepted.review is not None
    assert (accepted.epoch, accepted.outcome.kind, accepted.attempts[-1].text) == (1, "gold", "answer 0")
    assert [a.verdict.passed for a in accepted.attempts if a.verdict] == [True, False, True]
    assert (accepted.review.judged_passed, accepted.review.judged_rules) == (False, ("polite",))
    edited = decided_case(toy(2, PASSED), by("ann", "edit", text="right", rules=("polite",)), 5, sampled=True)
    assert [a.text for a in edited.attempts] == ["answer 0", "right"]
    assert [a.verdict.passed for a in edited.attempts if a.verdict] == [False, True], "the first attempt was overruled"
    assert (edited.attempts[1].model, edited.attempts[1].refiner) == ("expert:ann", "expert")
    assert edited.review is not None
    assert edited.review.judged_passed is True
    rejected = decided_case(toy(3, PASSED), by("ann", "reject", reason="false"), 5, sampled=False)
    assert rejected.outcome is not None
    assert (rejected.outcome.kind, rejected.outcome.reason, rejected.outcome.detail) == (
        "unresolved",
        "rejected",
        "false",
    )
    verdict = rejected.attempts[-1].verdict
    assert verdict is not None
    assert (verdict.kind, verdict.judge, verdict.passed, verdict.rubric) == ("expert", "expert:ann", False, "r1")
    # Over an earlier decision: the judge's word is still the judge's.
    again = decided_case(rejected, by("bob", "accept", again=True), 6, sampled=False)
    assert again.review is not None
    assert (again.epoch, again.review.judged_passed, again.review.by) == (2, True, "bob")


def test_a_strategy_that_gives_the_edited_answer_away_is_taken_off() -> None:
    strategy = Strategy("Was curt.", "Say please wait a moment always.")
    case = toy(1, FAILED, PASSED, strategy=strategy)
    edited = decided_case(case, by("ann", "edit", text="please wait a moment"), 5, sampled=True)
    assert edited.strategy is None
    assert decided_case(case, by("ann", "accept"), 5, sampled=True).strategy == strategy


@pytest.mark.parametrize(
    ("case", "decision", "message"),
    [
        (toy(1, FAILED).ended("dead", "judge", 1, "bad_answer"), by("ann", "accept"), "only gold and unresolved"),
        (toy(1, FAILED).ended("holdout", "judge", 1), by("ann", "accept"), "only gold and unresolved"),
        (toy(1, FAILED), by("ann", "reject"), "needs a reason"),
        (toy(1, FAILED), by("ann", "reject", reason="x", rules=("nice",)), "no rule nice in the rubric of task toy"),
        (toy(1, FAILED), by("ann", "edit", text=" \n"), "the edited answer is empty"),
        (toy(1, FAILED), by("ann", "edit", text="answer 0"), "the one that was there"),
        (toy(1, FAILED), by("ann", "accept", round=7), "no attempt of round 7"),
        (toy(1, FAILED), by("\x1b[2J", "accept"), "expected a name"),
    ],
)
def test_a_decision_that_cannot_be_made_says_why(
    make_settings: Make, case: Case, decision: Decision, message: str
) -> None:

    settings = make_settings(STUB_TASK.format(topic="logs", api_base="http://127.0.0.1:9"))
    with pytest.raises(ReviewError, match=message):
        check_decision(case, decision, settings)


def test_decisions_supersede_while_the_sink_runs_and_the_books_stay_balanced(make_settings: Make) -> None:
    settings = start(make_settings, "logs-review", "tasks.toy.review.sample=1.0")
    produce(settings, "logs-review", [openai_record(f"q {n}", f"req-{n}") for n in range(4)])
    take_in(settings)
    admitted = cases_on(settings, "prompts")
    ends = [(FAILED, FAILED), (FAILED, PASSED), (PASSED,), (PASSED,)]
    for case, verdicts in zip(admitted, ends, strict=True):
        made = toy(0, *verdicts)
        assert made.outcome is not None
        done = msgspec.structs.replace(case, attempts=made.attempts)
        put(settings, "outcomes", done.ended(made.outcome.kind, "judge", 1_790_000_000_000, made.outcome.reason))
    commit_to_the_end(settings, "student", "prompts")
    with running(lambda stop, ready: run_sink(settings, stop=stop, ready=ready)):
        until(lambda: len(rows(settings)) == 4)
        assert [item.why for item in list_queue(settings)] == ["unresolved", "accepted", "accepted", "accepted"]
        assert read_queue(settings).sizes == {"unresolved": 1, "accepted": 3}
        decided = [
            decide(settings, "req-0", by("ann", "edit", text="please wait")),
            decide(settings, "req-1", by("ann", "reject", reason="invented", rules=("polite",))),
            decide(settings, "req-2", by("ann", "accept")),
        ]
        assert [(one.stands, one.outcome, one.epoch) for one in decided] == [
            (True, "gold", 1), (True, "unresolved", 1), (True, "gold", 1),
        ]  # fmt: skip
        # Decided on and perhaps not in a file yet: no longer in the queue, and nobody can decide again by mistake.
        assert [item.case_id for item in list_queue(settings)] == ["req-3"]
        with pytest.raises(ReviewError, match=r"ann rejected case req-1 on .* \(invented\)"):
            decide(settings, "req-1", by("bob", "accept"))
        until(lambda: sum(row[2] for row in rows(settings)) == 3)
    assert rows(settings) == [
        ("req-0", "gold", 1, "please wait", "edit"),
        ("req-1", "unresolved", 1, None, "reject"),
        ("req-2", "gold", 1, "answer 0", "accept"),
        ("req-3", "gold", 0, "answer 0", None),
    ]
    assert [kind for (kind,) in rows(settings, "accepted_kind")] == ["expert", None, "expert", "model"]
    assert query(settings.gold, "select case_id, reviewer, judge_passed, expert_passed from reviews order by 1")[1] == [
        ("req-0", "ann", False, False), ("req-1", "ann", True, False), ("req-2", "ann", True, True),
    ]  # fmt: skip
    found = audit(settings)
    assert (found.balanced, found.double_rows) == (True, 0)
    assert stats(settings.gold)["duplicates"] == 0


def test_a_decision_is_written_once_however_often_it_and_the_case_arrive(make_settings: Make) -> None:
    settings = start(make_settings, "logs-once")
    first = toy(1, PASSED)
    put(settings, "outcomes", first)
    sink_all(settings)
    decide(settings, "req-1", by("ann", "reject", reason="no"))
    decision = max(cases_on(settings, "outcomes"), key=lambda case: case.epoch)
    put(settings, "outcomes", decision, first, decision)  # a producer's retry, a repeated hop, a replay
    sink_all(settings)
    put(settings, "outcomes", first, decision)
    sink_all(settings)
    assert rows(settings, "case_id, outcome, epoch") == [("req-1", "unresolved", 1)]
    assert query(settings.gold, "select count(*) from landed")[1] == [(2,)]


def test_of_two_reviewers_at_once_the_first_in_the_log_stands_and_the_other_is_told(
    make_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = start(make_settings, "logs-two")
    put(settings, "outcomes", toy(1, PASSED))
    sink_all(settings)
    both_ready = threading.Barrier(2)
    make_producer = review.make_producer

    def both_looked_before_either_writes(*arguments: Any, **options: Any) -> Any:
        both_ready.wait(30)
        return make_producer(*arguments, **options)

    monkeypatch.setattr(review, "make_producer", both_looked_before_either_writes)
    results: dict[str, Any] = {}

    def one(name: str, decision: Decision) -> None:
        results[name] = decide(settings, "req-1", decision)

    threads = [
        threading.Thread(target=one, args=("ann", by("ann", "accept"))),
        threading.Thread(target=one, args=("bob", by("bob", "reject", reason="no"))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    sink_all(settings)
    (winner,) = [name for name, result in results.items() if result.stands]
    (loser,) = {"ann", "bob"} - {winner}
    assert results[loser].detail.startswith(winner)
    assert rows(settings, "reviewer, epoch") == [(winner, 1)]
    # Meant in full knowledge, a second decision supersedes the first.
    monkeypatch.undo()
    again = decide(settings, "req-1", by(loser, "edit", text="better", again=True))
    sink_all(settings)
    assert again.stands
    assert rows(settings, "reviewer, epoch, judge_passed") == [(loser, 2, True)]


def test_a_case_is_decided_on_whole_also_once_the_topic_no_longer_holds_it(make_settings: Make) -> None:
    settings = start(make_settings, "logs-old")
    case = toy(1, FAILED, PASSED, strategy=Strategy("m", "g", "x", "s-1"), shape="openai-chat")
    put(settings, "outcomes", case)
    sink_all(settings)
    (partition,) = [row[0] for row in rows(settings, "kafka_partition")]
    with closing(connect_admin(settings)) as admin:
        admin.delete_records({TopicPartition(settings.topic("outcomes"), partition): 1})
    assert decide(settings, "req-1", by("ann", "accept")).stands
    sink_all(settings)
    before = query(settings.gold, "select * from landed where epoch = 0")
    after = query(settings.gold, "select * from landed where epoch = 1")
    old, new = (dict(zip(columns, found[0], strict=True)) for columns, found in (before, after))
    changed = {name for name in old if old[name] != new[name]}
    assert changed == {
        "epoch", "dt", "ended_at", "kafka_offset", "stage", "attempts", "accepted_by", "accepted_kind", "review",
        "reviewer", "review_reason", "review_rules", "review_sampled", "reviewed_at", "judge_passed", "judge_name",
        "judge_rules",
    }  # fmt: skip


def test_the_queue_samples_accepted_cases_by_a_hash_and_keeps_its_order(make_settings: Make) -> None:
    settings = start(make_settings, "logs-sample", "tasks.toy.review.sample=0.3")
    put(settings, "outcomes", *(toy(n, PASSED) for n in range(60)), *(toy(100 + n, FAILED) for n in range(3)))
    put(settings, "outcomes", toy(200, PASSED, task="gone"), toy(201, FAILED).ended("holdout", "judge", 1))
    sink_all(settings)
    whole = list_queue(settings, limit=None)
    assert [item.why for item in whole[:3]] == ["unresolved"] * 3
    assert 5 < len(whole) - 3 < 40
    assert list_queue(settings, limit=7) == whole[:7]
    assert [item.why for item in list_queue(settings, why="accepted", limit=2)] == ["accepted"] * 2
    more = msgspec.structs.replace(settings.task("toy"), review=Review(sample=0.6))
    wider = msgspec.structs.replace(settings, tasks={"toy": more})
    assert {item.case_id for item in whole} < {item.case_id for item in list_queue(wider, limit=None)}
    shown = show_case(settings, whole[0].case_id)
    assert (shown["in_queue"], shown["pending"], shown["proposed_round"]) == (True, None, 0)
    with pytest.raises(ReviewError, match="no case req-77 in the gold set"):
        show_case(settings, "req-77")


def test_a_sink_killed_again_and_again_loses_no_decision_and_doubles_none(make_settings: Make, tmp_path: Path) -> None:
    settings = start(make_settings, "logs-killed")
    put(settings, "outcomes", *(toy(n, PASSED) for n in range(6)))
    with processes(settings, tmp_path / "goldstream.toml", "sink") as supervisor:
        wait_for(lambda: len(rows(settings)) == 6, "landed", supervisor)
        for number in range(6):
            assert decide(settings, f"req-{number}", by("ann", "reject", reason="no")).stands
            if number % 3 == 1:
                (child,) = supervisor.children
                if child.process is not None:
                    child.process.kill()
            supervisor.check()
        wait_for(lambda: all(row[2] == 1 for row in rows(settings)), "superseded", supervisor)
    assert {row[1:3] for row in rows(settings)} == {("unresolved", 1)}
    assert query(settings.gold, "select epoch, count(*) from landed group by 1 order by 1")[1] == [(0, 6), (1, 6)]
