"""What a terminal is told of a running dashboard: its address, and the token where nobody keeps the output."""

from __future__ import annotations

from schemas.settings import Settings
from streams.dashboard.access import find_token
from streams.dashboard.server import Place, read_place


def address_lines(place: Place, token: str, token_at: str, *, secret: bool) -> list[str]:
    """Returns the address; with `secret` the token in its fragment, which browsers keep to themselves."""
    if secret:
        return [f"dashboard: {place.url}#token={token}", "(the token lets whoever has this address write)"]
    return [f"dashboard: {place.url}   the token that writing needs is in {token_at}"]


def running_dashboard(settings: Settings, *, secret: bool) -> list[str]:
    """Returns the address of the dashboard that another process serves; nothing where none runs."""
    place = read_place(settings)
    return [] if place is None else address_lines(place, *find_token(settings), secret=secret)
