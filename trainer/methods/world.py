"""What the benchmark asks and how it judges: the scribe task's prompts, judge, gold notes and in-process models.

Settings come from the demo (deploy/demo.toml), the code from agents: nothing of the task is defined here.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from agents import scripted
from agents.judge import load_verifier, make_verdict
from agents.local import LocalEngine
from agents.models import Completion, Models
from agents.scribe.rules import RULES
from agents.scribe.scripted import draw_phrasing, write_draft, write_note
from agents.scribe.transcripts import Facts, make_transcript
from schemas.case import Message, Verdict, Violation
from schemas.chat import render_prompt, to_chat
from schemas.errors import SettingsError
from schemas.settings import Model, Role, Rubric, Settings, load_settings

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = ROOT / "deploy" / "demo.toml"
TASK = "scribe"
STUDENT = ROOT / "agents" / "scribe" / "student"
HARD_DRAWS = 8  # the hard base imitates the worst of this many drafts by a scribe of wrong habits


class Prompt(NamedTuple):
    """One prompt with the facts its gold note must state."""

    messages: tuple[Message, ...]
    facts: Facts


class World:
    """The scribe task as the benchmark sees it.

    Raises SettingsError for any other task: only scribe can draw as many fresh prompts as a learning curve needs.
    """

    def __init__(self, task: str = TASK) -> None:
        if task != TASK:
            raise SettingsError(
                f"--task {task}: the methods benchmark draws fresh prompts by itself, which only {TASK} can. "
                f"For a task of your own compare RGT with iSFT on your gold: goldstream ablate --task {task}"
            )
        self.task = task
        self.settings: Settings = load_settings(CONFIG, [f"local.{TASK}.path={STUDENT}"], environ={})
        self.max_tokens = self.settings.task(task).student.max_tokens

    def prompts(self, name: str, count: int, *, unseen: bool = False) -> list[Prompt]:
        """Returns `count` distinct prompts of a named stream; none of the holdout's or the validation set's texts.

        A longer list of the same name begins with the shorter one. `unseen` draws drugs and sentences that no other
        stream holds.
        """
        rng = random.Random(f"{self.task}:{name}")
        seen = set() if name in ("holdout", "unseen") else set(self._kept_out)
        drawn: list[Prompt] = []
        while len(drawn) < count:
            text, facts = make_transcript(rng, unseen=unseen)
            if text not in seen:
                seen.add(text)
                drawn.append(Prompt((Message("user", text),), facts))
        return drawn

    @cached_property
    def _kept_out(self) -> frozenset[str]:
        return frozenset(prompt.messages[0].text() for prompt in self.prompts("holdout", 1000))

    def judge(self, messages: Sequence[Message], answer: str) -> Verdict:
        """Returns the verdict of the task's own judge, the programmatic one of the demo's rubric."""
        rubric: Rubric = self.settings.task(self.task).rubric
        violations = load_verifier(rubric.verifier)(messages, answer)
        return make_verdict(rubric, violations, f"verifier:{rubric.verifier}", "programmatic")

    def encode(self, tokenizer: Any, messages: Sequence[Message], *, thinking: bool = False) -> list[int]:
        """Returns a prompt's tokens as inference has them."""
        text = render_prompt(tokenizer, messages, thinking)
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def gold_note(self, prompt: Prompt, rng: random.Random) -> str:
        """Returns a note that passes, in a phrasing drawn from the valid ones."""
        return write_note(prompt.facts, draw_phrasing(rng))

    def wrong_note(self, prompt: Prompt, rng: random.Random) -> str:
        """Returns a note in good form that breaks as many rules as the worst of several drafts."""
        drafts = [write_draft(prompt.facts, rng) for _ in range(HARD_DRAWS)]
        return min(drafts, key=lambda draft: self.judge(prompt.messages, draft).score)


@cache
def world_of(task: str) -> World:
    """Returns a task's world, built once in a process."""
    return World(task)


class SeededModels(Models):
    """The task's models without LiteLLM between: the student through the local engine, the others scripted.

    A student's answer depends on (seed, prompt, draw) alone, so that data come out the same whatever the batches.
    """

    def __init__(self, settings: Settings, engine: LocalEngine, seed: str) -> None:
        super().__init__(settings)
        self._demo, self._student, self._stream, self.draw = settings, engine, seed, 0

    async def complete(
        self,
        role: Role,
        task: str,
        messages: Sequence[Message],
        *,
        deadline: float,
        response_format: dict[str, Any] | type | None = None,
        thinking: bool = False,
        by: Role | None = None,
        model: Model | None = None,
        told: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Answers as agents.models does; `deadline` is not needed, as nothing here can hang."""
        by = by or role
        model = model or self._demo.task(task).model(by)
        if by != "student":
            text = scripted.answer(model.model.removeprefix("scripted/"), to_chat(messages))
            return _completion(model.model, text, 0, 0, None)
        key = f"{self._stream}:{self.draw}:".encode() + msgspec.json.encode(messages)
        seed = int.from_bytes(hashlib.sha256(key).digest()[:7], "big")
        made = await self._student.generate(
            messages, temperature=model.temperature, max_tokens=model.max_tokens, thinking=thinking, seed=seed
        )
        return _completion(model.model, made.text, made.prompt_tokens, made.completion_tokens, made.logprob)


def wrong(verdict: Verdict, rng: random.Random) -> Verdict:
    """Returns the opposite of a verdict: a pass becomes a failure of one rule drawn at random, a failure a pass."""
    if verdict.passed:
        rule = rng.choice(RULES)
        violation = Violation(rule.id, rule.severity, "", "the judge is wrong here", rule.text)
        return msgspec.structs.replace(
            verdict, passed=False, score=verdict.max_score - 1, violations=(violation,), judge="noisy"
        )
    return msgspec.structs.replace(verdict, passed=True, score=verdict.max_score, violations=(), judge="noisy")


def _completion(model: str, text: str, prompt_tokens: int, tokens: int, logprob: float | None) -> Completion:
    return Completion(
        text=text,
        thinking="",
        model=model,
        adapter="",
        prompt_tokens=prompt_tokens,
        completion_tokens=tokens,
        logprob=logprob,
        latency_s=0.0,
        cost_usd=0.0,
    )
