"""How records of unknown shapes are read: JMESPath expressions for a topic, and where Avro schemas come from."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.settings.section import Seconds, Section, VariableName


class Mapping(Section, frozen=True):
    """What of a record is what: each a JMESPath expression, tried on the record without its envelopes.

    With `messages` or `prompt`, the mapping reads a shape we do not know; without, it adds to what a known shape
    says. Either way, a field that an expression finds is the one that counts.
    """

    items: str = ""  # the calls of a record that holds several
    messages: str = ""  # an array of {role, content}
    prompt: str = ""  # the user's text, in place of messages
    system: str = ""  # a system prompt that stands apart
    completion: str = ""  # the answer: text, or a message, or an array of them
    tools: str = ""
    params: str = ""
    event_id: str = ""
    ts: str = ""  # seconds, ms, us or ns since 1970, or ISO 8601
    source: str = ""
    trace_id: str = ""
    session_id: str = ""
    workload: str = ""
    user: str = ""
    model: str = ""
    usage: str = ""  # an object of token counts
    finish_reason: str = ""
    status: str = ""  # "success", "ok", 200, true or null: the call went well; anything else drops the record
    cost: str = ""  # USD
    feedback: str = ""

    def expressions(self) -> dict[str, str]:
        """Returns the expressions that are set, by field."""
        return {name: text for name, text in msgspec.structs.asdict(self).items() if text}


class SchemaRegistry(Section, frozen=True):
    """Where the schemas of Confluent's wire format are looked up: a registry, a folder of files, or both."""

    url: str = ""  # e.g. http://registry:8081, without user name or password
    folder: str = ""  # holds ID.avsc or GUID.avsc, .json for JSON Schema; asked first
    username_env: VariableName = ""  # names of the variables, never the secrets
    password_env: VariableName = ""
    token_env: VariableName = ""  # in place of both: a bearer token
    timeout_s: Annotated[Seconds, Meta(le=60)] = 5.0
