"""The training loop: a LoRA adapter from examples, read top to bottom in `train_lora`.

Called by trainer.run with the examples of trainer.dataset. A run sees all gold so far (DAgger aggregation) and starts
from the base, or from the incumbent where the settings say so; it is reproducible bit by bit on a CPU with one thread.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from schemas.adapters import base_fingerprint
from schemas.errors import TrainingError
from schemas.settings import Trainer
from trainer.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    disk_room,
    keep_lines,
    load_checkpoint,
    run_identity,
    save_checkpoint,
)
from trainer.dataset import Example
from trainer.distributed import STEPS_LOG, Job, processes_of, this_world, train_in_processes
from trainer.forward import (
    WEIGHTS,
    add_adapter,
    base_logprobs,
    check_context,
    load_base,
    may_merge,
    merged_weights,
    packing_of,
    parameters_as,
    trained_logprobs,
)
from trainer.objectives import (
    TokenBatch,
    WeightStats,
    importance_weights,
    normaliser,
    objective_of,
    update_average,
    weight_stats,
    weighted_loss,
)
from trainer.packing import group_by_case
from trainer.reference import References, check_reference, reference_logprobs
from trainer.resident import Resident

log = logging.getLogger("goldstream.trainer")

CLIP_NORM = 1.0
REFERENCE = "reference.safetensors"

Progress = Callable[[int, int, float, float], None]  # step, steps, loss, tokens per second


class TrainingStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did; kept in the adapter's manifest."""

    steps: int
    examples: int
    tokens: int  # of all sequences, over all epochs, as if none shared its prompt
    trained_tokens: int  # of them, those with a loss
    first_loss: float
    last_loss: float  # mean over the last tenth of the steps
    seconds: float  # over all resumptions
    tokens_per_s: float  # of `tokens`
    resumed_at: int = 0  # steps done when it was taken up from a checkpoint; 0: it ran through


