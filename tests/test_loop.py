"""Claims about the training loop: the same curve in parts, after a kill, in two processes; what it refuses."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors import safe_open
from toys import STRATEGY, TOY, a_case
from waiting import wait_until

from schemas.case import Case
from schemas.errors import AdapterError, SetupError, TrainingError
from schemas.outcomes import outcome_row, outcome_table
from schemas.settings import Trainer
from trainer.checkpoint import CHECKPOINT
from trainer.dataset import Example, build_examples
from trainer.distributed import Job
from trainer.loop import train_lora

QUICK = Trainer(rank=8, alpha=8, learning_rate=3e-3, epochs=3, batch_size=2, threads=1)


def change(settings: Trainer, **changes: Any) -> Trainer:
    return msgspec.structs.replace(settings, **changes)


@pytest.fixture(scope="module")
def examples(tokenizer: Any) -> list[Example]:
    """Six pairs of four cases: one has no strategy, one is longer than the rest."""
    cases: list[Case] = [a_case(c, c, answer, strategy=STRATEGY) for c, answer in list(TOY.items())[:2]]
    cases += [
        a_case("plain", "a question " * 20, "no"),
        a_case("long", "which of them " * 30, "yes", strategy=STRATEGY),
    ]
    table = outcome_table([outcome_row(case, 0, offset) for offset, case in enumerate(cases)])
    return build_examples(table, tokenizer, recipe="rgt", strategy_weight=0.5, max_length=512).examples


# A process that trains a job and is killed in the step it is told, after the step's line was logged.
KILLED_AT = """
import sys, os, signal, msgspec
from pathlib import Path
from trainer.distributed import Job
from trainer.loop import train_lora
job = msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=Job)
def kill(step, steps, loss, rate):
    if step == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
