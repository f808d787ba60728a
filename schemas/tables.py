"""Printing rows: a table for people, JSON for programs. Every command that shows rows prints here."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec

_CELL = 80  # characters; longer cells are cut in tables, never in JSON
_PIPED_WIDTH = 160  # columns of a table that is not printed to a terminal
_NARROWEST = 5  # characters of a column with its border; where not all have these, rows are printed one below another


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, as_json: bool, title: str = "") -> None:
    """Prints rows to standard output: as a table, or as one JSON array of objects with ISO timestamps.

    Rows of more columns than fit are printed one below another, a line for each column that has a value.
    """
    if as_json:
        sys.stdout.write(to_json(columns, rows) + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
    if title:
        console.print(Text(f"\n{title}"))
    if _NARROWEST * len(columns) > console.width:
        for line in _below(columns, rows):
            console.print(Text(line), soft_wrap=True)
        return
    table = Table(header_style="bold")
    for number, name in enumerate(columns):
        numeric = any(_is_number(row[number]) for row in rows)
        table.add_column(Text(cell_text(name)), justify="right" if numeric else "left")
    for row in rows:
        # Text, not str: model output must not be read as markup.
        table.add_row(*(Text(cell_text(value)) for value in row))
    console.print(table)


def _below(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    width = max(len(name) for name in columns)
    for number, row in enumerate(rows, 1):
        yield f"row {number}"
        cells = [(cell_text(name), cell_text(value)) for name, value in zip(columns, row, strict=True)]
        yield from (f"  {name:<{width}}  {text}" for name, text in cells if text)
    if not rows:
        yield f"no rows; the columns are {', '.join(map(cell_text, columns))}"


def to_json(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, indent: int = 2) -> str:
    """Returns rows as a JSON array of objects, with `indent` -1 on one line.

    Of columns that share a name, later ones are numbered.
    """
    names: list[str] = []
    for name in columns:
        same = names.count(name) + sum(1 for taken in names if taken.startswith(f"{name}_"))
        names.append(f"{name}_{same + 1}" if name in names else name)
    objects = [dict(zip(names, map(_plain, row), strict=True)) for row in rows]
    return msgspec.json.format(msgspec.json.encode(objects, enc_hook=str), indent=indent).decode()


def cell_text(value: Any) -> str:
    """Returns a value as one short printable line, so that model output cannot steer a terminal."""
    match value:
        case None:
            return ""
        case float():
            text = f"{value:.4g}" if abs(value) < 1e6 else f"{value:.0f}"
        case datetime():
            text = value.isoformat(sep=" ", timespec="seconds")
        case str():
            text = value
        case bytes():
            text = value.decode("utf-8", "replace")
        case dict() | list() | tuple():
            text = msgspec.json.encode(_plain(value), enc_hook=str).decode()
        case _:
            text = str(value)
    if len(text) > _CELL:
        text = text[: _CELL - 1] + "…"
    return printable(text)


def printable(text: str) -> str:
    """Returns text without control characters: what a record or a model says must not steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """Returns a value that JSON can hold; bytes are JSON text of ours, so they are shown as text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
