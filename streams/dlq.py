"""Dead letters: what died and why, what it was, and back into the flow with it.

`goldstream dlq list|show|redrive` calls this. A dead letter is a row of the gold set's view `dead`. One that died at
a stage holds its whole case; one that intake refused holds no text, so its record is read from the product's topic
again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import msgspec
from kafka.errors import KafkaError

from schemas.case import DEAD_REASONS, Case, Stage, decode_case, encode_case
from schemas.errors import BrokerError, GoldError, SettingsError
from schemas.forgotten import Forgotten, read_forgotten
from schemas.settings import Settings
from schemas.tables import printable
from schemas.topics import OUTCOMES, PROMPTS, STAGE_INPUT
from streams.admission.admit import Admission
from streams.audit import moving_cases
from streams.clients import make_producer
from streams.flow import Hop
from streams.gold import open_gold
from streams.lookup import make_reader, read_records
from streams.story import tell
from streams.topics import cluster_id, connect_admin
from streams.tracing import trace_hops

if TYPE_CHECKING:
    from streams.tracing.hops import Hops

_SHOWN = 4000  # characters of a record
_BATCH = 50  # letters at a time; bounds the memory their source records take

LETTER = ("case_id", "task", "stage", "reason", "detail", "topic", "partition", "offset", "epoch", "ended_at")

Result = Literal["redriven", "would be redriven", "on its way", "refused again", "gone", "impossible", "not confirmed"]


class Redriven(NamedTuple):
    """What became of one dead letter."""

    case_id: str
    stage: str
    reason: str
    result: Result
    detail: str  # where it went, or why it did not


class _Stays(Exception):
    """A letter that is not redriven: (result, why)."""

    def __init__(self, result: Result, why: str) -> None:
        super().__init__(why)
        self.result = result


def list_letters(
    settings: Settings, reason: str | None = None, stage: str | None = None, task: str | None = None, limit: int = 50
) -> list[tuple[Any, ...]]:
    """Returns dead letters, the latest first, as rows of LETTER."""
    with open_gold(settings.gold) as connection:
        query = f"SELECT {_COLUMNS} FROM dead WHERE {_MATCHES} ORDER BY ended_at DESC, case_id LIMIT $limit"
        rows: list[tuple[Any, ...]] = connection.execute(
            query, _match(reason, stage, task) | {"limit": limit}
        ).fetchall()
        return rows


def count_letters(
    settings: Settings, reason: str | None = None, stage: str | None = None, task: str | None = None
) -> list[tuple[str, str, str, int]]:
    """Returns (task, stage, reason, letters)."""
    with open_gold(settings.gold) as connection:
        query = f"SELECT task, stage, reason, count(*) FROM dead WHERE {_MATCHES} GROUP BY ALL ORDER BY ALL"
        rows: list[tuple[str, str, str, int]] = connection.execute(query, _match(reason, stage, task)).fetchall()
        return rows


def show_letter(settings: Settings, case_id: str) -> dict[str, Any]:
    """Returns {"letter", "means", "case", "record", "note"} of a dead letter.

    `case` is there for what died at a stage. `record` is the text of the source record for what intake refused,
    where the topic still holds it unchanged; `note` says so where not. Raises GoldError for an unknown id.
    """
    letters = [letter for batch in _letters(settings, _match(None, None, None, case_id)) for letter in batch]
    if not letters:
        raise GoldError(
            f"no dead letter {case_id}. `goldstream dlq list` names them, `goldstream case ID` finds others."
        )
    facts, case = letters[0]
    shown: dict[str, Any] = {"letter": facts, "means": DEAD_REASONS.get(facts["reason"], "")}
    shown |= {"case": None, "record": None, "note": ""}
    if facts["reason"] == "undecodable_case" or case is None:
        shown["note"] = _UNDECODABLE
    elif facts["stage"] != "intake":
        shown["case"] = msgspec.json.decode(encode_case(case))
    else:
        with closing(make_reader(settings)) as reader:
            records = read_records(reader, [_place(case)])
        try:
            value = _unchanged(case, records, cluster_id(settings)).value
            shown["record"] = value.decode("utf-8", "backslashreplace") if value is not None else None
            shown["note"] = "" if value is not None else "the record has no value"
        except _Stays as stays:
            shown["note"] = str(stays)
    return shown


def tell_letter(shown: dict[str, Any]) -> list[str]:
    """Returns what `show_letter` found as lines for people."""
    letter = shown["letter"]
    lines = [
        f"case {letter['case_id']}   task {letter['task'] or '-'}   epoch {letter['epoch']}",
        f"dead at {letter['stage']}: {letter['reason']}, {shown['means']}",
        f"read from {letter['topic']}[{letter['partition']}] at offset {letter['offset']}",
    ]
    lines += [f"     {letter['detail']}"] if letter["detail"] else []
    lines += [f"     {shown['note']}"] if shown["note"] else []
    if shown["case"] is not None:
        lines += ["", *tell({"where": "gold set", "case": shown["case"]})]
    if shown["record"] is not None:
        text = shown["record"]
        lines += ["", "the record:", *text[:_SHOWN].splitlines()]
        lines += [f"... {len(text)} characters in all; --json shows them"] if len(text) > _SHOWN else []
    return [printable(line) for line in lines]


def redrive(
    settings: Settings,
    reason: str | None = None,
    stage: str | None = None,
    task: str | None = None,
    case_id: str | None = None,
    dry_run: bool = False,
) -> Iterator[Redriven]:
    """Sends dead letters back to the stage they died at, and yields what became of each.

    1. note which cases are on their way, before the dead letters are read
    2. decide for each letter: its case again, or its source record admitted anew
    3. produce, wait until the broker has confirmed, and only then say so

    A redriven case keeps its id and gets the next epoch; its new outcome supersedes the dead one by the rule of
    streams.dedup, and until then the dead one stands. A case that is on its way at a higher epoch is left alone, so
    redriving twice costs nothing twice. Two redrives at the very same time can both send a case: its models are
    called twice, and the epoch still lets only one outcome be written. What intake would refuse again is not sent.
    """
    if case_id is None and not (reason and stage):
        raise SettingsError("name what to redrive: --reason and --stage, or --id. `goldstream dlq list` shows them.")
    try:
        with closing(connect_admin(settings)) as admin, closing(make_reader(settings)) as reader, ExitStack() as stack:
            producer = None if dry_run else make_producer(settings, "redrive")
            if producer is not None:
                stack.callback(producer.close, timeout=5)
            # 1.
            moving: dict[str, int] = {}
            for glance, _ in moving_cases(settings, admin, reader):
                if glance is not None:
                    moving[glance.case_id] = max(glance.epoch, moving.get(glance.case_id, 0))
            cluster, admission = cluster_id(settings), Admission(settings)
            remembered = read_forgotten(settings.gold)
            for batch in _letters(settings, _match(reason, stage, task, case_id)):
                # 2.
                refused = [case for facts, case in batch if case is not None and facts["stage"] == "intake"]
                places = [_place(case) for case in refused if case.source.cluster == cluster]
                records = read_records(reader, places)
                decided: list[tuple[dict[str, Any], list[Hop] | _Stays]] = []
                for facts, case in batch:
                    try:
                        decided.append(
                            (facts, _back(facts, case, moving, records, cluster, settings, admission, remembered))
                        )
                    except _Stays as stays:
                        decided.append((facts, stays))
                # 3.
                yield from _sent(decided, producer, settings)
    except KafkaError as error:
        raise BrokerError(
            f"the redrive was interrupted: {error!r}. Run it again: what was sent is on its way and is left alone."
        ) from error


def revived(case: Case) -> Hop:
    """Returns a case that died at a stage as it goes back there: no outcome, no retries used, the next epoch.

    Attempts, verdicts and spend stay: they are what the stage works on, and what the case has cost.
    """
    if case.outcome is None or case.outcome.stage not in STAGE_INPUT:
        raise _Stays("impossible", _UNDECODABLE)
    topic = STAGE_INPUT[case.outcome.stage]
    again = msgspec.structs.replace(
        case, epoch=case.epoch + 1, outcome=None, retries=0, retry_stage="", not_before_ms=0
    )
    return Hop(topic, again)


def readmitted(case: Case, record: Any, settings: Settings, admission: Admission) -> list[Hop]:
    """Returns what a refused record becomes when intake reads it today; the letter's own item keeps id and place.

    It gets the next epoch. A letter of a whole record may become several cases: the others are new, with ids of
    their own. Raises _Stays where the letter's item would be dead again. What is now left out, say unsampled, does
    end: as dropped.
    """
    cases = admission.admit(record.value, record.headers, case.source)
    if case.source.count > 1:  # its neighbours have ended each for itself
        cases = [again for again in cases if again.source.index == case.source.index]
        if not cases:
            raise _Stays("impossible", "its record holds other prompts now than when it was read first")
    mine = next((number for number, again in enumerate(cases) if again.source.index == case.source.index), 0)
    ends = [again.outcome for again in cases]
    if all(end is not None and end.kind == "dead" for end in ends) and (end := ends[mine]) is not None:
        raise _Stays("refused again", f"{end.reason}: {end.detail}")
    source = msgspec.structs.replace(cases[mine].source, index=case.source.index)
    cases[mine] = msgspec.structs.replace(cases[mine], case_id=case.case_id, epoch=case.epoch + 1, source=source)
    return [Hop(PROMPTS if again.outcome is None else OUTCOMES, again) for again in cases]


def _back(
    facts: Mapping[str, Any],
    case: Case | None,
    moving: Mapping[str, int],
    records: Mapping[tuple[str, int, int], Any],
    cluster: str,
    settings: Settings,
    admission: Admission,
    remembered: Forgotten,
) -> list[Hop]:
    if case is None or facts["reason"] == "undecodable_case":
        raise _Stays("impossible", _UNDECODABLE)
    epoch = moving.get(case.case_id, 0)
    if epoch > case.epoch:
        raise _Stays("on its way", f"already redriven, at epoch {epoch}; `goldstream case {case.case_id}`")
    if facts["stage"] == "intake":
        hops = readmitted(case, _unchanged(case, records, cluster), settings, admission)
    elif case.task not in settings.tasks:
        raise _Stays("impossible", f"task {case.task!r} is no longer in the settings")
    else:
        hops = [revived(case)]
    if any(remembered.covers(hop.case, settings.intake.split_key) for hop in hops):
        raise _Stays("refused again", "forgotten: its user, trace, session or itself")
    size, limit = max(len(encode_case(hop.case)) for hop in hops), settings.kafka.max_message_bytes
    if size > limit:
        raise _Stays("refused again", f"too_large: {size} bytes; kafka.max_message_bytes is {limit}")
    return hops


def _sent(
    decided: list[tuple[dict[str, Any], list[Hop] | _Stays]], producer: Any, settings: Settings
) -> Iterator[Redriven]:
    tracing = trace_hops(settings, "redrive") if producer is not None else None
    sent = [
        [] if isinstance(hops, _Stays) else [_send(producer, hop, settings, tracing) for hop in hops]
        for _, hops in decided
    ]
    if producer is not None:
        producer.flush()
    for (facts, hops), futures in zip(decided, sent, strict=True):
        letter = (facts["case_id"], facts["stage"], facts["reason"])
        if isinstance(hops, _Stays):
            yield Redriven(*letter, hops.result, str(hops))
            continue
        mine = next(hop for hop in hops if hop.case.case_id == facts["case_id"])
        where = f"{settings.topic(mine.topic)}, epoch {mine.case.epoch}"
        where += f", and {len(hops) - 1} more cases of its record" if len(hops) > 1 else ""
        try:
            for future in futures:
                if isinstance(future, KafkaError):
                    raise future
                if future is not None:
                    future.get(timeout=30)
            yield Redriven(*letter, "would be redriven" if producer is None else "redriven", where)
        except KafkaError as error:
            yield Redriven(*letter, "not confirmed", f"{type(error).__name__}; redrive again, an epoch counts once")


def _send(producer: Any, hop: Hop, settings: Settings, tracing: Hops | None) -> Any:
    if producer is None:
        return None
    topic, key = settings.topic(hop.topic), hop.case.case_id.encode()
    relay = tracing.bring_back(hop.case, topic) if tracing is not None else None
    try:
        if relay is None:
            return producer.send(topic, key=key, value=encode_case(hop.case))
        return relay.sent(producer.send(topic, key=key, value=encode_case(relay.case), headers=relay.headers))
    except KafkaError as error:
        return error


def _unchanged(case: Case, records: Mapping[tuple[str, int, int], Any], cluster: str) -> Any:
    """Returns the record a letter was made from; raises _Stays where it is not to be had."""
    topic, partition, offset = place = _place(case)
    where = f"{topic}[{partition}] at offset {offset}"
    if case.source.cluster != cluster:
        raise _Stays("gone", f"it was read from another cluster, {case.source.cluster}")
    if place not in records:
        raise _Stays("gone", f"{where} no longer holds the record: retention has removed it")
    if hashlib.sha256(records[place].value or b"").hexdigest() != case.body_sha256:
        raise _Stays("gone", f"{where} holds another record now: the topic was made anew")
    return records[place]


def _place(case: Case) -> tuple[str, int, int]:
    return case.source.topic, case.source.partition, case.source.offset


def _letters(settings: Settings, match: dict[str, Any]) -> Iterator[list[tuple[dict[str, Any], Case | None]]]:
    """Yields batches of dead letters: what `list` shows of each, and its case; None where there never was one."""
    with open_gold(settings.gold) as connection:
        query = f'SELECT {_COLUMNS}, case_json FROM dead WHERE {_MATCHES} ORDER BY topic, partition, "offset"'
        result = connection.execute(query, match)
        while rows := result.fetchmany(_BATCH):
            yield [(dict(zip(LETTER, row, strict=False)), decode_case(row[-1]) if row[-1] else None) for row in rows]


def _match(reason: str | None, stage: str | None, task: str | None, case_id: str | None = None) -> dict[str, Any]:
    for name, value, known in (("reason", reason, tuple(DEAD_REASONS)), ("stage", stage, get_args(Stage))):
        if value is not None and value not in known:
            raise SettingsError(f"--{name} {value}: expected one of {', '.join(known)}.")
    return {"reason": reason, "stage": stage, "task": task, "case_id": case_id}


_COLUMNS = """case_id, task, stage, reason, detail, source_topic AS topic, source_partition AS partition,
source_offset AS "offset", epoch, ended_at"""

_MATCHES = " AND ".join(f"(${name} IS NULL OR {name} = ${name})" for name in ("reason", "stage", "task", "case_id"))

_UNDECODABLE = "the message was no case, so there is none to redrive; it lies where the coordinates say"
