"""What it costs to train on the pairs of a case: ours, ours without sharing prompts, and TRL's SFTTrainer with packing.

`make bench-train` runs it in an environment of its own, where TRL is: one model with random weights, the same pairs,
the same LoRA, in one process. A first round of a step is not counted; the others are interleaved, ratios are paired,
and the median counts. On a CPU there is one thread, and time is CPU time of the process, so that neighbours on the
machine do not count. Loading is left out; our runs begin with a step that only warms up, which on a GPU is of full
size. --json FILE keeps the figures.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from msgspec.structs import replace
from tiny import _tokenizer

from schemas.settings import Trainer
from trainer.dataset import Example
from trainer.loop import train_lora

SIZES: dict[str, dict[str, int]] = {
    "60m": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12}
    | {"num_key_value_heads": 4, "head_dim": 64, "vocab_size": 16384},
    "0.5b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 65536},
}
ANSWER, STRATEGY, THINK = 300, 60, 4  # tokens; the empty think block of pair A, the tags of pair B's
RANK = 16

Clock = Callable[[], float]


class Arm(NamedTuple):
    """One way to train; returns the seconds of an epoch."""

    name: str
    seconds: Callable[[list[Example]], float]


def pairs_of(cases: int, prompt: int, vocab: int, answer: int = ANSWER) -> list[Example]:
    """Returns pair A and B of random cases, as trainer.dataset lays them out."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, min(vocab, 400), (count,), generator=generator).tolist())

    examples = []
    for number in range(cases):
        x, y, strategy, empty = tokens(prompt), tokens(answer), tokens(STRATEGY), tokens(THINK)
        for branch, masked, trained in (("A", x + empty, y), ("B", x, strategy + y)):
            weights = (*[0.0] * len(masked), *[1.0] * len(trained))
            examples.append(Example(f"{number:04d}", branch, masked + trained, weights, len(masked)))  # type: ignore[arg-type]
    return examples


