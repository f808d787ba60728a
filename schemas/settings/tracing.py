"""Where the spans of every case go, and what they may hold."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from schemas.settings.section import Seconds, Section, Share, VariableName


class Tracing(Section, frozen=True):
    """OpenTelemetry; off without an endpoint. Needs the extra `tracing`."""

    endpoint: str = (
        ""  # of an OTLP collector, over HTTP: "http://127.0.0.1:4318"; /v1/traces is added to a bare address
    )
    headers_env: VariableName = ""  # the variable that holds what the collector asks for: "name=value,name=value"
    service_name: Annotated[str, Meta(min_length=1)] = "goldstream"  # each process adds its own: goldstream-worker
    resource: dict[str, str] = {}  # more about whoever sends: { "deployment.environment.name" = "production" }
    ratio: Share = 1.0  # of the cases that continue no trace of the product; where one is continued, it decides
    record_content: bool = False  # whether prompts and answers go along
    timeout_s: Seconds = 5.0  # for the collector to take a batch; nobody waits for it but the sender
