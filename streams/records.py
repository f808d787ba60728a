"""What every log shape comes down to: one canonical record for each call of the product to its model.

streams.reader makes these from the bytes of a Kafka message; streams.shapes knows how each logger writes them.
Intake admits them as cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from schemas.case import Message
from schemas.errors import RecordError


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call: the prompt, what was answered, and what is known about it. Texts are "" where the log has none."""

    messages: tuple[Message, ...]
    completion: tuple[Message, ...] = ()  # the first choice; no thinking text
    event_id: str = ""  # the producer's own id of the call
    ts_ms: int = 0  # when the call was made
    source: str = ""  # the service that logged it
    trace_id: str = ""
    traceparent: str = ""  # of the span that made the call or logged it; in W3C's form, or ""
    session_id: str = ""
    workload: str = ""
    user: str = ""
    model: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    params: dict[str, Any] = {}
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""
    status: str = "success"
    cost_usd: float | None = None
    feedback: dict[str, Any] = {}
    shape: str = ""  # envelopes first: "cloudevents/openai-chat"

    @property
    def answer(self) -> str | None:
        """The text that was answered; None where there is none, as in a pure tool call."""
        texts = [message.text() for message in self.completion if message.content is not None]
        return "\n".join(texts) if texts else None

    @property
    def tool_calls(self) -> tuple[dict[str, Any], ...]:
        """The tools that the model called."""
        return tuple(call for message in self.completion for call in message.tool_calls or ())


# What may stand beside the two halves of a call, apart from ids, times and cost.
TOLD = frozenset(
    ("trace_id", "traceparent", "span_id", "session_id", "conversation_id", "workload_id", "workload", "user_id")
)
set_field = msgspec.structs.force_setattr  # while a record is made; a copy for each change takes five times as long


def complete(record: Record, told: Mapping[str, Any]) -> None:
    """Writes into a record that nobody else has yet what is told of it elsewhere and it does not say itself."""
    for name, value in told.items():
        if value and not getattr(record, name):
            set_field(record, name, value)


class Found(msgspec.Struct, frozen=True):
    """One item of a Kafka message: a call, or why it is none. `index` is its place in a batched message, from 0."""

    index: int
    record: Record | RecordError
    shape: str = ""
