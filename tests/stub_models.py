"""A small OpenAI-compatible server for tests: real HTTP, answers decided by a function of the request."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """What the stub sends back. `hang_s` delays it; `reset` closes the connection halfway; `raw` replaces the body."""

    text: str = "ok"
    status: int = 200
    headers: dict[str, str] = {}
    hang_s: float = 0.0
    reset: bool = False
    raw: bytes | None = None


Answer = Callable[[dict[str, Any]], Reply]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints what went wrong, unless a client hung up: they are killed, and cut calls short."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class StubModels:
    """The server. `answer` may be replaced at any time; `requests` and `headers` keep what every request held."""

    def __init__(self, answer: Answer = lambda request: Reply()) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []  # names in lower case
        self._stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def api_base(self) -> str:
        """What goes into a model's api_base."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> StubModels:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.requests.append(request)
                stub.headers.append({name.lower(): value for name, value in self.headers.items()})
                reply = stub.answer(request)
                if reply.hang_s and stub._stopping.wait(reply.hang_s):
                    return
                body = reply.raw if reply.raw is not None else completion(request, reply)
                try:
                    self.send_response(reply.status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(body)))
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body[: len(body) // 2] if reply.reset else body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the caller's deadline passed first
                if reply.reset:
                    self.close_connection = True

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        return Handler


def completion(request: dict[str, Any], reply: Reply) -> bytes:
    """Returns the body of a chat completion."""
    if reply.status != 200:
        return json.dumps({"error": {"message": "the stub says no", "code": reply.status}}).encode()
    choice = {"index": 0, "message": {"role": "assistant", "content": reply.text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    answer = {"id": "stub", "object": "chat.completion", "created": int(time.time()), "model": request["model"]}
    return json.dumps(answer | {"choices": [choice], "usage": usage}).encode()
