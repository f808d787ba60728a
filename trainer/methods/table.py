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
    """One row: `tuned_as` names the group it shares its learning rate and epochs with."""

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
    Method("sft", "SFT, unfiltered teacher", "sft", "teacher", "supervised"),
    Method("rejection", "Rejection sampling, best of 4", "sft", "draws", "rejection"),
    Method("isft", "iSFT", "sft", "gold", "supervised"),
    Method("rgt", "RGT", "sft", "pairs", "supervised"),
    Method("iw-sft", "iw-SFT, sequence", "iw", "gold", "supervised", "iw-sft"),
    Method("iw-sft-step", "iw-SFT, per step", "iw", "gold", "supervised", "iw-sft-step"),
    Method("sft-q", "SFT(Q)", "iw", "attempts", "supervised"),
    Method("iw-sft-q", "iw-SFT(Q)", "iw", "attempts", "supervised", "iw-sft"),
    Method("dft", "DFT", "iw", "gold", "supervised", "dft"),
    Method("reinforce", "REINFORCE", "rl", "on-policy", "reinforce", "reinforce"),
    Method("grpo", "GRPO", "rl", "on-policy", "grpo", "grpo"),
    Method("distillation", "On-policy distillation", "rl", "on-policy", "distillation", "distillation"),
    Method("isft-steps", "iSFT at RGT's steps", "control", "gold at RGT's steps", "supervised"),
    Method("rgt-shuffled", "RGT, strategies shuffled", "control", "shuffled pairs", "supervised"),
    Method("rgt-b", "RGT, pair B alone", "control", "B alone", "supervised"),
    Method("rgt-w0", "RGT, strategy weight 0", "control", "pairs", "supervised", strategy_weight=0.0),
    Method("rgt-w1", "RGT, strategy weight 1", "control", "pairs", "supervised", strategy_weight=1.0),
    Method("rejection-noise5", "Rejection, judge 5 % wrong", "control", "draws", "rejection", noise=0.05),
    Method("isft-noise5", "iSFT, judge 5 % wrong", "control", "gold", "supervised", noise=0.05),
    Method("rgt-noise5", "RGT, judge 5 % wrong", "control", "pairs", "supervised", noise=0.05),
    Method("rejection-noise20", "Rejection, judge 20 % wrong", "control", "draws", "rejection", noise=0.2),
    Method("isft-noise20", "iSFT, judge 20 % wrong", "control", "gold", "supervised", noise=0.2),
    Method("rgt-noise20", "RGT, judge 20 % wrong", "control", "pairs", "supervised", noise=0.2),
    Method("hard-rejection", "Hard base, rejection", "control", "draws", "rejection", base="hard"),
    Method("hard-isft", "Hard base, iSFT", "control", "gold", "supervised", base="hard"),
    Method("hard-rgt", "Hard base, RGT", "control", "pairs", "supervised", base="hard"),
    Method("hard-reinforce", "Hard base, REINFORCE", "control", "on-policy", "reinforce", "reinforce", base="hard"),
)
METHODS: dict[str, Method] = {method.name: method for method in _ROWS}


class Tuned(NamedTuple):
    """Learning rate and passes over the prompts."""

    learning_rate: float
    epochs: int


class Tuning(NamedTuple):
    """How a group was tuned: each trial on these rows at these sizes; the best mean score of all counts."""

    rows: tuple[str, ...]
    sizes: tuple[int, ...]
    trials: tuple[Tuned, ...]


# Four trials for every group, on the data of a seed of their own and on validation prompts that are not the holdout's
# (`goldstream methods --tune`). The supervised rows share one setting: tuned one by one on 200 prompts they came out
# with different rates, and at 25 prompts the rate, not the method, decided. On-policy rows sample anew in each pass.
_SUPERVISED = (Tuned(1e-3, 3), Tuned(3e-3, 3), Tuned(1e-3, 6), Tuned(3e-3, 6))
_FEW_ROWS = (Tuned(1e-3, 12), Tuned(3e-3, 12), Tuned(1e-3, 24), Tuned(3e-3, 24))  # one prompt in eight has a pass
_ONE_SAMPLE = (Tuned(1e-3, 4), Tuned(3e-3, 4), Tuned(1e-3, 8), Tuned(3e-3, 8))
_EIGHT_SAMPLES = (Tuned(1e-3, 1), Tuned(3e-3, 1), Tuned(1e-3, 2), Tuned(3e-3, 2))


TUNINGS = {
    "supervised": Tuning(("isft", "rgt"), (50, 200), _SUPERVISED),
    "rejection": Tuning(("rejection",), (200,), _FEW_ROWS),
    "reinforce": Tuning(("reinforce",), (200,), _ONE_SAMPLE),
    "distillation": Tuning(("distillation",), (200,), _ONE_SAMPLE),
    "grpo": Tuning(("grpo",), (200,), _EIGHT_SAMPLES),
}
# What won; trainer/LOG.md has the figures.
TUNED: dict[str, Tuned] = {
    "supervised": Tuned(1e-3, 6),
    "rejection": Tuned(1e-3, 12),
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
