"""An interactive prompt over the gold set's views: `goldstream gold shell`. It reads and does nothing else.

Statements end in `;` and may span lines; what begins with a dot is a command. SQL on standard input runs the
same way.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import duckdb

from schemas.errors import GoldError
from schemas.gold import Watermark
from schemas.tables import print_table
from streams.gold import ask, open_gold, views

_HISTORY_LINES = 1000
HELP = """\
A statement ends in ;  and may span lines. It may read, and do nothing else.
  .tables            the views        .schema VIEW   the columns of one
  .json on|off       JSON rather than tables
  .help  .quit       Ctrl-C drops what was typed, Ctrl-D leaves"""


class Shell:
    """Statements from one stream, their rows to standard output, errors to standard error."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, *, as_json: bool = False) -> None:
        self.connection, self.as_json = connection, as_json
        self.failed = 0  # statements and dot commands

    def run(self, read: Callable[[str], str]) -> None:
        """Reads lines until the end of the stream or .quit; an error is printed and the next statement read."""
        typed = ""
        while True:
            try:
                line = read("gold> " if not typed else "  ... ")
            except EOFError:
                break
            except KeyboardInterrupt:
                typed = ""
                print()
                continue
            if not typed and line.strip().startswith("."):
                if not self.command(line.strip()):
                    return
                continue
            typed = f"{typed}{line}\n" if typed or line.strip() else ""
            if sqlite3.complete_statement(typed):  # knows quotes and comments
                self.statement(typed)
                typed = ""
        if typed.strip():  # the end of a stream ends a statement too
            self.statement(typed)

    def statement(self, sql: str) -> None:
        """Runs what was typed and prints its rows."""
        try:
            columns, rows = ask(self.connection, sql)
            print_table(columns, rows, as_json=self.as_json)
        except GoldError as error:
            self._fail(str(error))
        except KeyboardInterrupt:
            self._fail("interrupted")

    def command(self, line: str) -> bool:
        """Runs a dot command; returns False where it was the last."""
        match line.rstrip(";").split():
            case [".quit" | ".exit"]:
                return False
            case [".help"]:
                print(HELP)
            case [".tables"]:
                print("\n".join(views(self.connection)))
            case [".schema", view] if view in views(self.connection):
                self.statement(f'SELECT column_name, column_type FROM (DESCRIBE "{view}")')
            case [".json", "on" | "off" as choice]:
                self.as_json = choice == "on"
            case _:
                self._fail(f"{line[:80]!r} is no command of this shell; .help names them")
        return True

    def _fail(self, text: str) -> None:
        self.failed += 1
        sys.stdout.flush()
        print(f"error: {text}", file=sys.stderr, flush=True)


def run_shell(
    gold: Path, history: Path, as_of: Watermark | None = None, *, as_json: bool = False, stdin: TextIO | None = None
) -> int:
    """Runs the shell on standard input, with line editing and a history on a terminal; returns how much failed."""
    source = stdin or sys.stdin
    with open_gold(gold, as_of) as connection:
        shell = Shell(connection, as_json=as_json)
        if source.isatty():
            print(f"DuckDB {duckdb.__version__} over {gold}, read-only. {HELP.splitlines()[0]} .help tells more.")
            with _editing(history, views(connection)):
                shell.run(input)
            return 0
        lines = iter(source)

        def read(prompt: str) -> str:
            try:
                return next(lines).removesuffix("\n")
            except StopIteration:
                raise EOFError from None

        shell.run(read)
        return shell.failed


@contextlib.contextmanager
def _editing(history: Path, words: list[str]) -> Iterator[None]:
    """Gives input() line editing, the names of the views on Tab, and what was typed in earlier shells."""
    try:
        import readline
    except ImportError:  # a Python built without it still has a prompt
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(history)
    readline.set_completer(lambda text, n: next(iter([w for w in words if w.startswith(text)][n:]), None))
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        readline.set_completer(None)
        with contextlib.suppress(OSError):
            history.parent.mkdir(parents=True, exist_ok=True)
            history.touch(mode=0o600)  # what was asked may hold names
            readline.write_history_file(history)
