"""The review queue: review, and review list, show, accept, reject, edit, agreement."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from schemas.commandline import as_json, print_json, reviewer, with_settings

if TYPE_CHECKING:
    from agents.expert import Decision
    from schemas.settings import Settings

_WHY = click.Choice(["unresolved", "accepted"])


class _AskByDefault(click.Group):
    """A group that means `ask` where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts `ask` before options that are not the group's own."""
        named = bool(args) and (not args[0].startswith("-") or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named else ["ask", *args])


@click.group(cls=_AskByDefault)
def review() -> None:
    """Look at unresolved cases and a sample of accepted ones, one at a time: accept, edit and accept, reject.

    Without a command: `ask`.
    """


@review.command("ask")
@click.option("--task", help="One task's cases; default all.")
@click.option("--why", type=_WHY, help="Unresolved cases only, or the sample of accepted ones.")
@click.option("--by", help="Who reviews. Default: GOLDSTREAM_REVIEWER, else the user.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(min=1), help="Cases of one sitting.")
@with_settings
def review_ask(settings: Settings, task: str | None, why: Any, by: str | None, limit: int) -> None:
    """Show the cases one at a time and take a key for each; $EDITOR edits."""
    from rich.console import Console

    from schemas.tracing import tracing
    from streams.review import list_queue
    from streams.reviewing import Session

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.ClickException(
            "goldstream review asks at a terminal, and this is none. `goldstream review list`, `accept`, `reject` and "
            "`edit` do not ask."
        )
    _known_task(settings, task)
    items = list_queue(settings, task, why, limit)
    if not items:
        click.echo("nothing waits for review")
        return
    session = Session(
        settings,
        reviewer(by),
        Console(),
        click.getchar,
        lambda text: click.edit(text, extension=".txt"),
        lambda question: click.prompt(question, default="", show_default=False),
    )
    with tracing(settings, "review"):
        done = session.run(items)
    click.echo("  ".join(f"{what} {number}" for what, number in sorted(done.items())) or "nothing decided")


@review.command("list")
@click.option("--task", help="One task's cases; default all.")
@click.option("--why", type=_WHY, help="Unresolved cases only, or the sample of accepted ones.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1), help="Cases shown.")
@as_json
@with_settings
def review_list(settings: Settings, task: str | None, why: Any, limit: int, as_json: bool) -> None:
    """List what waits for an expert, in the order in which to look at it."""
    from schemas.tables import print_table
    from streams.review import Item, read_queue

    _known_task(settings, task)
    queue = read_queue(settings, task, why, limit)
    print_table(Item._fields, queue.items, as_json=as_json)
    if not as_json:
        click.echo("waiting: " + ", ".join(f"{number} {kind}" for kind, number in queue.sizes.items()))


@review.command("show")
@click.argument("case_id")
@as_json
@with_settings
def review_show(settings: Settings, case_id: str, as_json: bool) -> None:
    """Show one case with its attempts, verdicts and decisions."""
    from streams.review import show_case
    from streams.story import tell

    shown = show_case(settings, case_id)
    if as_json:
        print_json(shown)
        return
    click.echo("\n".join(tell({"where": "gold set", "case": shown["case"]})))
    pending = shown["pending"]
    if pending is not None:
        click.echo(f"decided, not yet in the gold set: {pending['decision']} by {pending['by']}")
    if shown["in_queue"]:
        click.echo(f"in the queue; accepting takes attempt {shown['proposed_round']}")


def _deciding(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option("--again", is_flag=True, help="Also over an expert's earlier decision.")(command)
    command = click.option("--by", help="Who decides. Default: GOLDSTREAM_REVIEWER, else the user.")(command)
    return with_settings(as_json(command))


@review.command("accept")
@click.argument("case_id")
@click.option("--round", "round_", type=int, help="Of the attempt to accept. Default: the accepted or the best.")
@click.option("--reason", default="", help="A note to keep.")
@_deciding
def review_accept(
    settings: Settings, case_id: str, round_: int | None, reason: str, by: str | None, again: bool, as_json: bool
) -> None:
    """Accept a case as it is: gold, labelled expert."""
    from agents.expert import Decision

    made = Decision(decision="accept", by=reviewer(by), reason=reason, round=round_, again=again)
    _decide(settings, case_id, made, as_json)


@review.command("reject")
@click.argument("case_id")
@click.option("--reason", required=True, help="What is wrong, in a sentence.")
@click.option("--rule", "rules", multiple=True, help="A rule of the rubric that it breaks; may be repeated.")
@_deciding
def review_reject(
    settings: Settings, case_id: str, reason: str, rules: tuple[str, ...], by: str | None, again: bool, as_json: bool
) -> None:
    """Reject a case, also one that is gold already: it leaves the gold."""
    from agents.expert import Decision

    made = Decision(decision="reject", by=reviewer(by), reason=reason, rules=rules, again=again)
    _decide(settings, case_id, made, as_json)


@review.command("edit")
@click.argument("case_id")
@click.option("--file", "path", required=True, help="Text file with the answer in its place; - reads standard input.")
@click.option("--reason", default="", help="A note to keep.")
@click.option("--rule", "rules", multiple=True, help="A rule that the answer before breaks; may be repeated.")
@_deciding
def review_edit(
    settings: Settings,
    case_id: str,
    path: str,
    reason: str,
    rules: tuple[str, ...],
    by: str | None,
    again: bool,
    as_json: bool,
) -> None:
    """Put an answer of your own in the place of the case's: gold, labelled expert."""
    from agents.expert import Decision
    from schemas.errors import ReviewError

    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        text = data.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ReviewError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8.") from error
    made = Decision(decision="edit", by=reviewer(by), text=text, reason=reason, rules=rules, again=again)
    _decide(settings, case_id, made, as_json)


@review.command("agreement")
@click.option("--task", help="One task's decisions; default all.")
@as_json
@with_settings
def review_agreement(settings: Settings, task: str | None, as_json: bool) -> None:
    """Say how often experts decide as the judge did, over all and by rule."""
    from schemas.tables import print_table
    from streams.agreement import Kind, RuleAgreement, agreement, tell_agreement

    _known_task(settings, task)
    found = agreement(settings, task)
    if as_json:
        print_json(found)
        return
    kinds = [[getattr(kind, name) for name in Kind.__struct_fields__] for kind in found.kinds]
    print_table(Kind.__struct_fields__, kinds, as_json=False)
    if found.rules:
        rules = [[getattr(rule, name) for name in RuleAgreement.__struct_fields__] for rule in found.rules]
        title = f"Who found a rule broken, in {found.rules_from} decisions"
        print_table(RuleAgreement.__struct_fields__, rules, as_json=False, title=title)
    if found.reviewers:
        click.echo("decisions: " + ", ".join(f"{name} {number}" for name, number in found.reviewers.items()))
    click.echo("\n".join(tell_agreement(found)))


def _known_task(settings: Settings, task: str | None) -> None:
    if task is not None:
        settings.task(task)


def _decide(settings: Settings, case_id: str, decision: Decision, as_json: bool) -> None:
    """Makes a decision and prints what became of it; exit code 1 where somebody else's stands."""
    from schemas.tables import printable
    from schemas.tracing import tracing
    from streams.review import decide

    with tracing(settings, "review"):
        decided = decide(settings, case_id, decision)
    if as_json:
        print_json(decided)
    elif decided.stands:
        click.echo(printable(f"{case_id} is {decided.outcome} now, epoch {decided.epoch}: {decided.detail}"))
    else:
        click.echo(printable(f"too late, this decision does not count: {decided.detail}"), err=True)
    if not decided.stands:
        sys.exit(1)


COMMANDS = (review,)
