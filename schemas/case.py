"""One case: a production prompt on its way to becoming gold, as one frozen message.

Every topic of ours carries this shape as JSON, keyed by case_id. Intake makes it, each
stage returns a longer copy, the sink turns it into a row (schemas.outcomes).

A later schema_version only adds fields, each with a default, at any level. An older reader passes what it does
not know on as it came; a value no type here allows, such as a new kind of outcome, is undecodable to it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from itertools import zip_longest
from typing import Any, Literal

import msgspec

from schemas.errors import RecordError

SCHEMA_VERSION = 1

Split = Literal["train", "holdout"]
Stage = Literal["intake", "student", "judge", "refiner", "strategist", "sink"]
OutcomeKind = Literal["gold", "unresolved", "dead", "holdout", "dropped"]
Severity = Literal["critical", "major", "minor"]

DEAD_REASONS = {
    "empty": "the record's value is blank",
    "not_utf8": "the value is not UTF-8",
    "not_json": "the value is not JSON",
    "wrong_shape": "JSON, but no shape Goldstream reads",
    "no_messages": "the record carries no prompt messages",
    "wrong_type": "a field has a type the shape does not allow",
    "not_text": "the prompt holds images, audio or files; only text is read, for now",
    "too_deep": "envelopes within envelopes beyond the limit, or JSON nested beyond reason",
    "unknown_schema": "no registry or folder that is set knows the schema the record names",
    "bad_payload": "the bytes do not fit the schema the record names",
    "no_mapping_match": "the topic's mapping found no prompt in the record, and it is no shape Goldstream knows",
    "too_large": "the record, or the case made from it, is over the size limit",
    "reader_error": "reading it failed in a way nobody foresaw; a mistake of ours, to be reported",
    "no_task": "no task is configured for this topic",
    "undecodable_case": "a message on one of our own topics is not a case",
    "model_error": "a model call failed in a way not told apart further",
    "model_rate_limited": "429 beyond every retry",
    "model_unavailable": "the endpoint was down beyond every retry",
    "model_timeout": "no answer within the deadline, beyond every retry",
    "over_budget": "one call for it would cost more than its task may spend on a whole day",
    "model_refused": "the endpoint answered 4xx: the call itself is wrong",
    "bad_answer": "the model's answer is empty or cannot be parsed",
    "agent_error": "an agent raised an error that is not a model's",
}
DROPPED_REASONS = {
    "no_match": "tasks read this topic, but the rules of none take this record",
    "unsampled": "left out by the task's sampling rate",
    "near_duplicate": "almost the text of a prompt that was admitted before",
    "over_quota": "the task's cases of that day were admitted already",
    "duplicate": "the same id and body were read before",
    "id_conflict": "the same id was read before with another body; the first wins",
    "failed_call": "the product's own call had failed; there is no prompt worth repeating",
    "redacted": "the logger had redacted the prompt; there is nothing to learn from",
    "truncated": "the logger cut the prompt or the answer short",
    "cache_hit": "answered from the product's cache; the call itself was logged before",
    "deleted": "a change event that deletes a row, or a tombstone",
    "no_call": "nothing in the record is a chat call: other spans, embeddings, scores, an empty batch",
    "stream_chunk": "a piece of a streamed answer, with no prompt beside it",
    "forgotten": "its user, trace, session or itself is forgotten: goldstream forget",
}

UNRESOLVED_REASONS = {
    "rounds_spent": "as many refinements as allowed were made, and the judge accepted none",
    "no_progress": "every refiner of the chain brought the same text or the same violations again",
    "score_fell": "every refiner of the chain stalled, and the last one made the answer worse",
    "rejected": "an expert rejected it",
}


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where a record was read: enough to read it again."""

    cluster: str
    topic: str
    partition: int
    offset: int
    index: int = 0  # position within a batched record
    count: int = 1  # cases the whole record became: the audit knows by it whether one is missing
    timestamp_ms: int = 0


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One chat message, in the shape of OpenAI's chat completions."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def text(self) -> str:
        """Returns the textual content; parts that are not text are left out."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(str(part.get("text", "")) for part in self.content or [] if part.get("type", "text") == "text")


class Violation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One rule broken: where (`hinge`, quoted from the answer), why, and how to fix it."""

    rule: str
    severity: Severity = "major"
    hinge: str = ""
    why: str = ""
    fix: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A judge's decision on one attempt. `score` runs from 0 to `max_score`."""

    passed: bool
    score: float
    max_score: float
    violations: tuple[Violation, ...] = ()
    judge: str  # a model string, or "verifier:<module>:<function>"
    kind: Literal["programmatic", "model", "expert"] = "programmatic"
    rubric: str = ""  # version: a hash of the rubric judged by
    votes: int = 1  # readable ones
    agreement: float = 1.0  # share of the votes that decided as the verdict does
    misquoted: int = 0  # violations of a model whose quote is not in the answer


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer to the prompt: the student's first, or a refiner's rewrite of the one before."""

    round: int  # 0 for the first attempt
    source: Literal["student", "production", "refiner"]
    text: str
    model: str
    adapter: str = ""  # version directory of the adapter that served, "" for the base
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprob: float | None = None  # summed over the completion, nats
    latency_s: float = 0.0
    cost_usd: float = 0.0
    verdict: Verdict | None = None
    refiner: str = ""  # who rewrote it: "student", "teacher" or "expert"; "" for a first attempt
    rewrote: int | None = None  # round of the attempt that was rewritten
    changed: float | None = None  # share of the words that the rewrite touched, 0 to 1
    tool_calls: tuple[dict[str, Any], ...] = ()  # those in `text`, as chat completions write them: schemas.tools


class Strategy(msgspec.Struct, frozen=True):
    """What the failed rounds taught, as one transferable rule."""

    mistake: str
    guardrail: str
    model: str = ""
    id: str = ""  # its name in the task's library: the same rule has the same name in every row


class Spend(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a case has cost so far, all roles together. Repeated calls after a crash are not in it."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    model_s: float = 0.0

    def plus(self, other: Spend) -> Spend:
        """Returns the sum, field by field."""
        return Spend(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost_usd + other.cost_usd,
            self.model_s + other.model_s,
        )


class Review(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an expert decided on a case that had ended, beside what the judge had said of it."""

    decision: Literal["accept", "edit", "reject"]
    by: str
    at_ms: int
    reason: str = ""
    rules: tuple[str, ...] = ()  # that the judged answer breaks, as the expert says
    sampled: bool = False  # drawn into the queue, not looked up by its id
    judged_passed: bool | None = None
    judged_by: str = ""
    judged_rules: tuple[str, ...] = ()


