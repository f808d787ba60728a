"""The chain of refiners: who is next, what is rewritten, when it is given up, and what an attempt tells of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stub_models import Reply, StubModels

from agents.chain import Step, Stop, best_attempt, next_step
from agents.completion import Completion
from agents.models import Models, calling_for
from agents.prompts import read_fences
from agents.refiner import changed_share, refine
from schemas.adapters import served_name
from schemas.case import Attempt, Case, Message, Source, Verdict, Violation
from schemas.errors import BadAnswer, EndpointRefused, ModelError, ModelRefused, ModelUnavailable, SettingsError
from schemas.settings import Model, Refiner, Refining, Rubric, Rule, Settings, Task, Worker, load_settings
from streams.flow import next_hop

RUBRIC = Rubric(rules=tuple(Rule(id=name, text=name) for name in "abcd"))
STUDENT_FIRST = (Refiner(by="student", rounds=1), Refiner(by="teacher"))


def task(*chain: Refiner, max_rounds: int = 6, patience: int = 2) -> Task:
    refining = Refining(chain=chain or (Refiner(by="teacher"),), patience=patience)
    return Task(topics=("t",), rubric=RUBRIC, max_rounds=max_rounds, refining=refining)


def tried(*attempts: tuple[str, str]) -> Case:
    """Returns a case of failed attempts: (text, the rules it breaks). All after the first are refinements."""
    made: list[Attempt] = []
    for round, (text, broken) in enumerate(attempts):
        violations = tuple(Violation(rule, "major", text) for rule in broken)
        verdict = Verdict(passed=False, score=4 - len(set(broken)), max_score=4, violations=violations, judge="j")
        source: Any = "refiner" if round else "student"
        rewrote = made[best_attempt(made)].round if made else None
        made.append(Attempt(round=round, source=source, text=text, model="m", verdict=verdict, rewrote=rewrote))
    place = Source(cluster="c", topic="t", partition=0, offset=0)
    messages = (Message("user", "hi"),)
    return Case(case_id="x", task="toy", split="train", source=place, messages=messages, attempts=tuple(made))


def test_the_student_has_its_turn_before_the_teacher() -> None:
    chain = task(*STUDENT_FIRST)
    assert next_step(tried(("0", "abcd")), chain) == Step("student", 0, ("teacher",))
    assert next_step(tried(("0", "abcd"), ("1", "abc")), chain) == Step("teacher", 1)
    assert next_step(tried(("0", "abcd"), ("1", "abc"), ("2", "ab")), chain) == Step("teacher", 2)


def test_without_a_chain_the_teacher_refines_until_the_rounds_are_spent() -> None:
    plain = task(max_rounds=2)
    assert next_step(tried(("0", "ab"), ("1", "ac")), plain) == Step("teacher", 1)
    assert next_step(tried(("0", "ab"), ("1", "ac"), ("2", "ad")), plain) == Stop(
        "rounds_spent", "failed after 2 refinements"
    )


def test_a_rewrite_that_scores_less_is_left_behind() -> None:
    worse = tried(("0", "ab"), ("1", "a"), ("2", "abc"))
    assert best_attempt(worse.attempts) == 1
    assert next_step(worse, task()) == Step("teacher", 1)
    equal = tried(("0", "a"), ("1", "b"))
    assert best_attempt(equal.attempts) == 1, "of equals the later one"


@pytest.mark.parametrize(
    ("rewrites", "reason"),
    [
        ([("1", "ab"), ("1  ", "ac")], "rounds_spent"),  # one stall only
        ([("0", "ab"), (" 0", "ab")], "no_progress"),  # the same text, spaces apart
        ([("1", "abc"), ("2", "abd")], "score_fell"),
        ([("0", "ab"), ("2", "abc")], "score_fell"),
        ([("1", "abc"), ("0", "ab")], "no_progress"),
    ],
)
def test_two_refinements_without_progress_end_the_case_with_the_reason(
    rewrites: list[tuple[str, str]], reason: str
) -> None:
    found = next_step(tried(("0", "ab"), *rewrites), task(max_rounds=2 if reason == "rounds_spent" else 6))
    assert isinstance(found, Stop)
    assert found.reason == reason


def test_the_same_violations_in_other_words_are_no_progress() -> None:
    case = tried(("0", "ab"), ("1", "ab"), ("2", "ab"))
    same = [msgspec.structs.replace(v, hinge="here") for v in (Violation("a"), Violation("b"))]
    attempts = [
        msgspec.structs.replace(a, verdict=msgspec.structs.replace(a.verdict, violations=tuple(same)))
        for a in case.attempts
        if a.verdict
    ]
    case = msgspec.structs.replace(case, attempts=tuple(attempts))
    assert next_step(case, task()) == Stop(
        "no_progress", "stopped after 2 refinements: the same text or the same violations again"
    )
    assert isinstance(next_step(case, task(patience=0)), Step), "0 is never"


def test_a_student_that_gets_nowhere_gives_way_before_its_rounds_are_spent() -> None:
    chain = task(Refiner(by="student", rounds=4), Refiner(by="teacher"), max_rounds=8)
    stuck = tried(("0", "ab"), ("0", "ab"), ("0", "ab"))
    assert next_step(stuck, chain) == Step("teacher", 2)
    # The teacher begins with a count of its own.
    assert next_step(tried(*[("0", "ab")] * 4), chain) == Step("teacher", 3)
    assert isinstance(next_step(tried(*[("0", "ab")] * 5), chain), Stop)


def test_the_judges_stage_ends_a_stuck_case_as_unresolved_with_the_reason() -> None:
    settings = Settings(tasks={"toy": task()})
    hop = next_hop("judge", tried(*[("0", "ab")] * 3), settings)
    assert hop.case.outcome is not None
    assert (hop.topic, hop.case.outcome.kind, hop.case.outcome.reason) == ("outcomes", "unresolved", "no_progress")
    assert next_hop("judge", tried(("0", "ab"), ("0", "ab")), settings).topic == "refine"


class FakeModels:
    """Answers in turn, or raises; keeps whose model was asked and for what draft."""

    def __init__(self, *answers: str | ModelError) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str]] = []

    async def complete(self, role: str, task: str, messages: Sequence[Message], **options: Any) -> Completion:
        by = options.get("by") or role
        self.asked.append((by, read_fences(messages[-1].text())["draft"]))
        answer = self.answers.pop(0)
        if isinstance(answer, ModelError):
            raise answer
        return Completion(
            text=answer, thinking="", model=f"model of {by}", adapter="v7" if by == "student" else "",
            prompt_tokens=1, completion_tokens=1, logprob=None, latency_s=0.1, cost_usd=0.5,
        )  # fmt: skip


def refined(models: FakeModels, case: Case, chain: Task) -> Case:
    return asyncio.run(refine(case, Settings(tasks={"toy": chain}), models, deadline=1e9))  # type: ignore[arg-type]


def test_an_attempt_tells_who_rewrote_which_and_how_much() -> None:
    models = FakeModels("one two four", "one two three")
    case = tried(("one two three", "ab"))
    first = refined(models, case, task(*STUDENT_FIRST)).attempts[1]
    assert (first.source, first.refiner, first.rewrote, first.round) == ("refiner", "student", 0, 1)
    assert (first.model, first.adapter) == ("model of student", "v7")
    assert first.changed == pytest.approx(1 / 3, abs=1e-3)
    case = tried(("one two three", "ab"), ("worse", "abc"))
    second = refined(models, case, task(*STUDENT_FIRST)).attempts[2]
    assert (second.refiner, second.rewrote, second.round, second.changed) == ("teacher", 0, 2, 0.0)
    assert models.asked == [("student", "one two three"), ("refiner", "one two three")]


@pytest.mark.parametrize("error", [ModelRefused("the prompt is beyond its context"), BadAnswer("empty")])
def test_a_student_that_refuses_the_case_is_stood_in_for_by_the_teacher(error: ModelError) -> None:
    models = FakeModels(error, "better")
    attempt = refined(models, tried(("0", "ab")), task(*STUDENT_FIRST)).attempts[-1]
    assert (attempt.refiner, attempt.text) == ("teacher", "better")


@pytest.mark.parametrize("error", [ModelUnavailable("down"), EndpointRefused("401")])
def test_an_outage_of_the_student_is_waited_for(error: ModelError) -> None:
    with pytest.raises(type(error)):
        refined(FakeModels(error), tried(("0", "ab")), task(*STUDENT_FIRST))


def test_a_refusal_of_the_last_refiner_is_the_cases_end() -> None:
    with pytest.raises(ModelRefused):
        refined(FakeModels(ModelRefused("no"), ModelRefused("no")), tried(("0", "ab")), task(*STUDENT_FIRST))


def test_a_case_with_nothing_left_by_todays_settings_goes_to_the_last_of_the_chain() -> None:
    models = FakeModels("better")
    assert refined(models, tried(*[("0", "ab")] * 3), task(max_rounds=1)).attempts[-1].refiner == "teacher"


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        ("a b c d", "a b c d", 0.0),
        ("a b c d", "a b x d", 0.25),
        ("a b c", "b c", 0.3333),
        ("a b", "x y", 1.0),
        ("", "", 0.0),
        ("", "a", 1.0),
        ("a b\nc d", "a  b c d", 0.0),
    ],
)
def test_the_share_changed_counts_words(before: str, after: str, share: float) -> None:
    assert changed_share(before, after) == share


def test_no_text_makes_the_share_changed_slow() -> None:
    began = time.process_time()
    for between in (" ", "\n"):
        left, right = (between.join("ab"[n % k % 2] for n in range(100_000)) for k in (5, 7))
        assert 0 <= changed_share(left, right) <= 1
    assert time.process_time() - began < 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning:litellm.*")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:pydantic.*")
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
def test_the_student_refines_with_the_adapter_that_serves_and_its_outage_kills_no_case(models: StubModels) -> None:
    served = Model(model="hosted_vllm/student", api_base=models.api_base, retries=0)
    chain = msgspec.structs.replace(
        task(*STUDENT_FIRST), student=served, refiner=Model(model="hosted_vllm/teacher", api_base=models.api_base)
    )
    settings = Settings(tasks={"toy": chain}, worker=Worker(breaker_failures=1))
    models.answer = lambda request: Reply("better")

    async def run() -> tuple[Case, float | None]:
        made = Models(settings, serving=lambda task, case_id: ("v0007-abcdef",))
        calling_for.set("x")
        deadline = asyncio.get_running_loop().time() + 60
        try:
            done = await refine(tried(("0", "ab")), settings, made, deadline=deadline)
            models.answer = lambda request: Reply(status=500)
            with pytest.raises(ModelUnavailable) as down:
                await refine(tried(("0", "ab")), settings, made, deadline=deadline)
            return done, await made.outage_s("refiner", "toy", "x", down.value)
        finally:
            await made.close()

    done, outage_s = asyncio.run(run())
    (first, *_) = models.requests
    assert first["model"] == served_name("toy", "v0007-abcdef")
    assert first["chat_template_kwargs"] == {"enable_thinking": False}
    assert (done.attempts[1].adapter, done.attempts[1].refiner) == ("v0007-abcdef", "student")
    assert outage_s is not None
    assert not any(request["model"] == "teacher" for request in models.requests)


TOML = """
[tasks.toy]
topics = ["t"]
max_rounds = 3
rubric = { verifier = "m:f", rules = [{ id = "a", text = "a" }] }
student = { model = "x/y" }
strategist = { model = "x/y" }
"""


@pytest.mark.parametrize(
    ("refining", "message"),
    [
        (
            'chain = [{ by = "student" }, { by = "teacher" }]\npatience = 0',
            "refiner 2 .'teacher'. would never be asked",
        ),
        ('chain = [{ by = "student", rounds = 3 }, { by = "teacher" }]\npatience = 3', "would never be asked"),
        ('chain = [{ by = "nobody" }]', "chain"),
        ("chain = []", "chain"),
        ('chain = [{ by = "teacher" }]', r"tasks.toy.refiner.model is missing"),
        ("patient = 1", "unknown key .*refining.patient"),
    ],
)
def test_a_chain_that_cannot_work_is_refused(tmp_path: Path, refining: str, message: str) -> None:
    path = tmp_path / "goldstream.toml"
    path.write_text(TOML + "[tasks.toy.refining]\n" + refining)
    with pytest.raises(SettingsError, match=message):
        load_settings(path, environ={})


def test_a_student_that_refines_itself_needs_no_teacher(tmp_path: Path) -> None:
    path = tmp_path / "goldstream.toml"
    path.write_text(TOML + '[tasks.toy.refining]\nchain = [{ by = "student" }]')
    loaded = load_settings(path, environ={}).task("toy")
    assert loaded.refiner == Model()
