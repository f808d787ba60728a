"""An OpenTelemetry collector for tests: real HTTP, OTLP in protobuf, spans as plain objects and as a tree."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")


class Seen(NamedTuple):
    """One span as the collector got it."""

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str  # "" for the first of its trace
    start_ns: int
    end_ns: int
    is_error: bool
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    links: list[tuple[str, str]]  # (trace, span)
    resource: dict[str, Any]


class Collector:
    """Keeps what it is sent. `status` is what it answers; `hang` is waited for before each answer."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.status = 200
        self.hang = threading.Event()
        self.hang.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hang.set()
        self._server.shutdown()
        self._server.server_close()

    def of(self, trace: str) -> list[Seen]:
        """Returns the spans of a trace in the order of their start."""
        return sorted((span for span in self.spans if span.trace == trace), key=lambda span: span.start_ns)

    def case(self, case_id: str) -> list[Seen]:
        """Returns the spans that say they are of a case."""
        return [span for span in self.spans if span.attributes.get("goldstream.case_id") == case_id]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.hang.wait(30)
                if collector.status == 200:
                    collector.headers.append(dict(self.headers) | {"path": self.path})
                    collector.bodies.append(body)
                    collector.spans += _spans(body)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        return Handler


def tree(spans: Iterable[Seen], show: tuple[str, ...] = ()) -> list[str]:
    """Returns a trace as lines: each span under its parent, with its service and some attributes."""
    spans = list(spans)
    known = {span.id for span in spans}
    lines: list[str] = []

    def add(span: Seen, depth: int) -> None:
        told = [f"{name.rpartition('.')[2]}={span.attributes[name]}" for name in show if name in span.attributes]
        told += ["ERROR"] if span.is_error else []
        took_ms = (span.end_ns - span.start_ns) / 1e6
        lines.append(f"{'  ' * depth}{span.name}  [{span.service}] {took_ms:.0f} ms  {' '.join(told)}".rstrip())
        lines.extend(f"{'  ' * depth}    * {name}" for name, _ in span.events)
        for child in spans:
            if child.parent == span.id:
                add(child, depth + 1)

    for span in spans:
        if span.parent not in known:
            add(span, 0)
    return lines


def _spans(body: bytes) -> list[Seen]:
    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    found = []
    for resource in request.resource_spans:
        about = _plain(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                found.append(
                    Seen(
                        service=about["service.name"],
                        name=span.name,
                        kind=KINDS[span.kind],
                        trace=span.trace_id.hex(),
                        id=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        start_ns=span.start_time_unix_nano,
                        end_ns=span.end_time_unix_nano,
                        is_error=span.status.code == 2,
                        attributes=_plain(span.attributes),
                        events=[(event.name, _plain(event.attributes)) for event in span.events],
                        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                        resource=about,
                    )
                )
    return found


def _plain(attributes: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)
