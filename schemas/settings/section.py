"""What the tables of goldstream.toml are made of."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Role = Literal["student", "judge", "refiner", "strategist"]
ROLES: tuple[Role, ...] = ("student", "judge", "refiner", "strategist")
TASK_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"  # becomes a folder name: no dots, no slashes

Positive = Annotated[int, Meta(gt=0)]
Seconds = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
NotNegative = Annotated[float, Meta(ge=0, le=1e9)]
Percentiles = Annotated[tuple[Annotated[float, Meta(ge=0, le=100)], ...], Meta(min_length=1)]
# The name of a variable that holds a secret. A secret put here by mistake is refused, and not repeated in the error.
VariableName = Annotated[str, Meta(pattern=r"^([A-Z_][A-Z0-9_]{0,63})?$")]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of goldstream.toml; an unknown key in it is an error."""
