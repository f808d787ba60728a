"""Who repairs a failed attempt and when to stop, how strategies are named, and what experts look at."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from schemas.settings.section import Positive, Section, Share


class Refiner(Section, frozen=True):
    """One step of the chain."""

    by: Literal["student", "teacher"]  # the student itself, as it serves now, or the model of [tasks.T.refiner]
    rounds: Annotated[int, Meta(ge=0)] = 0  # refinements of this step; 0: as many as max_rounds leaves


class Refining(Section, frozen=True):
    """Who rewrites what failed, in order, and when that is given up."""

    chain: Annotated[tuple[Refiner, ...], Meta(min_length=1, max_length=8)] = (Refiner(by="teacher"),)
    # Refinements in a row that bring the same text, the same violations or a lower score, before the next of the
    # chain takes over, or after its last the case is unresolved; 0: off.
    patience: Annotated[int, Meta(ge=0)] = 2


class Strategies(Section, frozen=True):
    """The task's library of strategies: what is learned again gets the name and wording it was first given."""

    library: bool = True  # false: each row keeps the strategist's own wording
    similarity: Annotated[float, Meta(gt=0, le=1)] = 0.75  # of two guardrails, from which they say the same
    limit: Positive = 200  # strategies named in a task; later ones keep their own wording
    told: Annotated[int, Meta(ge=0, le=100)] = 12  # known strategies shown to the strategist, the likeliest ones


class Review(Section, frozen=True):
    """What experts are asked to look at."""

    sample: Share = 0.02  # of the accepted cases, by a keyed hash; unresolved ones are all asked for