train_lora(Path(job.base), job.examples, job.settings, Path(job.out), progress=kill)
"""


def write_job(path: Path, base: Path, examples: Sequence[Example], settings: Trainer, out: Path) -> None:
    job = Job(
        base=str(base),
        examples=list(examples),
        settings=settings,
        out=str(out),
        base_name="",
        watermark={},
        initial="",
        resume=True,
    )
    path.write_bytes(msgspec.msgpack.encode(job))


def curve(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "steps.jsonl").read_text().splitlines()]


def weights(out: Path) -> bytes:
    return (out / "adapter_model.safetensors").read_bytes()


def test_the_curve_is_the_same_in_parts_merged_shared_recomputed_or_not(
    base: Path, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trainer.forward

    reference: list[float] = []
    runs: dict[str, tuple[bool, dict[str, Any]]] = {
        "one row": (False, {"forward_tokens": 100_000}),
        "merged": (True, {"forward_tokens": 100_000}),
        "parts": (True, {"forward_tokens": 1}),
        "separate": (True, {"share_prompts": False}),
        "recomputed": (True, {"gradient_checkpointing": True}),
    }
    for name, (merge, changes) in runs.items():
        monkeypatch.setattr(trainer.forward, "merging_is_cheaper", lambda model, rank, merge=merge: merge)
        train_lora(base, examples, change(QUICK, **changes), tmp_path / name)
        reference = reference or curve(tmp_path / name)
        assert len(reference) == 6
        assert curve(tmp_path / name) == pytest.approx(reference, rel=1e-4), name


@pytest.mark.parametrize("objective", ["sft", "iw-sft", "iw-sft-step", "iw-sft-ema", "dft"])
def test_every_objective_trains_and_logs_its_weights_the_same_in_one_row_or_many(
    base: Path, examples: list[Example], tmp_path: Path, objective: Any
) -> None:
    settings = change(QUICK, objective=objective)
    train_lora(base, examples, settings, tmp_path / "one")
    train_lora(base, examples, change(settings, forward_tokens=1, share_prompts=False), tmp_path / "many")
    lines = [
        [json.loads(line) for line in (tmp_path / out / "steps.jsonl").read_text().splitlines()]
        for out in ("one", "many")
    ]
    for key in ("loss", "weight_mean", "weight_max", "weight_ess"):
        one, many = ([line[key] for line in run] for run in lines)
        assert one == pytest.approx(many, rel=2e-3), key
    first, last = lines[0][0], lines[0][-1]
    assert first["tokens_per_s"] > 0
    if objective != "dft":  # q starts at the reference
        assert first["weight_mean"] == pytest.approx(1.0, abs=1e-4)
    assert objective == "sft" or last["weight_mean"] != pytest.approx(1.0, abs=1e-4)


def test_a_killed_run_goes_on_to_the_same_curve_bit_for_bit(
    base: Path, examples: list[Example], tmp_path: Path
) -> None:
    settings = change(QUICK, checkpoint_every_s=1e-9, objective="iw-sft-ema", dropout=0.1)
    whole = train_lora(base, examples, settings, tmp_path / "whole")
    assert whole.resumed_at == 0

    out = tmp_path / "killed"
    write_job(tmp_path / "job", base, examples, settings, out)
    # Killed in the fifth step, after its line was logged and before its checkpoint.
    ended = subprocess.run([sys.executable, "-c", KILLED_AT, str(tmp_path / "job"), "5"], check=False, timeout=200)
    assert ended.returncode == -signal.SIGKILL
    assert len(curve(out)) == 5
    resumed = train_lora(base, examples, settings, out)
    assert resumed.resumed_at == 4
    assert curve(out) == curve(tmp_path / "whole")
    assert weights(out) == weights(tmp_path / "whole")
    assert (resumed.first_loss, resumed.last_loss) == (whole.first_loss, whole.last_loss)


def test_a_stopped_run_goes_on_with_the_next_step(base: Path, examples: list[Example], tmp_path: Path) -> None:
    def stop(step: int, steps: int, loss: float, rate: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    whole = train_lora(base, examples, QUICK, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_lora(base, examples, QUICK, tmp_path / "stopped", progress=stop)
    resumed = train_lora(base, examples, QUICK, tmp_path / "stopped")
    assert (resumed.resumed_at, resumed.last_loss) == (2, whole.last_loss)


def test_a_run_that_ended_is_not_trained_again_and_another_run_starts_anew(
    base: Path, examples: list[Example], tmp_path: Path
) -> None:
    first = train_lora(base, examples, QUICK, tmp_path)
    assert (tmp_path / CHECKPOINT).exists()
    again = train_lora(base, examples, change(QUICK, quiet_s=5.0), tmp_path)  # when runs start changes no run
    assert (again.resumed_at, again.last_loss) == (first.steps, first.last_loss)
    for changed, settings in ((examples[1:], QUICK), (examples, change(QUICK, learning_rate=1e-3))):
        assert train_lora(base, changed, settings, tmp_path).resumed_at == 0
    assert train_lora(base, examples, change(QUICK, learning_rate=1e-3), tmp_path, resume=False).resumed_at == 0


def test_a_damaged_checkpoint_is_not_picked_up(base: Path, examples: list[Example], tmp_path: Path) -> None:
    train_lora(base, examples, QUICK, tmp_path)
    content = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(content[: len(content) // 2])
    assert train_lora(base, examples, QUICK, tmp_path).resumed_at == 0


def test_a_full_disk_ends_the_run_and_leaves_the_checkpoint_before_usable(
    base: Path, examples: list[Example], tmp_path: Path
) -> None:
    settings = change(QUICK, checkpoint_every_s=1e-9)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(step: int, steps: int, loss: float, rate: float) -> None:
        if step == 3:  # two checkpoints are written; from here no file may grow over 100 kB
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    try:
        with pytest.raises(SetupError, match=r"disk is full.*a checkpoint of the run.*stays usable: make room"):
            train_lora(base, examples, settings, tmp_path / "full", progress=fill_the_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == [CHECKPOINT, "steps.jsonl"]
    assert train_lora(base, examples, settings, tmp_path / "full").resumed_at == 2
    train_lora(base, examples, settings, tmp_path / "whole")
    assert weights(tmp_path / "full") == weights(tmp_path / "whole")


def test_two_processes_train_to_the_curve_of_one(base: Path, examples: list[Example], tmp_path: Path) -> None:
    # The moving average has everything that is shared: weights, their mean over the batch, a reference computed once.
    settings = change(QUICK, objective="iw-sft-ema", batch_size=4, forward_tokens=200, share_prompts=False)
    train_lora(base, examples, settings, tmp_path / "one")
    seen: list[tuple[int, int]] = []
    stats = train_lora(
        base,
        examples,
        change(settings, processes=2),
        tmp_path / "two",
        progress=lambda step, steps, loss, rate: seen.append((step, steps)),
    )
    assert curve(tmp_path / "two") == pytest.approx(curve(tmp_path / "one"), rel=1e-4)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (stats.steps, stats.examples, stats.first_loss) == (3, len(examples), curve(tmp_path / "two")[0])
    left = {p.name for p in (tmp_path / "two").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "steps.jsonl", CHECKPOINT} <= left
    assert "job.msgpack" not in left


def test_an_error_in_one_of_two_processes_is_told_and_ends_the_run(
    base: Path, examples: list[Example], tmp_path: Path
) -> None:
    shutil.copytree(base, tmp_path / "broken")
    (tmp_path / "broken/model.safetensors").write_bytes(b"no weights")
    with pytest.raises(TrainingError, match=r"process \d of the run ended with exit status 1.*rank-\d.log"):
        train_lora(tmp_path / "broken", examples, change(QUICK, processes=2), tmp_path / "out")


def test_processes_of_a_stopped_run_end_with_it(base: Path, examples: list[Example], tmp_path: Path) -> None:
    import psutil

    class Stopped(Exception):
        pass

    def stop(step: int, steps: int, loss: float, rate: float) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        train_lora(base, examples, change(QUICK, processes=2, epochs=10_000), tmp_path, progress=stop)

    def at_work() -> bool:
        return any("trainer.distributed" in child.cmdline() for child in psutil.Process().children(recursive=True))

    wait_until(lambda: not at_work(), 10)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_processes_of_a_killed_run_end_with_it(base: Path, examples: list[Example], tmp_path: Path) -> None:
    import psutil

    def at_work() -> list[int]:
        mine = str(tmp_path / "out")
        return [p.pid for p in psutil.process_iter(["cmdline"]) if any(mine in a for a in p.info["cmdline"] or ())]

    write_job(tmp_path / "job", base, examples, change(QUICK, processes=2, epochs=10_000), tmp_path / "out")
    ended = subprocess.run([sys.executable, "-c", KILLED_AT, str(tmp_path / "job"), "1"], check=False, timeout=200)
    assert ended.returncode == -signal.SIGKILL
    wait_until(lambda: not at_work(), 10)
    assert (tmp_path / "out/rank-0.log").exists()  # there were such processes


def test_layers_that_get_an_adapter_can_be_named(base: Path, examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no linear layer named to_q; it has .*q_proj"):
        train_lora(base, examples, change(QUICK, target_modules=("to_q",)), tmp_path / "wrong")
    train_lora(base, examples, change(QUICK, target_modules=("q_proj", "v_proj"), epochs=1), tmp_path / "some")
    with safe_open(tmp_path / "some/adapter_model.safetensors", "pt") as file:
        layers = {name.split(".lora_")[0].rpartition(".")[2] for name in file.keys()}  # noqa: SIM118
    assert layers == {"q_proj", "v_proj"}


def test_sequences_beyond_the_context_are_counted_and_never_cut(
    base: Path, examples: list[Example], tmp_path: Path
) -> None:
    grown: Sequence[Example] = [
        msgspec.structs.replace(e, input_ids=e.input_ids * 60, weights=e.weights * 60) if e.case_id == "long" else e
        for e in examples
    ]
    with pytest.raises(TrainingError, match=r"2 of 7 .*context of 512 tokens.*case long, branch B.*max_length"):
        train_lora(base, grown, QUICK, tmp_path)


def test_a_run_can_continue_from_an_adapter_of_the_same_base_and_shape(
    base: Path, examples: list[Example], tmp_path: Path
) -> None:
    from tiny import make_tiny_model, write_manifest

    train_lora(base, examples, QUICK, tmp_path / "first")
    write_manifest(tmp_path / "first", base, "v0001-abcdef12")
    first, fresh = curve(tmp_path / "first")[-1], curve(tmp_path / "first")[0]
    train_lora(base, examples, change(QUICK, seed=1), tmp_path / "second", initial=tmp_path / "first")
    assert curve(tmp_path / "second")[0] < (first + fresh) / 2
    with pytest.raises(TrainingError, match=r"has rank 8 and alpha 8; the settings ask for 4 and 8"):
        train_lora(base, examples, change(QUICK, rank=4), tmp_path / "third", initial=tmp_path / "first")
    other = make_tiny_model(tmp_path / "other", seed=5)
    with pytest.raises(AdapterError, match="base"):
        train_lora(other, examples, QUICK, tmp_path / "fourth", initial=tmp_path / "first")


def test_bf16_trains_an_fp32_adapter(base: Path, examples: list[Example], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    train_lora(base, examples, change(QUICK, dtype="bf16"), tmp_path / "bf16")
    train_lora(base, examples, QUICK, tmp_path / "fp32")
    assert curve(tmp_path / "bf16") == pytest.approx(curve(tmp_path / "fp32"), rel=0.05)
    assert curve(tmp_path / "bf16") != curve(tmp_path / "fp32")
    assert {str(t.dtype) for t in load_file(tmp_path / "bf16/adapter_model.safetensors").values()} == {"torch.float32"}


def test_people_at_a_terminal_see_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from trainer import progress

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock = iter([100.0, 100.1, 102.0, 110.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = Terminal()
    report = progress.ProgressReport("scribe", stream)
    for step in (11, 12, 21, 111):  # taken up at step 10; the second is too soon to be drawn
        report(step, 111, 0.5, 1234.0)
    assert stream.getvalue().split("\r\x1b[K")[1:] == [
        "scribe [==                      ] 11/111  loss 0.500  1,234 tokens/s",
        "scribe [====                    ] 21/111  loss 0.500  1,234 tokens/s  18 s left",
        "scribe [========================] 111/111  loss 0.500  1,234 tokens/s\n",
    ]


def test_a_log_has_a_line_now_and_then_and_one_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    import io

    from trainer.progress import ProgressReport, time_left

    report = ProgressReport("scribe", io.StringIO())
    with caplog.at_level("INFO"):
        for step in range(1, 101):
            report(step, 100, 0.5, 1234.0)
    assert [record.getMessage() for record in caplog.records] == [
        "scribe: step 1 of 100, loss 0.500, 1234 tokens/s",
        "scribe: step 100 of 100, loss 0.500, 1234 tokens/s",
    ]
    assert [time_left(s) for s in (45, 600, 12_000)] == ["45 s", "10 min", "3 h 20 min"]
