"""What the dashboard's single calls take and answer, as typed structs: cases, dead letters, reviews, commands.

With state.py the contract between the server and the page; the rules about times, money and texts are those there.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from streams.dashboard.state import Answer, DeadGroup


class Failed(Answer, frozen=True, kw_only=True):
    """The body of every answer with a status of 400 or above."""

    error: str
    next: str = ""  # what to do about it


class CaseLine(Answer, frozen=True, kw_only=True):
    """One case in a list. `prompt` and `answer` are cut at 300 characters."""

    case_id: str
    task: str
    split: str
    outcome: str
    reason: str
    stage: str
    rounds: int
    first_attempt_passed: bool | None
    adapter: str  # of the first attempt, "base" for none
    score: float | None
    max_score: float | None
    usd: float
    duration_s: float | None  # from admission to its end
    prompt: str
    answer: str
    strategy: str
    review: str  # an expert's decision, "" for none
    ended_ms: int


class Cases(Answer, frozen=True, kw_only=True):
    """GET /api/cases?task=&outcome=&text=&limit=&before=: the latest first.

    `text` is looked for in prompt, answer, rule and id. `before` is the `next` of the page before.
    """

    cases: tuple[CaseLine, ...]
    next: str  # "" where there are no more


class Superseded(Answer, frozen=True, kw_only=True):
    """An earlier end of a case that a redrive or an expert has superseded."""

    epoch: int
    outcome: str
    reason: str
    review: str
    reviewer: str
    ended_ms: int


class Story(Answer, frozen=True, kw_only=True):
    """GET /api/cases/ID: everything known of a case, also of one that is still on its way."""

    case_id: str
    where: str  # "gold set", or the topic of ours it lies on
    case: dict[str, Any]  # as schemas.case.Case, every field
    superseded: tuple[Superseded, ...]  # lower epochs, oldest first
    lines: tuple[str, ...]  # the same as `goldstream case` prints it


class Letter(Answer, frozen=True, kw_only=True):
    """One dead letter."""

    case_id: str
    task: str
    stage: str
    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    epoch: int
    ended_ms: int


class Dead(Answer, frozen=True, kw_only=True):
    """GET /api/dead?task=&stage=&reason=&limit=: groups of all, letters of those chosen, the latest first."""

    groups: tuple[DeadGroup, ...]
    letters: tuple[Letter, ...]


class RedriveAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /api/dead/redrive: `reason` and `stage`, or `ids` (at most 100)."""

    reason: str = ""
    stage: str = ""
    task: str = ""
    ids: tuple[str, ...] = ()
    dry_run: bool = False


class Redriven(Answer, frozen=True, kw_only=True):
    """What became of one letter."""

    case_id: str
    stage: str
    reason: str
    result: str  # redriven, would be redriven, on its way, refused again, gone, impossible, not confirmed
    detail: str


class RedriveDone(Answer, frozen=True, kw_only=True):
    """POST /api/dead/redrive: how many of each result, and the first 200 letters."""

    dry_run: bool
    counts: dict[str, int]
    letters: tuple[Redriven, ...]


class ReviewItem(Answer, frozen=True, kw_only=True):
    """One case that waits for an expert. Texts are cut at 300 characters."""

    case_id: str
    task: str
    why: Literal["unresolved", "accepted"]
    reason: str
    rounds: int
    score: float | None
    max_score: float | None
    prompt: str
    answer: str
    ended_ms: int


class ReviewQueue(Answer, frozen=True, kw_only=True):
    """GET /api/review?task=&why=&limit=: in the order in which to look at them."""

    items: tuple[ReviewItem, ...]
    waiting: dict[str, int]  # by why, all of them


class ReviewCase(Answer, frozen=True, kw_only=True):
    """GET /api/review/ID: what an expert needs in order to decide."""

    story: Story
    rules: tuple[dict[str, str], ...]  # id, text, severity: the task's rubric
    rounds: tuple[int, ...]  # of the attempts, any of which can be accepted
    proposed_round: int | None  # that "accept" takes by default
    proposed_text: str  # its text, to edit
    in_queue: bool
    decided: str  # "accept by anna, 2026-11-21 16:20" where an expert has decided, else ""


class ReviewAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /api/review/ID."""

    decision: Literal["accept", "edit", "reject"]
    by: str
    text: str = ""  # edit
    reason: str = ""  # needed to reject
    rules: tuple[str, ...] = ()
    round: int | None = None  # accept
    again: bool = False  # over an earlier decision


class ReviewDone(Answer, frozen=True, kw_only=True):
    """POST /api/review/ID. Status 409 where somebody else's decision stands."""

    case_id: str
    stands: bool
    decision: str
    outcome: str
    epoch: int
    detail: str


class AdapterAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /api/adapters/TASK/promote and /rollback."""

    reason: str
    version: str = ""  # to promote, "base" for the base; a rollback names what serves now, or nothing
    by: str = ""
    promotions: int | None = None  # Adapters.promotions as the page showed it
    force: bool = False  # promote although the gate did not pass it


class PauseAsked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /api/stages/STAGE/pause and /resume: {}."""


class Done(Answer, frozen=True, kw_only=True):
    """The answer of pause and resume."""

    detail: str


class Access(Answer, frozen=True, kw_only=True):
    """GET /api/access: whether the token sent is right, and where it lies. Never refused for a missing token.

    Also the answer of POST /api/session, which sets a cookie that is good for GET alone: a frame sends no header.
    """

    write: bool
    reads_need_token: bool
    token_at: str  # "<state_dir>/dashboard.token", or the variable's name
    reviewer: str  # proposed as `by`
