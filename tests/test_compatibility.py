"""Old readers with new writers, and the reverse: what one of them does not know survives the other."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest
from ended_cases import ended

from schemas.case import (
    SCHEMA_VERSION,
    Attempt,
    Case,
    Source,
    Verdict,
    decode_case,
    encode_case,
)
from schemas.errors import RecordError
from schemas.outcomes import outcome_row, outcome_table
from schemas.settings import Settings
from streams.dedup import OutcomeIndex
from streams.dlq import revived
from streams.flow import next_hop
from streams.retries import returned

NEXT = SCHEMA_VERSION + 1
WHERE = Source(cluster="c", topic="gs.retry.10s", partition=0, offset=0)
HUGE = 123456789012345678901234567890  # more than any machine integer holds


def message(case: Case, **changes: Any) -> dict[str, Any]:
    return json.loads(encode_case(case)) | {"schema_version": NEXT} | changes


def read(written: dict[str, Any]) -> Case:
    return decode_case(json.dumps(written).encode())


def rewritten(case: Case) -> dict[str, Any]:
    return dict(json.loads(encode_case(case)))


def with_unknown_fields(value: Any, rng: random.Random) -> Any:
    """Returns a message with unknown fields of random shapes in objects chosen at random, at every level."""
    if isinstance(value, list):
        return [with_unknown_fields(item, rng) for item in value]
    if not isinstance(value, dict):
        return value
    grown = {key: with_unknown_fields(item, rng) for key, item in value.items()}
    shapes: list[Any] = [7, HUGE, "text", None, [], {}, [1, {"deep": [None, 1.5]}], {"a": {"b": []}}, True]
    for number in range(rng.randrange(3)):
        grown[f"x_unknown_{number}"] = rng.choice(shapes)
    return grown


@pytest.mark.parametrize("seed", range(50))
def test_every_key_of_a_newer_message_survives_at_every_level(seed: int) -> None:
    rng = random.Random(seed)
    written = with_unknown_fields(message(ended(seed), epoch=0, retries=0, session=""), rng)
    assert rewritten(read(written)) == written


def test_unknown_fields_stay_with_their_attempt_while_the_case_goes_on() -> None:
    case = ended(1, outcome=None)
    first, second = case.attempts
    waiting = msgspec.structs.replace(
        case, outcome=None, attempts=(first, msgspec.structs.replace(second, verdict=None))
    )
    written = message(waiting, tenant={"name": "a"})
    written["attempts"][0]["verdict"]["confidence"] = 0.5
    written["attempts"][1]["sampler"] = "beam"
    written["spend"]["cached_tokens"] = 12
    written["messages"][0]["cache"] = True
    written["source"]["region"] = "eu"
    verdict = Verdict(passed=False, score=0, max_score=1, judge="m")
    read_case = read(written)
    judged = msgspec.structs.replace(
        read_case,
        attempts=(
            read_case.attempts[0],
            msgspec.structs.replace(read_case.attempts[1], verdict=verdict),
            Attempt(round=2, source="refiner", text="again", model="m"),
        ),
        spend=read_case.spend.plus(read_case.spend),
    )
    out = rewritten(judged)
    assert out["tenant"] == {"name": "a"}
    assert out["attempts"][0]["verdict"]["confidence"] == 0.5
    assert out["attempts"][1]["sampler"] == "beam"
    assert out["attempts"][1]["verdict"]["judge"] == "m"
    assert "sampler" not in out["attempts"][2]
    assert (out["spend"]["calls"], out["spend"]["cached_tokens"]) == (8, 12)
    assert out["messages"][0]["cache"] is True
    assert out["source"]["region"] == "eu"
    assert out["schema_version"] == NEXT


def test_what_replaces_another_thing_inherits_nothing_of_it() -> None:
    written = message(ended(1))
    written["outcome"]["reviewer"] = "somebody"
    written["attempts"][1]["verdict"]["confidence"] = 0.5
    case = read(written)
    last = msgspec.structs.replace(case.attempts[1], verdict=Verdict(passed=False, score=0, max_score=2, judge="other"))
    changed = msgspec.structs.replace(case, attempts=(case.attempts[0], last)).ended("unresolved", "judge", 5)
    out = rewritten(changed)
    assert out["outcome"] == {"kind": "unresolved", "stage": "judge", "at_ms": 5}
    assert "confidence" not in out["attempts"][1]["verdict"]


def test_a_default_that_a_newer_writer_wrote_out_is_written_out_again() -> None:
    written = message(ended(1), retries=0)
    written["attempts"][0]["verdict"]["votes"] = 1  # its own default may be 3 by now
    assert rewritten(read(written))["attempts"][0]["verdict"]["votes"] == 1
    assert rewritten(read(written))["retries"] == 0


def test_a_message_of_todays_version_is_an_ordinary_case() -> None:
    case = ended(1)
    assert type(decode_case(encode_case(case))) is Case
    assert decode_case(encode_case(case)) == case
    assert "x" not in rewritten(read(json.loads(encode_case(case)) | {"x": 1}))


def test_a_field_named_like_our_own_companion_is_only_a_field() -> None:
    written = message(ended(1), original="theirs")
    assert rewritten(read(written))["original"] == "theirs"


def test_an_old_writer_that_leaves_newer_fields_out_is_read_with_defaults() -> None:
    source = {"cluster": "c", "topic": "logs", "partition": 0, "offset": 3}
    attempt = {"round": 0, "source": "student", "text": "a", "model": "m"}
    written = {"schema_version": 0, "case_id": "x", "task": "t", "split": "train", "source": source}
    case = read(written | {"attempts": [attempt]})
    assert (case.epoch, case.retries, case.source.index, case.attempts[0].verdict) == (0, 0, 0, None)
    assert rewritten(case).get("schema_version", 1) == SCHEMA_VERSION, "what we write is of our version"


def test_the_next_version_says_its_number_in_every_message(monkeypatch: pytest.MonkeyPatch) -> None:
    today = encode_case(ended(1))
    monkeypatch.setattr("schemas.case.SCHEMA_VERSION", NEXT)  # a default would be left out of the message
    assert json.loads(encode_case(ended(1)))["schema_version"] == NEXT
    assert json.loads(encode_case(decode_case(today)))["schema_version"] == NEXT


def test_retries_the_sink_and_redrive_pass_unknown_fields_on() -> None:
    waiting = message(ended(1, outcome=None), retry_stage="judge", retries=1, not_before_ms=5, tenant="a")
    del waiting["outcome"]
    _, hop = returned(json.dumps(waiting).encode(), WHERE)
    assert hop.topic == "attempts"
    assert rewritten(msgspec.structs.replace(hop.case, not_before_ms=0))["tenant"] == "a"
    dead = read(message(ended(2, "dead", reason="model_timeout"), tenant="a"))
    dead = dead.ended("dead", "judge", 9, "model_timeout")
    admitted = OutcomeIndex().admit(dead)
    assert admitted is not None
    row = outcome_row(admitted, 0, 7)
    assert len(outcome_table([row])) == 1
    assert row["schema_version"] == NEXT
    assert json.loads(row["case_json"])["tenant"] == "a"
    again = rewritten(revived(decode_case(row["case_json"])).case)
    assert (again["tenant"], again["epoch"], again.get("outcome")) == ("a", 1, None)
    settings = msgspec.convert({"tasks": {}}, Settings)
    assert rewritten(next_hop("student", dead, settings).case)["tenant"] == "a"


@pytest.mark.parametrize("depth", [5_000, 200_000])
def test_a_message_nested_beyond_reason_is_undecodable_and_no_crash(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    value = encode_case(ended(1))[:-1] + b',"deep":' + deep + b',"schema_version":9}'
    with pytest.raises(RecordError, match="undecodable_case"):
        decode_case(value)
