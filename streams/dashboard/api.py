"""The calls of the dashboard's API: what each takes and answers; state.py and answers.py have the shapes.

Whatever asks DuckDB or Kafka runs in a thread, so that no page waits for another.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar, get_args

import duckdb
import msgspec
from aiohttp import web

from schemas.case import DEAD_REASONS, OutcomeKind, Stage
from schemas.commandline import reviewer
from schemas.errors import (
    AdapterError,
    AlreadyReviewed,
    BrokerError,
    GoldError,
    GoldstreamError,
    ReviewError,
    SettingsError,
)
from schemas.settings import Settings
from streams.dashboard import answers, operating
from streams.dashboard.access import COOKIE, Access, Refused
from streams.dashboard.cases import MOST, list_cases, list_dead, redrive_letters, tell_story
from streams.dashboard.live import Live
from streams.dashboard.training import Registry
from streams.lag import set_paused
from streams.review import WHYS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Body = TypeVar("Body")

STORY_S = 30.0  # for which a case is looked for on our topics
SLOW = 3  # of the calls that read whole topics or files, at once
REPORT_CSP = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)


class Api:
    """The handlers."""

    def __init__(self, settings: Settings, access: Access, live: Live) -> None:
        self._settings, self._access, self._live = settings, access, live
        self._slow = asyncio.Semaphore(SLOW)
        self._registry = Registry(settings)

    def routes(self) -> list[web.RouteDef]:
        """Returns the routes; which need the token is decided by method in streams.dashboard.server."""
        return [
            web.get("/api/access", self.access),
            web.post("/api/session", self.session),
            web.get("/api/state", self.state),
            web.get("/api/events", self.events),
            web.get("/api/cases", self.cases),
            web.get("/api/cases/{case_id}", self.case),
            web.get("/api/dead", self.dead),
            web.post("/api/dead/redrive", self.redrive),
            web.get("/api/review", self.review),
            web.get("/api/review/{case_id}", self.review_case),
            web.post("/api/review/{case_id}", self.decide),
            web.get("/api/adapters/{task}/{version}/report", self.report),
            web.post("/api/adapters/{task}/{action:promote|rollback}", self.adapters),
            web.post("/api/stages/{stage}/{action:pause|resume}", self.stages),
        ]

    async def access(self, request: web.Request) -> web.Response:
        """Tells whether the token sent is right."""
        return answer(self._told(self._access.has_token(request)))

    async def session(self, request: web.Request) -> web.Response:
        """Sets a cookie that is good for reading alone: a frame can send no header."""
        await body(request, dict[str, Any])
        response = answer(self._told(True))
        options: dict[str, Any] = {"httponly": True, "samesite": "Strict", "secure": request.secure, "path": "/api/"}
        response.set_cookie(COOKIE, self._access.cookie, **options)
        return response

    async def state(self, request: web.Request) -> web.Response:
        """Answers everything the page shows."""
        return answer(await self._live.state())

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Sends the state as server-sent events, at once and whenever it has changed."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionResetError):  # the page was closed, which is how all of these end
            async for data in self._live.states():
                await response.write(b"event: state\ndata: " + data + b"\n\n" if data else b": ping\n\n")
        return response

    async def cases(self, request: web.Request) -> web.Response:
        """Answers ended cases, the latest first."""
        outcome = one_of(request, "outcome", get_args(OutcomeKind))
        task, text, before = query(request, "task"), query(request, "text"), query(request, "before") or ""
        limit = number(request, "limit", 50)
        return answer(await self._read(list_cases, self._settings, task, outcome, text, limit, before))

    async def case(self, request: web.Request) -> web.Response:
        """Answers one case's story."""
        case_id = request.match_info["case_id"]
        try:
            async with asyncio.timeout(STORY_S):
                found = await self._read(tell_story, self._settings, case_id)
        except TimeoutError as error:
            raise Refused(
                504, f"case {case_id[:128]} was not found within {STORY_S:.0f} s", "`goldstream case ID` looks on."
            ) from error
        if found is None:
            raise Refused(404, f"no case {case_id[:128]} in the gold set or on our topics", "Look for a part of it.")
        return answer(found)

    async def dead(self, request: web.Request) -> web.Response:
        """Answers dead letters."""
        stage, reason = one_of(request, "stage", get_args(Stage)), one_of(request, "reason", tuple(DEAD_REASONS))
        task, limit = query(request, "task"), number(request, "limit", 50)
        return answer(await self._read(list_dead, self._settings, task, stage, reason, limit))

    async def redrive(self, request: web.Request) -> web.Response:
        """Sends dead letters round again."""
        asked = await body(request, answers.RedriveAsked)
        return answer(await self._in_turn(redrive_letters, self._settings, asked))

    async def review(self, request: web.Request) -> web.Response:
        """Answers what waits for an expert."""
        why: Any = one_of(request, "why", WHYS)
        task, limit = query(request, "task"), number(request, "limit", 50)
        return answer(await self._read(operating.review_queue, self._settings, task, why, limit))

    async def review_case(self, request: web.Request) -> web.Response:
        """Answers one case of the queue."""
        return answer(await self._read(operating.review_case, self._settings, request.match_info["case_id"]))

    async def decide(self, request: web.Request) -> web.Response:
        """Takes an expert's decision."""
        asked = await body(request, answers.ReviewAsked)
        made = await self._in_turn(operating.make_decision, self._settings, request.match_info["case_id"], asked)
        return answer(made, status=200 if made.stands else 409)

    async def report(self, request: web.Request) -> web.Response:
        """Answers a gate's report for people, in a sandbox: answers of models are in it."""
        task, version = request.match_info["task"], request.match_info["version"]
        path = self._registry.report(task, version)
        if path is None:
            raise Refused(404, f"no gate report of {version[:80]} of {task[:80]}", "A version is gated once trained.")
        page = await asyncio.to_thread(path.read_bytes)
        headers = {"Content-Security-Policy": REPORT_CSP, "X-Frame-Options": "SAMEORIGIN"}
        return web.Response(body=page, content_type="text/html", charset="utf-8", headers=headers)

    async def adapters(self, request: web.Request) -> web.Response:
        """Asks rollout for a promotion or a rollback; 202 where it has not answered yet."""
        action: Any = request.match_info["action"]
        asked = await body(request, answers.AdapterAsked)
        found = await operating.ask_rollout(self._settings, self._live, request.match_info["task"], action, asked)
        return answer(found, status=202 if found.result == "asked" else 409 if found.result == "refused" else 200)

    async def stages(self, request: web.Request) -> web.Response:
        """Pauses or resumes a stage."""
        await body(request, answers.PauseAsked)
        stage, action = request.match_info["stage"], request.match_info["action"]
        paused: Literal["pause", "resume"] = "pause" if action == "pause" else "resume"
        await asyncio.to_thread(set_paused, self._settings, stage, action == "pause")
        return answer(answers.Done(detail=operating.stage_told(stage, paused)))

    def _told(self, write: bool) -> answers.Access:
        access = self._access
        return answers.Access(
            write=write,
            reads_need_token=access.reads_need_token,
            token_at=access.token_at,
            reviewer=reviewer(None) if write else "",
        )

    async def _read(self, act: Callable[..., Any], *values: Any) -> Any:
        """Reads the gold set; once more where compaction took a file away meanwhile."""
        try:
            return await self._in_turn(act, *values)
        except duckdb.Error:
            return await self._in_turn(act, *values)

    async def _in_turn(self, act: Callable[..., Any], *values: Any) -> Any:
        """Runs what takes long in a thread, a few at a time."""
        async with self._slow:
            return await asyncio.to_thread(act, *values)


