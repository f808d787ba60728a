"""The judge: what programs decide, what models are asked, what becomes of made-up quotes, and how votes are counted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from agents.completion import Completion
from agents.judge import find_hinge, judge, judge_answer, read_vote
from agents.panel import decided
from agents.prompts import judge_messages
from schemas.case import Attempt, Case, Message, Source, Spend, Verdict, Violation
from schemas.errors import BadAnswer, ModelUnavailable
from schemas.settings import Model, Panel, Rubric, Rule, Scale, Settings, Task
from schemas.settings.verifiers import ExactCheck, LengthCheck, NumericCheck

KIND = Rule(id="kind", text="Be kind.", severity="critical")
CLEAR = Rule(id="clear", text="Be clear.", severity="minor")
SHORT = Rule(id="short", text="At most three words.", check=LengthCheck(max_words=3))
PROMPT = [Message("user", "How long?")]
ONE_VOTE = Panel()


def told(*violations: tuple[str, str], **more: Any) -> str:
    """Returns what a model judge answers: (rule, quote) pairs."""
    return json.dumps({"violations": [{"rule": rule, "hinge": hinge} for rule, hinge in violations], **more})


PASS = told()


class Judges:
    """Stands in for agents.models.Models: each model gives its answers in turn, the last again and again."""

    def __init__(self, **answers: Sequence[str | Exception]) -> None:
        self.answers = {name: list(given) for name, given in answers.items()}
        self.asked: list[str] = []

    async def complete(
        self, role: str, task: str, messages: Sequence[Message], *, model: Model | None = None, **options: Any
    ) -> Completion:
        name = model.model if model else "main"
        self.asked.append(name)
        given = self.answers[name]
        answer = given.pop(0) if len(given) > 1 else given[0]
        if isinstance(answer, Exception):
            raise answer
        return Completion(
            text=answer, thinking="", model=name, adapter="", prompt_tokens=2, completion_tokens=1, logprob=None,
            latency_s=0.5, cost_usd=0.25,
        )  # fmt: skip


def judged(
    rubric: Rubric, answer: str = "soon enough", panel: Panel = ONE_VOTE, judges: Judges | None = None
) -> tuple[Verdict, Spend]:
    task = Task(topics=("logs",), rubric=rubric, judge=Model(model="main", temperature=1.0), panel=panel)
    models: Any = judges
    return asyncio.run(judge_answer(Settings(tasks={"toy": task}), models, "toy", PROMPT, answer, deadline=1e9))


# Programs and models


def test_checks_alone_need_no_model() -> None:
    verdict, spend = judged(Rubric(rules=(SHORT,)), "one two three four")
    assert (verdict.passed, verdict.kind, verdict.judge) == (False, "programmatic", "verifier:checks")
    assert [(v.rule, v.hinge) for v in verdict.violations] == [("short", "four")]
    assert spend.calls == 0


def test_a_model_is_asked_only_about_the_rules_no_program_decides() -> None:
    prompt = judge_messages(PROMPT, "soon", Rubric(rules=(KIND, SHORT)))
    assert "kind" in prompt[0].text()
    assert "short" not in prompt[0].text()
    with pytest.raises(BadAnswer, match="name a rule the rubric does not have"):
        judged(Rubric(rules=(KIND, SHORT)), judges=Judges(main=[told(("short", "soon"))]))


def test_what_programs_and_models_find_is_one_verdict() -> None:
    judges = Judges(main=[told(("clear", "enough"))])
    verdict, spend = judged(Rubric(rules=(KIND, CLEAR, SHORT)), "soon enough, my friend", judges=judges)
    assert [v.rule for v in verdict.violations] == ["short", "clear"]
    assert (verdict.score, verdict.max_score, verdict.kind, verdict.judge) == (1, 3, "model", "main")
    assert (spend.calls, spend.cost_usd) == (1, 0.25)


def test_no_model_is_asked_where_checks_have_failed_the_answer_and_the_rubric_says_so() -> None:
    rubric = Rubric(rules=(KIND, SHORT), ask_model="unless_failed")
    judges = Judges(main=[PASS])
    assert not judged(rubric, "one two three four", judges=judges)[0].passed
    assert judges.asked == []
    assert judged(rubric, judges=judges)[0].passed
    assert judges.asked == ["main"]
    lenient = msgspec.structs.replace(rubric, pass_mark=1.0)
    assert judged(lenient, "one two three four", judges=judges)[0].passed, "it has not failed: one point is enough"


def test_a_critical_rule_fails_an_answer_whatever_its_score() -> None:
    rubric = Rubric(rules=(KIND, CLEAR), pass_mark=1.0)
    broken = Judges(main=[told(("kind", "soon"))])
    assert (verdict := judged(rubric, judges=broken)[0]).score == 1
    assert not verdict.passed
    assert judged(rubric, judges=Judges(main=[told(("clear", "soon"))]))[0].passed
    lax = msgspec.structs.replace(rubric, critical_fails=False)
    assert judged(lax, judges=broken)[0].passed


def test_an_answer_is_compared_with_what_its_record_told() -> None:
    same = Rule(id="same", text="The total is right.", check=NumericCheck(record="feedback.total", tolerance=0.5))
    short = Rule(id="said", text="As the product said.", check=ExactCheck(record="production_answer"))
    settings = Settings(tasks={"toy": Task(topics=("logs",), rubric=Rubric(rules=(same, short)))})

    def broken(text: str, **logged: Any) -> list[str]:
        attempt = Attempt(round=0, source="student", text=text, model="m")
        source = Source(cluster="c", topic="logs", partition=0, offset=0)
        case = Case(case_id="a", task="toy", split="train", source=source, attempts=(attempt,), **logged)
        done = asyncio.run(judge(case, settings, None, deadline=1e9))
        assert done.attempts[-1].verdict is not None
        return [violation.rule for violation in done.attempts[-1].verdict.violations]

    assert broken("It is 41.7", production_answer="It is 41.7", feedback={"total": "42"}) == []
    assert broken("It is 41.2", production_answer="It is 41.7", feedback={"total": 42}) == ["same", "said"]
    assert broken("It is 41.2") == ["same", "said"], "without a record there is nothing to compare with: no pass"


# Scales


FIVE = Rubric(rules=(CLEAR, SHORT), scale=Scale(lowest=1, highest=5, levels={"5": "Nothing to add."}), pass_mark=4)


@pytest.mark.parametrize(
    ("answer", "score", "counted", "passed"),
    [
        ("soon enough", 5, 5, True),
        ("soon enough", 4, 4, True),
        ("soon enough", 3.5, 3.5, False),
        ("one two three four", 5, 3, False),  # half of the points are a check's: half of the scale
        ("one two three four", 2, 1, False),
    ],
)
def test_a_model_grades_on_the_scale_and_checks_take_off_their_share(
    answer: str, score: float, counted: float, passed: bool
) -> None:
    verdict, _ = judged(FIVE, answer, judges=Judges(main=[told(score=score)]))
    assert (verdict.score, verdict.max_score, verdict.passed) == (counted, 5, passed)
    text = judge_messages(PROMPT, answer, FIVE)[1].text()
    assert "from 1 to 5" in text
    assert "5: Nothing to add." in text


@pytest.mark.parametrize("answer", [PASS, told(score=6), told(score=0), told(score="5"), told(score=None)])
def test_a_grade_that_is_missing_or_off_the_scale_is_no_verdict(answer: str) -> None:
    with pytest.raises(BadAnswer):
        judged(FIVE, judges=Judges(main=[answer]))


def test_the_examples_of_a_rule_are_shown() -> None:
    rule = Rule(id="kind", text="Be kind.", good=("Of course.",), bad=('Say "no"',))
    text = judge_messages(PROMPT, "soon", Rubric(rules=(rule,)))[0].text()
    assert 'obeys it: "Of course."' in text
    assert 'breaks it: "Say \\"no\\""' in text


# Reading what a judge says


def test_a_verdict_that_cannot_be_read_is_asked_for_once_more_and_paid_twice() -> None:
    judges = Judges(main=["It looks fine to me.", PASS])
    verdict, spend = judged(Rubric(rules=(KIND,)), judges=judges)
    assert verdict.passed
    assert (spend.calls, spend.cost_usd) == (2, 0.5)
    empty = Judges(main=[BadAnswer("empty"), PASS])
    assert judged(Rubric(rules=(KIND,)), judges=empty)[0].passed
    with pytest.raises(BadAnswer) as caught:
        judged(Rubric(rules=(KIND,)), judges=Judges(main=["It looks fine to me."]))
    assert caught.value.spend.calls == 2


def test_a_comma_too_many_is_mended() -> None:
    text = '{"violations": [{"rule": "kind", "hinge": "soon", "why": "a,]b",},],}'
    verdict, _ = judged(Rubric(rules=(KIND,)), judges=Judges(main=[text]))
    assert verdict.violations[0].why == "a,]b"


def test_a_made_up_quote_beside_a_real_one_is_dropped_and_counted() -> None:
    judges = Judges(main=[told(("kind", "never said"), ("clear", "soon"))])
    verdict, _ = judged(Rubric(rules=(KIND, CLEAR)), judges=judges)
    assert [v.rule for v in verdict.violations] == ["clear"]
    assert (verdict.passed, verdict.misquoted, judges.asked) == (False, 1, ["main"])


def test_a_verdict_that_rests_on_a_made_up_quote_is_asked_for_again() -> None:
    judges = Judges(main=[told(("kind", "never said")), PASS])
    verdict, spend = judged(Rubric(rules=(KIND,)), judges=judges)
    assert (verdict.passed, verdict.misquoted, verdict.violations, spend.calls) == (True, 1, (), 2)
    insisting = Judges(main=[told(("kind", "never said"))])
    verdict, _ = judged(Rubric(rules=(KIND,)), judges=insisting)
    assert (verdict.passed, verdict.misquoted) == (False, 2), "doubt never reads as a pass"
    assert [(v.rule, v.hinge) for v in verdict.violations] == [("kind", "")]


def test_a_violation_that_quotes_nothing_is_about_what_is_missing() -> None:
    verdict, _ = judged(Rubric(rules=(KIND,)), judges=Judges(main=[told(("kind", ""))]))
    assert (verdict.passed, verdict.misquoted) == (False, 0)


# Votes


def vote(passed: bool, score: float = 0.0, *violations: Violation, judge: str = "m") -> Verdict:
    return Verdict(passed=passed, score=score, max_score=3, judge=judge, violations=violations)


YES, NO = vote(True, 3), vote(False, 1)


@pytest.mark.parametrize(
    ("decide", "votes", "count", "passed"),
    [
        ("majority", [YES, YES, NO], 3, True),
        ("majority", [YES, NO, NO], 3, False),
        ("majority", [YES, YES], 3, True),
        ("majority", [YES, NO], 3, None),
        ("majority", [YES, NO], 2, False),
        ("majority", [YES], 2, None),
        ("majority", [], 3, None),
        ("unanimous", [YES, YES, NO], 3, False),
        ("unanimous", [YES, YES, YES], 3, True),
        ("unanimous", [YES, YES], 3, None),
        ("unanimous", [NO], 3, False),
        ("strictest", [YES, YES, NO], 3, False),
        ("strictest", [YES, YES, YES], 3, True),
        ("strictest", [YES, YES], 3, None),
        ("escalate", [YES, YES], 2, True),
        ("escalate", [NO, NO], 2, False),
        ("escalate", [YES, NO], 2, None),
        ("escalate", [YES], 2, None),
    ],
)
def test_votes_decide_by_the_rule_and_a_missing_one_never_passes(
    decide: Any, votes: list[Verdict], count: int, passed: bool | None
) -> None:
    verdict = decided(votes, count, Panel(decide=decide))
    assert (verdict.passed if verdict else None) is passed


def test_a_merged_verdict_tells_who_agreed_and_each_objection_once() -> None:
    rude, dull = Violation("kind", hinge="Soon"), Violation("clear", hinge="enough")
    votes = [vote(False, 1, rude, dull, judge="a"), vote(True, 3, judge="b"),
             vote(False, 2, Violation("kind", hinge="soon", why="otherwise said"), judge="c")]  # fmt: skip
    merged = decided(votes, 3, Panel())
    assert merged is not None
    assert (merged.passed, merged.score, merged.votes) == (False, 1.5, 3)
    assert merged.agreement == pytest.approx(2 / 3)
    assert (merged.violations, merged.judge) == ((rude, dull), "a + b + c")
    strict = decided(votes, 3, Panel(decide="strictest"))
    assert strict is not None
    assert (strict.score, strict.violations) == (1, (rude, dull))


THREE = Panel(judges=(Model(model="second"), Model(model="third")))
BROKEN = told(("kind", "soon"))


def test_a_majority_asks_the_last_judge_only_where_the_first_differ() -> None:
    rubric = Rubric(rules=(KIND,))
    agreeing = Judges(main=[PASS], second=[PASS], third=[BROKEN])
    verdict, spend = judged(rubric, panel=THREE, judges=agreeing)
    assert (verdict.passed, verdict.votes, verdict.agreement, spend.calls) == (True, 2, 1.0, 2)
    differing = Judges(main=[PASS], second=[BROKEN], third=[BROKEN])
    verdict, spend = judged(rubric, panel=THREE, judges=differing)
    assert (verdict.passed, verdict.votes, spend.calls) == (False, 3, 3)
    assert verdict.agreement == pytest.approx(2 / 3)


def test_one_judge_may_vote_several_times() -> None:
    judges = Judges(main=[PASS, BROKEN, PASS])
    verdict, _ = judged(Rubric(rules=(KIND,)), panel=Panel(votes=3), judges=judges)
    assert (verdict.passed, verdict.votes, verdict.judge) == (True, 3, "main")


def test_a_judge_that_is_down_is_not_missed_where_the_others_agree() -> None:
    down = ModelUnavailable("down")
    verdict, _ = judged(Rubric(rules=(KIND,)), panel=THREE, judges=Judges(main=[PASS], second=[down], third=[PASS]))
    assert (verdict.passed, verdict.votes) == (True, 2)
    with pytest.raises(ModelUnavailable):
        judged(Rubric(rules=(KIND,)), panel=THREE, judges=Judges(main=[PASS], second=[down], third=[BROKEN]))
    with pytest.raises(ModelUnavailable):
        judged(Rubric(rules=(KIND,)), panel=THREE, judges=Judges(main=["?"], second=[down], third=[BROKEN]))


def test_a_tie_break_judge_decides_where_the_others_differ() -> None:
    panel = Panel(judges=(Model(model="second"),), decide="escalate", tie_break=Model(model="senior"))
    rubric = Rubric(rules=(KIND,))
    judges = Judges(main=[PASS], second=[PASS], senior=[BROKEN])
    assert judged(rubric, panel=panel, judges=judges)[0].passed
    assert "senior" not in judges.asked
    verdict, spend = judged(rubric, panel=panel, judges=Judges(main=[PASS], second=[BROKEN], senior=[BROKEN]))
    assert (verdict.passed, verdict.votes, spend.calls) == (False, 3, 3)
    assert verdict.agreement == pytest.approx(2 / 3)
    assert verdict.judge == "senior + main + second"


def test_the_scripted_judge_of_the_demo_answers_what_a_judge_is_asked() -> None:
    from agents.scripted import answer as scripted
    from schemas.chat import to_chat

    prompt = [Message("user", "Man aged 40, seen today. Diagnosed with gout last year. Reports back pain.")]
    note = "Diagnoses: gout, asthma\nMedications: none\nSymptoms: none"
    diagnoses = Rule(id="stated_diagnoses", text="Only diagnoses the transcript states.")
    complete = Rule(id="complete", text="Nothing left out.")
    for rules in ((diagnoses,), (diagnoses, complete)):
        rubric = Rubric(rules=rules)
        text = scripted("scribe-judge", to_chat(judge_messages(prompt, note, rubric)))
        found = read_vote(text, rubric, note)
        assert [v.rule for v in found.violations] == [rule.id for rule in rules]
        assert (found.violations[0].hinge, found.misquoted) == ("asthma", ())


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("quoted", "answer"),
    [
        ("a ... " * 12 + "b", "a " * 50_000),
        ("a " * 200 + "b", "a " * 50_000),
        ("a b", "a" + " " * 500_000),
        ("... a ...", "b" * 500_000),
        ("\u2026", "wait"),
    ],
)
def test_no_quote_takes_long_to_look_for(quoted: str, answer: str) -> None:
    """A pattern for all pieces at once would try each place of each with each place of the others."""
    assert find_hinge(quoted, answer) == ""
