"""What every command of `goldstream` shares: settings from its options, JSON for programs, an orderly stop.

Imports of ours happen inside, so that `goldstream --help` answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from schemas.settings import Settings


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options every command takes and hands the command its Settings."""

    @click.option("--config", type=click.Path(path_type=Path), help="Settings file. Default: ./goldstream.toml")
    @click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting, e.g. kafka.partitions=8")
    @click.option("--bootstrap-servers", metavar="HOST:PORT,...", help="Your Kafka, in place of the local one")
    @functools.wraps(command)
    def run(
        *arguments: Any, config: Path | None, overrides: Sequence[str], bootstrap_servers: str | None, **options: Any
    ) -> Any:
        from schemas.settings import load_settings

        chosen = list(overrides)
        if bootstrap_servers:
            chosen.append(f"kafka.bootstrap_servers={bootstrap_servers}")
        return command(load_settings(config, chosen), *arguments, **options)

    return run


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs instead of a table.")


def print_json(found: Any) -> None:
    """Prints anything msgspec can encode as indented JSON; what it cannot, such as a path, as text."""
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(found, enc_hook=str)).decode())


def one_task(settings: Settings, task: str | None) -> str:
    """Returns the task a command means: the one named, or the only one there is. Raises SettingsError otherwise."""
    from schemas.errors import SettingsError

    if task is None:
        if len(settings.tasks) != 1:
            raise SettingsError(
                f"which task? --task one of: {', '.join(sorted(settings.tasks)) or 'none is configured'}"
            )
        return next(iter(settings.tasks))
    settings.task(task)
    return task


def reviewer(by: str | None) -> str:
    """Returns who decides: the name given, else GOLDSTREAM_REVIEWER, else the user of this machine."""
    import getpass
    import os

    return (by or os.environ.get("GOLDSTREAM_REVIEWER") or getpass.getuser()).strip()


@contextlib.contextmanager
def serving(name: str | None) -> Iterator[threading.Event]:
    """Gives a long-running command a stop event that SIGTERM and Ctrl-C set."""
    import signal

    from schemas.logs import log_to_stderr
    from schemas.process import end_with_parent

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log_to_stderr("INFO" if name else "WARNING")
    end_with_parent()
    yield stop
