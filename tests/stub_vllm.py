"""A server that behaves as vLLM does for adapters and sleep: real HTTP, no model. Read against vLLM 0.32."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Body = dict[str, Any]


class StubVllm:
    """Serves the base `tiny`. `calls` tells what was asked, `broken` names adapters that answer 500.

    `lost` names adapters that answer as the base does, as after a bad wake-up; loading one anew mends it.
    """

    def __init__(self, port: int = 0, *, max_lora_rank: int = 16, dev_mode: bool = True) -> None:
        self.loaded: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        self.broken: set[str] = set()
        self.lost: set[str] = set()
        self.max_lora_rank, self.dev_mode = max_lora_rank, dev_mode
        self.loses_on_wake: set[str] = set()
        self._awake = threading.Event()
        self._awake.set()
        self._stopping = False
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def asleep(self) -> bool:
        """Whether calls wait."""
        return not self._awake.is_set()

    def close(self) -> None:
        """Stops listening; what was loaded is forgotten, as with a process that ended."""
        self._stopping = True
        self._awake.set()
        self._server.shutdown()
        self._server.server_close()

    def _get(self, path: str) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in ["tiny", *self.loaded]]}
        if path == "/is_sleeping" and self.dev_mode:
            return 200, {"is_sleeping": self.asleep}
        return 404, {"detail": "Not Found"}

    def _post(self, path: str, query: dict[str, list[str]], body: Body) -> tuple[int, Any]:
        if path == "/sleep" and self.dev_mode:
            self.calls.append(("sleep", f"level {query['level'][0]}, {query['mode'][0]}"))
            self._awake.clear()
            return 200, {"status": "sleeping"}
        if path == "/wake_up" and self.dev_mode:
            self.calls.append(("wake_up", ""))
            self.lost |= self.loses_on_wake
            self._awake.set()
            return 200, {"status": "awake"}
        if path == "/v1/load_lora_adapter":
            return self._load(body["lora_name"], body["lora_path"])
        if path == "/v1/unload_lora_adapter":
            self.calls.append(("unload", body["lora_name"]))
            return (200, "Success") if self.loaded.pop(body["lora_name"], None) else (404, {"error": "cannot be found"})
        if path == "/v1/chat/completions":
            return self._answer(body["model"])
        return 404, {"detail": "Not Found"}

    def _load(self, name: str, folder: str) -> tuple[int, Any]:
        self.calls.append(("load", name))
        rank = json.loads((Path(folder) / "adapter_config.json").read_text())["r"]
        if rank > self.max_lora_rank:
            said = f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}."
            return 500, {"error": {"message": f"Call to add_lora method failed: Worker failed with error '{said}'"}}
        if name in self.loaded:
            return 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
        self.loaded[name] = folder
        self.lost.discard(name)
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _answer(self, name: str) -> tuple[int, Any]:
        self._awake.wait(30)
        self.calls.append(("ask", name))
        if name in self.broken:
            return 500, {"error": {"message": "engine failure"}}
        if name not in ("tiny", *self.loaded):
            return 404, {"error": {"message": f"The model `{name}` does not exist."}}
        text = "tiny" if name in self.lost else name
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        choice["logprobs"] = {"content": [{"token": "x", "logprob": -0.5, "bytes": None, "top_logprobs": []}]}
        usage = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
        return 200, {"id": "1", "object": "chat.completion", "created": 1, "model": name, "choices": [choice]} | {
            "usage": usage
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(*stub._get(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                parts = urlsplit(self.path)
                self.reply(*stub._post(parts.path, parse_qs(parts.query), body))

            def reply(self, status: int, body: Any) -> None:
                data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                if stub._stopping:
                    return
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the caller's deadline passed first

            def log_message(self, *args: object) -> None:
                pass

        return Handler
