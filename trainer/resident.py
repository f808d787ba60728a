"""What the runs of a task need besides gold, kept loaded between them: tokenizer, pairs already tokenised, the base.

The trainer's service prepares it as gold lands (`Runner.prepare`), so that a run that is due begins with its first
step. trainer.resident_mb bounds the base and the pairs together; torch itself comes on top, as after any run. Nothing
here decides what a run is: what changed on disk is loaded anew, and a run without it trains the same adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.adapters import base_fingerprint, file_sha256
from schemas.forgotten import Forgotten, read_forgotten
from schemas.settings import Trainer
from trainer.pairs import PairMemory

HASHED_BYTES = 64 << 20  # larger files of a tokenizer count by size and time
CLOCK = "strftime_now"  # a chat template that asks it renders otherwise tomorrow


class Resident:
    """One task's; the caller holds its lease, and uses one thread."""

    def __init__(self, base: Path, limit_mb: int) -> None:
        self.base, self.limit = base, limit_mb << 20
        self.loads = 0  # how often a base was read
        self._pairs: PairMemory | None = None
        self._tokenizer_files: dict[str, str] = {}
        self._forgotten = Forgotten()
        self._model: Any = None
        self._model_key: tuple[object, ...] = ()
        self._model_bytes = 0

    def pairs(self, gold: Path) -> PairMemory:
        """Returns the memory of pairs with its tokenizer, anew where a file of that changed.

        It is emptied where more is forgotten than before: texts of theirs do not wait for the next run to go.
        """
        files = _tokenizer_files(self.base)
        if self._pairs is None or files != self._tokenizer_files:
            from transformers import AutoTokenizer  # with torch, which the service idles without

            tokenizer = AutoTokenizer.from_pretrained(self.base, local_files_only=True)
            self._pairs, self._tokenizer_files = PairMemory(tokenizer, 0), files
        lasting = CLOCK not in str(getattr(self._pairs.tokenizer, "chat_template", ""))
        self._pairs.limit = max(self.limit - self._model_bytes, 0) if lasting else 0
        self.forget(gold)
        return self._pairs

    def forget(self, gold: Path) -> None:
        """Drops the pairs where somebody was forgotten since the last look."""
        if self._pairs is None:
            return
        forgotten = read_forgotten(gold)
        if forgotten != self._forgotten:
            self._forgotten = forgotten
            self._pairs.clear()

    def model(self, settings: Trainer, device: str, read: Callable[[], Any]) -> Any:
        """Returns the base in main memory, by `read` where it is not here as this run needs it; it is the caller's."""
        key = self._key(settings, device)
        model, known = self._model, self._model_key
        self._model, self._model_key, self._model_bytes = None, (), 0
        if model is not None and known == key:
            return model
        del model
        self.loads += 1
        return read()

    def keep(self, model: Any, settings: Trainer, device: str) -> None:
        """Keeps a base, as it was read, for the next run; one that is too large goes."""
        size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        if size <= self.limit:
            self._model, self._model_key = model.to("cpu"), self._key(settings, device)
            self._model_bytes = size

    @property
    def has_model(self) -> bool:
        """Whether a base is loaded now."""
        return self._model is not None

    def may_keep(self) -> bool:
        """Tells by its files whether the base is small enough; in fp32 it can be twice as large."""
        return sum(path.stat().st_size for path in self.base.glob("*.safetensors")) <= self.limit

    def _key(self, settings: Trainer, device: str) -> tuple[object, ...]:
        weights = [(path.name, path.stat().st_mtime_ns) for path in sorted(self.base.glob("*.safetensors"))]
        return base_fingerprint(self.base), weights, settings.dtype, settings.gradient_checkpointing, device


def _tokenizer_files(base: Path) -> dict[str, str]:
    """Returns what tells the tokenizer and its chat template from others: every file but the weights."""
    found = {}
    for path in sorted(base.iterdir()):
        if path.is_file() and path.suffix != ".safetensors":
            facts = path.stat()
            small = facts.st_size <= HASHED_BYTES
            found[path.name] = file_sha256(path) if small else f"{facts.st_size} {facts.st_mtime_ns}"
    for path in sorted((base / "additional_chat_templates").glob("*")):
        found[f"{path.parent.name}/{path.name}"] = file_sha256(path)
    return found
