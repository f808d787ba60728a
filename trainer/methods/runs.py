"""One run of the benchmark: its settings, its figures, its file. A run whose file is there is not repeated.

A file's name holds a hash of everything that decides the run, so that changed settings never meet old figures.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import torch

from schemas.case import Message
from schemas.chat import split_thinking
from trainer.methods import onpolicy, supervised
from trainer.methods.factory import Produced, Stream, produce
from trainer.methods.learner import Learner, load_model
from trainer.methods.table import METHODS, Method
from trainer.methods.teacher import make_models, model_path
from trainer.methods.world import Prompt, World

PROTOCOL = 1  # raise it where data, training or evaluation change what a run with the same settings gives
THOUGHT_TOKENS = 64  # what an answer may be longer by where the student thinks first


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides a run."""

    method: str
    size: int  # unique prompts
    seed: str  # of prompts, samples, adapter and order; "tune" is nobody else's
    learning_rate: float
    epochs: int
    split: str = "holdout"  # or "validation", for tuning
    holdout: int = 200  # prompts of the kind trained on
    unseen: int = 100  # prompts with drugs and sentences of which no training prompt has any
    batch: int = 16
    rank: int = 16  # the demo's adapter
    alpha: int = 32
    task: str = "scribe"
    thinking: bool = False  # judge answers with thinking on too
    protocol: int = PROTOCOL

    def key(self) -> str:
        """Returns the name of the run's file, without its ending."""
        settings = msgspec.json.encode([self, METHODS[self.method]])
        return f"{self.method}-{self.size}-{self.seed}-{hashlib.sha256(settings).hexdigest()[:10]}"


class Score(msgspec.Struct, frozen=True):
    """Greedy answers to a set of prompts, judged by the task's own judge."""

    passed: float  # share that breaks no rule
    score: float  # mean points over the maximum: the normalised score, from 0 to 1
    broken: dict[str, int] = {}  # rule -> answers that break it


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """A finished run. Costs are those of training and of making its data, never of evaluation."""

    spec: RunSpec
    seen: Score
    unseen: Score
    thinking: Score | None = None  # with thinking on, where pair B taught it
    cases: int  # prompts that gave something to train on
    steps: int
    judge_calls: int
    generated_tokens: int
    trained_tokens: int
    cpu_s: float  # of training alone, with its own sampling; data are made once for all methods
    first: float = 0.0  # loss of the first step, or mean reward of the first batch on policy
    last: float = 0.0
    effective: float = 1.0  # effective sample size of importance weights, share
    note: str = ""
    revision: str = ""
    at: str = ""


def is_done(folder: Path, spec: RunSpec) -> bool:
    """Tells whether a run's result is in the folder."""
    return (folder / "runs" / f"{spec.key()}.json").exists()


def run_once(folder: Path, spec: RunSpec, world: World, revision: str = "") -> RunResult:
    """Returns a run's result, from its file where that exists; else runs it and writes the file whole.

    Raises TrainingError where the loss is no number.
    """
    path = folder / "runs" / f"{spec.key()}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder / "runs" / f"{spec.key()}.lock"):
            if not path.exists():
                at = datetime.now(UTC).isoformat(timespec="seconds")
                result = msgspec.structs.replace(_run(folder, spec, world), revision=revision, at=at)
                _write(folder, result)
        (folder / "runs" / f"{spec.key()}.lock").unlink(missing_ok=True)
    return msgspec.json.decode(path.read_bytes(), type=RunResult)


def restore(folder: Path, results: Sequence[RunResult]) -> int:
    """Puts finished runs of an earlier report into the folder, and returns how many were not there.

    A run made under another protocol is left out: its figures are not those the same settings would give now.
    """
    missing = [r for r in results if r.spec.protocol == PROTOCOL and not is_done(folder, r.spec)]
    for result in missing:
        _write(folder, result)
    return len(missing)


def _write(folder: Path, result: RunResult) -> None:
    path = folder / "runs" / f"{result.spec.key()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    os.replace(unfinished, path)


