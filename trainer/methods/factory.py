"""The benchmark's factory run: every prompt of a seed through student, judge, refiner and strategist, once.

The agents' own functions, asynchronously in process, without Kafka. All methods of a seed share the result, which
lies in the benchmark's folder; a curve's shorter sets are the first prompts of the longer ones.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
from transformers import AutoTokenizer

from agents.judge import judge
from agents.local import LocalEngine
from agents.refiner import refine
from agents.strategist import distil
from agents.student import attempt
from schemas.case import Attempt, Case, Source
from trainer.methods.learner import load_model, sample
from trainer.methods.teacher import model_path
from trainer.methods.world import Prompt, SeededModels, World, wrong

DRAWS = 4  # samples a prompt for rejection sampling, the first of them the case's own first attempt
BLOCK = 100  # prompts made together
NO_HURRY_S = 1e6


class Stream(msgspec.Struct, frozen=True):
    """Whose data: the base that attempts, the seed of prompts and samples, and how often the judge is wrong."""

    base: str = "student"
    seed: str = "0"
    noise: float = 0.0


class Produced(msgspec.Struct, frozen=True):
    """Everything the methods may learn from one prompt."""

    case: Case  # attempts with verdicts, strategy, outcome
    draws: tuple[Attempt, ...] = ()  # further samples of the student, judged
    teacher: str = ""  # the teacher's answer, judged by nobody
    teacher_tokens: int = 0


def produce(folder: Path, world: World, stream: Stream, count: int) -> list[Produced]:
    """Returns the data of a stream's first `count` prompts; what is in the folder is read, not made again.

    They are made in whole blocks, so that what a prompt gives does not depend on how many were asked for. The caller
    sees to it that nobody else makes the same stream at once.
    """
    prompts = world.prompts(f"train:{stream.seed}", -(-count // BLOCK) * BLOCK)
    found: list[Produced] = []
    for first in range(0, len(prompts), BLOCK):
        path = folder / "data" / f"{stream.base}-{stream.seed}-{stream.noise:g}-{first}.json"
        if not path.exists():
            made = asyncio.run(_produce(folder, world, stream, prompts[first : first + BLOCK], first))
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_bytes(msgspec.json.encode(made))
            os.replace(unfinished, path)
        found += msgspec.json.decode(path.read_bytes(), type=list[Produced])
    return found[:count]


async def _produce(folder: Path, world: World, stream: Stream, prompts: Sequence[Prompt], first: int) -> list[Produced]:
    base = model_path(folder, stream.base)
    engine = LocalEngine(base, threads=1)
    try:
        numbers = range(first, first + len(prompts))
        cases = [_case(world, stream, number, prompt) for number, prompt in zip(numbers, prompts, strict=True)]
        ended = await asyncio.gather(*(_work(world, engine, stream, case) for case in cases))
        drawn = await asyncio.gather(*(_draw(world, engine, stream, case) for case in cases))
    finally:
        engine.close()
    taught = _teach(folder, world, stream, prompts, first)
    return [Produced(case, draws, *told) for case, draws, told in zip(ended, drawn, taught, strict=True)]


def _case(world: World, stream: Stream, number: int, prompt: Prompt) -> Case:
    source = Source(cluster="benchmark", topic=stream.base, partition=0, offset=number)
    case_id = f"{stream.seed}-{number:05d}"
    return Case(case_id=case_id, task=world.task, split="train", source=source, messages=prompt.messages)


async def _work(world: World, engine: LocalEngine, stream: Stream, case: Case) -> Case:
    """Takes a case from attempt to outcome, as the stream stages do."""
    models, settings, rng = SeededModels(world.settings, engine, stream.seed), world.settings, _rng(stream, case)
    case = await attempt(case, settings, models, deadline=NO_HURRY_S)
    case = _heard(await judge(case, settings, models, deadline=NO_HURRY_S), stream.noise, rng)
    while not _passed(case) and case.rounds < settings.task(world.task).max_rounds:
        case = await refine(case, settings, models, deadline=NO_HURRY_S)
        case = _heard(await judge(case, settings, models, deadline=NO_HURRY_S), stream.noise, rng)
    if not _passed(case):
        return case.ended("unresolved", "judge", 0)
    return (await distil(case, settings, models, deadline=NO_HURRY_S)).ended("gold", "strategist", 0)


async def _draw(world: World, engine: LocalEngine, stream: Stream, case: Case) -> tuple[Attempt, ...]:
    """Returns DRAWS - 1 further attempts at a case, each judged."""
    models, rng = SeededModels(world.settings, engine, stream.seed), _rng(stream, case)
    attempts = []
    for number in range(1, DRAWS):
        models.draw = number
        tried = await attempt(case, world.settings, models, deadline=NO_HURRY_S)
        tried = await judge(tried, world.settings, models, deadline=NO_HURRY_S)
        attempts.append(_heard(tried, stream.noise, rng).attempts[-1])
    return tuple(attempts)


def _teach(folder: Path, world: World, stream: Stream, prompts: Sequence[Prompt], first: int) -> list[tuple[str, int]]:
    """Returns the teacher's answers, sampled at temperature 1, with their tokens; none for streams of controls."""
    path = model_path(folder, "teacher")
    if stream.base != "student" or stream.noise or not path.exists():
        return [("", 0)] * len(prompts)
    model, tokenizer = load_model(path), AutoTokenizer.from_pretrained(path, local_files_only=True)
    ids = [world.encode(tokenizer, prompt.messages) for prompt in prompts]
    seed = random.Random(f"teacher:{stream.seed}:{first}").getrandbits(48)
    made = sample(model, tokenizer, ids, temperature=1.0, max_tokens=world.max_tokens, seed=seed)
    return [(one.text, len(one.tokens)) for one in made]


def _rng(stream: Stream, case: Case) -> random.Random:
    return random.Random(f"judge:{stream.seed}:{case.case_id}")


def _heard(case: Case, noise: float, rng: random.Random) -> Case:
    """Returns the case as a judge that is wrong with probability `noise` tells it."""
    last = case.attempts[-1]
    if last.verdict is None or rng.random() >= noise:
        return case
    told = msgspec.structs.replace(last, verdict=wrong(last.verdict, rng))
    return msgspec.structs.replace(case, attempts=(*case.attempts[:-1], told))


def _passed(case: Case) -> bool:
    verdict = case.attempts[-1].verdict
    return verdict is not None and verdict.passed