def with_warm_up(examples: list[Example], settings: Trainer, *, full: bool) -> list[Example]:
    """Returns the examples with cases before them that our loop takes first, small ones unless `full`."""
    count = settings.batch_size
    order = list(range(len(examples) // 2 + count))
    random.Random(f"{settings.seed}:0").shuffle(order)  # as the loop does
    both = pairs_of(count, 500 if full else 8, 400, answer=ANSWER if full else 8) + examples
    return [replace(e, case_id=f"{order[index // 2]:04d}") for index, e in enumerate(both)]


def ours(base: Path, settings: Trainer, clock: Clock) -> Callable[[list[Example]], float]:
    """Returns what times our loop under these settings."""

    def seconds(examples: list[Example]) -> float:
        times: list[float] = []
        warmed = with_warm_up(examples, settings, full=settings.dtype == "bf16")
        with tempfile.TemporaryDirectory() as out:
            train_lora(base, warmed, settings, Path(out), progress=lambda *_: times.append(clock()))
        return times[-1] - times[0]

    return seconds


def trl(base: Path, settings: Trainer, clock: Clock, **options: Any) -> Callable[[list[Example]], float]:
    """Returns what times TRL's SFTTrainer: packing on, its defaults unless `options` say otherwise."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Steps(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.times.append(clock())

        on_train_end = on_train_begin

    def seconds(examples: list[Example]) -> float:
        rows = [{"input_ids": list(e.input_ids), "completion_mask": [int(w > 0) for w in e.weights]} for e in examples]
        steps = Steps()
        with tempfile.TemporaryDirectory() as out:
            config = SFTConfig(
                output_dir=out,
                packing=True,
                completion_only_loss=True,
                max_length=max(1024, *(len(e.input_ids) for e in examples)),  # its default would cut; longer is slower
                per_device_train_batch_size=1,  # it flattens a batch into one row with a dense mask: 8 is far slower
                gradient_accumulation_steps=2 * settings.batch_size,  # as many sequences a step as ours
                num_train_epochs=1,
                learning_rate=settings.learning_rate,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
                **options,
            )
            lora = LoraConfig(
                task_type="CAUSAL_LM", target_modules="all-linear", r=settings.rank, lora_alpha=settings.alpha
            )
            trainer = SFTTrainer(
                model=str(base),
                args=config,
                train_dataset=Dataset.from_list(rows),
                processing_class=_tokenizer(),
                peft_config=lora,
                callbacks=[steps],
            )
            trainer.train()
        return steps.times[-1] - steps.times[0]

    return seconds


def write_model(folder: Path, size: str) -> int:
    """Writes a random Qwen3 of that size and returns its number of parameters."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES[size], max_position_embeddings=8192, tie_word_embeddings=True))
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return int(sum(p.numel() for p in model.parameters()))


def formula(prompt: int) -> float:
    """Returns the saving in linear layers, (2P + 2a + s) / (P + 2a + s)."""
    return (2 * prompt + 2 * ANSWER + STRATEGY) / (prompt + 2 * ANSWER + STRATEGY)


def bench(args: argparse.Namespace, prompt: int, base: Path, parameters: int) -> dict[str, Any]:
    """Runs all arms in interleaved rounds on the same pairs and returns the figures."""
    gpu = args.device == "cuda"
    settings = Trainer(
        rank=RANK,
        alpha=32,
        epochs=1,
        batch_size=args.batch,
        threads=0 if gpu else 1,
        dtype="bf16" if gpu else "fp32",
        checkpoint_every_s=0,
        max_length=8192,
    )
    separate = replace(settings, share_prompts=False)
    clock: Clock = time.perf_counter if gpu else time.process_time
    plain = {"gradient_checkpointing": False} | ({} if gpu else {"bf16": False})
    arms = [Arm("ours", ours(base, settings, clock)), Arm("unshared", ours(base, separate, clock))]
    if not args.no_trl:
        arms.append(Arm("trl", trl(base, settings, clock)))
        arms.append(Arm("trl_tuned", trl(base, settings, clock, **plain)))
    measured = args.batch * args.steps
    examples = pairs_of(measured, prompt, SIZES[args.size]["vocab_size"])
    tokens = sum(len(e.input_ids) for e in examples)
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for arm in arms:  # memory that a process touches for the first time costs it as much again
        arm.seconds(examples[: 2 * args.batch])
    for number in range(args.rounds):
        for arm in arms if number % 2 == 0 else reversed(arms):
            seconds[arm.name].append(arm.seconds(examples))
            print(f"  prompt {prompt}, round {number + 1}: {arm.name} {seconds[arm.name][-1]:.2f} s", flush=True)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        f"{name}/ours": statistics.median(v / o for v, o in zip(values, seconds["ours"], strict=True))
        for name, values in seconds.items()
        if name != "ours"
    }
    expected = formula(prompt)
    result: dict[str, Any] = {
        "prompt_tokens": prompt,
        "answer_tokens": ANSWER,
        "strategy_tokens": STRATEGY,
        "cases_measured": measured,
        "pair_tokens": tokens,
        "seconds": seconds,
        "epoch_seconds_per_1000_cases": {name: 1000 * s / measured for name, s in median.items()},
        "tokens_per_s": {name: tokens / s for name, s in median.items()},
        "ratios": ratios,
        "formula": expected,
        "share_of_formula": ratios["unshared/ours"] / expected,
    }
    if gpu:
        forwarded = measured * (prompt + 2 * ANSWER + STRATEGY)  # LoRA: forward 2N, backward to activations 2N
        result["mfu"] = 4 * parameters * forwarded / median["ours"] / (args.peak_tflops * 1e12)
    return result


def main() -> None:
    """Runs the bench and prints its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=tuple(SIZES), default="0.5b" if torch.cuda.is_available() else "60m")
    parser.add_argument("--prompts", type=int, nargs="+", default=[2000, 500])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="measured steps a run")
    parser.add_argument("--batch", type=int, default=8 if torch.cuda.is_available() else 1, help="cases a step")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU in bf16, for the MFU")
    parser.add_argument("--no-trl", action="store_true")
    args = parser.parse_args()
    if (args.device == "cuda") != torch.cuda.is_available():
        parser.error(f"--device {args.device}, but torch finds {'a' if torch.cuda.is_available() else 'no'} GPU")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if args.device == "cpu":
        torch.set_num_threads(1)
    figures: dict[str, Any] = {"device": args.device, "size": args.size, "rank": RANK, "machine": platform.machine()}
    figures |= {"torch": torch.__version__, "clock": "wall" if args.device == "cuda" else "CPU time of the process"}
    with tempfile.TemporaryDirectory() as folder:
        figures["parameters"] = write_model(Path(folder), args.size)
        figures["runs"] = []
        for prompt in args.prompts:
            figures["runs"].append(bench(args, prompt, Path(folder), figures["parameters"]))
            if args.json:
                args.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{figures['parameters'] / 1e6:.0f} M parameters, LoRA rank {RANK}, {figures['device']}, {figures['clock']}")
    print(
        "tokens/s counts the tokens of both pairs in full, whatever an arm shares: ratios are of time for equal pairs"
    )
    print(f"{'prompt':>7} {'arm':>10} {'tokens/s':>9} {'s/1000 cases':>13} {'time / ours':>12}")
    for run in figures["runs"]:
        for name, rate in run["tokens_per_s"].items():
            ratio = run["ratios"].get(f"{name}/ours", 1.0)
            epoch = run["epoch_seconds_per_1000_cases"][name]
            print(f"{run['prompt_tokens']:>7} {name:>10} {rate:>9.0f} {epoch:>13.0f} {ratio:>12.2f}")
        print(
            f"{run['prompt_tokens']:>7} formula {run['formula']:.2f}, reached {100 * run['share_of_formula']:.0f} %"
            + (f", MFU {100 * run['mfu']:.0f} %" if "mfu" in run else "")
        )


if __name__ == "__main__":
    main()
