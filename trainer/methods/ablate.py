"""`goldstream ablate`: does RGT pay on the user's own gold? RGT against iSFT at equal optimiser steps, several seeds.

Production's own parts (dataset, loop, engine, judge) in a scratch registry: nothing here is ever promoted, and the
task's registry and frozen holdout are only read. Killed, it goes on with the adapters that are finished.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from schemas.adapters import AdapterManifest, adapter_folder, base_fingerprint, read_manifest
from schemas.case import Verdict
from schemas.errors import ModelError, TrainingError
from schemas.gold import current_watermark
from schemas.settings import Settings, Trainer
from trainer.base import local_engine, student_base
from trainer.dataset import Dataset, base_context, build_examples, train_rows
from trainer.gate import Engine, Judge, offered_tools, task_judge
from trainer.holdout import HOLDOUT, HoldoutCase, freeze_holdout, holdout_cases
from trainer.paired import bootstrap, share
from trainer.registry import publish

Arm = Literal["isft", "rgt"]
ARMS: tuple[Arm, Arm] = ("isft", "rgt")
Say = Callable[[str], None]


class ArmResult(msgspec.Struct, frozen=True):
    """One adapter of one seed on the holdout."""

    arm: Arm
    seed: int
    passed: float  # share of the holdout
    score: float  # mean points as a share of the maximum
    steps: int
    trained_tokens: int
    seconds: float


class Ablation(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. Differences are RGT's less iSFT's, means over seeds on the same holdout cases."""

    task: str
    cases: int  # gold cases trained on
    strategies: int  # of them, those with a pair B
    holdout: int
    seeds: int
    steps: int  # of every run, the same for both
    arms: list[ArmResult]
    passed: tuple[float, float, float]  # difference, low, high
    score: tuple[float, float, float]
    p_value: float  # of the difference in passes, paired bootstrap over holdout cases
    pays: Literal["rgt", "isft", "undecided"]
    verdict: str


def ablate(settings: Settings, task: str, *, seeds: int, say: Say, judge: Judge | None = None) -> Ablation:
    """Trains RGT and iSFT on all gold of a task so far and compares them on the frozen holdout.

    1. pin the watermark, build both sets from the same cases, so that their steps are equal;
    2. train each seed of each arm, from the base;
    3. answer the holdout greedily, thinking off, and have the task's own judge decide;
    4. a paired bootstrap over the holdout cases, each with its mean over the seeds.

    Raises TrainingError for empty gold, gold without strategies and a holdout below gate.min_holdout, ModelError where
    the judge answers for none.
    """
    from transformers import AutoTokenizer

    chosen, base = settings.task(task), student_base(settings, task)
    trainer = msgspec.structs.replace(
        chosen.trainer, objective="sft", quality="off", continue_from="base", pair_weights=(1.0, 1.0)
    )
    scratch = settings.state / "ablate"
    holdout = _holdout(settings, task, scratch)
    watermark = current_watermark(settings.gold)  # 1
    rows = train_rows(settings.gold, task, watermark, "rgt")
    if not len(rows):
        raise TrainingError(
            f"task {task} has no gold in its train split yet, so there is nothing to compare on. Let cases end as gold "
            "first; `goldstream gold stats` counts them."
        )
    tokenizer = AutoTokenizer.from_pretrained(base.path, local_files_only=True)
    data = _same_cases(
        {
            arm: build_examples(
                rows,
                tokenizer,
                recipe=arm,
                strategy_weight=trainer.strategy_weight,
                max_length=trainer.max_length,
                context=base_context(base.path),
                tools=settings.task(task).carry_over.tools,
            )
            for arm in ARMS
        }
    )
    manifests: dict[tuple[Arm, int], AdapterManifest] = {}
    for seed in range(seeds):
        for arm in ARMS:
            ours = msgspec.structs.replace(trainer, recipe=arm, seed=seed)
            manifests[arm, seed] = _adapter(settings, task, scratch, ours, data[arm], watermark)  # 2
            trained = manifests[arm, seed].training
            say(f"{arm}, seed {seed}: {trained['steps']:.0f} steps, loss {trained['last_loss']:.3f}")
    steps = {int(manifest.training["steps"]) for manifest in manifests.values()}
    if len(steps) > 1:
        raise TrainingError(f"the runs differ in optimiser steps ({sorted(steps)}); expected the same for RGT and iSFT")

    engine = local_engine(settings, task)  # 3
    try:
        answers = {key: _answers(settings, engine, scratch, m, holdout) for key, m in manifests.items()}
    finally:
        engine.close()
    verdicts = asyncio.run(_verdicts(settings, task, judge, holdout, answers))
    judged = [case.case_id for case in holdout if all(case.case_id in found for found in verdicts.values())]
    if not judged:
        raise ModelError(f"the judge of {task} answered for none of {len(holdout)} holdout cases; check its model.")

    differences = {  # 4
        what: [
            sum(value(verdicts["rgt", s][i]) - value(verdicts["isft", s][i]) for s in range(seeds)) / seeds
            for i in judged
        ]
        for what, value in (("passed", _passed), ("score", share))
    }
    significance, resamples = chosen.gate.significance, chosen.gate.resamples
    p_value, low, high = bootstrap(differences["passed"], resamples, significance)
    _, score_low, score_high = bootstrap(differences["score"], resamples, significance)
    gain, score_gain = (sum(values) / len(values) for values in (differences["passed"], differences["score"]))
    pays, verdict = decide_arm(gain, p_value, significance, len(judged), seeds)
    return Ablation(
        task=task,
        cases=data["isft"].cases,
        strategies=sum(example.branch == "B" for example in data["rgt"].examples),
        holdout=len(judged),
        seeds=seeds,
        steps=steps.pop(),
        arms=[_arm_result(arm, seed, manifests[arm, seed], verdicts[arm, seed], judged) for arm, seed in manifests],
        passed=(gain, low, high),
        score=(score_gain, score_low, score_high),
        p_value=p_value,
        pays=pays,
        verdict=verdict,
    )


