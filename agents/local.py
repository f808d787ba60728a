"""The in-process student: a model folder and its LoRA adapters, served in static batches.

agents.models calls it for model strings `local/NAME`; the trainer's gate calls `generate_batch`.
Each adapter is merged into a copy of the base that shares every weight the adapter leaves alone, so
that adapters switch per request, loading never disturbs a running batch, and a rank of 256 costs no
speed (1.8 times that of unmerged LoRA on a tiny base). torch is imported when an engine is built.
"""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from schemas.adapters import base_fingerprint, verify_adapter
from schemas.case import Message
from schemas.chat import render_prompt, split_thinking
from schemas.errors import AdapterError, ModelError, ModelRefused, ModelUnavailable

GATHER_S = 0.002  # an idle engine waits this long for company before it starts a batch
SHRINK_AT = 0.75  # rows are dropped from a batch when fewer than this share of them still run


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One completion. The end-of-turn token counts as a token, as it does at vLLM."""

    text: str  # without thinking
    thinking: str
    prompt_tokens: int
    completion_tokens: int
    logprob: float  # summed over the completion at temperature 1, nats


@dataclass(eq=False)
class _Request:
    """A prompt on its way through a batch; `deliver` is called exactly once unless it is cancelled."""

    ids: list[int]
    opened: bool  # the prompt itself opens the think block
    model: Any
    temperature: float
    max_tokens: int
    seed: int | None
    deliver: Callable[[Generation | ModelError], None]
    cancelled: bool = False
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0


class LocalEngine:
    """A causal language model with its adapters, for many callers at once.

    Construction loads the weights, which takes seconds: build it off the event loop.
    """

    def __init__(self, path: Path, *, max_batch: int = 64, threads: int = 0) -> None:
        import peft  # noqa: F401 - now, and not when the first adapter comes
        import torch
        import transformers

        transformers.logging.disable_progress_bar()
        if threads > 0:
            torch.set_num_threads(threads)
        cuda = torch.cuda.is_available()
        self.path, self.max_batch, self.threads = path, max_batch, threads
        self.base_sha256 = base_fingerprint(path)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        base = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype="auto" if cuda else torch.float32, local_files_only=True
        )
        base = base.to("cuda" if cuda else "cpu").eval().requires_grad_(False)
        render_prompt(self._tokenizer, [Message("user", "")])  # fails here, once, where there is no chat template
        stops = base.generation_config.eos_token_id
        self._stops = {*(stops if isinstance(stops, list) else [stops]), self._tokenizer.eos_token_id} - {None}
        self.context_tokens: int = getattr(base.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
        self._models: dict[str, Any] = {"": base}
        self._loading, self._encoding = threading.Lock(), threading.Lock()
        self._wake = threading.Condition()
        self._waiting: deque[_Request] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name=f"engine-{path.name}", daemon=True)
        self._thread.start()

    def adapters(self) -> list[str]:
        """Returns the names of the loaded adapters."""
        return sorted(name for name in list(self._models) if name)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Verifies an adapter folder and makes it available as `name`; loading a name again does nothing.

        Raises AdapterError where the folder must not be loaded; whatever was loaded keeps serving.
        """
        import peft
        import torch

        if not name:
            raise AdapterError(f"{folder}: an adapter needs a name; the empty one means the base.")
        with self._loading:
            if name in self._models:
                return
            verify_adapter(folder, self.base_sha256)
            base = self._models[""]
            # New Parameter objects over the same storage: merging replaces the data of those it changes.
            shared = {id(p): torch.nn.Parameter(p.detach(), requires_grad=False) for p in base.parameters()}
            try:
                wrapped = peft.PeftModel.from_pretrained(
                    copy.deepcopy(base, shared), str(folder), torch_device=str(base.device)
                )
                self._models[name] = wrapped.merge_and_unload(safe_merge=True).eval().requires_grad_(False)
            except (ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
                raise AdapterError(f"{folder} does not fit the base {self.path}: {error}") from error

    def unload_adapter(self, name: str) -> None:
        """Forgets an adapter; requests that were accepted with it still finish."""
        if name:
            self._models.pop(name, None)

    async def generate(
        self,
        messages: Sequence[Message],
        *,
        adapter: str = "",
        temperature: float = 0.0,
        max_tokens: int = 256,
        thinking: bool = False,
        seed: int | None = None,
        tools: Sequence[dict[str, Any]] = (),
    ) -> Generation:
        """Returns one completion; concurrent calls with the same adapter share batches.

        `tools` are those that the prompt offers, as schemas.tools.template_tools writes them.

        With a seed, sampling depends on the request alone, not on the batch it lands in. Raises AdapterError for
        an adapter that is not loaded, ModelRefused for a prompt beyond the context, ModelUnavailable where the
        batch failed or the engine is closed. A cancelled call leaves the queue, or its batch at the next token.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Generation | ModelError] = loop.create_future()

        def settle(result: Generation | ModelError) -> None:
            if not future.done():
                future.set_result(result)

        def deliver(result: Generation | ModelError) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, result)

        request = self._request(messages, adapter, temperature, max_tokens, thinking, seed, deliver, tools)
        with self._wake:
            if self._closed:
                raise ModelUnavailable(f"the engine of {self.path} is closed; no call can be answered any more.")
            self._waiting.append(request)
            self._wake.notify()
        try:
            result = await future
        finally:
            request.cancelled = True
        if isinstance(result, ModelError):
            raise result
        return result

    def generate_batch(
        self,
        prompts: Sequence[Sequence[Message]],
        *,
        adapter: str = "",
        temperature: float = 0.0,
        max_tokens: int = 256,
        thinking: bool = False,
        seed: int | None = None,
        tools: Sequence[Sequence[dict[str, Any]]] = (),
    ) -> list[Generation]:
        """Returns a completion per prompt, in order, generated here and now in batches of similar length.

        `tools` are each prompt's own, in the same order. Raises as `generate` does; prompt i samples with `seed` + i.
        """
        results: dict[int, Generation | ModelError] = {}
        requests = [
            self._request(
                messages,
                adapter,
                temperature,
                max_tokens,
                thinking,
                None if seed is None else seed + index,
                lambda result, index=index: results.__setitem__(index, result),  # type: ignore[misc]
                tools[index] if tools else (),
            )
            for index, messages in enumerate(prompts)
        ]
        requests.sort(key=lambda request: -len(request.ids))
        for start in range(0, len(requests), self.max_batch):
            self._run(requests[start : start + self.max_batch])
        done = [results[index] for index in range(len(prompts))]
        for result in done:
            if isinstance(result, ModelError):
                raise result
        return [result for result in done if isinstance(result, Generation)]

    def close(self) -> None:
        """Stops the batch thread after the batch it runs; waiting calls fail with ModelUnavailable."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout=60)

    def _request(
        self,
        messages: Sequence[Message],
        adapter: str,
        temperature: float,
        max_tokens: int,
        thinking: bool,
        seed: int | None,
        deliver: Callable[[Generation | ModelError], None],
        tools: Sequence[dict[str, Any]] = (),
    ) -> _Request:
        model = self._models.get(adapter)
        if model is None:
            raise AdapterError(f"adapter {adapter!r} is not loaded; loaded: {', '.join(self.adapters()) or 'none'}.")
        try:
            text = render_prompt(self._tokenizer, messages, thinking, tools)
        except Exception as error:  # a template raises what it likes, for example on roles that do not alternate
            raise ModelRefused(f"the chat template of {self.path} refuses these messages: {error}") from error
        with self._encoding:  # fast tokenizers must not be used by two threads at once
            ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        room = self.context_tokens - len(ids)
        if room < 1:
            raise ModelRefused(
                f"the prompt has {len(ids)} tokens; {self.path} has a context of {self.context_tokens}, which must "
                "hold the answer too. Shorten the prompt or choose a model with a longer context."
            )
        opened = text.rstrip().endswith("<think>")
        return _Request(ids, opened, model, temperature, min(max_tokens, room), seed, deliver)

    def _serve(self) -> None:
        """The batch thread: takes what waits, oldest first, and runs it; an error ends a batch, never the thread."""
        import torch

        if self.threads > 0:
            torch.set_num_threads(self.threads)  # the setting is per thread
        while True:
            with self._wake:
                idle = not self._waiting
                self._wake.wait_for(lambda: self._waiting or self._closed)
            if idle and not self._closed:
                time.sleep(GATHER_S)
            batch = self._take()
            if batch:
                self._run(batch)
            if self._closed:
                closed = ModelUnavailable(f"the engine of {self.path} was closed before it answered.")
                for request in self._waiting:
                    request.deliver(closed)
                return

    def _take(self) -> list[_Request]:
        """Removes and returns up to max_batch waiting requests that share the oldest one's adapter."""
        with self._wake:
            waiting = [request for request in self._waiting if not request.cancelled]
            batch = [request for request in waiting if request.model is waiting[0].model][: self.max_batch]
            taken = set(batch)
            self._waiting = deque(request for request in waiting if request not in taken)
        return [] if self._closed else batch

    def _run(self, batch: list[_Request]) -> None:
        try:
            self._decode(batch)
        except Exception as error:  # out of memory, a broken kernel: whatever torch raises
            failed = ModelUnavailable(f"a batch of {len(batch)} failed in {self.path}: {type(error).__name__}: {error}")
            for request in batch:
                request.deliver(failed)

    def _decode(self, batch: list[_Request]) -> None:
        """Generates token by token with left padding and delivers each request as soon as it ends.

        B rows, P padded prompt length, T the longest answer allowed, V vocabulary. Rows sample by inverse CDF
        from uniforms of their own, so that a row's neighbours do not change what it draws.
        """
        import torch
        from transformers import DynamicCache

        model = batch[0].model
        device, width = model.device, max(len(r.ids) for r in batch)
        steps = max(r.max_tokens for r in batch)
        ids_BP = torch.tensor([[0] * (width - len(r.ids)) + r.ids for r in batch], device=device)
        mask_BPT = torch.ones(len(batch), width + steps, dtype=torch.long, device=device)
        for row, request in enumerate(batch):
            mask_BPT[row, : width - len(request.ids)] = 0
        position_BP = (mask_BPT[:, :width].cumsum(-1) - 1).clamp(min=0)
        temperature_B1 = torch.tensor([[r.temperature] for r in batch], device=device)
        sampling = any(r.temperature > 0 for r in batch)
        uniform_BT = torch.stack([_uniforms(r, steps) for r in batch]).to(device) if sampling else None
        rows: list[_Request | None] = list(batch)  # None: ended, but still in the tensors
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            for step in range(steps):
                logits_BV = (
                    model(
                        input_ids=ids_BP,
                        attention_mask=mask_BPT[:, : width + step],
                        position_ids=position_BP,
                        past_key_values=cache,
                        use_cache=True,
                        logits_to_keep=1,
                    )
                    .logits[:, -1]
                    .float()
                )
                token_B1 = logits_BV.argmax(-1, keepdim=True)
                if uniform_BT is not None:
                    scaled_BV = (logits_BV / temperature_B1.clamp(min=1e-4)).double()
                    cdf_BV = scaled_BV.softmax(-1).cumsum(-1)
                    drawn_B1 = torch.searchsorted(cdf_BV, uniform_BT[:, step : step + 1] * cdf_BV[:, -1:], right=True)
                    drawn_B1 = drawn_B1.clamp(max=logits_BV.shape[-1] - 1)
                    token_B1 = torch.where(temperature_B1 > 0, drawn_B1, token_B1)
                logprob_B = logits_BV.gather(-1, token_B1)[:, 0] - logits_BV.logsumexp(-1)
                self._advance(rows, token_B1[:, 0].tolist(), logprob_B.tolist())
                alive = [row for row, request in enumerate(rows) if request is not None]
                if not alive:
                    return
                ids_BP, position_BP = token_B1, position_BP[:, -1:] + 1
                if len(alive) < SHRINK_AT * len(rows):
                    index = torch.tensor(alive, device=device)
                    cache.batch_select_indices(index)
                    ids_BP, position_BP, mask_BPT = ids_BP[index], position_BP[index], mask_BPT[index]
                    temperature_B1 = temperature_B1[index]
                    uniform_BT = None if uniform_BT is None else uniform_BT[index]
                    rows = [rows[row] for row in alive]

    def _advance(self, rows: list[_Request | None], tokens: list[int], logprobs: list[float]) -> None:
        """Adds a token to every running row; delivers and clears those that end with it."""
        for row, request in enumerate(rows):
            if request is None:
                continue
            request.tokens.append(tokens[row])
            request.logprob += logprobs[row]
            if request.cancelled:
                rows[row] = None
            elif tokens[row] in self._stops or len(request.tokens) >= request.max_tokens:
                rows[row] = None
                request.deliver(self._generation(request))

    def _generation(self, request: _Request) -> Generation:
        raw = self._tokenizer.decode(request.tokens, skip_special_tokens=True)
        thinking, text = split_thinking("<think>" + raw if request.opened else raw)
        return Generation(
            text=text,
            thinking=thinking,
            prompt_tokens=len(request.ids),
            completion_tokens=len(request.tokens),
            logprob=request.logprob,
        )


def _uniforms(request: _Request, steps: int) -> Any:
    """Returns the row's random numbers, one per token, from its own seed."""
    import torch

    generator = torch.Generator()
    if request.seed is None:
        generator.seed()
    else:
        generator.manual_seed(request.seed)
    return torch.rand(steps, generator=generator, dtype=torch.float64)
