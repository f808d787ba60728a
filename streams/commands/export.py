"""The gold set for other trainers: goldstream gold export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas.commandline import as_json, print_json, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings

_NAMES = ("trl", "axolotl", "llama-factory", "openai", "parquet", "hf")


@click.command("export")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--format", "name", type=click.Choice(_NAMES), required=True, help="Who is to read it.")
@click.option("--task", help="One task; default all.")
@click.option(
    "--pairs",
    type=click.Choice(["rgt", "sft"]),
    help="rgt: prompt to answer, and prompt to strategy and answer; sft: the first alone.  [default: rgt; openai: sft]",
)
@click.option("--where", default="", metavar="SQL", help="A condition over the columns of the view outcomes.")
@click.option("--since", default="", metavar="DAY", help="First day cases ended on, UTC, such as 2026-11-30.")
@click.option("--until", default="", metavar="DAY", help="Last one.")
@click.option("--as-of", metavar="WATERMARK", help="The gold set as it was: an adapter version, or a JSON file.")
@click.option("--with-holdout", is_flag=True, help="Also held-out cases whose answer passed, as split test.")
@click.option("--with-contaminated", is_flag=True, help="Also what shares too many runs of words with the holdout.")
@click.option("--force", is_flag=True, help="Replace an earlier export.")
@as_json
@with_settings
def export(
    settings: Settings,
    out: Path,
    name: str,
    task: str | None,
    pairs: str | None,
    where: str,
    since: str,
    until: str,
    as_of: str | None,
    with_holdout: bool,
    with_contaminated: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write training pairs into the folder OUT, with a dataset card.

    Held-out and contaminated rows are left out and counted. The same watermark and choice write the same bytes.
    """
    from typing import cast

    from schemas.errors import GoldError
    from schemas.tables import print_table
    from streams.export.formats import FORMATS, Name
    from streams.export.pairs import LEFT_OUT, Choice, Pairs
    from streams.export.write import export_gold
    from streams.watermarks import find_watermark

    form = FORMATS[cast(Name, name)]
    choice = Choice(
        task=task,
        pairs=cast(Pairs, pairs or form.pairs),
        where=where,
        since=_day("--since", since),
        until=_day("--until", until),
        with_holdout=with_holdout,
        with_contaminated=with_contaminated,
    )
    then = find_watermark(settings, as_of) if as_of is not None else None
    try:
        found = export_gold(settings, cast(Name, name), out, choice, then, force=force)
    except OSError as error:
        raise GoldError(
            f"cannot write the export to {out}: {error.strerror or error}. Nothing of it is left, and what was there "
            "is as it was. Free space there, or name a folder that may be written to."
        ) from error
    if as_json:
        print_json(found)
        return
    rows = [[split, cases] for split, cases in found.cases.items()]
    print_table(["split", "cases"], rows, as_json=False)
    if found.left_out:
        why = [[reason, rows, LEFT_OUT[reason]] for reason, rows in found.left_out.items()]
        print_table(["left out", "rows", "because"], why, as_json=False)
    made = ", ".join(f"{rows} {pair}" for pair, rows in found.pairs.items())
    click.echo(f"{out}: {sum(found.pairs.values())} pairs ({made}); README.md there is its card")
    if name == "openai" and choice.pairs == "rgt":
        click.echo("This format has no place for thinking: pair B begins its answer with a think block.", err=True)


def _day(option: str, text: str) -> str:
    """Returns a day as the gold set writes it; raises SettingsError for what is none."""
    from datetime import date

    from schemas.errors import SettingsError

    try:
        return date.fromisoformat(text).isoformat() if text else ""
    except ValueError as error:
        raise SettingsError(f"{option} {text!r} is no day; expected one such as 2026-11-30.") from error
