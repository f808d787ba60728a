"""Where the dashboard listens, how often it looks, and who may write."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from schemas.settings.metrics import Port
from schemas.settings.section import Section, VariableName

HostName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:\[\]-]{1,253}$")]


class Dashboard(Section, frozen=True):
    """`goldstream dashboard`."""

    host: HostName = "127.0.0.1"  # beyond loopback, reading needs the token too
    port: Port | Literal["auto"] = 8642  # the first free one from there on; "auto": any free one. The command prints it
    # Names that browsers may call it by, besides loopback and `host`; a proxy's name, for example.
    names: tuple[HostName, ...] = ()
    refresh_s: Annotated[float, Meta(ge=0.5, le=300)] = 2.0
    # Name of the variable that holds the token; "": one is made at the first start, <state_dir>/dashboard.token.
    token_env: VariableName = ""
