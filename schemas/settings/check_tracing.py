"""Mistakes in the collector's address, found when settings are loaded."""

from __future__ import annotations

import re
from pathlib import Path

from schemas.errors import SettingsError
from schemas.settings.tracing import Tracing


def check_tracing(tracing: Tracing, path: Path) -> None:
    """Raises SettingsError for an address that is none, or that holds a secret, without repeating it."""
    endpoint = tracing.endpoint
    if "@" in endpoint or "?" in endpoint or "#" in endpoint:
        raise SettingsError(
            f"{path}: tracing.endpoint holds a user name, password or query. Secrets are never allowed in URLs: write "
            "the plain address, and name the variable that holds the headers in tracing.headers_env."
        )
    if endpoint and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", endpoint):
        raise SettingsError(
            f"{path}: tracing.endpoint is {endpoint!r}; expected the address of an OTLP collector over HTTP, such as "
            '"http://127.0.0.1:4318". OTLP over gRPC (port 4317) is not spoken.'
        )
