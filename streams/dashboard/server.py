"""The dashboard's web server: the page, the API behind its guards, an access log without texts.

Every answer forbids foreign scripts, frames and guesses about its type; nothing of the API is kept in a cache.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from schemas.errors import GoldstreamError, SettingsError
from schemas.metrics import Counter
from schemas.settings import Settings
from streams.dashboard.access import Access, Refused
from streams.dashboard.api import Api, Handler, failed
from streams.dashboard.live import Live

log = logging.getLogger("goldstream.dashboard")

REQUESTS = Counter("goldstream_dashboard_requests", "Requests the dashboard has answered, by status.", ("status",))
PAGE = Path(__file__).with_name("page")
MAX_BODY = 1_000_000
TRIED_PORTS = 20  # from dashboard.port on
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_FILE = re.compile(r"[a-z0-9_-]+\.(?:js|css|svg)")


class Place(msgspec.Struct, frozen=True):
    """Where the dashboard listens: <state>/run/dashboard.json, for `goldstream up`. The token is not in it."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The address a browser on this machine opens."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host.strip("[]")
        return f"http://[{host}]:{self.port}/" if ":" in host else f"http://{host}:{self.port}/"


async def serve(settings: Settings, stop: asyncio.Event, ready: Callable[[Place, Access], None]) -> None:
    """Serves until `stop`; `ready` is told where. Raises SettingsError where it cannot listen there."""
    access, live = Access(settings), Live(settings)
    runner = web.AppRunner(make_app(settings, access, live), access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    path = place_file(settings)
    try:
        place = await _listen(settings, runner)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(place))
        ready(place, access)
        await stop.wait()
    finally:
        path.unlink(missing_ok=True)
        await runner.cleanup()
        await live.stop()


def make_app(settings: Settings, access: Access, live: Live) -> web.Application:
    """Returns the application."""
    app = web.Application(middlewares=[_guarded(access)], client_max_size=MAX_BODY)
    app.add_routes([web.get("/", _index), *Api(settings, access, live).routes(), web.get("/{name}", _file)])
    app.on_response_prepare.append(_headers)
    return app


def place_file(settings: Settings) -> Path:
    """Returns where a running dashboard says where it listens."""
    return settings.state / "run" / "dashboard.json"


def read_place(settings: Settings) -> Place | None:
    """Returns where the dashboard listens, None where it does not run."""
    try:
        return msgspec.json.decode(place_file(settings).read_bytes(), type=Place)
    except (OSError, msgspec.DecodeError):
        return None


def _guarded(access: Access) -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.monotonic()
        try:
            access.check_host(request)
            if request.method == "POST":
                access.check_write(request)
            elif request.path.startswith("/api/") and request.path != "/api/access":
                access.check_read(request)
            response = await handler(request)
        except web.HTTPException as error:
            response = failed(Refused(error.status, error.reason.lower()))
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
        except (ConnectionResetError, BrokenPipeError):  # the page has gone
            raise
        except Exception as error:
            if not isinstance(error, Refused | GoldstreamError):  # its text may quote a row
                log.error("%s failed: %s", _named(request), type(error).__name__)
                log.debug("traceback", exc_info=True)
            response = failed(error)
        log.info("%s %d %.0f ms", _named(request), response.status, (time.monotonic() - began) * 1000)
        REQUESTS.add(str(response.status))
        return response

    return guard


def _named(request: web.Request) -> str:
    """Returns method and route; ids and queries, which are texts of users, stay out of the log."""
    resource = request.match_info.route.resource
    return f"{request.method} {resource.canonical if resource else 'unknown'}"


async def _headers(request: web.Request, response: web.StreamResponse) -> None:
    headers = response.headers
    headers.setdefault("Content-Security-Policy", CSP)
    headers.setdefault("X-Frame-Options", "DENY")
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "no-referrer"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Cache-Control"] = "no-store" if request.path.startswith("/api/") else "no-cache"
    headers["Server"] = "goldstream"


async def _index(request: web.Request) -> web.StreamResponse:
    return _page("index.html")


async def _file(request: web.Request) -> web.StreamResponse:
    name = request.match_info["name"]
    if not _FILE.fullmatch(name):
        raise Refused(404, f"there is no {name[:80]!r} here", "The page is at /.")
    return _page(name)


def _page(name: str) -> web.StreamResponse:
    path = PAGE / name
    if not path.is_file():
        raise Refused(404, f"there is no {name[:80]!r} here", "The page is at /.")
    return web.FileResponse(path, headers={"Content-Type": f"{_TYPES[path.suffix]}; charset=utf-8"})


async def _listen(settings: Settings, runner: web.AppRunner) -> Place:
    chosen = settings.dashboard
    host = chosen.host.strip("[]")
    ports = range(chosen.port, min(chosen.port + TRIED_PORTS, 65536)) if isinstance(chosen.port, int) else range(1)
    for port in ports:
        try:
            await web.TCPSite(runner, host, port).start()
            return Place(host, runner.addresses[0][1])
        except OSError as error:
            refused = error
            if error.errno != errno.EADDRINUSE:
                break
    raise SettingsError(
        f"the dashboard cannot listen on {host}, port {ports[0] or 'any'}"
        f"{f' to {port}' if port != ports[0] else ''}: {refused.strerror or refused}. Set dashboard.host to an address "
        'of this machine and dashboard.port to a free port, or "auto" for any.'
    )
