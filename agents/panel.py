"""Several votes on one answer: who is asked first, and what their verdicts come to. Pure; agents.judge asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from schemas.case import Verdict, Violation
from schemas.settings import Model, Panel


def seats(judge: Model, panel: Panel) -> list[Model]:
    """Returns the models that vote, each as often as it votes; different ones come first."""
    return [model for _ in range(panel.votes) for model in (judge, *panel.judges)]


def first_asked(panel: Panel, count: int) -> int:
    """Returns how many of `count` votes are asked for at once: with a majority, as many as can decide."""
    return count // 2 + 1 if panel.decide == "majority" else count


def decided(verdicts: Sequence[Verdict], count: int, panel: Panel) -> Verdict | None:
    """Returns what the votes come to so far, None where those still missing of `count` could change it.

    A vote that cannot be had is missing: it never counts as a pass. With "escalate", None is also a disagreement.
    """
    passing, failing = [v for v in verdicts if v.passed], [v for v in verdicts if not v.passed]
    complete = len(verdicts) == count
    match panel.decide:
        case "majority":
            if 2 * len(passing) > count:
                return merged(passing, verdicts)
            return merged(failing, verdicts) if 2 * len(failing) >= count else None
        case "unanimous":
            return merged(failing, verdicts) if failing else merged(passing, verdicts) if complete else None
        case "strictest":
            if not failing and not complete:
                return None
            return merged([min(failing or passing, key=lambda verdict: verdict.score)], verdicts)
        case "escalate":
            return merged(verdicts, verdicts) if complete and not (passing and failing) else None


def merged(winners: Sequence[Verdict], all_votes: Sequence[Verdict]) -> Verdict:
    """Returns one verdict for votes that decided alike: their mean score, and each violation once."""
    agreeing = sum(vote.passed == winners[0].passed for vote in all_votes)
    return msgspec.structs.replace(
        winners[0],
        score=sum(vote.score for vote in winners) / len(winners),
        violations=_each_once(violation for vote in winners for violation in vote.violations),
        judge=" + ".join(dict.fromkeys(vote.judge for vote in all_votes)),
        votes=len(all_votes),
        agreement=agreeing / len(all_votes),
        misquoted=sum(vote.misquoted for vote in all_votes),
    )


def _each_once(violations: Iterable[Violation]) -> tuple[Violation, ...]:
    """Keeps the first violation of each rule and place; judges word the same objection differently."""
    kept: dict[tuple[str, str], Violation] = {}
    for violation in violations:
        kept.setdefault((violation.rule, " ".join(violation.hinge.split()).casefold()), violation)
    return tuple(kept.values())
