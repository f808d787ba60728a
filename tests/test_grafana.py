"""Claims about deploy/grafana: Grafana's own model reads the dashboards whole, and they keep what users rely on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboards import panels, read
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

GRAFANA = Path(__file__).parents[1] / "deploy" / "grafana"
DASHBOARDS = read()
each = pytest.mark.parametrize("name", DASHBOARDS)
OF_PROMETHEUS = {"titleFormat", "textFormat", "tagKeys", "step", "useValueForTime"}  # its plugin's, for annotations


def test_the_dashboards_are_as_their_source_says() -> None:
    checked = subprocess.run(
        [sys.executable, GRAFANA / "source" / "write.py", "--check"], capture_output=True, text=True
    )
    assert checked.returncode == 0, f"make dashboards: {checked.stdout}{checked.stderr}"


@each
def test_grafanas_model_knows_every_field(name: str) -> None:
    register_default_plugins()
    ours = DASHBOARDS[name]
    for annotation in ours["annotations"]["list"]:
        for field in OF_PROMETHEUS & annotation.keys():
            del annotation[field]
    theirs = json.loads(json.dumps(Dashboard.from_json(ours), cls=JSONEncoder))
    assert list(_lost(ours, theirs)) == []


def _lost(ours: Any, theirs: Any, path: str = "") -> Any:
    """Yields the fields of ours that the model did not take as they are."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            yield from _lost(value, theirs.get(key, "(unknown)"), f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _lost(one, other, f"{path}[{number}]")
    elif ours != theirs and ours not in (None, [], {}):
        yield f"{path}: {ours!r} became {theirs!r}"


def test_every_panel_says_what_it_shows_in_a_unit_that_grafana_knows() -> None:
    known = {value for value in vars(units).values() if isinstance(value, str)}
    for panel in panels():
        assert panel.json["description"].endswith((".", ")", "list", "ask", "infer")) or panel.json["description"], (
            panel
        )
        unit = panel.json["fieldConfig"]["defaults"].get("unit", "short")
        assert unit in known, f"{panel}: {unit}"


@each
def test_no_data_source_is_named_but_by_the_variable(name: str) -> None:
    uids = set(re.findall(r'"uid": "([^"]*)"', json.dumps(DASHBOARDS[name])))
    assert uids == {"${datasource}", "-- Grafana --", DASHBOARDS[name]["uid"]}
    first = DASHBOARDS[name]["templating"]["list"][0]
    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")


@each
def test_only_variables_that_exist_are_used_and_all_are(name: str) -> None:
    text = json.dumps(DASHBOARDS[name])
    defined = {variable["name"] for variable in DASHBOARDS[name]["templating"]["list"]}
    used = {one for one in re.findall(r"\$\{?(\w+)", text) if not one.startswith("__")}
    assert used == defined


@each
def test_panels_fill_their_rows_and_none_covers_another(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in DASHBOARDS[name]["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARDS[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    for y in range(max(y for _, y in taken) + 1):
        assert len({x for x, row in taken if row == y}) == 24, f"a gap at y = {y}"


def test_each_dashboard_links_to_the_others_and_marks_who_begins_to_serve() -> None:
    for made in DASHBOARDS.values():
        assert made["tags"] == ["goldstream"]
        assert [(link["type"], link["tags"]) for link in made["links"]] == [("dashboards", ["goldstream"])]
        assert "Adapter begins to serve" in {one["name"] for one in made["annotations"]["list"]}
    assert len({made["uid"] for made in DASHBOARDS.values()}) == len(DASHBOARDS) == 4


def test_what_grafana_provisions_is_found_where_the_page_mounts_it() -> None:
    sources = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text("utf-8"))
    assert [one["type"] for one in sources["datasources"]] == ["prometheus"]
    providers = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "goldstream.yml").read_text("utf-8"))
    (path,) = (one["options"]["path"] for one in providers["providers"])
    assert f"deploy/grafana/dashboards:{path}" in (GRAFANA.parent / "monitoring.md").read_text("utf-8")
