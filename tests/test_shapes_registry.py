"""Confluent's wire format: schemas from a folder or a registry, which may be slow, wrong or down."""

from __future__ import annotations

import base64
import io
import json
import struct
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fastavro
import pytest
from pipeline import STUB_TASK, openai_record, produce
from steps import cases_on, running, until

from schemas.errors import RecordError, RegistryDown, SettingsError
from schemas.settings import SchemaRegistry, Settings, load_settings
from streams.audit import audit
from streams.intake import run_intake
from streams.lag import LagReader
from streams.reader import Reader
from streams.records import Record
from streams.shapes.schema_registry import Registry
from streams.topics import create_topics, ensure_source_topic

MESSAGE = {"type": "record", "name": "Message", "fields": [{"name": n, "type": "string"} for n in ("role", "content")]}
CALL = {"type": "record", "name": "Call", "fields": [{"name": "id", "type": "string"}]}
CALL["fields"] += [{"name": "messages", "type": {"type": "array", "items": MESSAGE}}]  # type: ignore[operator]
GUID = str(uuid.UUID(int=7))


class StubRegistry:
    """A registry whose answers a test decides: path -> (status, body); anything else is 404."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[str] = []
        self.authorization: list[str | None] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stub.asked.append(self.path)
                stub.authorization.append(self.headers.get("Authorization"))
                status, body = stub.answers.get(self.path, (404, {"error_code": 40403}))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def registry() -> Iterator[StubRegistry]:
    stub = StubRegistry()
    try:
        yield stub
    finally:
        stub.close()


def avro(call_id: str = "a-1", schema: Any = CALL) -> bytes:
    stream = io.BytesIO()
    call = {"id": call_id, "messages": [{"role": "user", "content": "hello"}]}
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), call)
    return stream.getvalue()


def framed(number: int, payload: bytes) -> bytes:
    return b"\x00" + struct.pack(">I", number) + payload


def schema(body: Any, **more: Any) -> tuple[int, Any]:
    return 200, {"schema": json.dumps(body)} | more


def reader_of(url: str = "", **more: Any) -> Reader:
    return Reader(Settings(schema_registry=SchemaRegistry(url=url, **more)))


def ids(reader: Reader, value: bytes, headers: Any = ()) -> list[str]:
    found = [one.record for one in reader.read(value, headers, "logs")]
    return [one.event_id if isinstance(one, Record) else one.reason for one in found]


def test_a_schema_is_asked_for_once(registry: StubRegistry) -> None:
    registry.answers["/schemas/ids/5"] = schema(CALL)
    reader = reader_of(registry.url)
    assert [ids(reader, framed(5, avro(f"a-{n}"))) for n in range(3)] == [["a-0"], ["a-1"], ["a-2"]]
    assert registry.asked == ["/schemas/ids/5"]


def test_a_guid_names_a_schema_in_the_value_or_in_a_header(registry: StubRegistry) -> None:
    registry.answers[f"/schemas/guids/{GUID}"] = schema(CALL)
    reader = reader_of(registry.url)
    prefix = b"\x01" + uuid.UUID(GUID).bytes
    assert ids(reader, prefix + avro()) == ["a-1"]
    assert ids(reader, avro(), [("__value_schema_id", prefix)]) == ["a-1"]
    assert registry.asked == [f"/schemas/guids/{GUID}"]


def test_an_unknown_schema_is_a_reason_and_is_not_asked_for_again_at_once(registry: StubRegistry) -> None:
    reader = reader_of(registry.url)
    assert [ids(reader, framed(6, avro())) for _ in range(3)] == [["unknown_schema"]] * 3
    assert registry.asked == ["/schemas/ids/6"]
    assert ids(reader_of(), framed(6, avro())) == ["unknown_schema"]


def test_an_unknown_schema_is_asked_for_again_after_a_while(registry: StubRegistry) -> None:
    now = [0.0]
    known = Registry(SchemaRegistry(url=registry.url), clock=lambda: now[0])
    for seconds in (0.0, 29.0, 31.0):
        now[0] = seconds
        with pytest.raises(RecordError, match="unknown_schema"):
            known.decode("6", avro())
    assert len(registry.asked) == 2
    registry.answers["/schemas/ids/6"] = schema(CALL)
    now[0] = 90.0
    assert known.decode("6", avro())["id"] == "a-1"


def test_a_schema_of_several_files_is_put_together(registry: StubRegistry) -> None:
    outer = json.loads(json.dumps(CALL))
    outer["fields"][1]["type"]["items"] = "Message"
    registry.answers["/schemas/ids/7"] = schema(outer, references=[{"name": "Message", "subject": "m v", "version": 2}])
    registry.answers["/subjects/m%20v/versions/2"] = schema(MESSAGE)
    assert ids(reader_of(registry.url), framed(7, avro())) == ["a-1"]


def test_bytes_that_do_not_fit_their_schema_are_a_bad_payload(registry: StubRegistry) -> None:
    registry.answers["/schemas/ids/5"] = schema(CALL)
    reader, whole = reader_of(registry.url), framed(5, avro())
    for value in (whole[:-1], whole + b"\x00", framed(5, b""), framed(5, b"\xff" * 40), whole[:3]):
        assert ids(reader, value) == ["bad_payload"]


def test_json_needs_no_schema_and_protobuf_is_named(registry: StubRegistry) -> None:
    reader = reader_of(registry.url)
    assert ids(reader, framed(9, openai_record("q", "j-1"))) == ["j-1"]
    assert registry.asked == []
    registry.answers["/schemas/ids/8"] = 200, {"schema": "message M {}", "schemaType": "PROTOBUF"}
    assert ids(reader, framed(8, b"\x00\x01")) == ["unknown_schema"]
    registry.answers["/schemas/ids/10"] = 200, {"schema": "{}", "schemaType": "JSON"}
    assert ids(reader, framed(10, b"{broken")) == ["not_json"]


@pytest.mark.parametrize("answer", [(500, b""), (503, {}), (401, {}), (403, {}), (200, b"<html>"), (200, {"x": 1})])
def test_a_registry_that_cannot_answer_is_no_fault_of_the_record(registry: StubRegistry, answer: Any) -> None:
    registry.answers["/schemas/ids/5"] = answer
    reader = reader_of(registry.url)
    with pytest.raises(RegistryDown, match=r"registry"):
        reader.read(framed(5, avro()), (), "logs")
    registry.answers["/schemas/ids/5"] = schema(CALL)
    assert ids(reader, framed(5, avro())) == ["a-1"]


def test_nobody_listening_is_a_registry_that_is_down() -> None:
    with pytest.raises(RegistryDown, match="does not answer"):
        reader_of("http://127.0.0.1:9").read(framed(5, avro()), (), "logs")


def test_credentials_come_from_variables_and_stay_out_of_errors(
    registry: StubRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REG_USER", "me")
    monkeypatch.setenv("REG_PASSWORD", "s3cret")
    reader = reader_of(registry.url, username_env="REG_USER", password_env="REG_PASSWORD")
    registry.answers["/schemas/ids/5"] = (401, {})
    with pytest.raises(RegistryDown, match="401") as caught:
        reader.read(framed(5, avro()), (), "logs")
    assert registry.authorization == ["Basic " + base64.b64encode(b"me:s3cret").decode()]
    assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("REG_TOKEN", "t0ken")
    reader = reader_of(registry.url, token_env="REG_TOKEN")
    assert ids(reader, framed(6, avro())) == ["unknown_schema"]
    assert registry.authorization[-1] == "Bearer t0ken"
    monkeypatch.delenv("REG_TOKEN")
    with pytest.raises(RegistryDown, match="REG_TOKEN"):
        reader_of(registry.url, token_env="REG_TOKEN").read(framed(6, avro()), (), "logs")


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('url = "http://user:pw@registry:8081"', "plain address"),
        ('url = "registry:8081"', "plain address"),
        ('username_env = "A"', "go together"),
        ('token_env = "A"\nusername_env = "B"\npassword_env = "C"', "not both"),
        ('password_env = "hunter2!"', "name of a variable"),
    ],
)
def test_a_registry_set_up_wrongly_is_told_at_once(tmp_path: Path, toml: str, said: str) -> None:
    path = tmp_path / "goldstream.toml"
    path.write_text(f"[schema_registry]\n{toml}\n")
    with pytest.raises(SettingsError, match=said) as caught:
        load_settings(path, environ={})
    assert "hunter2" not in str(caught.value)
    assert "pw@" not in str(caught.value)


def test_a_folder_is_asked_before_the_registry_and_a_broken_file_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "5.avsc").write_text(json.dumps(CALL))
    reader = reader_of("http://127.0.0.1:9", folder=str(tmp_path))
    assert ids(reader, framed(5, avro())) == ["a-1"]
    (tmp_path / "6.avsc").write_bytes(b"\xff")
    with pytest.raises(RegistryDown, match=r"6\.avsc"):
        reader.read(framed(6, avro()), (), "logs")
    assert isinstance(reader.read(framed(6, avro())[:4], (), "logs")[0].record, RecordError)


def test_intake_holds_while_the_registry_is_down_and_loses_nothing(
    make_settings: Callable[..., Settings], registry: StubRegistry
) -> None:
    settings = make_settings(
        STUB_TASK.format(topic="logs-avro", api_base="http://127.0.0.1:9"), f"schema_registry.url={registry.url}"
    )
    create_topics(settings)
    ensure_source_topic(settings, "logs-avro", partitions=1)
    registry.answers["/schemas/ids/5"] = (503, {})
    produce(settings, "logs-avro", [openai_record("first", "plain"), framed(5, avro("held")), framed(6, avro())])
    with running(lambda stop, ready: run_intake(settings, stop, ready)), LagReader(settings) as lag:
        until(lambda: len(registry.asked) >= 2)  # it has tried again
        assert cases_on(settings, "prompts") == cases_on(settings, "outcomes") == []
        registry.answers["/schemas/ids/5"] = schema(CALL)
        until(lambda: all(row.committed == 3 for row in lag.read() if row.group == "intake"))
    assert [case.case_id for case in cases_on(settings, "prompts")] == ["plain", "held"]
    assert [case.outcome.reason for case in cases_on(settings, "outcomes") if case.outcome] == ["unknown_schema"]
    assert audit(settings, again_after_s=0.0).balanced
