"""A model call as a span, where tracing is on: agents.models wraps each try in `traced`.

Off, it gives something that does nothing, and OpenTelemetry is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from agents.completion import Completion
from schemas.case import Message
from schemas.settings import Model, Role
from schemas.tracing import tracer

if TYPE_CHECKING:
    from agents.call_spans import CallSpan


class Untraced:
    """A call without a span."""

    __slots__ = ()

    def __enter__(self) -> Untraced:
        return self

    def answered(self, completion: Completion) -> None:
        """Nothing to note."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


_UNTRACED = Untraced()


def traced(
    role: Role, task: str, model: Model, adapter: str, messages: Sequence[Message], tries: int
) -> CallSpan | Untraced:
    """Returns the span of a call under that of its case; one outside a case has none."""
    if (ours := tracer()) is None:
        return _UNTRACED
    from agents.call_spans import CallSpan, in_a_case

    return CallSpan(ours, role, task, model, adapter, messages, tries) if in_a_case() else _UNTRACED


def outgoing() -> dict[str, str]:
    """Returns the HTTP headers that let a model server of ours hang its own spans under the call being made."""
    if tracer() is None:
        return {}
    from agents.call_spans import http_headers

    return http_headers()
