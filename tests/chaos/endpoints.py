"""Faults of model endpoints: the real `goldstream worker` calls a sick server through LiteLLM.

The server answers by the same prompts as the stub worker, and notes each answer it gave in the call log. In every
fault some calls of each role are sick, most of them the first time only: a retry finds the endpoint well.
"""

from __future__ import annotations

import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from broker import Broker
from factory import WITHOUT_MODELS, Lane
from factory_settings import role_tables
from stub_models import Reply, StubModels
from worker import DRAFT, PROMPT, note_call

SICK_SHARE = 0.3
Sickness = Callable[[str, int, str], Reply | None]  # (role, times this call was made before, the well answer)


class SickModels:
    """An endpoint whose sickness a fault chooses; what it answers is noted in `call_log`, set once its lane exists."""

    def __init__(self) -> None:
        self.call_log = ""
        self.sickness: Sickness = lambda role, times, text: None
        self.roles: tuple[str, ...] = ("student", "judge", "refiner", "strategist")
        self.sick, self.sick_share = 0, SICK_SHARE
        self._times: dict[tuple[str, str, int], int] = {}
        self._lock = threading.Lock()

    def answer(self, request: dict[str, Any]) -> Reply:
        """Answers a chat completion, or does not."""
        role = request["model"]
        text = "\n".join(message["content"] for message in request["messages"])
        found = PROMPT.search(text)
        if found is None:
            return Reply("no case of the fault suite", status=400)
        drafts = [int(number) for number in DRAFT.findall(text)]
        number = max(drafts, default=0) + (role == "refiner")
        key = role, found[1], number
        with self._lock:
            times = self._times[key] = self._times.get(key, -1) + 1
        well = self._text(role, number, int(found[2]))
        if role in self.roles and zlib.crc32(f"{role}{found[1]}".encode()) / 2**32 < self.sick_share:
            reply = self.sickness(role, times, well)
            if reply is not None:
                with self._lock:
                    self.sick += 1
                return reply
        note_call(role, found[1], number, self.call_log)
        return Reply(well)

    @staticmethod
    def _text(role: str, number: int, needs: int) -> str:
        if role == "judge":
            violation = {"rule": "ripe", "hinge": "take", "why": "not refined enough", "fix": "refine it again"}
            return json.dumps({"violations": [] if number >= needs else [violation]})
        if role == "strategist":
            return '{"mistake": "It was too raw.", "guardrail": "Let it ripen."}'
        return f"take {number}: as asked"


@contextmanager
def endpoint_lane(folder: Path, broker: Broker) -> Iterator[Lane]:
    """A lane of the real processes on a sick endpoint; `lane.models` is the endpoint."""
    models = SickModels()
    with StubModels(models.answer) as server:
        config = WITHOUT_MODELS.replace('verifier = "worker:verify"\n', "")
        config += role_tables("chaos", model="hosted_vllm/{role}", api_base=server.api_base, timeout_s=2, retries=1)
        with Lane(folder, "endpoint", broker, config, stub=False, besides=("worker",)) as lane:
            lane.models, models.call_log = models, str(lane.calls)
            yield lane


def sick(
    reply: Callable[[str], Reply],
    *,
    first_only: bool = True,
    roles: tuple[str, ...] = ("student", "judge", "refiner", "strategist"),
    tolerated: tuple[str, ...] = (),
) -> Callable[[Lane, int], str]:
    """A share of the calls of these roles gets this reply, made from the well answer."""

    def act(lane: Lane, cases: int) -> str:
        lane.at_risk = None
        lane.tolerated = set(tolerated)
        lane.models.sick, lane.models.roles = 0, roles
        lane.models.sickness = lambda role, times, text: reply(text) if times == 0 or not first_only else None
        lane.feed(cases, seconds=2)
        lane.drain()
        lane.models.sickness = lambda role, times, text: None
        return "" if lane.models.sick else "no call was sick"

    return act


def rate_limited(**headers: str) -> Callable[[Lane, int], str]:
    """An endpoint that takes 40 calls a second and answers the others 429, with these headers."""
    taken: dict[int, int] = {}

    def act(lane: Lane, cases: int) -> str:
        def sickness(role: str, times: int, text: str) -> Reply | None:
            second = int(time.monotonic())
            taken[second] = taken.get(second, 0) + 1
            return Reply(status=429, headers=headers) if taken[second] > 40 else None

        lane.models.sick_share, lane.models.sickness = 1.0, sickness
        lane.at_risk, lane.models.sick = None, 0
        lane.feed(cases, seconds=2)
        drained = lane.drain()
        lane.models.sick_share, lane.models.sickness = SICK_SHARE, lambda role, times, text: None
        if not drained:
            return f"not drained under a rate limit, lag {lane.lag}"
        return "" if lane.models.sick else "no call met the limit"

    return act


def broken(text: str) -> Reply:
    """500."""
    return Reply(status=500)


def hanging(text: str) -> Reply:
    """No answer within the call's timeout."""
    return Reply(text, hang_s=8)


def resetting(text: str) -> Reply:
    """The connection closes in the middle of the answer."""
    return Reply(text, reset=True)


def cut_off(text: str) -> Reply:
    """The answer's JSON ends in the middle."""
    return Reply(raw=b'{"id": "stub", "object": "chat.completion", "choices": [{"index": 0, "mess')


def empty(text: str) -> Reply:
    """An answer without a word."""
    return Reply("")


def not_a_number(text: str) -> Reply:
    """A verdict whose score is NaN, which is no JSON."""
    return Reply('{"violations": [], "score": NaN}')


def never_passing(text: str) -> Reply:
    """A judge that finds a fault in everything."""
    return Reply(json.dumps({"violations": [{"rule": "ripe", "hinge": "", "why": "never", "fix": "?"}]}))


def inventing(text: str) -> Reply:
    """A judge that names a rule nobody wrote."""
    return Reply(json.dumps({"violations": [{"rule": "made-up", "hinge": "", "why": "?", "fix": "?"}]}))


def flipping(lane: Lane, cases: int) -> str:
    """A judge that says yes and no in turn."""
    turns = iter(range(10**9))
    says = never_passing, lambda text: Reply('{"violations": []}')
    either = sick(
        lambda text: says[next(turns) % 2](text), first_only=False, roles=("judge",), tolerated=("unresolved",)
    )
    return either(lane, cases)


def killed_real_worker(lane: Lane, cases: int) -> str:
    """kill -9 of `goldstream worker` as users run it: the broker notices after its session, another start-up later.

    Measures from the kill until every partition of the student's topic is worked on again.
    """
    session_s = 30.0  # streams.worker's
    lane.feed(cases, seconds=70)
    lane.sleep(8 + lane.dice.random())
    lane.at_risk = None
    lane.kill("worker")
    killed = time.monotonic()
    before = lane.positions("student")
    worker = lane.child("worker")
    lane.wait_for(lambda: worker.process is not None)
    started = time.monotonic()
    lane.wait_for(lambda: worker.ready, 90)
    start_up_s = time.monotonic() - started
    moved = lane.wait_for(lambda: all(at > before[tp] for tp, at in lane.positions("student").items()), 90)
    recovery_s = time.monotonic() - killed
    lane.notes |= {"start_up_s": round(start_up_s, 1), "recovery_s": round(recovery_s, 1), "session_s": session_s}
    late = not moved or recovery_s > session_s + start_up_s
    return f"flows again only after {recovery_s:.0f} s, started in {start_up_s:.0f} s" if late else ""