def decide_arm(
    gain: float, p_value: float, significance: float, cases: int, seeds: int
) -> tuple[Literal["rgt", "isft", "undecided"], str]:
    """Returns which arm pays, and why, from RGT's gain in pass rate over iSFT."""
    figures = f"{gain:+.1%} of {cases} holdout cases over {seeds} seeds, p = {p_value:.2g}"
    if p_value > significance or gain == 0:
        why = f"no difference could be shown: RGT less iSFT {figures}. More gold or a larger holdout could tell more"
        return "undecided", why
    if gain > 0:
        return "rgt", f'RGT pays on this gold: {figures}. Keep trainer.recipe = "rgt"'
    return "isft", f'iSFT pays on this gold: RGT less iSFT {figures}. Set trainer.recipe = "isft"'


def _holdout(settings: Settings, task: str, scratch: Path) -> list[HoldoutCase]:
    """Returns the frozen holdout, frozen in the scratch registry from a copy of the task's own."""
    gate = settings.task(task).gate
    (scratch / task).mkdir(parents=True, exist_ok=True)
    frozen = settings.adapters / task / HOLDOUT
    if frozen.exists():
        shutil.copyfile(frozen, scratch / task / HOLDOUT)
    cases = freeze_holdout(scratch, task, holdout_cases(settings.gold, task), gate.max_holdout)
    if len(cases) < gate.min_holdout:
        raise TrainingError(
            f"task {task} has {len(cases)} holdout cases; tasks.{task}.gate.min_holdout asks for {gate.min_holdout} to "
            "compare anything. They come with the traffic: raise intake.holdout_share, or wait."
        )
    return cases


def _same_cases(data: Mapping[Arm, Dataset]) -> dict[Arm, Dataset]:
    """Returns both sets with the cases they share: a batch counts cases, so that their steps are equal."""
    shared = set.intersection(*({e.case_id for e in found.examples} for found in data.values()))
    return {
        arm: Dataset([e for e in found.examples if e.case_id in shared], len(shared), found.skipped)
        for arm, found in data.items()
    }