def train_lora(
    base: Path,
    examples: Sequence[Example],
    settings: Trainer,
    out: Path,
    *,
    base_name: str = "",
    watermark: Mapping[int, int] | None = None,
    initial: Path | None = None,
    resume: bool = True,
    resident: Resident | None = None,
    progress: Progress = lambda step, steps, loss, tokens_per_s: None,
) -> TrainingStats:
    """Trains an adapter and writes it, its config and steps.jsonl into `out`.

    `base_name` is the name under which the base is served; vLLM compares it with the adapter's config. `watermark`
    pins the cached reference of iw-SFT. `initial` is the folder of an adapter to continue from, of the same base,
    rank and alpha. `resident` may hold the base already, and gets it back; a run of several processes loads its own.

    Checkpoints go to `out` every trainer.checkpoint_every_s, the last one at the end, and stay: whoever publishes the
    adapter removes `out` afterwards. Called again with the same `out` after a kill, the run goes on from there to the
    same loss curve, provided that examples, base, `initial`, torch and the settings that matter are the same; else
    the log says what differs and it starts anew. So a caller that resumes pins its dataset and passes the same folder.
    With trainer.processes other than 1 the run has several processes; `progress` is called in this one. Whatever it
    raises ends the run, with a checkpoint of the step it was told of.

    Raises TrainingError where examples exceed the base's context, where the loss is no number or a process fails;
    AdapterError where `initial` is of another base; SetupError where the disk is full, which leaves the checkpoint
    before usable.
    """
    check_context(examples, base)
    world = this_world()
    if world.size == 1 and processes_of(settings) > 1:
        job = Job(
            base=str(base),
            examples=list(examples),
            settings=settings,
            out=str(out),
            base_name=base_name,
            watermark=dict(watermark or {}),
            initial=str(initial or ""),
            resume=resume,
        )
        return train_in_processes(job, processes_of(settings), progress, TrainingStats)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    out.mkdir(parents=True, exist_ok=True)

    # Model: base frozen, the adapter itself always in fp32.
    objective = objective_of(settings)
    model = load_base(base, settings, world.device, resident)
    packing = packing_of(settings, model.config, world.device)
    torch.manual_seed(settings.seed)  # before LoRA's random A matrices
    model, lora = add_adapter(model, settings, base, initial)
    merge = may_merge(model, settings)
    trainable = [p for p in model.parameters() if p.requires_grad]
    averages = [p.detach().clone() for p in trainable] if objective.needs_average else []
    optimizer = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=0.0, fused=True)

    # Data: all branches of a case stay in one batch; the order depends on the seed and the case ids only.
    cases = group_by_case(examples)
    batches_per_epoch = math.ceil(len(cases) / settings.batch_size)
    steps = batches_per_epoch * settings.epochs
    base_sha256 = base_fingerprint(base)
    references: References = {}
    if objective.needs_reference:
        check_reference(lora)
        with world.first_alone():  # it computes them, the others read its file
            references = reference_logprobs(
                out / REFERENCE,
                examples,
                lambda some: base_logprobs(model, packing, some),
                base_sha256=base_sha256,
                watermark=watermark or {},
            )

    # Resume: every step seeds its random numbers itself, so that these tensors and the position are all there is.
    run = run_identity(base_sha256, examples, settings, initial)
    losses: list[float] = []
    seconds_before = 0.0
    found = load_checkpoint(out, run) if resume else "the caller wants it so"
    if isinstance(found, str):
        level = logging.WARNING if (out / CHECKPOINT).exists() else logging.DEBUG
        log.log(level, "the run starts at its first step: %s", found)
    else:
        _restore(found[1], trainable, averages, optimizer)
        losses, seconds_before = list(found[0].losses), found[0].seconds
        log.info("the run goes on from its checkpoint, at step %d of %d", len(losses), steps)
    resumed_at = len(losses)
    if world.rank == 0:
        keep_lines(out / STEPS_LOG, resumed_at)

    started = checkpointed = time.perf_counter()
    for step in range(resumed_at, steps):
        step_started = time.perf_counter()
        torch.manual_seed(_step_seed(settings.seed, step, world.rank))  # of dropout
        epoch, place = divmod(step, batches_per_epoch)
        order = list(range(len(cases)))
        random.Random(f"{settings.seed}:{epoch}").shuffle(order)
        chosen = order[place * settings.batch_size : (place + 1) * settings.batch_size]
        batch = [cases[index] for index in chosen]
        total_weight = sum(sum(e.weights[1:]) for case in batch for e in case)

        # Forward and backward, row by row; gradients add up over rows and processes.
        merged = merged_weights(model) if merge else {}
        leaves = {name: weight.detach().requires_grad_() for name, weight in merged.items()}
        loss_sum = torch.zeros((), dtype=torch.float64, device=world.device)
        stats = WeightStats()
        for row in world.share(packing.rows(batch)):
            if not len(row.targets_N):
                continue
            proposal_N = None
            if averages:
                with torch.no_grad(), parameters_as(trainable, averages):
                    proposal_N = trained_logprobs(model, row, merged_weights(model) if merge else None)
            logprobs_N = trained_logprobs(model, row, leaves)
            reference = [references[e.case_id, e.branch] for e in row.examples] if references else []
            trained = TokenBatch(
                logprobs_N,
                row.weights_N.to(world.device),
                row.sequence_N.to(world.device),
                torch.cat(reference).to(world.device) if reference else None,
                proposal_N,
            )
            w_N = importance_weights(objective, trained)
            loss = weighted_loss(trained, w_N, total_weight)
            loss.backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
            stats = stats.merged(weight_stats(objective, trained, w_N))
        grads = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        if grads:  # from the gradient of W + s·BA to those of A and B
            torch.autograd.backward([merged[name] for name in grads], list(grads.values()))
        for parameter in trainable:
            if parameter.grad is None:  # this process had no row
                parameter.grad = torch.zeros_like(parameter)
        world.sum([parameter.grad for parameter in trainable if parameter.grad is not None])
        stats = world.merged(stats)
        factor = normaliser(objective, stats)
        world.sum([loss_sum])
        step_loss = loss_sum.item() * factor
        if not math.isfinite(step_loss):
            raise TrainingError(
                f"the loss became {step_loss} at step {step + 1} of {steps} (epoch {epoch + 1}). "
                f"Nothing was published. Lower trainer.learning_rate ({settings.learning_rate:g}) or "
                f"alpha / rank ({settings.alpha} / {settings.rank}), and check the base's weights."
            )

        # Step: scale, clip, move the parameters and then their average.
        if factor != 1.0:
            for parameter in trainable:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        torch.nn.utils.clip_grad_norm_(trainable, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if averages:
            update_average(averages, trainable, settings.ema_decay)

        # Log and checkpoint.
        losses.append(step_loss)
        batch_tokens = sum(len(e.input_ids) for case in batch for e in case)
        rate = batch_tokens / max(time.perf_counter() - step_started, 1e-9)
        line = {"step": step + 1, "steps": steps, "epoch": epoch, "loss": step_loss, "tokens": batch_tokens}
        line |= {"tokens_per_s": round(rate)} | stats.as_log()
        if world.rank == 0:
            with disk_room(out, "the step log"), (out / STEPS_LOG).open("a") as step_log:
                step_log.write(json.dumps(line) + "\n")
        stopped: BaseException | None = None
        try:
            progress(step + 1, steps, step_loss, rate)
        except BaseException as error:  # whoever stops the run finds this step done when it goes on
            stopped = error
        due = stopped is not None or time.perf_counter() - checkpointed >= settings.checkpoint_every_s
        if world.rank == 0 and settings.checkpoint_every_s > 0 and (due or step + 1 == steps):
            seconds = seconds_before + time.perf_counter() - started
            tensors = _state(trainable, averages, optimizer)
            save_checkpoint(out, Checkpoint(run=run, step=step + 1, seconds=seconds, losses=losses), tensors)
            checkpointed = time.perf_counter()
        if stopped is not None:
            raise stopped
    seconds = seconds_before + time.perf_counter() - started

    # Save: weights as safetensors and the config; PEFT's own save would add a model card and ask the hub.
    if world.rank == 0:
        lora.base_model_name_or_path = base_name or base.name
        lora.inference_mode = True
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        with disk_room(out, "the adapter"):
            lora.save_pretrained(str(out))
            save_file(_plain(state), out / WEIGHTS, metadata={"format": "pt"})
    if resident is not None:
        resident.keep(model.unload(), settings, world.device.type)

    tail = losses[-math.ceil(len(losses) / 10) :]
    every = [e for case in cases for e in case]
    tokens = settings.epochs * sum(len(e.input_ids) for e in every)
    return TrainingStats(
        steps=steps,
        examples=len(examples),
        tokens=tokens,
        trained_tokens=settings.epochs * sum(w > 0 for e in every for w in e.weights),
        first_loss=losses[0],
        last_loss=sum(tail) / len(tail),
        seconds=seconds,
        tokens_per_s=tokens / max(seconds, 1e-9),
        resumed_at=resumed_at,
    )


def _step_seed(seed: int, step: int, rank: int) -> int:
    return random.Random(f"{seed}:{step}:{rank}").getrandbits(63)


def _state(
    trainable: Sequence[Tensor], averages: Sequence[Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Returns everything a step changes: parameters, their average, and the optimizer's moments."""
    state = {f"parameter.{index}": parameter for index, parameter in enumerate(trainable)}
    state |= {f"average.{index}": average for index, average in enumerate(averages)}
    for index, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    return _plain(state)


def _restore(
    state: Mapping[str, Tensor],
    trainable: Sequence[Tensor],
    averages: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Puts back what `_state` returned."""
    moments: dict[int, dict[str, Tensor]] = {}
    with torch.no_grad():
        for key, value in state.items():
            kind, index, *name = key.split(".")
            if kind == "optimizer":
                moments.setdefault(int(index), {})[name[0]] = value
            else:
                (trainable if kind == "parameter" else averages)[int(index)].copy_(value)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
