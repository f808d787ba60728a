"""A case being passed on by a kafka-python producer, with the two spans that end once the broker has it."""

from __future__ import annotations

from typing import Any

from opentelemetry.trace import Span, Status, StatusCode

from schemas.case import Case
from schemas.tracing.sdk import headers_of


class Relay:
    """What to send: `case` keeps the context, `headers` carry that of the sending."""

    def __init__(self, case: Case, span: Span, sending: Span) -> None:
        self.case, self._span, self._sending = case, span, sending
        self.headers = headers_of(sending)

    def sent(self, future: Any) -> Any:
        """Ends the spans when a producer's future is done; returns it."""
        future.add_both(self.end)
        return future

    def end(self, result: Any = None) -> None:
        """Ends the spans; `result` is an error where the broker does not have the case."""
        if isinstance(result, BaseException):
            self._sending.set_attribute("error.type", type(result).__name__)
            self._sending.set_status(Status(StatusCode.ERROR))
        self._sending.end()
        self._span.end()
