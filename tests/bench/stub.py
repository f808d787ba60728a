"""A fast OpenAI-compatible server for benchmarks: its own process, raw asyncio, about 50 µs of CPU a call.

`python -m bench.stub --latency S` prints its port and serves until it is stopped, or the pipe that is its standard
input is closed, so it never outlives who started it. What a model says is decided by a function of (the model's name,
the request's body): `text_of` here, or `--answers MODULE:FUNCTION`. GET /count tells how many calls were answered and
how many wait.

    with Stub(latency_s=1.0, core={0}) as stub:
        model = Model(model="hosted_vllm/judge", api_base=stub.api_base)
        stub.count().answered
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from urllib.request import urlopen

import msgspec

Answer = Callable[[str, bytes], str]  # (model, body) -> text

_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
_NONE = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
TEXTS = {
    "judge": '{"violations": []}',
    "strategist": '{"mistake": "It did not say please.", "guardrail": "Say please, always."}',
}


class Count(msgspec.Struct, frozen=True):
    """What the stub has seen so far."""

    answered: int = 0
    waiting: int = 0
    peak: int = 0  # calls that waited at once, at most
    cpu_s: float = 0.0  # of the stub's process
    at_s: float = 0.0  # on the monotonic clock that all processes share


class _Asked(msgspec.Struct):
    model: str = ""


def text_of(model: str, body: bytes) -> str:
    """Says what a model answers: by the part of its name before a dash, what its role should."""
    return TEXTS.get(model.partition("-")[0], "The dose is 500 mg a day, please.")


class Stub:
    """The stub's process: started on entering, ended on leaving. `core` is what it may run on."""

    def __init__(self, latency_s: float = 0.0, core: set[int] | None = None, answers: str = "bench.stub:text_of"):
        self._options = ["--latency", str(latency_s), "--answers", answers]
        if core:
            self._options += ["--core", ",".join(map(str, sorted(core)))]
        self.port = 0

    @property
    def api_base(self) -> str:
        """What goes into a model's api_base."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Stub:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.stub", *self._options],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        told = self._process.stdout.readline()
        if not told.strip().isdigit():
            self.__exit__(None, None, None)
            raise RuntimeError("the stub ended before it listened; what it said stands above.")
        self.port = int(told)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate(timeout=20)

    def count(self) -> Count:
        """Asks what it has seen."""
        with urlopen(f"http://127.0.0.1:{self.port}/count", timeout=20) as answer:
            return msgspec.json.decode(answer.read(), type=Count)


class _Server:
    def __init__(self, latency_s: float, answer: Answer) -> None:
        self.latency_s, self.answer = latency_s, answer
        self.answered = self.waiting = self.peak = 0
        self.asked = msgspec.json.Decoder(_Asked)

    def count(self) -> Count:
        cpu = time.process_time()
        return Count(self.answered, self.waiting, self.peak, cpu, time.monotonic())


class _Connection(asyncio.Protocol):
    """One client's connection; a client has one request under way on it, or sends several and is answered in order."""

    def __init__(self, server: _Server) -> None:
        self._server, self._read = server, b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._read = self._read + data if self._read else data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            head = self._read[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._read) < end + 4 + length:
                return
            body, self._read = self._read[end + 4 : end + 4 + length], self._read[end + 4 + length :]
            self._take(head, body)

    def _take(self, head: bytes, body: bytes) -> None:
        server = self._server
        if head.startswith(b"post "):
            server.waiting += 1
            server.peak = max(server.peak, server.waiting)
            if server.latency_s:
                asyncio.get_running_loop().call_later(server.latency_s, self._complete, body)
            else:
                self._complete(body)
        elif head.startswith(b"get /count "):
            self._send(msgspec.json.encode(server.count()))
        elif self._transport is not None:
            self._transport.write(_NONE)

    def _complete(self, body: bytes) -> None:
        server = self._server
        model = server.asked.decode(body).model
        text = server.answer(model, body)
        asked, told = len(body) // 4, len(text) // 4 + 1
        server.waiting -= 1
        server.answered += 1
        self._send(
            b'{"id":"a","object":"chat.completion","created":1,"model":%b,"choices":[{"index":0,"message":{"role":'
            b'"assistant","content":%b},"finish_reason":"stop"}],"usage":{"prompt_tokens":%d,"completion_tokens":%d,'
            b'"total_tokens":%d}}' % (msgspec.json.encode(model), msgspec.json.encode(text), asked, told, asked + told)
        )

    def _send(self, body: bytes) -> None:
        if self._transport is not None:
            self._transport.write(b"%b%d\r\n\r\n%b" % (_JSON, len(body), body))


async def serve(latency_s: float, answer: Answer) -> None:
    """Serves on a free port, which it prints, until its standard input, where that is a pipe, is closed."""
    loop = asyncio.get_running_loop()
    state = _Server(latency_s, answer)
    server = await loop.create_server(lambda: _Connection(state), "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    closed = asyncio.Event()
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        loop.add_reader(0, closed.set)
    await closed.wait()
    loop.remove_reader(0)
    server.close()


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.stub")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds until a call is answered")
    parser.add_argument("--answers", default="bench.stub:text_of", help="MODULE:FUNCTION of (model, body) -> text")
    parser.add_argument("--core", default="", help="cores it may run on, with commas between them")
    options = parser.parse_args()
    if options.core:
        os.sched_setaffinity(0, {int(core) for core in options.core.split(",")})
    module, _, name = options.answers.partition(":")
    asyncio.run(serve(options.latency, getattr(importlib.import_module(module), name)))


if __name__ == "__main__":
    main()
