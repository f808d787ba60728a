"""Confluent's wire format: bytes that name their schema by an id or a GUID, which a registry resolves.

Schemas never change, so each is asked for once. A registry that is down is no fault of the record: RegistryDown is
raised, intake holds, and the record is read when the registry answers again.
"""

from __future__ import annotations

import base64
import io
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from schemas.errors import RecordError, RegistryDown
from schemas.settings import SchemaRegistry

ID_HEADER = "__value_schema_id"
_MAX_REFERENCES = 8  # deep
_UNKNOWN_S = 30.0  # how long an unknown id is not asked for again
_MAX_UNKNOWN = 1000
_MAX_SCHEMA_BYTES = 10_000_000

Decode = Callable[[bytes], Any]


def split_magic(value: bytes) -> tuple[str, bytes] | None:
    """Returns (schema id or GUID, payload) of bytes in the wire format, None for other bytes; raises RecordError."""
    if value[:1] not in (b"\x00", b"\x01"):
        return None
    size = 5 if value[0] == 0 else 17
    if len(value) < size:
        raise RecordError("bad_payload", f"{len(value)} bytes that begin as the wire format does, which takes {size}")
    return _name(value[:size]), value[size:]


def named_in_headers(headers: Any) -> str | None:
    """Returns the schema that a header names, as newer serializers do; None without one."""
    for name, value in headers or ():
        if name == ID_HEADER and value is not None and len(value) in (5, 17) and value[0] in (0, 1):
            return _name(value)
    return None


def _name(prefix: bytes) -> str:
    return str(int.from_bytes(prefix[1:], "big")) if prefix[0] == 0 else str(uuid.UUID(bytes=bytes(prefix[1:])))


