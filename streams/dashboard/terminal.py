"""What a terminal is told of a running dashboard: its address, and the token where nobody keeps the output."""

from __future__ import annotations

from streams.dashboard.server import Place


def address_lines(place: Place, token: str, token_at: str, *, secret: bool) -> list[str]:
    """Returns the address; with `secret` the token in its fragment, which browsers keep to themselves."""
    if secret:
        return [
            f"dashboard: {place.url}#token={token}",
            "(with the token that writing needs: keep the address private)",
        ]
    return [f"dashboard: {place.url}   the token that writing needs is in {token_at}"]
