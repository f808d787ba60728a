"""Calls of vLLM's chat completions past LiteLLM, over one pool of kept connections, at less than a tenth of the CPU.

agents.models comes here where agents.direct_request.goes_direct says so. What is above a single call (budget, breaker,
retries, deadlines, metrics, spans) is the same on both ways, and so is what comes of a call: the errors raised here
have the status that LiteLLM's would have, and agents.providers.failure reads both.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import certifi
from yarl import URL

from agents.completion import Answer
from agents.direct_answer import ErrorInAnswer, message_of, read_answer
from agents.direct_request import NO_KEY, body_of, url_of
from agents.providers import CallFailed, UnusableAnswer

CONNECTIONS = 4096  # of the pool: what is in flight is bounded by the worker, not here
KEPT_S = 4.0  # an idle connection; uvicorn, and so vLLM, closes it after 5
JSON = "application/json"
ANSWER_BYTES = 16 * 2**20  # of an answer, unpacked: 32,000 tokens with their log-probabilities are 4 MB
ERROR_BYTES = 64 * 2**10
UNREACHED = 500  # the status of what has none: no connection, no answer, one that breaks off


class _Server(NamedTuple):
    url: URL
    proxy: str | None
    options: dict[str, Any]  # of aiohttp, for TLS


class Direct:
    """The connections of one process to its vLLM servers."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._servers: dict[str, _Server] = {}
        self._headers: dict[str, dict[str, str]] = {}  # by key

    async def ask(self, call: Mapping[str, Any]) -> Answer:
        """Makes a call, told as LiteLLM would be. Raises CallFailed; whoever calls sets the deadline."""
        session = self._session
        if session is None or self._loop is not asyncio.get_running_loop():
            session = await self._open()
        server = self._servers.get(call["api_base"]) or self._server(call["api_base"])
        headers = self._headers_of(call.get("api_key") or "")
        if more := call.get("extra_headers"):
            headers = {**headers, **more}
        try:
            body = aiohttp.BytesPayload(body_of(call), content_type=JSON)  # else aiohttp looks for what suits bytes
            async with session.post(
                server.url, data=body, headers=headers, proxy=server.proxy, **server.options
            ) as response:
                if not 200 <= response.status < 300:
                    raise await _refused(response)
                answer = await _read(response, ANSWER_BYTES)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise CallFailed(_told(error), UNREACHED) from None
        try:
            return read_answer(answer)
        except ErrorInAnswer as error:
            raise CallFailed(str(error), error.status) from None
        except ValueError as error:
            raise CallFailed(f"the server answered, but {error}", UNREACHED) from None

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _open(self) -> aiohttp.ClientSession:
        """Opens the pool, anew where the event loop is another: connections belong to one."""
        await self.close()
        self._loop = asyncio.get_running_loop()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=KEPT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        )
        return self._session

    def _server(self, api_base: str) -> _Server:
        url = url_of(api_base)
        options = {"ssl": _tls()} if url.startswith("https:") else {}
        found = self._servers[api_base] = _Server(URL(url), _proxy(url), options)
        return found

    def _headers_of(self, key: str) -> dict[str, str]:
        found = self._headers.get(key)
        if found is None:
            bearer = key or os.environ.get("HOSTED_VLLM_API_KEY") or NO_KEY
            found = self._headers[key] = {
                "Accept": "*/*",
                "Accept-Encoding": "gzip, deflate",
                "Authorization": f"Bearer {bearer}",
                "Content-Type": JSON,
                "User-Agent": "goldstream",
            }
        return found


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Reads a body of at most so many bytes; a longer one is an answer nobody can use."""
    parts, size, content = [], 0, response.content
    while not content.at_eof():
        part = await content.readany()
        parts.append(part)
        size += len(part)
        if size > most:
            raise UnusableAnswer(f"the server answered with more than {most >> 20} MiB", response.status)
    return b"".join(parts) if len(parts) != 1 else parts[0]


async def _refused(response: aiohttp.ClientResponse) -> CallFailed:
    """Returns the error of an answer that is no success, with the beginning of what it says."""
    begun = b""
    async for part in response.content.iter_any():
        begun += part
        if len(begun) >= ERROR_BYTES:
            break
    said = message_of(begun)
    waits = response.headers.getall("Retry-After", ())
    return CallFailed(f"{response.status}: {said}", response.status, ", ".join(waits) if waits else None)


def _told(error: Exception) -> str:
    """Returns an error's text without addresses that may hold a password, and without a dump of what was read."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"no HTTP answer: {error.message}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server closed the connection"
    return f"{type(error).__name__}: {error}"


def _tls() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())


def _proxy(url: str) -> str | None:
    """Returns the proxy that the environment names for an address."""
    scheme, host = urlsplit(url).scheme, urlsplit(url).hostname or ""
    proxies = urllib.request.getproxies()
    found = None if urllib.request.proxy_bypass(host) else proxies.get(scheme) or proxies.get("all")
    return f"http://{found}" if found and "://" not in found else found
