"""The rows of the benchmark: which data each method trains on, with which objective, and how it was tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from schemas.errors import SettingsError

Data = Literal[
    "teacher", "draws", "gold", "gold at RGT's steps", "pairs", "shuffled pairs", "B alone", "attempts", "on-policy"
]
Family = Literal["sft", "iw", "rl", "control"]


class Method(NamedTuple):
    """One row: `tuned_as` names the row whose learning rate and epochs it has."""

    name: str
    title: str
    family: Family
    data: Data
    tuned_as: str
    objective: Literal["sft", "iw-sft", "iw-sft-step", "dft", "reinforce", "grpo", "distillation"] = "sft"
    base: str = "student"
    noise: float = 0.0  # share of verdicts the judge gets wrong while data are made; evaluation never errs
    strategy_weight: float = 0.1  # loss weight of strategy tokens, the demo's; published: 1


_ROWS = (
    Method("sft", "SFT, unfiltered teacher", "sft", "teacher", "sft"),
    Method("rejection", "Rejection sampling, best of 4", "sft", "draws", "rejection"),
    Method("isft", "iSFT", "sft", "gold", "isft"),
    Method("rgt", "RGT", "sft", "pairs", "rgt"),
    Method("iw-sft", "iw-SFT, sequence", "iw", "gold", "iw-sft", "iw-sft"),
    Method("iw-sft-step", "iw-SFT, per step", "iw", "gold", "iw-sft-step", "iw-sft-step"),
    Method("sft-q", "SFT(Q)", "iw", "attempts", "sft-q"),
    Method("iw-sft-q", "iw-SFT(Q)", "iw", "attempts", "iw-sft-q", "iw-sft"),
    Method("dft", "DFT", "iw", "gold", "dft", "dft"),
    Method("reinforce", "REINFORCE", "rl", "on-policy", "reinforce", "reinforce"),
    Method("grpo", "GRPO", "rl", "on-policy", "grpo", "grpo"),
    Method("distillation", "On-policy distillation", "rl", "on-policy", "distillation", "distillation"),
    Method("isft-steps", "iSFT at RGT's steps", "control", "gold at RGT's steps", "isft"),
    Method("rgt-shuffled", "RGT, strategies shuffled", "control", "shuffled pairs", "rgt"),
    Method("rgt-b", "RGT, pair B alone", "control", "B alone", "rgt"),
    Method("rgt-w0", "RGT, strategy weight 0", "control", "pairs", "rgt", strategy_weight=0.0),
    Method("rgt-w1", "RGT, strategy weight 1", "control", "pairs", "rgt", strategy_weight=1.0),
    Method("rejection-noise5", "Rejection, judge 5 % wrong", "control", "draws", "rejection", noise=0.05),
    Method("isft-noise5", "iSFT, judge 5 % wrong", "control", "gold", "isft", noise=0.05),
    Method("rgt-noise5", "RGT, judge 5 % wrong", "control", "pairs", "rgt", noise=0.05),
    Method("rejection-noise20", "Rejection, judge 20 % wrong", "control", "draws", "rejection", noise=0.2),
    Method("isft-noise20", "iSFT, judge 20 % wrong", "control", "gold", "isft", noise=0.2),
    Method("rgt-noise20", "RGT, judge 20 % wrong", "control", "pairs", "rgt", noise=0.2),
    Method("hard-rejection", "Hard base, rejection", "control", "draws", "rejection", base="hard"),
    Method("hard-isft", "Hard base, iSFT", "control", "gold", "isft", base="hard"),
    Method("hard-rgt", "Hard base, RGT", "control", "pairs", "rgt", base="hard"),
    Method("hard-reinforce", "Hard base, REINFORCE", "control", "on-policy", "reinforce", "reinforce", base="hard"),
)
METHODS: dict[str, Method] = {method.name: method for method in _ROWS}


class Tuned(NamedTuple):
    """Learning rate and passes over the prompts."""

    learning_rate: float
    epochs: int


# Every tuned row had these four trials at TUNING_SIZE prompts of a seed of its own, on validation prompts that are
# not the holdout's (`goldstream methods --tune`). On-policy rows draw fresh samples in each pass.
TUNING_SIZE = 200
_SUPERVISED = (Tuned(1e-3, 3), Tuned(3e-3, 3), Tuned(1e-3, 6), Tuned(3e-3, 6))
_FEW_ROWS = (Tuned(1e-3, 12), Tuned(3e-3, 12), Tuned(1e-3, 24), Tuned(3e-3, 24))  # one prompt in eight has a pass
_ONE_SAMPLE = (Tuned(1e-3, 4), Tuned(3e-3, 4), Tuned(1e-3, 8), Tuned(3e-3, 8))
_EIGHT_SAMPLES = (Tuned(1e-3, 1), Tuned(3e-3, 1), Tuned(1e-3, 2), Tuned(3e-3, 2))


def trials(method: Method) -> tuple[Tuned, ...]:
    """Returns what is tried when a row is tuned: four trials for each."""
    if method.data == "draws":
        return _FEW_ROWS
    if method.family != "rl":
        return _SUPERVISED
    return _EIGHT_SAMPLES if method.objective == "grpo" else _ONE_SAMPLE


# What won; trainer/LOG.md has the figures.
TUNED: dict[str, Tuned] = {
    "sft": Tuned(3e-3, 3),
    "rejection": Tuned(1e-3, 12),
    "isft": Tuned(1e-3, 3),
    "rgt": Tuned(3e-3, 3),
    "iw-sft": Tuned(1e-3, 3),
    "iw-sft-step": Tuned(3e-3, 3),
    "sft-q": Tuned(1e-3, 3),
    "iw-sft-q": Tuned(1e-3, 3),
    "dft": Tuned(1e-3, 3),
    "reinforce": Tuned(1e-3, 8),
    "grpo": Tuned(1e-3, 2),
    "distillation": Tuned(1e-3, 8),
}


def chosen(only: Sequence[str]) -> list[Method]:
    """Returns the named rows in the table's order, all for none; a family's name stands for its rows.

    Raises SettingsError for a name that is neither.
    """
    families = {method.family for method in _ROWS}
    unknown = [name for name in only if name not in METHODS and name not in families]
    if unknown:
        raise SettingsError(
            f"--only {', '.join(unknown)}: no such method. Expected a family ({', '.join(sorted(families))}) or some "
            f"of {', '.join(METHODS)}"
        )
    return [method for method in _ROWS if not only or method.name in only or method.family in only]
