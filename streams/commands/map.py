"""map: what records are taken for, and a mapping for those that nobody knows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from schemas.commandline import as_json, print_json, with_settings

if TYPE_CHECKING:
    from schemas.settings import Settings


@click.group("map")
def map_group() -> None:
    """See how log records are read, and map those of unknown shape."""


@map_group.command("test")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--topic", help="Read this topic; with FILE, read its records as this topic's.")
@click.option("--last", default=20, show_default=True, type=click.IntRange(1, 10_000), help="How many of the topic.")
@as_json
@with_settings
def map_test(settings: Settings, file: Path | None, topic: str | None, last: int, as_json: bool) -> None:
    """Show for each record what it is taken for, the prompt it yields, and what is missing and why.

    FILE holds JSON, JSONL (also of `kcat -J`), Parquet, or the raw bytes of one record. Writes nothing. Exit code 1
    where no record yields a prompt.
    """
    from streams.recognition import file_records, last_records, look, tell

    if file is None and topic is None:
        raise click.UsageError("name a FILE or a --topic.")
    logged = file_records(file) if file is not None else last_records(settings, topic or "", last)
    mapped = [name for name in settings.source_topics() if settings.mapping(name).expressions()]
    read_as = topic or next(iter(mapped), "")
    if not topic and mapped:
        click.echo(f"read as records of {read_as}, which has a mapping; --topic says otherwise", err=True)
    seen = look(settings, logged, read_as)
    if as_json:
        print_json(seen)
    elif not seen:
        click.echo(f"{file or topic} holds no records")
    else:
        click.echo("\n".join(tell(seen)))
    if not any(one.becomes == "case" for one in seen):
        sys.exit(1)


@map_group.command("infer")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--topic", default="YOUR-TOPIC", help="The topic to name in what is printed.")
@as_json
def map_infer(file: Path, topic: str, as_json: bool) -> None:
    """Propose a mapping for the records in FILE, as it would stand in goldstream.toml."""
    from streams.inference import as_toml, propose
    from streams.recognition import file_records

    found = propose(file_records(file))
    if as_json:
        print_json({"mapping": found.mapping.expressions(), "records": found.records, "reads": found.reads,
                    "known": found.known, "shapes": found.shapes})  # fmt: skip
    elif found.mapping.expressions():
        click.echo(as_toml(found, topic))
    elif found.known:
        click.echo(f"# no mapping is needed: {found.known} records are of a known shape, {', '.join(found.shapes)}")
    if not found.mapping.expressions() and not found.known:
        raise click.ClickException(
            f"{file}: no prompt found in {found.records} JSON records. Write [map.TOPIC] by hand: deploy/wiring.md."
        )


COMMANDS = (map_group,)
