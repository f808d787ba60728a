"""The shipped dashboards as tests see them: their panels, and each query as Grafana would send it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[1] / "deploy" / "grafana" / "dashboards"
RANGE, RATE_INTERVAL, INTERVAL = "5m", "1m", "15s"


class Panel(NamedTuple):
    """One panel with what it asks."""

    dashboard: str
    title: str
    expressions: tuple[str, ...]
    json: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.title}"


def read() -> dict[str, dict[str, Any]]:
    """Returns the dashboards by file name."""
    return {path.name: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def panels() -> list[Panel]:
    """Returns every panel that asks something."""
    return [
        Panel(made["title"], one["title"], tuple(target["expr"] for target in one["targets"]), one)
        for made in read().values()
        for one in made["panels"]
        if one["type"] != "row"
    ]


def annotations() -> list[tuple[str, str]]:
    """Returns every annotation that asks something, by dashboard and name."""
    return [
        (f"{made['title']}: {one['name']}", one["expr"])
        for made in read().values()
        for one in made["annotations"]["list"]
        if "expr" in one
    ]


def resolved(expression: str) -> str:
    """Returns an expression with Grafana's variables put in: all values of each of ours."""
    known = {"__range": RANGE, "__rate_interval": RATE_INTERVAL, "__interval": INTERVAL}
    return re.sub(r"\$(\w+)", lambda found: known.get(found[1], ".*"), expression)
