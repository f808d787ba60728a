"""From a product's log record to cases: which task takes it, what of it is kept, and why it is left out.

Intake, redrive and `goldstream estimate` make one `Admission` each. What depends on the record alone is decided by
`admit`, in this order: size, shape, task, sampling, redaction. What depends on the records before it, near duplicates
and quotas, is intake's to ask afterwards, since only intake keeps count.
"""

from __future__ import annotations

import hashlib
import time

import msgspec

from schemas.case import DROPPED_REASONS, Case, OutcomeKind, Source, Split, coordinates_id, encode_case, producer_id
from schemas.errors import RecordError
from schemas.hashing import keyed_hash
from schemas.settings import Settings
from streams.admission.personal import personal_spans
from streams.admission.redaction import Redactor
from streams.admission.rules import Rules
from streams.reader import Headers, Reader
from streams.records import Record

_GROWTH = 8  # times a record's bytes that its case may take: escapes, and placeholders longer than what they stand for
_OWN_BYTES = 8192  # of a case without its texts, at most


class Admission:
    """Everything that admitting a record needs, made once from the settings. Raises SetupError for missing extras."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reader = Reader(settings)
        self._rules = Rules(settings)
        self._redactors = {name: Redactor(task.redact) for name, task in settings.tasks.items()}
        self._pipelines = {name: settings.pipeline_version(name) for name in settings.tasks}

    def admit(self, value: bytes | None, headers: Headers, source: Source) -> list[Case]:
        """Returns the cases a source record becomes, at least one; one that is not admitted has its outcome set.

        What is refused enters no topic of ours with its text: its case holds coordinates, hash and reason. Raises
        RegistryDown where the record cannot be read now.
        """
        task, limit = self._settings.task_of_topic(source.topic), self._settings.intake.max_record_bytes
        if task is None:
            error = RecordError("no_task", f"no task lists {source.topic} in its topics")
            return [_unread(value, source, "", error)]
        if value is not None and len(value) > limit:
            error = RecordError("too_large", f"{len(value)} bytes; intake.max_record_bytes is {limit}")
            return [_unread(value, source, task, error)]
        found = self._reader.read(value, headers, source.topic)
        cases = []
        for one in found:
            place = msgspec.structs.replace(source, index=one.index, count=len(found))
            if isinstance(one.record, RecordError):
                cases.append(_unread(value, place, task, one.record, shape=one.shape))
            else:
                try:
                    cases.append(self._admit_one(value or b"", one.record, place))
                except RecursionError:
                    error = RecordError("too_deep", "its tools, parts or arguments are nested hundreds of levels deep")
                    cases.append(_unread(value, place, task, error))
        return cases

    def _admit_one(self, value: bytes, record: Record, source: Source) -> Case:
        settings, key = self._settings, self._settings.intake.split_key
        case_id = _identity(record) or coordinates_id(source)
        task = self._rules.task_of(source.topic, record)
        if task is None:
            tasks = ", ".join(name for name, one in settings.tasks.items() if source.topic in one.topics)
            return _unread(value, source, "", RecordError("no_match", f"asked: {tasks}"), case_id, record.shape)
        sample = settings.tasks[task].sample
        if sample < 1 and share_of(key, "sample", case_id) >= sample:
            return _unread(value, source, task, RecordError("unsampled", ""), case_id, record.shape)
        body = (record.messages, record.answer, *([record.tool_calls] if record.tool_calls else []))
        case = self._redactors[task].redact(
            Case(
                case_id=case_id,
                task=task,
                split=split_of(settings, conversation(record)),
                pipeline=self._pipelines[task],
                source=source,
                body_sha256=hashlib.sha256(msgspec.json.encode(body)).hexdigest(),
                trace_id=record.trace_id,
                trace_key=keyed_hash(key, "trace", record.trace_id) if record.trace_id else "",
                traceparent=record.traceparent,
                session=keyed_hash(key, "session", conversation(record)),
                user=keyed_hash(key, "user", record.user) if record.user else "",
                workload=record.workload,
                created_ms=_now_ms(),
                messages=record.messages,
                production_answer=record.answer,
                production_model=record.model,
                shape=record.shape,
                event_ms=record.ts_ms,
                tools=record.tools,
                params=record.params,
                production_tool_calls=record.tool_calls,
                production_finish=record.finish_reason,
                production_prompt_tokens=record.prompt_tokens,
                production_completion_tokens=record.completion_tokens,
                production_cost_usd=record.cost_usd,
                feedback=record.feedback,
            )
        )
        limit = settings.kafka.max_message_bytes
        if len(value) * _GROWTH + _OWN_BYTES > limit and (size := len(encode_case(case))) > limit:
            error = RecordError("too_large", f"{size} bytes as a case; kafka.max_message_bytes is {limit}")
            return _unread(value, source, task, error, case_id, record.shape)
        return case


def refused(case: Case, reason: str, detail: str = "") -> Case:
    """Returns what is kept of a case that is left out after it was admitted: no text, the same identity."""
    bare = Case(
        case_id=case.case_id,
        task=case.task,
        split=case.split,
        pipeline=case.pipeline,
        source=case.source,
        body_sha256=case.body_sha256,
        created_ms=case.created_ms,
        shape=case.shape,
    )
    return bare.ended("dropped", "intake", _now_ms(), reason, detail)


def conversation(record: Record) -> str:
    """Returns what later turns and near copies of a conversation share: its session, or its first user turn."""
    return record.session_id or next(m.text() for m in record.messages if m.role == "user")


def split_of(settings: Settings, conversation: str) -> Split:
    """Returns the split of a conversation, by a keyed hash: the same today, tomorrow and on every machine."""
    in_holdout = share_of(settings.intake.split_key, "split", conversation) < settings.intake.holdout_share
    return "holdout" if in_holdout else "train"


def share_of(key: str, purpose: str, text: str) -> float:
    """Returns a number in [0, 1) that depends on nothing but its arguments, uniform over texts."""
    return int(keyed_hash(key, purpose, text)[:13], 16) / 16**13


def _identity(record: Record) -> str:
    """Returns the producer's own id of a record as a case_id, "" for none; never an id that holds a mail address."""
    if "@" in record.event_id and personal_spans(record.event_id, ("email",)):
        return producer_id(f"{record.event_id}\0")  # unusual, and so hashed
    return producer_id(record.event_id) if record.event_id else ""


def _unread(
    value: bytes | None, source: Source, task: str, error: RecordError, case_id: str = "", shape: str = ""
) -> Case:
    """Returns the ended case of what is not admitted; without an id of its own, for another record may have that."""
    case = Case(
        case_id=case_id or coordinates_id(source),
        task=task,
        split="train",
        source=source,
        body_sha256=hashlib.sha256(value or b"").hexdigest(),
        created_ms=_now_ms(),
        shape=shape,
    )
    kind: OutcomeKind = "dropped" if error.reason in DROPPED_REASONS else "dead"
    return case.ended(kind, "intake", _now_ms(), error.reason, error.detail)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
