"""Tells a URL of the user's what became of a candidate: one JSON object by POST, and never a word of a prompt.

The trainer's service and the command line send; whoever else promotes may. Delivery is best effort: a thread tries a
few times and gives up, so that no run ever waits for it or fails with it.

    {"event": "promotion" | "waiting" | "refusal" | "rollback", "id": "...", "task": "support",
     "version": "v0007-3fa9c2d1", "previous": "v0005-77ab01ce", "by": "gate" | "hand" | "guard", "reason": "...",
     "at_ms": 1763666400000, "text": "one line for people, which chat services show",
     "gate": {"cases": 200, "before": 0.61, "after": 0.74, "gained": 31, "lost": 5, "p_value": 0.00002, ...} | null}

`version` and `previous` are "" for the base. "waiting" is a candidate that passed the gate while promotion is manual
or shadow. The same `id` is the same event, sent again.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from http.client import HTTPException
from typing import Literal
from urllib import error as urllib_error
from urllib import request as urllib_request

import msgspec

from schemas.adapters import GateReport
from schemas.settings import Webhook as WebhookSettings

log = logging.getLogger("goldstream.webhook")

QUEUED = 100  # events; more than that wait for a URL that does not answer, and the newest is dropped
FIRST_PAUSE_S = 0.5
GATE_FIELDS = (
    "decision",
    "test",
    "cases",
    "before",
    "after",
    "gained",
    "lost",
    "p_value",
    "score_before",
    "score_after",
    "violations_before",
    "violations_after",
)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What is told; see the module's first lines."""

    event: Literal["promotion", "waiting", "refusal", "rollback"]
    task: str
    version: str
    previous: str
    by: str
    reason: str
    at_ms: int
    id: str = ""
    text: str = ""
    gate: dict[str, object] | None = None


def make_event(
    kind: Literal["promotion", "waiting", "refusal", "rollback"],
    task: str,
    version: str,
    *,
    previous: str,
    by: str,
    reason: str,
    gate: GateReport | None = None,
) -> Event:
    """Returns an event of now; of the gate's report its figures, not its examples."""
    at_ms = int(time.time() * 1000)
    said = {
        "promotion": f"{version or 'the base'} serves from now on, after {previous or 'the base'}",
        "waiting": f"{version} passed the gate and waits for `goldstream adapters promote`",
        "refusal": f"{version} was not promoted; {previous or 'the base'} keeps serving",
        "rollback": f"back to {version or 'the base'} from {previous or 'the base'}",
    }[kind]
    return Event(
        event=kind,
        task=task,
        version=version,
        previous=previous,
        by=by,
        reason=reason,
        at_ms=at_ms,
        id=f"{task}:{kind}:{version or 'base'}:{at_ms}",
        text=f"Goldstream, {task}: {said}. {reason}".strip(),
        gate=None if gate is None else {name: getattr(gate, name) for name in GATE_FIELDS},
    )


class Webhook:
    """A thread that posts events in order; without a URL it does nothing."""

    def __init__(self, settings: WebhookSettings) -> None:
        self._settings = settings
        self._events: queue.Queue[Event | None] = queue.Queue(QUEUED)
        self._thread: threading.Thread | None = None

    def send(self, event: Event) -> None:
        """Queues an event and returns at once; never raises."""
        if not self._settings.url_env:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
            self._thread.start()
        try:
            self._events.put_nowait(event)
        except queue.Full:
            log.error("webhook: %s of %s is dropped, %d wait already", event.event, event.task, QUEUED)

    def close(self, timeout_s: float = 30.0) -> None:
        """Waits for what is queued, at most `timeout_s` seconds; what is left then is dropped."""
        if self._thread is None:
            return
        until = time.monotonic() + timeout_s
        try:
            self._events.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(max(0.0, until - time.monotonic()))

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            self._deliver(event)

    def _deliver(self, event: Event) -> None:
        pause_s, failed = FIRST_PAUSE_S, ""
        for attempt in range(self._settings.retries + 1):
            if attempt:
                time.sleep(pause_s)
                pause_s *= 2
            failed, again = self._post(msgspec.json.encode(event))
            if not failed:
                log.info("webhook: told of the %s of %s %s", event.event, event.task, event.version or "the base")
                return
            if not again:
                break
        log.error("webhook: the %s of %s %s was not told: %s", event.event, event.task, event.version, failed)

    def _post(self, body: bytes) -> tuple[str, bool]:
        """Posts once; returns what went wrong, never the URL, and whether another try can help."""
        name = self._settings.url_env
        url = os.environ.get(name, "")
        if not url.startswith(("http://", "https://")):
            return f"the variable {name} is not set to an http:// or https:// address", False
        headers = {"Content-Type": "application/json", "User-Agent": "goldstream"}
        try:
            call = urllib_request.Request(url, data=body, headers=headers, method="POST")
            with _OPENER.open(call, timeout=self._settings.timeout_s) as response:
                response.read(1)
            return "", False
        except urllib_error.HTTPError as error:
            error.close()
            return f"it answered {error.code}", error.code >= 500 or error.code in (408, 425, 429)
        except urllib_error.URLError as error:
            return f"no answer: {type(error.reason).__name__}", True
        except (OSError, HTTPException) as error:
            return f"no answer: {type(error).__name__}", True
        except ValueError:  # http.client quotes what it finds wrong with the address
            return f"the address in {name} cannot be used", False


class _NoRedirect(urllib_request.HTTPRedirectHandler):
    """A redirect would turn the POST into a GET, or carry it to an address nobody chose."""

    def redirect_request(self, *arguments: object, **options: object) -> None:
        return None


_OPENER = urllib_request.build_opener(_NoRedirect)
