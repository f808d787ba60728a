"""The fault suite's worker: the real stream agents on models that answer from the prompt alone and log every call.

tests/chaos/factory.py starts it in place of `goldstream worker`, so that no fault waits for LiteLLM's import and each
call can be counted. A prompt is `[case ID needs N ROLE:ACT ...]`: N refinements until it passes, and what a model
does to it besides.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import re
import signal
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.models import Completion, Models
from schemas.case import Message, Violation
from schemas.errors import ModelUnavailable
from schemas.settings import ROLES, load_settings

PROMPT = re.compile(r"\[case ([\w.-]+) needs (\d+)((?: \w+:\w+)*)\]")
DRAFT = re.compile(r"take (\d+):")
SLOW_S, HANG_S = 1.0, 3600.0
HUGE = 1_200_000  # characters, over kafka.max_message_bytes


@functools.cache
def call_log(path: str) -> int:
    """Returns the descriptor of a call log; appends of one line are whole whoever else writes."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def note_call(role: str, case_id: str, number: int, path: str = "") -> None:
    """Appends one line: role, case and round. The trainer's gate judges with the same verifier; it is not counted."""
    if os.environ.get("GOLDSTREAM_PROCESS") == "trainer":
        return
    os.write(call_log(path or os.environ["CHAOS_CALL_LOG"]), f"{role} {case_id} {number}\n".encode())


def verify(messages: Sequence[Message], answer: str) -> list[Violation]:
    """The judge: an answer passes once it has been refined as often as its prompt asks for."""
    found = PROMPT.search(messages[-1].text())
    draft = DRAFT.match(answer)
    number = int(draft[1]) if draft else 0
    needs = int(found[2]) if found else 0
    if found:
        note_call("judge", found[1], number)
    return [] if number >= needs else [Violation("ripe", "major", "take", "not refined enough", "refine it again")]


class StubModels(Models):
    """Models that are a function of the prompt, some milliseconds late."""

    latency_s = float(os.environ.get("CHAOS_LATENCY_S", "0.02"))

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._done: set[tuple[str, str]] = set()

    async def warm(self, task: str, roles: Sequence[str] = ()) -> None:
        """Nothing to load."""

    async def complete(self, role: Any, task: str, messages: Sequence[Message], **options: Any) -> Completion:
        """Answers as the prompt says: `slow` takes a second; `hang` and `flaky` go wrong once a process; `huge` is."""
        text = "\n".join(message.text() for message in messages)
        found = PROMPT.search(text)
        assert found is not None, "a prompt that is not of the fault suite"
        case_id = found[1]
        act = dict(word.split(":") for word in found[3].split()).get(role, "")
        drafts = [int(number) for number in DRAFT.findall(text)]
        number = max(drafts) + 1 if drafts and role == "refiner" else 0
        if act == "flaky" and self._first(role, case_id):
            note_call(f"{role}-away", case_id, number)
            raise ModelUnavailable(f"{role}: the stub is away")
        note_call(role, case_id, number)
        jitter = zlib.crc32(case_id.encode()) / 2**32
        pause_s = {"slow": SLOW_S, "hang": HANG_S if act == "hang" and self._first(role, case_id) else 0.0}
        await asyncio.sleep(pause_s.get(act) or self.latency_s * 2 * jitter)
        answer = f"take {number}: " + ("x" * HUGE if act == "huge" else "as asked")
        if role == "strategist":
            answer = '{"mistake": "It was too raw.", "guardrail": "Let it ripen."}'
        return Completion(
            text=answer,
            thinking="",
            model="stub",
            adapter="",
            prompt_tokens=len(text) // 4,
            completion_tokens=8,
            logprob=-1.0,
            latency_s=self.latency_s,
            cost_usd=0.001,
        )

    def _first(self, role: str, case_id: str) -> bool:
        new = (role, case_id) not in self._done
        self._done.add((role, case_id))
        return new


def main() -> None:
    """Runs the roles of --stages until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--stages", default=",".join(ROLES))
    options = parser.parse_args()
    settings = load_settings(options.config, options.set, environ={})
    # Imported late: a worker that is told to stop while it imports Faust should just end.
    from schemas.process import announce_ready, end_with_parent, use_uvloop
    from streams import worker

    session_s = float(os.environ.get("CHAOS_SESSION_S", "0"))
    if session_s:
        # The broker's shortest session, so that each kill costs 6 s and not 30: the table is run in one sitting.
        app = worker.faust.App
        worker.faust.App = lambda *words, **table: app(
            *words, **(table | {"broker_session_timeout": session_s, "broker_heartbeat_interval": 1.0})
        )
    end_with_parent()

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        roles = [role for role in ROLES if role in options.stages.split(",")]
        await worker.run_worker(
            settings,
            roles,
            stop,
            lambda: announce_ready(settings),
            lambda settings, serving: StubModels(settings, serving=serving),
        )

    began = time.monotonic()
    use_uvloop()
    asyncio.run(run())
    sys.stderr.write(f"ended in order after {time.monotonic() - began:.1f} s\n")


if __name__ == "__main__":
    main()
