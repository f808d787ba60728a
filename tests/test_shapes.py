"""Every log shape that is read without configuration, by the samples that users can look at in deploy/samples."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.case import DEAD_REASONS, DROPPED_REASONS
from schemas.errors import RecordError
from schemas.settings import Mapping, SchemaRegistry, Settings
from streams.reader import MAX_DEPTH, Headers, Reader
from streams.records import Found, Record

SAMPLES = Path(__file__).parent.parent / "deploy" / "samples"
GUID = "a96ef846-5737-5ba6-8779-d76f0a5f2f36"

# What each sample is: a shape, or the reason for which it is left out; several for a batch.
EXPECTED = {
    "anthropic-messages.json": ["openai-chat"],
    "cloudevents-base64.json": ["cloudevents/flywheel"],
    "cloudevents-batch.json": ["cloudevents/openai-chat"] * 3,
    "cloudevents-binary.kcat.jsonl": ["cloudevents/openai-chat"],
    "cloudevents-debezium-openai.json": ["cloudevents/debezium/openai-chat"],
    "cloudevents-structured.json": ["cloudevents/openai-chat"],
    "debezium-delete.json": ["deleted"],
    "debezium-flattened.json": ["debezium/openai-chat"],
    "debezium-no-schema.json": ["debezium/openai-chat"],
    "debezium-outbox.json": ["debezium/flywheel"],
    "debezium.json": ["debezium/openai-chat"],
    "flywheel.json": ["flywheel"],
    "helicone.json": ["helicone"],
    "langfuse-empty.json": ["no_messages"],
    "langfuse-plain.json": ["langfuse"],
    "langfuse-score.json": ["no_call"],
    "langfuse.json": ["langfuse"],
    "litellm-cache-hit.json": ["cache_hit"],
    "litellm-embedding.json": ["no_call"],
    "litellm-failed.json": ["failed_call"],
    "litellm-redacted.json": ["redacted"],
    "litellm-tools.json": ["litellm"],
    "litellm-truncated.json": ["truncated"],
    "litellm.json": ["litellm"],
    "openai-chat-batch.json": ["openai-chat", "openai-chat", "openai-chat", "wrong_shape"],
    "openai-chat-failed.json": ["failed_call"],
    "openai-chat-halves.json": ["openai-chat"],
    "openai-chat-image.json": ["not_text"],
    "openai-chat-lines.jsonl": ["openai-chat"] * 3,
    "openai-chat-sse.json": ["helicone"],
    "openai-chat-streamed.json": ["openai-chat"],
    "openai-chat-tools.json": ["openai-chat"],
    "openai-chat.json": ["openai-chat"],
    "openai-chunks-alone.json": ["stream_chunk"],
    "openai-responses-continued.json": ["no_messages"],
    "openai-responses-tools.json": ["openai-responses"],
    "openai-responses.json": ["openai-responses"],
    "otlp-events.json": ["otlp-genai"],
    "otlp-genai.json": ["otlp-genai", "otlp-genai"],
    "otlp-input-value.json": ["otlp-openinference"],
    "otlp-no-call.json": ["no_call"],
    "otlp-no-content.json": ["no_messages"],
    "otlp-numbered.json": ["otlp-genai"],
    "otlp-openinference.json": ["otlp-openinference"],
    "schema-registry-avro.bin": ["schema-registry/openai-chat"],
    "schema-registry-guid.bin": ["schema-registry/openai-chat"],
    "schema-registry-json.bin": ["schema-registry/flywheel"],
    "unknown.json": ["wrong_shape"],
}


def sample(name: str) -> tuple[bytes, Headers]:
    """Returns (value, headers) of a sample."""
    value = (SAMPLES / name).read_bytes()
    if ".kcat." not in name:
        return value, ()
    line = json.loads(value)
    headers = list(zip(line["headers"][::2], (text.encode() for text in line["headers"][1::2]), strict=True))
    return line["payload"].encode(), headers


@pytest.fixture(scope="module")
def reader() -> Reader:
    mapping = Mapping(messages="a.b || messages", user="length(id)", usage="usage", completion="response.text")
    return Reader(Settings(schema_registry=SchemaRegistry(folder=str(SAMPLES / "schemas")), map={"mapped": mapping}))


def read_one(reader: Reader, value: Any, headers: Headers = ()) -> Record:
    (found,) = reader.read(value if isinstance(value, bytes) else json.dumps(value).encode(), headers, "logs")
    assert isinstance(found.record, Record), found
    return found.record


def reason(reader: Reader, value: Any) -> str:
    (found,) = reader.read(value if isinstance(value, bytes) else json.dumps(value).encode(), (), "logs")
    assert isinstance(found.record, RecordError), found
    return found.record.reason


def said(found: Found) -> str:
    return found.record.reason if isinstance(found.record, RecordError) else found.record.shape


def chat(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]} | more


def test_every_sample_is_listed_here() -> None:
    assert {path.name for path in SAMPLES.iterdir() if path.is_file()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_sample_is_recognised(reader: Reader, name: str) -> None:
    found = reader.read(*sample(name), "logs")
    assert [said(one) for one in found] == EXPECTED[name]
    for one in found:
        if isinstance(one.record, Record):
            assert one.record.event_id
            assert one.record.messages[-1].role in ("user", "tool")
            assert one.record.answer or one.record.tool_calls
            assert not any(word in (one.record.answer or "") for word in ("Thinking", "Doses", "<think>"))
            assert one.shape == one.record.shape


def test_a_litellm_record_keeps_what_is_known_about_the_call(reader: Reader) -> None:
    record = read_one(reader, *sample("litellm.json"))
    assert (record.event_id, record.model, record.user) == ("chatcmpl-l01", "scribe-large", "clinician-17")
    assert (record.session_id, record.workload, record.ts_ms) == ("visit-0077", "visit-notes", 1763640300125)
    assert (record.prompt_tokens, record.completion_tokens, record.cost_usd) == (212, 48, 0.00042)
    assert record.params == {"temperature": 0.2, "max_tokens": 128}


def test_spans_are_numbered_among_all_spans_of_the_message(reader: Reader) -> None:
    found = reader.read(*sample("otlp-genai.json"), "logs")
    assert [one.index for one in found] == [1, 3]
    first = found[0].record
    assert isinstance(first, Record)
    assert [message.role for message in first.messages] == ["system", "user", "assistant", "tool"]
    assert first.messages[2].tool_calls == [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "look_up_drug", "arguments": '{"name": "metformin"}'},
        }
    ]
    assert first.tools[0]["function"]["name"] == "look_up_drug"
    assert (first.source, first.prompt_tokens) == ("scribe-api", 212)


def test_one_text_of_another_vendor_is_plain_and_parts_of_chat_completions_stay_parts(reader: Reader) -> None:
    for name in ("otlp-genai.json", "openai-responses-tools.json", "otlp-numbered.json"):
        record = reader.read(*sample(name), "logs")[0].record
        assert isinstance(record, Record)
        assert all(isinstance(message.content, str) for message in record.messages if not message.tool_calls)
    parts = [{"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"}]
    record = read_one(reader, {"messages": [{"role": "user", "content": parts}]})
    assert record.messages[0].content == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


def test_a_broken_span_does_not_take_its_neighbours_along(reader: Reader) -> None:
    export = json.loads(sample("otlp-genai.json")[0])
    spans = export["resourceSpans"][0]["scopeSpans"][0]["spans"]
    spans[1]["attributes"] = 7
    assert [said(one) for one in reader.read(json.dumps(export).encode(), (), "logs")] == ["wrong_type", "otlp-genai"]
    export["resourceSpans"].append({"scopeSpans": "broken"})
    found = reader.read(json.dumps([export, chat()]).encode(), (), "logs")
    assert [said(one) for one in found] == ["wrong_type", "otlp-genai", "wrong_type", "openai-chat"]
    assert len({one.index for one in found}) == 4


def test_tool_calls_and_tools_keep_their_structure_in_every_shape(reader: Reader) -> None:
    for name in ("openai-chat-tools.json", "openai-responses-tools.json", "litellm-tools.json"):
        record = read_one(reader, *sample(name))
        assert record.tool_calls[0]["function"]["name"] == "look_up_drug"
        assert json.loads(record.tool_calls[0]["function"]["arguments"])["name"]
        assert record.tools[0]["function"]["name"] == "look_up_drug"
        assert record.answer is None
    tools = read_one(reader, *sample("openai-responses-tools.json")).messages
    assert [message.role for message in tools] == ["system", "user", "assistant", "tool"]
    assert tools[3].tool_call_id == tools[2].tool_calls[0]["id"] == "call_1"  # type: ignore[index]


def test_thinking_is_no_part_of_an_answer(reader: Reader) -> None:
    for message in (
        {"content": "ok", "reasoning": "hm"},
        {"content": "ok", "reasoning_content": "hm"},
        {"content": "<think>hm</think>\n\nok"},
        {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "ok"}]},
    ):
        assert read_one(reader, chat(choices=[{"message": message}])).answer == "ok"


def test_a_conversation_logged_as_one_is_split_before_its_last_answer(reader: Reader) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    record = read_one(reader, {"messages": turns})
    assert (len(record.messages), record.answer) == (1, "b")
    record = read_one(reader, {"messages": turns, "choices": [{"message": {"content": "c"}}]})
    assert (len(record.messages), record.answer) == (2, "c")


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "image", "video_url", "hologram"])
def test_what_is_not_text_is_refused_and_never_left_out(reader: Reader, kind: str) -> None:
    parts = [{"type": "text", "text": "what is this?"}, {"type": kind, kind: {}}]
    assert reason(reader, {"messages": [{"role": "user", "content": parts}]}) == "not_text"


def test_an_event_says_what_its_payload_does_not(reader: Reader) -> None:
    record = read_one(reader, *sample("cloudevents-binary.kcat.jsonl"))
    assert (record.event_id, record.source) == ("/scribe/api#ev-3", "/scribe/api")
    assert record.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
    batch = reader.read(*sample("cloudevents-batch.json"), "logs")
    assert [one.record.event_id for one in batch if isinstance(one.record, Record)] == [
        "chatcmpl-s10",
        "chatcmpl-s11",
        "chatcmpl-s12",
    ]


def test_one_event_around_several_calls_lends_its_id_to_none(reader: Reader) -> None:
    event = {"specversion": "1.0", "id": "e", "source": "s", "data": [chat(), chat("other")]}
    found = reader.read(json.dumps(event).encode(), (), "logs")
    assert [one.record.event_id for one in found if isinstance(one.record, Record)] == ["", ""]


def test_of_two_envelopes_the_nearer_is_believed_in_what_it_says(reader: Reader) -> None:
    near = {"specversion": "1.0", "id": "n", "source": "near", "time": "yesterday", "data": chat(trace_id="own")}
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    far = {"specversion": "1.0", "id": "f", "source": "far", "time": "2025-11-20T12:05:00Z", "data": near}
    record = read_one(reader, far | {"traceparent": trace}, [("traceparent", trace.replace("a", "c").encode())])
    assert (record.event_id, record.source, record.ts_ms) == ("near#n", "near", 1763640300000)
    assert (record.trace_id, record.traceparent) == ("own", trace)


def test_envelopes_nest_to_a_bounded_depth(reader: Reader) -> None:
    def wrapped(depth: int) -> dict[str, Any]:
        body = chat()
        for _ in range(depth):
            body = {"specversion": "1.0", "id": "e", "source": "s", "data": body}
        return body

    assert read_one(reader, wrapped(MAX_DEPTH)).shape == "cloudevents/" * MAX_DEPTH + "openai-chat"
    assert reason(reader, wrapped(MAX_DEPTH + 1)) == "too_deep"
    text = json.dumps(chat())
    assert read_one(reader, {"specversion": "1.0", "id": "e", "source": "s", "data": text}).shape.endswith("chat")


def test_several_shapes_share_a_topic_and_a_message(reader: Reader) -> None:
    names = ("openai-chat.json", "litellm.json", "otlp-genai.json", "debezium.json", "flywheel.json", "langfuse.json")
    items = [json.loads(sample(name)[0]) for name in names]
    found = reader.read(json.dumps(items).encode(), (), "logs")
    shapes = ["openai-chat", "litellm", "otlp-genai", "otlp-genai", "debezium/openai-chat", "flywheel", "langfuse"]
    assert [said(one) for one in found] == shapes
    lines = b"\n".join(json.dumps(item).encode() for item in items)
    assert [said(one) for one in reader.read(lines, (), "logs")] == shapes


def test_json_as_python_writes_it_is_read(reader: Reader) -> None:
    value = b'{"messages": [{"role": "user", "content": "half \\ud83d"}], "score": NaN}'
    record = read_one(reader, value)
    assert record.messages[0].content == "half ?"
    assert msgspec.json.encode(record)
    assert read_one(reader, b"\xef\xbb\xbf" + json.dumps(chat()).encode()).shape == "openai-chat"


def test_a_streamed_answer_that_ends_early_is_truncated(reader: Reader) -> None:
    body = json.loads(sample("openai-chat-streamed.json")[0])
    whole = read_one(reader, body).answer
    assert whole is not None
    assert whole.startswith("Diagnoses")
    del body["response"][-1]
    assert reason(reader, body) == "truncated"


def test_a_tool_call_in_pieces_is_put_together(reader: Reader) -> None:
    def chunk(delta: Any, finish: Any = None) -> dict[str, Any]:
        return {"object": "chat.completion.chunk", "id": "c", "choices": [{"delta": delta, "finish_reason": finish}]}

    def piece(**function: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": 0, "id": "t", "function": function}]}

    chunks = [chunk(piece(name="f", arguments="")), chunk(piece(arguments='{"a"')), chunk(piece(arguments=": 1}"))]
    record = read_one(reader, {"request": chat(), "response": [*chunks, chunk({}, "tool_calls")]})
    assert record.tool_calls == ({"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},)


@pytest.mark.parametrize(
    ("given", "ms"),
    [
        (1763640300, 1763640300000),
        (1763640300.125, 1763640300125),
        (1763640300125, 1763640300125),
        ("1763640300125000000", 1763640300125),
        ("2025-11-20T12:05:00Z", 1763640300000),
        ("yesterday", 0),
        (-5, 0),
        (True, 0),
        (None, 0),
        ([], 0),
    ],
)
def test_a_time_may_be_of_any_unit(reader: Reader, given: Any, ms: int) -> None:
    assert read_one(reader, chat(timestamp=given)).ts_ms == ms


# Bad input

ODD: list[Any] = [None, True, 0, 10**30, "", "x", "{", "{}", [], {}, [None], [{}], ["x"], {"role": None}]
ODD += [{"content": [{"type": []}]}, [{"type": {}}], [{"role": "user", "content": [{"type": "text"}]}]]


def holds(found: list[Found]) -> None:
    """Whether every item is a record or a typed reason, each with a place of its own."""
    assert found
    assert len({one.index for one in found}) == len(found)
    for one in found:
        if isinstance(one.record, RecordError):
            assert one.record.reason in DEAD_REASONS or one.record.reason in DROPPED_REASONS
            assert one.record.reason != "reader_error", one.record
        else:
            assert msgspec.json.encode(one.record)
            assert any(message.role == "user" for message in one.record.messages)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in inner:
        yield (*at, key)
        yield from places(held, (*at, key))


def changed(value: Any, at: tuple[Any, ...], new: Any) -> bytes:
    """Returns a JSON value with another one at a place, or without that place."""
    copy = inner = json.loads(json.dumps(value))
    for key in at[:-1]:
        inner = inner[key]
    if new is KeyError:
        del inner[at[-1]]
    else:
        inner[at[-1]] = new
    return json.dumps(copy).encode()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_sample_cut_off_anywhere_has_a_typed_reason(reader: Reader, name: str) -> None:
    value, headers = sample(name)
    for end in range(0, len(value), max(1, len(value) // 1000)):
        holds(reader.read(value[:end], headers, "logs"))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_sample_with_any_part_missing_or_of_another_type_has_a_typed_reason(
    reader: Reader, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    value, headers = sample(name)
    rng = random.Random(name)
    for _ in range(100):
        mutable = bytearray(value)
        for _ in range(rng.randrange(1, 4)):
            mutable[rng.randrange(len(mutable))] = rng.randrange(256)
        holds(reader.read(bytes(mutable), headers, rng.choice(("logs", "mapped"))))
    if name.endswith((".bin", "lines.jsonl")):
        return
    body = json.loads(value)
    for at in places(body):
        for new in (KeyError, *rng.sample(ODD, 5)):
            holds(reader.read(changed(body, at, new), headers, rng.choice(("logs", "mapped"))))
    assert not [entry for entry in caplog.records if entry.levelno >= logging.ERROR]


def test_json_nested_beyond_reason_is_no_crash(reader: Reader) -> None:
    for value in (b"[" * 200_000, b'{"messages":' * 50_000, b"[" * 5_000 + b"]" * 5_000):
        holds(reader.read(value, (), "logs"))
    deep = '{"arrayValue": {"values": [' * 300 + "]}}" * 300
    span = '{"attributes": [{"key": "gen_ai.input.messages", "value": ' + deep + "}]}"
    export = '{"resourceSpans": [{"scopeSpans": [{"spans": [' + span + "]}]}]}"
    holds(reader.read(export.encode(), (), "logs"))


def test_a_reason_never_quotes_the_records_text(reader: Reader) -> None:
    for name in EXPECTED:
        value, headers = sample(name)
        if name.endswith((".bin", "lines.jsonl")) or ".kcat." in name:
            continue
        body = json.loads(value)
        for at in places(body):
            for one in reader.read(changed(body, at, {"secret": ["s3cret"]}), headers, "logs"):
                assert not isinstance(one.record, RecordError) or "s3cret" not in one.record.detail
