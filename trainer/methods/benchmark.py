"""`goldstream methods`: plans the runs, has them done, and gathers their figures into one report.

What matters most comes first, so that a benchmark that is stopped early still has whole curves.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from schemas.errors import GoldstreamError, SettingsError
from trainer.methods.curves import (
    GAIN,
    GRID,
    Interval,
    crossing,
    fit_log,
    mean_interval,
    prompts_needed,
    relative,
)
from trainer.methods.runs import RunResult, RunSpec, Score, base_scores, is_done, restore, run_once
from trainer.methods.table import METHODS, TUNED, TUNINGS, Method, Tuned
from trainer.methods.teacher import make_models
from trainer.methods.world import ROOT, World, world_of

SIZES = (25, 50, 100, 200, 500, 1000)
CONTROL_SIZES = (50, 200)
LARGE = 200  # runs above this are dear
SEEDS = 5
FEW_SEEDS = 3  # of rows that sample as they learn
MIN_SIZES = 3  # a line through two points fits whatever they are
PASS_TARGET = 0.75  # the second yardstick: a base that passes 6 % says nothing by its +25 %
TIE = 0.005  # normalised score; the standard error of a score over 200 prompts is about this

Say = Callable[[str], None]


class Plan(NamedTuple):
    """What to run."""

    methods: Sequence[Method]
    sizes: Sequence[int] = SIZES
    seeds: int = SEEDS
    holdout: int = 200
    unseen: int = 100
    task: str = "scribe"

    def specs(self) -> list[RunSpec]:
        """Returns the runs, what matters most first and the dearest last, so that an early stop leaves whole curves."""
        few = range(min(FEW_SEEDS, self.seeds))
        late = range(len(few), self.seeds)
        small, large = [n for n in self.sizes if n <= LARGE], [n for n in self.sizes if n > LARGE]
        controls = [n for n in CONTROL_SIZES if n in self.sizes] or list(self.sizes)
        first = few[:1]
        order: list[tuple[str, Sequence[int], Sequence[int]]] = [("sft", small, few)]
        order += [("iw", controls[:1], few), ("rl", controls[:1], few), ("control", controls[:1], few[:2])]
        order += [("sft", large[:1], first), ("iw", controls, first), ("rl", controls, first), ("sft", large, first)]
        order += [("control", controls[:1], few), ("iw", controls, few), ("sft", large[:1], few), ("sft", small, late)]
        order += [("rl", small, few), ("control", controls, few), ("sft", large, few), ("iw", self.sizes, few)]
        order += [("sft", large, late), ("iw", self.sizes, late), ("control", controls, late)]
        order += [("rl", [n], few) for n in large]
        specs = [
            self._spec(method, size, seed)
            for family, sizes, seeds in order
            for seed in seeds
            for size in sizes
            for method in self.methods
            if method.family == family
        ]
        return list(dict.fromkeys(specs))

    def _spec(self, method: Method, size: int, seed: int) -> RunSpec:
        tuned = TUNED[method.tuned_as]
        return RunSpec(
            method=method.name,
            size=size,
            seed=str(seed),
            learning_rate=tuned.learning_rate,
            epochs=tuned.epochs,
            holdout=self.holdout,
            unseen=self.unseen,
            task=self.task,
            thinking=method.name == "rgt" and seed < FEW_SEEDS,
        )


QUICK: dict[str, Any] = {"sizes": (8, 16), "seeds": 1, "holdout": 24, "unseen": 12}  # fields of a Plan


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a benchmark found."""

    task: str
    at: str
    revision: str
    bases: dict[str, list[Score]]  # base -> its own score on holdout and unseen
    curves: dict[str, list[dict[str, Any]]]  # method -> one entry a size
    fits: dict[str, dict[str, float]]  # method -> a, b, r2 of the normalised score
    needed: dict[str, dict[str, float | None]]  # yardstick -> method -> unique prompts; null: not reached
    relative: dict[str, dict[str, float | None]]  # the same as multiples of RGT's
    by_seed: dict[str, list[float]]  # method -> its multiple of RGT's prompts, each seed with its own fits
    differences: dict[str, list[dict[str, Any]]]  # method -> pass rate less iSFT's, paired by seed, one entry a size
    failures: list[str]
    runs: list[RunResult]


