"""A dashboard of a test's own, served in a thread, and a client that is no browser."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple

from schemas.settings import Settings
from streams.dashboard.access import Access
from streams.dashboard.server import Place, serve


class Reply(NamedTuple):
    """What the server answered."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.text)


class Dashboard:
    """Serves until the block is left; `token` and `place` are its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Dashboard:
        self._thread.start()
        assert self._ready.wait(60)
        if self._failed is not None:
            self._thread.join()
            raise self._failed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    def get(self, path: str, *, token: str = "", **headers: str) -> Reply:
        return self.ask("GET", path, None, token, headers)

    def post(self, path: str, body: Any, *, token: str | None = None, **headers: str) -> Reply:
        """Posts JSON, with the right token unless told otherwise."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask(
            "POST", path, data, self.token if token is None else token, {"Content-Type": "application/json"} | headers
        )

    def ask(self, method: str, path: str, body: bytes | None, token: str, headers: dict[str, str]) -> Reply:
        connection = http.client.HTTPConnection(self.place.host, self.place.port, timeout=60)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            sent["Authorization"] = f"Bearer {token}"
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Reply(response.status, dict(response.headers), response.read().decode())
        finally:
            connection.close()

    def events(self) -> Iterator[Any]:
        """Yields states as they come; None for a ping."""
        connection = http.client.HTTPConnection(self.place.host, self.place.port, timeout=60)
        try:
            connection.request("GET", "/api/events")
            response = connection.getresponse()
            while line := response.readline().decode().rstrip("\n"):
                if line.startswith(":"):
                    yield None
                elif line.startswith("data: "):
                    yield json.loads(line[6:])
                if line.startswith((":", "data: ")):
                    response.readline()  # the blank line between events
        finally:
            connection.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failed = error
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()

        def ready(place: Place, access: Access) -> None:
            self.place, self.token = place, access.token
            self._ready.set()

        await serve(self._settings, self._stop, ready)
