"""Each shape of deploy/samples with each fault of bad input, as `goldstream map test` tells it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from goldstream import cli

SAMPLES = Path(__file__).parent.parent / "deploy" / "samples"
REDACTED = ("redacted-by-litellm", "__REDACTED__", "<fully masked due to failed mask function>", "[REDACTED]")
ASKED = ("messages", "input", "prompt", "request", "request_body", "attributes", "events")  # where a prompt lies
# Samples that yield a prompt.
SHAPES = (
    "anthropic-messages.json", "cloudevents-structured.json", "cloudevents-debezium-openai.json", "debezium.json",
    "flywheel.json", "helicone.json", "langfuse.json", "langfuse-plain.json", "litellm.json", "litellm-tools.json",
    "openai-chat.json", "openai-chat-halves.json", "openai-chat-streamed.json", "openai-responses.json",
    "openai-responses-tools.json", "otlp-events.json", "otlp-genai.json", "otlp-input-value.json", "otlp-numbered.json",
    "otlp-openinference.json", "schema-registry-json.bin",
)  # fmt: skip


def truncated(body: Any) -> Any:
    text = json.dumps(body)
    return text[: len(text) // 2]


def mistyped(body: Any) -> Any:
    """Returns the record with every array and text at which a prompt lies made a number."""
    return _everywhere(body, lambda name, value: 7 if name in ASKED or name == "content" else value)


def halved(body: Any) -> Any:
    """Returns the record without what was asked."""
    return _everywhere(body, lambda name, value: None if name in ASKED else value)


def redacted(body: Any, put: str = REDACTED[0]) -> Any:
    """Returns the record with every text of a conversation replaced by what its logger puts there."""
    return _texts(body, put, inside=False)


def _everywhere(value: Any, change: Callable[[str, Any], Any]) -> Any:
    if isinstance(value, str) and value[:1] in ("[", "{"):
        return json.dumps(_everywhere(json.loads(value), change))
    if isinstance(value, list):
        return [_everywhere(item, change) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {name: change(name, held) for name, held in value.items()}
    return {
        n: held if held != value[n] else _everywhere(held, change) for n, held in changed.items() if held is not None
    }


def _texts(value: Any, put: str, inside: bool, name: str = "") -> Any:
    inside = inside or name in ("content", "text", "input", "output", "stringValue")
    if isinstance(value, str):
        if value[:1] in ("[", "{"):
            return json.dumps(_texts(json.loads(value), put, inside=False))
        return put if inside and " " in value else value
    if isinstance(value, list):
        return [_texts(item, put, inside=False, name=name if name in ("input", "output") else "") for item in value]
    if isinstance(value, dict):
        return {n: _texts(held, put, inside=False, name=n) for n, held in value.items()}
    return value


def looked_at(tmp_path: Path, name: str, body: Any) -> tuple[list[dict[str, Any]], int]:
    """Returns what `map test --json` says of a record, and the exit code."""
    value = (body if isinstance(body, str) else json.dumps(body)).encode()
    if name.endswith(".bin"):
        value = (SAMPLES / name).read_bytes()[:5] + value  # the magic byte and the schema's id
    path = tmp_path / name
    path.write_bytes(value)
    schemas = f"schema_registry.folder={SAMPLES / 'schemas'}"
    result = CliRunner().invoke(cli, ["map", "test", str(path), "--json", "--set", schemas])
    assert result.stdout, result.exception
    for_people = CliRunner().invoke(cli, ["map", "test", str(path), "--set", schemas])
    assert for_people.exit_code == result.exit_code
    return json.loads(result.stdout), result.exit_code


def body_of(name: str) -> Any:
    value = (SAMPLES / name).read_bytes()
    return json.loads(value[5:] if name.endswith(".bin") else value)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    ("fault", "reasons"),
    [
        (truncated, {"not_json", "unknown_schema"}),  # cut JSON behind an unknown id may be Avro
        (mistyped, {"wrong_type", "wrong_shape", "no_messages", "no_call"}),
        (halved, {"wrong_shape", "wrong_type", "no_messages", "no_call", "deleted"}),
        (redacted, {"redacted", "no_messages"}),
    ],
)
def test_a_faulty_record_is_told_with_its_reason(
    tmp_path: Path, name: str, fault: Callable[[Any], Any], reasons: set[str]
) -> None:
    assert looked_at(tmp_path, name, body_of(name))[1] == 0
    seen, code = looked_at(tmp_path, name, fault(body_of(name)))
    assert code == 1, seen
    assert {one["reason"] for one in seen} <= reasons
    assert all(one["means"] and one["becomes"] in ("dead", "dropped") for one in seen)


@pytest.mark.parametrize("put", REDACTED)
def test_what_a_logger_puts_in_place_of_a_text_is_no_prompt(tmp_path: Path, put: str) -> None:
    for name in SHAPES:
        seen, _ = looked_at(tmp_path, name, redacted(body_of(name), put))
        assert {one["reason"] for one in seen} == {"redacted"}, (name, seen)


def test_a_prompt_that_speaks_of_redaction_is_read(tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "What does __REDACTED__ mean? [REDACTED]"}]}
    seen, code = looked_at(tmp_path, "one.json", body)
    assert (seen[0]["becomes"], code) == ("case", 0)


@pytest.mark.parametrize("half", ["request_body", "response_body"])
@pytest.mark.parametrize("as_text", [False, True])
def test_a_body_that_helicone_was_told_to_omit_is_redacted(tmp_path: Path, half: str, as_text: bool) -> None:
    """Its worker keeps the name of the model and nothing else."""
    body = body_of(next(name for name in SHAPES if name.startswith("helicone")))
    only = {"model": "gpt-5"}
    seen, _ = looked_at(tmp_path, "omitted.json", body | {half: json.dumps(only) if as_text else only})
    assert [(one["becomes"], one["reason"]) for one in seen] == [("dropped", "redacted")]