def run_benchmark(folder: Path, plan: Plan, *, jobs: int, say: Say, report_only: bool = False) -> Report:
    """Does the plan's runs that are not in the folder yet and returns the report over all of them.

    A run that fails is told and left out; the next call tries it again. With `report_only` nothing is run: the report
    is over what is there. Raises SettingsError where that is nothing.
    """
    torch.set_num_threads(1)
    world = world_of(plan.task)
    specs = plan.specs()
    if report_only:
        specs = [spec for spec in specs if is_done(folder, spec)]
        if not specs:
            raise SettingsError(f"{folder} holds no finished run of this plan; leave out --report to run it")
    _prepare(folder, world)
    results: list[RunResult] = []
    failures: list[str] = []
    for number, (spec, result, error) in enumerate(_do(folder, specs, jobs), 1):
        head = f"[{number}/{len(specs)}] {spec.method}, {spec.size} prompts, seed {spec.seed}"
        if result is None:
            failures.append(f"{spec.key()}: {error}")
            say(f"{head}: failed: {error}")
        else:
            results.append(result)
            say(f"{head}: {_figures(result)}")
    return summarise(folder, world, results, failures)


def restore_runs(folder: Path, path: Path) -> int:
    """Puts the finished runs of an earlier report's JSON into the folder; returns how many were not there.

    Raises SettingsError for a file that is no report.
    """
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.DecodeError) as error:
        raise SettingsError(f"{path} is no report of `goldstream methods --json`: {error}") from error
    return restore(folder, report.runs)


def tune(folder: Path, *, jobs: int, say: Say, task: str = "scribe") -> dict[str, Tuned]:
    """Runs every group's trials on the validation prompts and returns the best of each by mean normalised score.

    Of trials within TIE of the best, which their runs cannot tell apart, it is the one of fewest epochs, then of the
    highest score. The benchmark itself takes table.TUNED, where the outcome is written down.
    """
    torch.set_num_threads(1)
    _prepare(folder, World(task))
    groups = {
        RunSpec(
            method=row,
            size=size,
            seed="tune",
            learning_rate=trial.learning_rate,
            epochs=trial.epochs,
            split="validation",
            task=task,
        ): name
        for name, tuning in TUNINGS.items()
        for row in tuning.rows
        for size in tuning.sizes
        for trial in tuning.trials
    }
    tried: dict[str, dict[Tuned, list[float]]] = {}
    for spec, result, error in _do(folder, list(groups), jobs):
        figures = error if result is None else _figures(result)
        say(f"{spec.method}, {spec.size} prompts, rate {spec.learning_rate:g}, {spec.epochs} epochs: {figures}")
        if result is not None:
            trial = Tuned(spec.learning_rate, spec.epochs)
            tried.setdefault(groups[spec], {}).setdefault(trial, []).append(result.seen.score)
    return {
        name: best_trial([(sum(scores) / len(scores), trial) for trial, scores in found.items()])
        for name, found in tried.items()
    }


def best_trial(tried: Sequence[tuple[float, Tuned]]) -> Tuned:
    """Returns the trial to keep of (score, trial)."""
    best = max(score for score, _ in tried)
    near = [(trial.epochs, -score, trial) for score, trial in tried if score >= best - TIE]
    return min(near)[-1]


def summarise(folder: Path, world: World, results: Sequence[RunResult], failures: Sequence[str]) -> Report:
    """Returns the report over finished runs."""
    holdout = results[0].spec.holdout if results else 200
    unseen = results[0].spec.unseen if results else 100
    bases = {name: list(base_scores(folder, world, name, holdout, unseen)) for name in ("student", "hard", "teacher")}
    grouped: dict[str, dict[int, list[RunResult]]] = {}
    for result in results:
        grouped.setdefault(result.spec.method, {}).setdefault(result.spec.size, []).append(result)
    order = [name for name in METHODS if name in grouped]
    curves = {name: [_point(size, runs) for size, runs in sorted(grouped[name].items())] for name in order}
    learning = {
        name: curve for name, curve in curves.items() if len(curve) >= MIN_SIZES and METHODS[name].family != "control"
    }
    target = bases["student"][0].score * (1 + GAIN)
    fits = {name: fit_log([(p["size"], p["score"]["mean"]) for p in curve]) for name, curve in learning.items()}
    needed = {
        "score +25 %, fitted": {name: prompts_needed(fit, target) for name, fit in fits.items()},
        "score +25 %, measured": _crossings(learning, "size", "score", bases["student"][0].score, target),
        f"{PASS_TARGET:.0%} pass, measured": _crossings(
            learning, "size", "passed", bases["student"][0].passed, PASS_TARGET
        ),
        f"{PASS_TARGET:.0%} pass, judge calls": _crossings(
            {name: curve for name, curve in learning.items() if curve[0]["judge_calls"]},
            "judge_calls",
            "passed",
            bases["student"][0].passed,
            PASS_TARGET,
        ),
    }
    return Report(
        task=world.task,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        revision=revision(),
        bases=bases,
        curves=curves,
        fits={name: fit._asdict() for name, fit in fits.items()},
        needed={what: {name: _finite(n) for name, n in found.items()} for what, found in needed.items()},
        relative={
            what: {name: _finite(n) for name, n in relative(found, "rgt").items()} for what, found in needed.items()
        },
        by_seed=_ratios_by_seed(grouped, target),
        differences={
            name: _differences(grouped[name], grouped.get("isft", {}))
            for name in order
            if name != "isft" and METHODS[name].base == "student"
        },
        failures=list(failures),
        runs=sorted(results, key=lambda r: (list(METHODS).index(r.spec.method), r.spec.size, r.spec.seed)),
    )