def _adapter(
    settings: Settings, task: str, scratch: Path, trainer: Trainer, data: Dataset, watermark: dict[int, int]
) -> AdapterManifest:
    """Returns the manifest of an arm's adapter, training it unless it is there from an earlier call."""
    from trainer.loop import train_lora  # loads torch

    base = student_base(settings, task)
    decides = [data.sha256(), msgspec.to_builtins(trainer), base_fingerprint(base.path)]
    version = f"v{trainer.seed + 1:04d}-{hashlib.sha256(msgspec.json.encode(decides)).hexdigest()[:8]}"
    final = adapter_folder(scratch, task, version)
    if final.exists():
        return read_manifest(final)
    run = scratch / "runs" / task / version
    stats = train_lora(base.path, data.examples, trainer, run, base_name=base.name, watermark=watermark)
    manifest = AdapterManifest(
        task=task,
        version=version,
        base=base.name,
        base_sha256=decides[-1],
        files={},
        watermark=watermark,
        rows=data.cases,
        pairs=len(data.examples),
        settings=msgspec.to_builtins(trainer) | {"data_sha256": decides[0]},
        seed=trainer.seed,
        revision="",
        created_ms=int(time.time() * 1000),
        training=msgspec.structs.asdict(stats),
    )
    publish(scratch, run, manifest)
    shutil.rmtree(run, ignore_errors=True)
    return read_manifest(final)


def _answers(
    settings: Settings, engine: Engine, scratch: Path, manifest: AdapterManifest, holdout: Sequence[HoldoutCase]
) -> dict[str, str]:
    """Returns an adapter's greedy answers by case; a prompt beyond the context has none."""
    version, max_tokens = manifest.version, settings.task(manifest.task).student.max_tokens
    engine.load_adapter(version, adapter_folder(scratch, manifest.task, version))
    answers: dict[str, str] = {}

    def generate(asked: Sequence[HoldoutCase]) -> None:
        prompts = [case.messages for case in asked]
        tools = offered_tools(settings.task(manifest.task), asked)
        made = engine.generate_batch(
            prompts,
            adapter=version,
            temperature=0.0,
            max_tokens=max_tokens,
            thinking=False,
            **({"tools": tools} if any(tools) else {}),
        )
        answers.update((case.case_id, one.text) for case, one in zip(asked, made, strict=True))

    try:
        generate(holdout)
    except ModelError:
        for case in holdout:
            with suppress(ModelError):
                generate([case])
    finally:
        engine.unload_adapter(version)
    return answers


async def _verdicts(
    settings: Settings,
    task: str,
    judge: Judge | None,
    holdout: Sequence[HoldoutCase],
    answers: Mapping[tuple[Arm, int], Mapping[str, str]],
) -> dict[tuple[Arm, int], dict[str, Verdict]]:
    """Returns every side's verdicts by case; equal answers to one prompt are judged once."""
    models: Any = None
    if judge is None:
        if not settings.task(task).rubric.verifier:
            from agents.models import Models

            models = Models(settings)
        judge = task_judge(settings, task, models)
    wanted = {
        (case.case_id, found[case.case_id]) for found in answers.values() for case in holdout if case.case_id in found
    }
    messages = {case.case_id: case.messages for case in holdout}
    told: dict[tuple[str, str], Verdict] = {}
    at_once = asyncio.Semaphore(16)

    async def one(case_id: str, answer: str) -> None:
        async with at_once:
            with suppress(ModelError):
                told[case_id, answer] = await judge(messages[case_id], answer)

    try:
        await asyncio.gather(*(one(*pair) for pair in sorted(wanted)))
    finally:
        if models is not None:
            await models.close()
    return {
        key: {case_id: told[case_id, text] for case_id, text in found.items() if (case_id, text) in told}
        for key, found in answers.items()
    }


def _arm_result(
    arm: Arm, seed: int, manifest: AdapterManifest, verdicts: Mapping[str, Verdict], judged: Sequence[str]
) -> ArmResult:
    passed = sum(verdicts[i].passed for i in judged) / len(judged)
    score = sum(share(verdicts[i]) for i in judged) / len(judged)
    trained = manifest.training
    return ArmResult(
        arm, seed, passed, score, int(trained["steps"]), int(trained["trained_tokens"]), trained["seconds"]
    )


def _passed(verdict: Verdict) -> float:
    return float(verdict.passed)
