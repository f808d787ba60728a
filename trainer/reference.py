"""Log-probabilities of the trained tokens under the reference: the base with its adapters off.

iw-SFT weighs by them (trainer.objectives). They never refresh, so trainer.loop has them computed once, in fp32, and
kept in a file of the run's working folder, where a run that resumes finds them again. The file is pinned to the base,
the gold watermark and every trained token: of anything else it is not the reference, and is computed anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from schemas.errors import TrainingError
from trainer.dataset import Branch, Example

log = logging.getLogger(__name__)

# PEFT's initialisations that leave the base's weights alone. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA write W minus what
# A and B then hold into the base itself: with the adapter off, what remains is no model anybody trained.
_KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal", "mica")

References = dict[tuple[str, Branch], Tensor]  # (case id, branch) -> fp32 (n,), of the tokens whose weight is above 0
Forward = Callable[[Sequence[Example]], Iterable[Tensor]]  # one tensor (n,) an example, in order


def check_reference(lora: Any) -> None:
    """Raises TrainingError where a PEFT LoraConfig makes the base with its adapters off another model than the base."""
    init, bias = getattr(lora, "init_lora_weights", True), getattr(lora, "bias", "none")
    if init not in _KEEPS_BASE:
        raise TrainingError(
            f"init_lora_weights is {init!r}, which rewrites the base's weights: with the adapter off they are no "
            'reference for the importance weights. Use the default initialisation, or trainer.objective = "sft".'
        )
    if bias != "none":
        raise TrainingError(
            f"bias is {bias!r}, which trains biases of the base itself: with the adapter off it is no longer the "
            'reference. Set bias = "none", or trainer.objective = "sft".'
        )


def reference_logprobs(
    path: Path, examples: Sequence[Example], forward: Forward, *, base_sha256: str, watermark: Mapping[int, int]
) -> References:
    """Returns the reference's log-probabilities, nats, of every trained token: from `path`, else from `forward`.

    1. the pin: a hash of base, watermark and all distinct examples' tokens, and which of them are trained;
    2. where `path` holds this pin undamaged, that is the result;
    3. else `forward` runs once over the distinct examples (copies of a case share theirs), adapters off;
    4. its result is checked, and written beside `path` and renamed, so that no reader sees a half file.

    Call `check_reference` first. Raises TrainingError where `forward` returns another number of tokens or no numbers,
    and where the file cannot be written.
    """
    distinct = {(example.case_id, example.branch): example for example in examples}
    ordered = [distinct[key] for key in sorted(distinct)]
    pin = _pin(ordered, base_sha256, watermark)  # 1
    lengths = [sum(weight > 0 for weight in example.weights[1:]) for example in ordered]
    flat_N = _read(path, pin, sum(lengths))  # 2
    if flat_N is None:
        flat_N = _computed(ordered, lengths, forward)  # 3
        _write(path, pin, flat_N)  # 4
    return dict(zip(sorted(distinct), torch.split(flat_N, lengths), strict=True))


def _pin(examples: Sequence[Example], base_sha256: str, watermark: Mapping[int, int]) -> str:
    digest = hashlib.sha256(json.dumps([base_sha256, sorted(watermark.items())]).encode())
    for example in examples:
        trained = [weight > 0 for weight in example.weights]
        digest.update(json.dumps([example.case_id, example.branch, example.input_ids, trained]).encode())
    return digest.hexdigest()


def _computed(examples: Sequence[Example], lengths: Sequence[int], forward: Forward) -> Tensor:
    with torch.no_grad():
        found = [logprobs_N.detach().to("cpu", torch.float32) for logprobs_N in forward(examples)]
    if [len(logprobs_N) for logprobs_N in found] != list(lengths):
        raise TrainingError(
            f"the reference's forward pass returned {sum(map(len, found))} log-probabilities for {len(found)} "
            f"examples; expected {sum(lengths)} for {len(lengths)}, one for each trained token. This is an error of "
            "the training loop: please report it."
        )
    for example, logprobs_N in zip(examples, found, strict=True):
        if not math.isfinite(float(logprobs_N.sum())):
            raise TrainingError(
                f"the base gives case {example.case_id}, branch {example.branch}, a log-probability that is no finite "
                "number, so nothing can be weighed by it. Check the base's weights, or the number format it runs in."
            )
    return torch.cat(found) if found else torch.zeros(0)


def _read(path: Path, pin: str, expected: int) -> Tensor | None:
    """Returns the cached log-probabilities, None where there are none of this pin."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header, flat_N = file.metadata() or {}, file.get_tensor("logprobs").clone()
    except (SafetensorError, OSError) as error:
        log.warning("%s is damaged and is computed anew: %s", path.name, error)
        return None
    if header.get("pin") != pin:
        log.info("%s is of another base, watermark or data and is computed anew", path.name)
        return None
    if len(flat_N) != expected or header.get("sha256") != _sha256(flat_N):
        log.warning("%s is damaged and is computed anew: its bytes are not those that were written", path.name)
        return None
    found: Tensor = flat_N
    return found


def _write(path: Path, pin: str, flat_N: Tensor) -> None:
    content = save({"logprobs": flat_N}, {"pin": pin, "sha256": _sha256(flat_N)})
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
        raise TrainingError(
            f"the reference's log-probabilities ({len(content):,} bytes) cannot be written to {path}: {error}. Free "
            "space on that disk, or move state_dir to a larger one; nothing half-written is left."
        ) from error


def _sha256(flat_N: Tensor) -> str:
    return hashlib.sha256(flat_N.contiguous().numpy().tobytes()).hexdigest()