class Charge(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one hop of a case asked one model for, and what it cost; all charges together are the case's spend."""

    role: str
    model: str
    round: int = 0  # of the attempt that was made or judged
    calls: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    model_s: float = 0.0


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a case ended. `reason` is a key of DEAD_REASONS, DROPPED_REASONS or UNRESOLVED_REASONS for those kinds."""

    kind: OutcomeKind
    stage: Stage
    at_ms: int
    reason: str = ""
    detail: str = ""


class Case(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A production prompt with everything that happened to it."""

    # A default is left out of the message: this one must stay what the messages without one mean, in every version.
    schema_version: int = 1
    case_id: str
    epoch: int = 0  # redrive and review write with a higher one, which supersedes
    task: str
    split: Split
    pipeline: str = ""  # version of the factory's settings for this task
    source: Source
    body_sha256: str = ""
    trace_id: str = ""  # as the product's log has it
    traceparent: str = ""  # of the span that goes on where no header says so: the product's, intake's, the last stage's
    session: str = ""  # keyed hash of the conversation; near copies share it
    workload: str = ""
    user: str = ""  # keyed hash, for erasure
    trace_key: str = ""  # keyed hash of trace_id, likewise
    created_ms: int = 0
    messages: tuple[Message, ...] = ()
    production_answer: str | None = None
    production_model: str = ""
    shape: str = ""  # the log shape it was read from, envelopes first: "debezium/openai-chat"
    event_ms: int = 0  # when the product made the call, where the log says so
    tools: tuple[dict[str, Any], ...] = ()  # what the prompt offered the model, as chat completions take it
    params: dict[str, Any] = {}  # of the product's call: temperature, response_format, tool_choice, ...
    production_tool_calls: tuple[dict[str, Any], ...] = ()
    production_finish: str = ""
    production_prompt_tokens: int = 0
    production_completion_tokens: int = 0
    production_cost_usd: float | None = None
    feedback: dict[str, Any] = {}  # scores and ratings that were logged with the call
    placeholders: tuple[str, ...] = ()  # that stand for personal values in the texts, e.g. "EMAIL_1"
    attempts: tuple[Attempt, ...] = ()
    strategy: Strategy | None = None
    spend: Spend = Spend()
    charges: tuple[Charge, ...] = ()  # the spend by role, model and round, in the order of the hops
    retries: int = 0  # trips through gs.retry topics at the present stage
    retry_stage: str = ""
    not_before_ms: int = 0
    outcome: Outcome | None = None
    review: Review | None = None

    @property
    def rounds(self) -> int:
        """Number of refinements made so far."""
        return self.attempts[-1].round if self.attempts else 0

    def prompt(self) -> str:
        """Returns the last user message's text: what people call the prompt."""
        return next((m.text() for m in reversed(self.messages) if m.role == "user"), "")

    def ended(self, kind: OutcomeKind, stage: Stage, at_ms: int, reason: str = "", detail: str = "") -> Case:
        """Returns this case with its outcome set; `detail` is cut to 500 characters."""
        outcome = Outcome(kind, stage, at_ms, reason, detail[:500])
        return msgspec.structs.replace(self, outcome=outcome)


class _NewerCase(Case, frozen=True, kw_only=True, omit_defaults=True):
    """A case of a schema_version above ours, with the message it was read from.

    To everyone it is a Case. Copies made with msgspec.structs.replace keep `original`, so `encode_case` can put
    back what our types do not know.
    """

    original: bytes


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Case)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_array = msgspec.json.Decoder(list[msgspec.Raw])