def _run(folder: Path, spec: RunSpec, world: World) -> RunResult:
    """Trains one adapter from the base and judges it.

    1. models and data, made once and shared;
    2. train;
    3. answer the holdout greedily, thinking off, as in production, and judge.
    """
    torch.set_num_threads(1)
    method = METHODS[spec.method]
    seed = int.from_bytes(hashlib.sha256(spec.seed.encode()).digest()[:4], "big")
    data = factory_data(folder, spec, world)  # 1

    base = model_path(folder, method.base)
    learner = Learner(base, rank=spec.rank, alpha=spec.alpha, learning_rate=spec.learning_rate, seed=seed)
    began = time.process_time()
    if method.data == "on-policy":  # 2
        spent = _explore(folder, spec, method, learner, world, [one.case.messages for one in data])
        cases, calls, generated, trained = len(data), spent.judge_calls, spent.generated_tokens, spent.trained_tokens
        first, last, effective, note = spent.first_reward, spent.last_reward, 1.0, ""
    else:
        examples = supervised.build(method, data, learner.tokenizer, seed)
        steps = supervised.steps_of(method, data, examples, spec.epochs, spec.batch)
        fit = supervised.train(learner, examples, method.objective, steps, spec.batch, seed)
        cases, trained = len({example.case_id for example in examples}), fit.trained_tokens
        calls = supervised.judge_calls(data, method)
        generated = supervised.generated_tokens(data, method, learner.tokenizer)
        first, last, effective = fit.first_loss, fit.last_loss, fit.effective
        note = "" if examples else "nothing to train on: the base's own score"
    cpu_s = time.process_time() - began

    seen = score(learner, world, world.prompts(spec.split, spec.holdout))  # 3
    unseen = score(learner, world, world.prompts("unseen", spec.unseen, unseen=True))
    thinking = score(learner, world, world.prompts(spec.split, spec.holdout), thinking=True) if spec.thinking else None
    return RunResult(
        spec=spec,
        seen=seen,
        unseen=unseen,
        thinking=thinking,
        cases=cases,
        steps=learner.steps,
        judge_calls=calls,
        generated_tokens=generated,
        trained_tokens=trained,
        cpu_s=cpu_s,
        first=first,
        last=last,
        effective=effective,
        note=note,
    )


def factory_data(folder: Path, spec: RunSpec, world: World) -> list[Produced]:
    """Returns the data of a run's prompts, making models and data that are not there yet."""
    method = METHODS[spec.method]
    with _alone(folder / "models.lock"):
        (folder / "models").mkdir(parents=True, exist_ok=True)
        make_models(folder, world, ("teacher", "hard"))
    stream = Stream(method.base, spec.seed, method.noise)
    with _alone(folder / f"data-{stream.base}-{stream.seed}-{stream.noise:g}.lock"):
        return produce(folder, world, stream, spec.size)


def score(learner: Learner, world: World, prompts: Sequence[Prompt], *, thinking: bool = False) -> Score:
    """Returns how the learner's greedy answers to the prompts are judged."""
    ids = [world.encode(learner.tokenizer, prompt.messages, thinking=thinking) for prompt in prompts]
    tokens = world.max_tokens + (THOUGHT_TOKENS if thinking else 0)
    drawn = learner.sample(ids, temperature=0.0, max_tokens=tokens, seed=0)
    texts = [split_thinking(one.text)[1] for one in drawn]
    verdicts = [world.judge(prompt.messages, text) for prompt, text in zip(prompts, texts, strict=True)]
    broken = Counter(rule for verdict in verdicts for rule in {v.rule for v in verdict.violations})
    points = sum(verdict.score / verdict.max_score for verdict in verdicts)
    passed = sum(verdict.passed for verdict in verdicts)
    return Score(passed / len(verdicts), points / len(verdicts), dict(sorted(broken.items())))


def base_scores(folder: Path, world: World, base: str, holdout: int, unseen: int) -> tuple[Score, Score]:
    """Returns what a base scores by itself on (holdout, unseen)."""
    learner = Learner(model_path(folder, base), rank=1, alpha=1, learning_rate=1.0, seed=0)
    prompts = world.prompts("holdout", holdout)
    return score(learner, world, prompts), score(learner, world, world.prompts("unseen", unseen, unseen=True))


def _explore(
    folder: Path, spec: RunSpec, method: Method, learner: Learner, world: World, prompts: Sequence[Sequence[Message]]
) -> onpolicy.Spent:
    """Trains on the learner's own samples."""
    ids = [world.encode(learner.tokenizer, messages) for messages in prompts]
    seed = int.from_bytes(hashlib.sha256(f"rl:{spec.seed}".encode()).digest()[:4], "big")

    def reward(index: int, answer: str) -> float:
        verdict = world.judge(prompts[index], answer)
        return verdict.score / verdict.max_score

    if method.objective == "grpo":
        return onpolicy.grpo(learner, ids, reward, epochs=spec.epochs, seed=seed, max_tokens=world.max_tokens)
    if method.objective == "reinforce":
        return onpolicy.reinforce(
            learner, ids, reward, epochs=spec.epochs, batch=spec.batch, seed=seed, max_tokens=world.max_tokens
        )
    teacher = load_model(model_path(folder, "teacher"))
    return onpolicy.distil(
        learner, teacher, ids, epochs=spec.epochs, batch=spec.batch, seed=seed, max_tokens=world.max_tokens
    )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds a lock that ends with the process, so that two of them share a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
