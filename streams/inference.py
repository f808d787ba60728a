"""What `goldstream map infer` proposes: a mapping for records of an unknown shape, by names and types of their fields.

A guess to begin with: it is tried on the same records, and `goldstream map test` shows what it yields.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from schemas.settings import Mapping, Settings
from streams.reader import Reader
from streams.recognition import Logged
from streams.records import Record
from streams.shapes.values import parsed

_MAX_RECORDS = 200
_MAX_DEPTH = 8

# Names that products give to what we look for, the likeliest first; compared without case and punctuation.
_NAMES = {
    "prompt": "prompt question query userprompt usermessage userinput inputtext input instruction request ask text",
    "completion": "answer reply response completion output outputtext generatedtext modelresponse assistantmessage "
    "generation result",
    "system": "systemprompt system systemmessage instructions preamble",
    "event_id": "requestid eventid callid completionid messageid uid uuid id",
    "ts": "timestamp ts createdat created time at starttime date",
    "source": "service servicename app application source",
    "trace_id": "traceid trace correlationid",
    "session_id": "sessionid conversationid threadid chatid session conversation visit thread",
    "workload": "workloadid workload usecase feature task endpoint",
    "user": "userid enduser user customerid customer accountid tenant",
    "model": "modelname model modelid engine deployment",
    "tools": "tools functions",
    "params": "parameters params modelparameters config options",
    "usage": "usage tokens tokenusage tokencounts",
    "finish_reason": "finishreason stopreason",
    "cost": "costusd cost totalcost price",
    "feedback": "feedback rating score scores",
}
_TYPES: dict[str, tuple[type, ...]] = {"tools": (list,), "params": (dict,), "usage": (dict,), "cost": (int, float)}
_TYPES |= {"ts": (str, int, float), "feedback": (dict, int, float, str)}
_TYPES |= dict.fromkeys(("event_id", "source", "trace_id", "session_id", "workload", "user"), (str, int))
_SPEAKERS = ("role", "from", "speaker", "author", "sender")
_SAYINGS = ("content", "text", "value", "message", "body", "utterance")


class Proposal(NamedTuple):
    """A mapping, how many of the records it reads, and how many were read without it."""

    mapping: Mapping
    records: int
    reads: int
    known: int
    shapes: list[str]


def propose(logged: list[Logged]) -> Proposal:
    """Returns a mapping for records that are of no known shape, as far as one can be guessed."""
    reader, shapes, known = Reader(Settings()), set(), 0
    bodies: list[dict[str, Any]] = []
    for one in logged[:_MAX_RECORDS]:
        found = reader.read(one.value, one.headers, "")
        if all(isinstance(item.record, Record) for item in found):
            known += 1
            shapes |= {item.shape for item in found}
        bodies += reader.unwrapped(one.value, one.headers)
    bodies = bodies[:_MAX_RECORDS]
    expressions = _guess(bodies) if known < len(logged[:_MAX_RECORDS]) else {}
    mapping = msgspec.convert(expressions, Mapping)
    reads = 0
    if expressions:
        mapped = Reader(Settings(map={"t": mapping}))
        for body in bodies:
            found = mapped.read(msgspec.json.encode(body, enc_hook=str), (), "t")
            reads += all(isinstance(item.record, Record) for item in found)
    return Proposal(mapping, len(bodies), reads, known, sorted(shapes))


def as_toml(proposal: Proposal, topic: str) -> str:
    """Returns a proposed mapping as it stands in goldstream.toml."""
    lines = [f"# Guessed from {proposal.records} records, of which it reads {proposal.reads}. Check what it yields:"]
    lines += [f"# goldstream map test FILE --topic {topic}", f"[map.{json.dumps(topic)}]"]
    set_ = proposal.mapping.expressions()
    lines += [f"{field} = {json.dumps(text, ensure_ascii=False)}" for field, text in set_.items()]
    hidden = {"items", "params", "tools", "feedback", "source"} | (
        {"messages", "system"} if "prompt" in set_ else {"prompt"}
    )
    lines += [
        f'# {field} = ""  # not found'
        for field in Mapping.__struct_fields__
        if field not in set_ and field not in hidden
    ]
    return "\n".join(lines)


def _guess(bodies: list[dict[str, Any]]) -> dict[str, str]:
    """Returns expressions by field: for each the best of the paths that half the records have."""
    counts: dict[tuple[str, ...], int] = {}
    values: dict[tuple[str, ...], Any] = {}
    for body in bodies:
        for path, value in _paths(body, ()):
            if value not in (None, "", [], {}):
                counts[path] = counts.get(path, 0) + 1
                values.setdefault(path, value)
    common = {path: values[path] for path, number in counts.items() if 2 * number >= len(bodies)}
    chosen: dict[str, str] = {}
    taken: set[tuple[str, ...]] = set()
    turns = next(
        ((path, text) for path, value in sorted(common.items(), key=_depth) if (text := _turns(path, value))), None
    )
    if turns:
        taken.add(turns[0])
        chosen["messages"] = turns[1]
    for field, names in _NAMES.items():
        if field == "prompt" and turns:
            continue
        best = min(
            (_rank(field, names.split(), path, value) for path, value in common.items() if path not in taken),
            default=None,
        )
        if best and best[0] < _NO:
            taken.add(best[-1])
            chosen[field] = ".".join(map(_quoted, best[-1]))
    if "prompt" not in chosen and not turns:
        chosen = _longest_texts(common) | chosen
    if not turns and "prompt" not in chosen:
        return {}
    return chosen


_NO = 1_000


def _rank(field: str, names: list[str], path: tuple[str, ...], value: Any) -> tuple[int, int, tuple[str, ...]]:
    """Returns how well a path's name and value fit a field: the smaller, the better."""
    name = re.sub(r"[^a-z0-9]", "", path[-1].lower())
    kinds = _TYPES.get(field, (str,))
    if name not in names or not isinstance(parsed(value) if field in ("tools", "params", "usage") else value, kinds):
        return _NO, 0, path
    if field == "finish_reason" and not isinstance(value, str):
        return _NO, 0, path
    return names.index(name), len(path), path


def _longest_texts(common: dict[tuple[str, ...], Any]) -> dict[str, str]:
    """Returns the two longest texts as prompt and answer, where no name said which they are."""
    texts = sorted(
        (p for p, v in common.items() if isinstance(v, str) and " " in v.strip()), key=lambda p: -len(common[p])
    )
    return {field: ".".join(map(_quoted, path)) for field, path in zip(("prompt", "completion"), texts, strict=False)}


def _turns(path: tuple[str, ...], value: Any) -> str:
    """Returns an expression for an array of turns, "" for any other value."""
    value = parsed(value)
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        return ""
    speaker = next((name for name in _SPEAKERS if all(isinstance(turn.get(name), str) for turn in value)), None)
    saying = next((name for name in _SAYINGS if all(name in turn for turn in value)), None)
    if speaker is None or saying is None:
        return ""
    where = ".".join(map(_quoted, path))
    return where if (speaker, saying) == ("role", "content") else f"{where}[].{{role: {speaker}, content: {saying}}}"


def _paths(value: Any, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if at:
        yield at, value
    if isinstance(value, dict) and len(at) < _MAX_DEPTH:
        for name, inner in value.items():
            yield from _paths(inner, (*at, name))


def _depth(item: tuple[tuple[str, ...], Any]) -> tuple[int, tuple[str, ...]]:
    return len(item[0]), item[0]


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) else json.dumps(name)
