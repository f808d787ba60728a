"""The front door: the `goldstream` command.

Composes streams, agents and trainer into one command line. The commands stand in streams/commands and
trainer/commands; every other import of ours happens inside one, so that `goldstream --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import click

from agents import outside
from streams.commands import (
    admission,
    cost,
    dashboard,
    demo,
    dlq,
    exporter,
    forget,
    gold,
    judge,
    lag,
    map,
    operate,
    processes,
    replay,
    review,
    send,
    setup,
    strategies,
)
from trainer.commands import adapters, methods, service

if TYPE_CHECKING:
    from schemas.settings import Settings

TRAINER_PACKAGES = ("accelerate", "peft", "safetensors", "torch", "transformers")  # the extra `trainer`


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option("0.1.0", prog_name="goldstream")
def cli() -> None:
    """Turn the failures of a production language model into gold training data, and retrain on it, unattended.

    Begin with `goldstream doctor`, `goldstream init` and `goldstream up`.
    """


for module in (
    setup,
    send,
    map,
    admission,
    processes,
    operate,
    lag,
    dashboard,
    exporter,
    gold,
    cost,
    judge,
    replay,
    review,
    strategies,
    dlq,
    forget,
    demo,
    service,
    adapters,
    methods,
):
    for command in module.COMMANDS:
        cli.add_command(command)


def _erase_from_adapters(settings: Settings, case_ids: Collection[str], dry_run: bool) -> Any:
    """Takes forgotten texts out of the trainer's files: streams, which forgets, knows nothing of them."""
    from trainer.erasure import erase_texts

    return erase_texts(settings, case_ids, dry_run)


forget.erase_elsewhere.append(_erase_from_adapters)


def _kept_budget(settings: Settings, budget: Any) -> Any:
    """Keeps the budget of a gate or a replay with the workers': agents and trainer know nothing of the ledger."""
    from streams.ledger import kept

    return kept(settings, budget)


outside.set_keeper(_kept_budget)


def main() -> None:
    """Runs the command line; an error of ours is printed without a traceback, with what to do next."""
    from schemas.errors import GoldstreamError

    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except GoldstreamError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name not in TRAINER_PACKAGES:
            raise
        click.echo(
            f"error: this needs {error.name}, which an installation of the stream side alone does not have. "
            "Run: pip install -c deploy/constraints.txt '.[trainer]'",
            err=True,
        )
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that may not be written to: the system's words say which
        click.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
