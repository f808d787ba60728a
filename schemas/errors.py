"""The exception tree of Goldstream, drawn first.

    GoldstreamError (Exception)
    ├── SettingsError (ValueError)            a setting is unknown, missing or wrong
    ├── SetupError (RuntimeError)             Java, Maven, a model folder is missing
    ├── BrokerError (ConnectionError)         no Kafka answers, or the local one does not start
    ├── RecordError (ValueError)              a record that cannot become a case; .reason names why
    ├── RegistryDown (ConnectionError)        the schema registry does not answer; the record is no worse for it
    ├── ModelError (RuntimeError)             a model call failed; .transient says if a retry can help
    │   ├── RateLimited                       429; .retry_after_s where the server said it
    │   ├── ModelUnavailable                  connection refused, 5xx
    │   │   └── EndpointHeld                  not called at all: the endpoint's breaker is open
    │   ├── BudgetHeld                        not called: a cap of its task is used up; .wait_s until it is not
    │   ├── ModelTimeout (TimeoutError)       the deadline passed
    │   ├── ModelRefused                      4xx: the call itself is wrong; not transient
    │   │   ├── OverBudget                    one call would cost more than a day's cap
    │   │   └── EndpointRefused               401 to 404: whoever asks is refused, not the case
    │   └── BadAnswer (ValueError)            an answer that is empty or cannot be parsed; not transient
    ├── WriteRefused (RuntimeError)           the broker says no to a record, and will again
    ├── GoldError (RuntimeError)
    │   ├── ChainBroken                       landing files with a gap, an overlap or a bad footer
    │   └── Fenced                            another sink wrote this range first
    ├── LabelError (ValueError)               a labelled example that cannot be read
    ├── ReviewError (ValueError)              a decision that cannot be made on this case
    │   └── AlreadyReviewed                   no longer: another expert's stands
    ├── AdapterError (ValueError)             an adapter that must not be loaded
    ├── Overtaken (RuntimeError)              somebody promoted since; what was decided rests on an older log
    └── TrainingError (RuntimeError)          nothing to train on, a case beyond the context

Every message says what, which one, what was found, what was expected and the next step.
"""

from __future__ import annotations

from typing import Any


class GoldstreamError(Exception):
    """Base of every error Goldstream raises on purpose; the command line prints it without a traceback."""


class SettingsError(GoldstreamError, ValueError):
    """A setting is unknown, missing or has the wrong type."""


class SetupError(GoldstreamError, RuntimeError):
    """Something the machine must provide is missing."""


class BrokerError(GoldstreamError, ConnectionError):
    """No Kafka answers at the configured address, or the local broker does not start."""


class RecordError(GoldstreamError, ValueError):
    """A source record or message that cannot become a case.

    `reason` is one of schemas.case.DEAD_REASONS, or of DROPPED_REASONS where it is left out on purpose: it is what
    `goldstream gold stats` counts.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class RegistryDown(GoldstreamError, ConnectionError):
    """The schema registry does not answer, or answers 5xx or 401; the same record can be read once it does."""


class ModelError(GoldstreamError, RuntimeError):
    """A model call failed. `transient` says whether trying again later can help."""

    transient = True
    reason = "model_error"
    endpoint: tuple[Any, str, str] | None = None  # role, model and address it met, where that is known
    spend: Any = None  # a schemas.case.Spend: what an answer that cannot be used has cost


class RateLimited(ModelError):
    """The endpoint answered 429; `retry_after_s` is what it asked for, if it did."""

    reason = "model_rate_limited"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ModelUnavailable(ModelError):
    """The endpoint refused the connection, reset it or answered 5xx."""

    reason = "model_unavailable"


class ModelTimeout(ModelError, TimeoutError):
    """The event's deadline passed before the model answered."""

    reason = "model_timeout"


class ModelRefused(ModelError):
    """The endpoint answered 4xx: the same call will fail again."""

    transient = False
    reason = "model_refused"


class EndpointHeld(ModelUnavailable):
    """The call was not made: the endpoint's breaker is open. Says nothing about the case."""


class BudgetHeld(ModelError):
    """The call was not made: a cap of its task is used up for another `wait_s`. Says nothing about the case."""

    reason = "budget_held"

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class OverBudget(ModelRefused):
    """One call would cost more than its task may spend on a whole day."""

    reason = "over_budget"


class EndpointRefused(ModelRefused):
    """401, 402, 403 or 404: most likely whoever asks is refused, not this case."""


class BadAnswer(ModelError, ValueError):
    """The model answered, but the answer is empty or cannot be parsed."""

    transient = False
    reason = "bad_answer"


class WriteRefused(GoldstreamError, RuntimeError):
    """The broker refuses a record; the same write fails until somebody changes the topic or its access rules."""

    def __init__(self, reason: str, *, too_large: bool = False) -> None:
        super().__init__(reason)
        self.too_large = too_large


class GoldError(GoldstreamError, RuntimeError):
    """The gold files are not as the chain says they must be."""


class ChainBroken(GoldError):
    """Landing files leave a gap, overlap, or carry a footer that contradicts their name."""


class Fenced(GoldError):
    """Another sink has already written this offset range; this one must stop."""


class LabelError(GoldstreamError, ValueError):
    """A labelled example cannot be read, or names rules that the rubric does not have."""


class ReviewError(GoldstreamError, ValueError):
    """An expert's decision that cannot be made on this case."""


class AlreadyReviewed(ReviewError):
    """A decision that comes too late: another stands on the case."""


class AdapterError(GoldstreamError, ValueError):
    """An adapter that must not be loaded: pickle, NaN, wrong base, changed hash, missing file."""


class Overtaken(GoldstreamError, RuntimeError):
    """A promotion that rests on an older promotion log than there is now: somebody decided meanwhile."""


class TrainingError(GoldstreamError, RuntimeError):
    """A training run that cannot start or continue; the incumbent keeps serving."""
