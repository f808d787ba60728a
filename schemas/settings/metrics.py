"""Where each process shows what it counts."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from schemas.settings.section import Section

Port = Annotated[int, Meta(ge=1, le=65535)]


class Metrics(Section, frozen=True):
    """The /metrics of every long-running process, for Prometheus."""

    host: str = "127.0.0.1"  # "0.0.0.0" or "::" lets other machines read; nobody is asked who they are
    # "free": any port; <state>/run/<process>.metrics.json tells Prometheus which. A number: the first free one from
    # there on, so that the processes of one machine can share the setting. "off": no /metrics.
    port: Port | Literal["free", "off"] = "free"
