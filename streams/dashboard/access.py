"""Who may do what on the dashboard: names it answers to, the token, same-origin writes, and how many of them.

On loopback everybody on the machine may read; writing needs the token. Beyond loopback reading needs it too. A page of
another site can neither write (its Origin differs) nor read by rebinding its name to loopback (its Host differs).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import socket
import stat
import time
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from schemas.errors import SettingsError
from schemas.settings import Settings

log = logging.getLogger("goldstream.dashboard")

COOKIE = "goldstream_session"
WRITES, WRITES_S = 20, 10.0  # at most so many in this time
SHORTEST_TOKEN = 16


class Refused(Exception):
    """A request that is not answered: status, why, what to do."""

    def __init__(self, status: int, error: str, next: str = "") -> None:
        super().__init__(error)
        self.status, self.error, self.next = status, error, next


class Access:
    """Decides on requests."""

    def __init__(self, settings: Settings) -> None:
        chosen = settings.dashboard
        self.token, self.token_at = find_token(settings)
        self.reads_need_token = not is_loopback(chosen.host)
        self._names = {name.lower().strip("[]") for name in ("localhost", chosen.host, *chosen.names)}
        if self.reads_need_token:
            self._names.add(socket.gethostname().lower())
        self._writes: deque[float] = deque()
        self._cookie = hmac.new(self.token.encode(), b"goldstream dashboard reads", hashlib.sha256).hexdigest()

    @property
    def cookie(self) -> str:
        """The cookie that stands for the token where reading is all that is asked."""
        return self._cookie

    def check_host(self, request: web.Request) -> None:
        """Refuses a request to a name that is not ours: a foreign page may have made its name point here."""
        try:
            name = (urlsplit(f"//{request.headers.get('Host', '')}").hostname or "").lower()
        except ValueError:
            name = ""
        if name in self._names or is_loopback(name) or (self.reads_need_token and _is_address(name)):
            return
        raise Refused(
            403,
            f"this dashboard does not answer to the name {name[:100]!r}",
            "Open it by the address it printed, or add the name to dashboard.names in goldstream.toml.",
        )

    def check_read(self, request: web.Request) -> None:
        """Refuses a reading that needs the token and lacks it."""
        if self.reads_need_token and not self.has_token(request):
            sent = request.cookies.get(COOKIE, "")
            if not hmac.compare_digest(sent.encode(), self._cookie.encode()):
                raise self._no_token()

    def check_write(self, request: web.Request) -> None:
        """Refuses a writing of another site, one too many, one without the token, and one that is no JSON."""
        origin = request.headers.get("Origin")
        if origin is not None and (urlsplit(origin).netloc or "?").lower() != request.host.lower():
            raise Refused(403, "a page of another site may not write here", "Use the dashboard's own page.")
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise Refused(403, "a page of another site may not write here", "Use the dashboard's own page.")
        now = time.monotonic()
        while self._writes and now - self._writes[0] > WRITES_S:
            self._writes.popleft()
        if len(self._writes) >= WRITES:
            raise Refused(429, f"more than {WRITES} writes in {WRITES_S:.0f} s", "Wait a few seconds.")
        self._writes.append(now)
        if not self.has_token(request):
            raise self._no_token()
        if request.content_type != "application/json":
            raise Refused(415, f"the body is {request.content_type}", "Send JSON with Content-Type: application/json.")

    def has_token(self, request: web.Request) -> bool:
        """Tells whether a request carries the token; the time it takes does not depend on how much of it is right."""
        scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(sent.strip().encode("utf-8", "replace"), self.token.encode())
        return right and scheme.lower() == "bearer"

    def _no_token(self) -> Refused:
        return Refused(
            401,
            "the token is missing or wrong",
            f"Open the address that `goldstream dashboard` printed, or paste the token; it is in {self.token_at}.",
        )


def find_token(settings: Settings) -> tuple[str, str]:
    """Returns the token and where it lies; makes one at the first start. Raises SettingsError for one too short."""
    variable = settings.dashboard.token_env
    if variable:
        token = os.environ.get(variable, "").strip()
        if len(token) < SHORTEST_TOKEN:
            raise SettingsError(
                f"dashboard.token_env names the variable {variable}, which holds {len(token)} characters; expected at "
                f"least {SHORTEST_TOKEN}. Set it to a long random text."
            )
        return token, f"the variable {variable}"
    path = settings.state / "dashboard.token"
    return _kept_token(path) or _new_token(path), str(path)


def is_loopback(host: str) -> bool:
    """Tells whether a name or address is this machine alone."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _kept_token(path: Path) -> str:
    """Returns the token of an earlier start; "" where there is none, or where others could have read it."""
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            log.warning("%s could be read by others; a new token takes its place", path)
            return ""
        token = path.read_text("ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""
    return token if len(token) >= SHORTEST_TOKEN else ""


def _new_token(path: Path) -> str:
    token = secrets.token_urlsafe(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(token + "\n")
    temporary.replace(path)
    return token