def encode_case(case: Case) -> bytes:
    """Returns the case as the JSON bytes that travel on our topics, with what a newer writer had added."""
    if isinstance(case, _NewerCase):
        return _encoder.encode(_completed(case, case.original))
    if case.schema_version < SCHEMA_VERSION:
        case = msgspec.structs.replace(case, schema_version=SCHEMA_VERSION)
    return _encoder.encode(case)


def decode_case(value: bytes | None) -> Case:
    """Reads a case from a message of one of our own topics; of a newer writer too.

    Raises RecordError("undecodable_case") for anything else.
    """
    if not value:
        raise RecordError("undecodable_case", "the message has no value; only cases belong on this topic")
    try:
        case = _decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError("undecodable_case", str(error)) from error
    if case.schema_version <= SCHEMA_VERSION:
        return case
    known = {name: getattr(case, name) for name in case.__struct_fields__}
    return _NewerCase(**known, original=bytes(value))


def coordinates_id(source: Source) -> str:
    """Returns the identity of a record that carries none of its own: a hash of where it lies."""
    where = f"{source.cluster}\0{source.topic}\0{source.partition}\0{source.offset}\0{source.index}"
    return "at-" + hashlib.sha256(where.encode()).hexdigest()[:32]


_PLAIN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")


def producer_id(raw: str) -> str:
    """Returns a producer's own request id as a case_id; anything unusual is hashed, so that no id is a path."""
    if _PLAIN_ID.fullmatch(raw) and ".." not in raw:
        return raw
    return "id-" + hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _completed(struct: msgspec.Struct, original: bytes | msgspec.Raw) -> dict[str, Any]:
    """Returns a struct as an object to encode: its fields, and those of `original` that its type does not know.

    A field the newer writer wrote is written even where it is our default: its own default may be another.
    """
    completed: dict[str, Any] = dict(_object.decode(original))
    for name, default in _defaults(Case if isinstance(struct, Case) else type(struct)):
        value = getattr(struct, name)
        if name in completed or value != default:
            completed[name] = _with_unknown(value, completed.get(name))
    return completed


def _with_unknown(value: Any, original: msgspec.Raw | None) -> Any:
    """Returns a field's value to encode; what is unknown inside it comes along where it still belongs to it."""
    if isinstance(value, tuple):  # of structs, which are only ever added at its end
        return [_with_unknown(item, before) for item, before in _paired(value, original)]
    if isinstance(value, msgspec.Struct) and original is not None and _continues(value, original):
        return _completed(value, original)
    return value


def _paired(items: tuple[Any, ...], original: msgspec.Raw | None) -> Iterator[tuple[Any, msgspec.Raw | None]]:
    before = _array.decode(original)[: len(items)] if original is not None else []
    return zip_longest(items, before)


def _continues(value: msgspec.Struct, original: msgspec.Raw) -> bool:
    """Whether `original` says of the same thing what was known earlier; what replaced another inherits nothing."""
    if bytes(original) == b"null":
        return False
    if isinstance(value, Spend):
        return True  # grows from hop to hop
    before = _decoder_of(type(value)).decode(original)
    if isinstance(value, Attempt) and isinstance(before, Attempt):
        return (value.round, value.source, value.text) == (before.round, before.source, before.text)  # judged since
    return before == value


@cache
def _decoder_of(kind: type[msgspec.Struct]) -> msgspec.json.Decoder[msgspec.Struct]:
    return msgspec.json.Decoder(kind)


@cache
def _defaults(kind: type[msgspec.Struct]) -> list[tuple[str, Any]]:
    fields = msgspec.structs.fields(kind)
    made = msgspec.NODEFAULT
    return [(f.name, f.default_factory() if f.default_factory is not made else f.default) for f in fields]