class Registry:
    """The schemas a process has met. `fetch` and the clock come in, so that tests need no server."""

    def __init__(self, settings: SchemaRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._decoders: dict[str, Decode] = {}
        self._unknown: dict[str, tuple[float, RecordError]] = {}

    def decode(self, schema: str, payload: bytes) -> Any:
        """Returns the value in a payload. Raises RecordError, and RegistryDown where nobody can say now.

        JSON needs no schema to be read, so none is asked for.
        """
        if payload[:1] in (b"{", b"[") and schema not in self._decoders:
            try:
                return msgspec.json.decode(payload)
            except (msgspec.DecodeError, UnicodeError, RecursionError):
                pass  # Avro can begin so too
        decode = self._decoders.get(schema)
        if decode is None:
            decode = self._decoders[schema] = self._look_up(schema)
        return decode(payload)

    def _look_up(self, schema: str) -> Decode:
        asked_at, error = self._unknown.get(schema, (0.0, None))
        if error is not None and self._clock() - asked_at < _UNKNOWN_S:
            raise error
        try:
            found = self._from_folder(schema) or self._from_url(schema)
            return _decoder(schema, found, self._references(found, 0))
        except RecordError as error:
            if len(self._unknown) >= _MAX_UNKNOWN:  # somebody's random bytes, not schemas
                self._unknown.clear()
            self._unknown[schema] = (self._clock(), error)
            raise

    def _from_folder(self, schema: str) -> dict[str, Any] | None:
        for suffix, kind in ((".avsc", "AVRO"), (".json", "JSON")):
            path = Path(self._settings.folder) / (schema + suffix)
            if self._settings.folder and path.is_file():
                try:
                    return {"schema": path.read_text("utf-8"), "schemaType": kind}
                except (OSError, UnicodeError) as error:
                    raise RegistryDown(
                        f"the schema file {path} cannot be read: {error}. Mend it; intake waits."
                    ) from error
        return None

    def _from_url(self, schema: str) -> dict[str, Any]:
        if not self._settings.url:
            where = f"{self._settings.folder} holds no {schema}.avsc" if self._settings.folder else "no registry is set"
            raise RecordError("unknown_schema", f"schema {schema}: {where}; set schema_registry.url or folder")
        found = self._get(f"schemas/{'guids' if '-' in schema else 'ids'}/{schema}")
        if found is None:
            raise RecordError("unknown_schema", f"the registry does not know schema {schema}")
        return found

    def _references(self, found: dict[str, Any], depth: int) -> list[dict[str, Any]]:
        """Returns the schemas that one refers to, each before those that need it."""
        references = found.get("references") or []
        if depth > _MAX_REFERENCES or not isinstance(references, list):
            raise RecordError("unknown_schema", "the schema's references are nested too deeply, or are no array")
        schemas = []
        for reference in references:
            if not isinstance(reference, dict):
                raise RecordError("unknown_schema", "a reference of the schema is no object")
            subject = urllib.parse.quote(str(reference.get("subject")), safe="")
            inner = self._get(
                f"subjects/{subject}/versions/{urllib.parse.quote(str(reference.get('version')), safe='')}"
            )
            if inner is None:
                raise RecordError("unknown_schema", "the registry does not know a schema that this one refers to")
            schemas += [*self._references(inner, depth + 1), inner]
        return schemas

    def _get(self, path: str) -> dict[str, Any] | None:
        """Returns what the registry answers, None for 404. Raises RegistryDown for anything that may pass."""
        url = f"{self._settings.url.rstrip('/')}/{path}"
        request = urllib.request.Request(url, headers={"Accept": "application/vnd.schemaregistry.v1+json"})
        if credentials := self._credentials():
            request.add_header("Authorization", credentials)
        try:
            with urllib.request.urlopen(request, timeout=self._settings.timeout_s) as reply:
                body = reply.read(_MAX_SCHEMA_BYTES)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                return None
            hint = " Check schema_registry's credentials." if error.code in (401, 403) else ""
            raise RegistryDown(f"the schema registry answers {error.code} to {url}.{hint}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise RegistryDown(f"the schema registry at {self._settings.url} does not answer: {reason}") from None
        try:
            found = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("schema"), str):
            raise RegistryDown(f"{url} answers, but not as a schema registry does; check schema_registry.url")
        return found

    def _credentials(self) -> str:
        settings = self._settings
        if settings.token_env:
            return f"Bearer {_variable(settings.token_env)}"
        if settings.username_env:
            pair = f"{_variable(settings.username_env)}:{_variable(settings.password_env)}"
            return "Basic " + base64.b64encode(pair.encode()).decode()
        return ""


def _variable(name: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value or re.search(r"[\r\n]", value):
        raise RegistryDown(
            f"the variable {name}, which the schema registry's credentials come from, is empty or broken"
        )
    return value


def _decoder(schema: str, found: dict[str, Any], references: list[dict[str, Any]]) -> Decode:
    """Returns what reads payloads of a schema; raises RecordError for a schema that cannot be used."""
    kind = found.get("schemaType") or "AVRO"
    if kind == "JSON":
        return _json
    if kind != "AVRO":
        raise RecordError("unknown_schema", f"schema {schema} is {str(kind)[:20]}; Avro and JSON are read")
    import fastavro

    try:
        named: dict[str, Any] = {}
        for reference in references:
            fastavro.parse_schema(msgspec.json.decode(reference["schema"]), named)
        parsed = fastavro.parse_schema(msgspec.json.decode(found["schema"]), named)
    except Exception as error:  # whatever fastavro stumbles over in a schema
        raise RecordError("unknown_schema", f"schema {schema} is no Avro schema: {type(error).__name__}") from None

    def decode(payload: bytes) -> Any:
        stream = io.BytesIO(payload)
        try:
            value = fastavro.schemaless_reader(stream, parsed, None)
        except Exception as error:  # fastavro raises many kinds for bytes that do not fit
            raise RecordError("bad_payload", f"the bytes do not fit schema {schema}: {type(error).__name__}") from None
        if stream.tell() != len(payload):
            left = len(payload) - stream.tell()
            raise RecordError("bad_payload", f"{left} bytes are left over behind a value of schema {schema}")
        return value

    return decode


def _json(payload: bytes) -> Any:
    try:
        return msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise RecordError("not_json", "the schema is a JSON Schema, the payload is not JSON") from None