def revision() -> str:
    """Returns the revision of the code, "" outside a checkout."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip()


def _prepare(folder: Path, world: World) -> None:
    (folder / "models").mkdir(parents=True, exist_ok=True)
    make_models(folder, world, ("teacher", "hard"))


def _do(folder: Path, specs: Sequence[RunSpec], jobs: int) -> Iterator[tuple[RunSpec, RunResult | None, str]]:
    """Yields every run's outcome as it comes, by `jobs` processes of one thread each."""
    tasks = [(folder, spec, revision()) for spec in specs]
    if jobs == 1:
        yield from map(_one, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=_alone_with_signals) as pool:
        yield from pool.imap_unordered(_one, tasks)


def _one(task: tuple[Path, RunSpec, str]) -> tuple[RunSpec, RunResult | None, str]:
    folder, spec, code = task
    try:
        return spec, run_once(folder, spec, world_of(spec.task), code), ""
    except GoldstreamError as error:
        return spec, None, str(error)


def _alone_with_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)


def _figures(result: RunResult) -> str:
    return (
        f"{result.seen.passed:.1%} pass, score {result.seen.score:.1%}, unseen {result.unseen.passed:.1%}, "
        f"{result.steps} steps, {result.judge_calls} judge calls, {result.cpu_s:.1f} s"
        f"{', ' + result.note if result.note else ''}"
    )


def _point(size: int, runs: Sequence[RunResult]) -> dict[str, Any]:
    """Returns a curve's entry: means over seeds, with intervals for what is judged."""
    judged = {
        "score": [r.seen.score for r in runs],
        "passed": [r.seen.passed for r in runs],
        "unseen_passed": [r.unseen.passed for r in runs],
        "thinking_passed": [r.thinking.passed for r in runs if r.thinking is not None],
    }
    spent = ("cases", "steps", "judge_calls", "generated_tokens", "trained_tokens", "cpu_s", "effective")
    return (
        {"size": size, "seeds": len(runs)}
        | {name: _interval(mean_interval(values)) for name, values in judged.items() if values}
        | {name: sum(getattr(r, name) for r in runs) / len(runs) for name in spent}
    )


def _interval(found: Interval) -> dict[str, float | None]:
    return {"mean": found.mean, "half": _finite(found.half)}


def _crossings(
    curves: dict[str, list[dict[str, Any]]], axis: str, what: str, base: float, target: float
) -> dict[str, float]:
    """Returns where each measured curve of means, begun at the base's own score at 0, reaches a target."""
    return {
        name: crossing([(0.0, base), *((p[axis], p[what]["mean"]) for p in curve)], target)
        for name, curve in curves.items()
    }


def _ratios_by_seed(grouped: dict[str, dict[int, list[RunResult]]], target: float) -> dict[str, list[float]]:
    """Returns each method's fitted prompts for the target over RGT's, seed by seed, where both have a whole curve."""
    needed: dict[str, dict[str, float]] = {}
    for name, by_size in grouped.items():
        if METHODS[name].family == "control":
            continue
        seeds = set.intersection(*({r.spec.seed for r in runs} for runs in by_size.values()))
        for seed in sorted(seeds) if len(by_size) >= MIN_SIZES else []:
            curve = [(size, r.seen.score) for size, runs in by_size.items() for r in runs if r.spec.seed == seed]
            needed.setdefault(name, {})[seed] = prompts_needed(fit_log(curve), target)
    rgt = needed.get("rgt", {})
    return {
        name: [
            n / rgt[seed]
            for seed, n in found.items()
            if seed in rgt and math.isfinite(n) and GRID[0] < rgt[seed] < math.inf
        ]
        for name, found in needed.items()
    }


def _differences(by_size: dict[int, list[RunResult]], isft: dict[int, list[RunResult]]) -> list[dict[str, Any]]:
    """Returns a method's pass rate less iSFT's of the same size and seed, as a mean with its interval."""
    found = []
    for size, runs in sorted(by_size.items()):
        known = {r.spec.seed: r for r in isft.get(size, ())}
        pairs = [(r, known[r.spec.seed]) for r in runs if r.spec.seed in known]
        if pairs:
            seen = mean_interval([mine.seen.passed - its.seen.passed for mine, its in pairs])
            unseen = mean_interval([mine.unseen.passed - its.unseen.passed for mine, its in pairs])
            entry = {"size": size, "seeds": len(pairs), "passed": _interval(seen), "unseen_passed": _interval(unseen)}
            found.append(entry)
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