def answer(found: msgspec.Struct, status: int = 200) -> web.Response:
    """Returns an answer as JSON."""
    return web.Response(body=msgspec.json.encode(found), status=status, content_type="application/json")


def failed(error: Exception) -> web.Response:
    """Returns what to answer to an error: whose fault it is, what is wrong, what to do."""
    if isinstance(error, Refused):
        response = answer(answers.Failed(error=error.error, next=error.next), error.status)
        if error.status == 429:
            response.headers["Retry-After"] = "10"
        return response
    status = 500
    if isinstance(error, BrokerError):
        status = 503
    elif isinstance(error, AlreadyReviewed):
        status = 409
    elif isinstance(error, ReviewError | AdapterError | SettingsError):
        status = 400
    elif isinstance(error, GoldError):
        status = 404 if "no row of case" in str(error) else 500
    text = str(error) if isinstance(error, GoldstreamError) else f"unexpected {type(error).__name__}"
    return answer(answers.Failed(error=text), status)


async def body(request: web.Request, kind: type[Body]) -> Body:
    """Reads a request's JSON; raises Refused for what is none, or has unknown or missing keys."""
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, f"the body cannot be read: {error}", "deploy/dashboard.md has the shapes.") from error


def query(request: web.Request, name: str) -> str | None:
    """Returns a value of the query, None for none or an empty one."""
    value = request.query.get(name, "").strip()
    if len(value) > 300:
        raise Refused(400, f"{name} is {len(value)} characters; at most 300 are read", "Shorten it.")
    return value or None


def one_of(request: web.Request, name: str, known: tuple[str, ...]) -> str | None:
    """Returns a value of the query that must be one of `known`."""
    value = query(request, name)
    if value is not None and value not in known:
        raise Refused(400, f"{name}={value[:80]}: expected one of {', '.join(known)}")
    return value


def number(request: web.Request, name: str, default: int) -> int:
    """Returns a number of the query, from 1 to MOST."""
    value = query(request, name)
    if value is None:
        return default
    if not value.isdecimal() or not 1 <= int(value) <= MOST:
        raise Refused(400, f"{name}={value[:20]}: expected a number from 1 to {MOST}")
    return int(value)
