"""Counts a model call for /metrics: what it came to, how long it took, its tokens and its cost."""

from __future__ import annotations

import time
from types import TracebackType

from agents.completion import Completion
from schemas.case import Spend
from schemas.errors import AdapterError, ModelError
from schemas.measures import MODEL_CALLS, MODEL_COST, MODEL_IN_FLIGHT, MODEL_SECONDS, MODEL_TOKENS


class Counted:
    """One try at a model, as a context manager; `answered` tells what came of it. Costs 4 µs."""

    __slots__ = ("_asked", "_completion", "_started")

    def __init__(self, task: str, role: str, model: str) -> None:
        self._asked = (task, role, model)
        self._completion: Completion | None = None

    def __enter__(self) -> Counted:
        MODEL_IN_FLIGHT.add(*self._asked)
        self._started = time.perf_counter()
        return self

    def answered(self, completion: Completion) -> None:
        """Notes the answer; the model that gave it may be a fallback."""
        self._completion = completion

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        MODEL_IN_FLIGHT.add(*self._asked, by=-1)
        completion = self._completion
        if completion is None:
            MODEL_CALLS.add(*self._asked, _result(error))
            spend: Spend | None = getattr(error, "spend", None)
            if spend is not None:  # an answer that says nothing is paid for too
                _charge(self._asked, spend.prompt_tokens, spend.completion_tokens, spend.cost_usd)
            return
        answered = (*self._asked[:2], completion.model)
        MODEL_CALLS.add(*answered, "ok")
        MODEL_SECONDS.add(*answered, seconds=time.perf_counter() - self._started)
        _charge(answered, completion.prompt_tokens, completion.completion_tokens, completion.cost_usd)


def _charge(asked: tuple[str, str, str], prompt_tokens: int, completion_tokens: int, usd: float) -> None:
    MODEL_TOKENS.add(*asked, "prompt", by=prompt_tokens)
    MODEL_TOKENS.add(*asked, "completion", by=completion_tokens)
    MODEL_COST.add(*asked, by=usd)


def _result(error: BaseException | None) -> str:
    if isinstance(error, ModelError):
        return error.reason.removeprefix("model_")
    if isinstance(error, AdapterError):
        return "adapter"
    if isinstance(error, TimeoutError):
        return "timeout"
    return "cut_short"  # by a rebalance or a stop
