"""Grafana's panels as functions: what each kind needs, with our defaults. The four dashboards are made of these.

A panel is a dictionary as Grafana stores it, but for its id and place, which `dashboard.Dashboard` gives it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Json = dict[str, Any]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
GOOD, WARN, BAD, PLAIN = "green", "orange", "red", "text"


class Query(NamedTuple):
    """An expression, how its series are called, and whether only the latest value is asked for."""

    expr: str
    legend: str = ""
    instant: bool = False


Size = tuple[int, int]  # width, of 24, and height
Steps = tuple[tuple[str, float | None], ...]  # colour from this value on; None: from the start


def above(warn: float, bad: float | None = None) -> Steps:
    """Returns thresholds of a number that should be low."""
    return ((GOOD, None), (WARN, warn)) + (((BAD, bad),) if bad is not None else ())


def below(warn: float, good: float) -> Steps:
    """Returns thresholds of a number that should be high."""
    return ((BAD, None), (WARN, warn), (GOOD, good))


def series(
    title: str, description: str, *queries: Query, unit: str = "short", steps: Steps = (), stack: bool = False,
    lowest: float | None = 0, highest: float | None = None, size: Size = (8, 8),
) -> Json:  # fmt: skip
    """Lines over time. With `steps` the limits are drawn too."""
    custom: Json = {
        "drawStyle": "line", "lineInterpolation": "linear", "lineWidth": 1, "fillOpacity": 40 if stack else 8,
        "gradientMode": "none", "showPoints": "never", "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stack else "none"},
        "thresholdsStyle": {"mode": "dashed" if steps else "off"},
    }  # fmt: skip
    defaults = _defaults(unit, steps, custom, {"mode": "palette-classic"})
    defaults |= {name: value for name, value in (("min", lowest), ("max", highest)) if value is not None}
    legend = {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["lastNotNull", "max"]}
    options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    return _panel("timeseries", title, description, queries, defaults, options, size)


def stat(
    title: str, description: str, query: Query, unit: str = "short", steps: Steps = ((PLAIN, None),),
    decimals: int | None = None, names: bool = False, values: dict[str, tuple[str, str]] | None = None,
    size: Size = (4, 4),
) -> Json:  # fmt: skip
    """One number, large. `names` shows what the series are called instead; `values` maps a value to text and colour."""
    defaults = _defaults(unit, steps, {}, {"mode": "thresholds"})
    if decimals is not None:
        defaults["decimals"] = decimals
    if values:
        defaults["mappings"] = _mappings(values)
    options: Json = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "orientation": "auto",
        "textMode": "name" if names else "value", "colorMode": "none" if names else "value",
        "graphMode": "none" if names or query.instant else "area", "justifyMode": "auto",
        "wideLayout": True, "showPercentChange": False, "percentChangeColorMode": "standard",
    }  # fmt: skip
    return _panel("stat", title, description, (query,), defaults, options, size)


def bars(
    title: str, description: str, *queries: Query, unit: str = "short", steps: Steps = (("blue", None),),
    highest: float | None = None, size: Size = (8, 8),
) -> Json:  # fmt: skip
    """A bar for each series, by its latest value."""
    defaults = _defaults(unit, steps, {}, {"mode": "thresholds"}) | {"min": 0}
    if highest is not None:
        defaults["max"] = highest
    options: Json = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "orientation": "horizontal",
        "displayMode": "basic", "valueMode": "color", "namePlacement": "auto", "showUnfilled": True,
        "sizing": "auto", "minVizWidth": 8, "minVizHeight": 16, "maxVizHeight": 40,
        "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom", "calcs": []},
    }  # fmt: skip
    latest = tuple(query._replace(instant=True) for query in queries)
    return _panel("bargauge", title, description, latest, defaults, options, size)


def states(
    title: str, description: str, *queries: Query, values: dict[str, tuple[str, str]], size: Size = (8, 8)
) -> Json:  # fmt: skip
    """A band for each series, coloured by its state over time."""
    custom = {"fillOpacity": 70, "lineWidth": 0}
    defaults = _defaults("short", ((PLAIN, None),), custom, {"mode": "thresholds"}) | {"mappings": _mappings(values)}
    options: Json = {
        "mergeValues": True, "showValue": "auto", "alignValue": "center", "rowHeight": 0.85,
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }  # fmt: skip
    return _panel("state-timeline", title, description, queries, defaults, options, size)


def heat(title: str, description: str, query: Query, unit: str, size: Size = (8, 8)) -> Json:
    """How a histogram's buckets fill over time."""
    custom = {"scaleDistribution": {"type": "linear"}, "hideFrom": {"legend": False, "tooltip": False, "viz": False}}
    colors = {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "dark-orange",
              "reverse": False, "scale": "exponential"}  # fmt: skip
    options: Json = {
        "calculate": False, "cellGap": 1, "color": colors, "yAxis": {"axisPlacement": "left", "unit": unit,
        "reverse": False}, "rowsFrame": {"layout": "auto"}, "cellValues": {"unit": "cps"}, "filterValues": {"le": 1e-9},
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
        "legend": {"show": True}, "exemplars": {"color": "rgba(255,0,255,0.7)"}, "showValue": "never",
    }  # fmt: skip
    panel = _panel("heatmap", title, description, (query,), {"custom": custom}, options, size)
    panel["targets"][0]["format"] = "heatmap"
    return panel


def table(
    title: str, description: str, queries: dict[str, str], columns: dict[str, str],
    units: dict[str, str] | None = None, size: Size = (8, 8),
) -> Json:  # fmt: skip
    """A row for each set of labels that all `queries` (column -> expression) share.

    `columns` names labels and queries in their order; what it leaves out is hidden.
    """
    asked = tuple(Query(expr, name, instant=True) for name, expr in queries.items())
    defaults = {
        "noValue": "none yet",
        "custom": {"align": "auto", "cellOptions": {"type": "auto"}, "inspect": False, "filterable": True},
    }
    options = {"showHeader": True, "cellHeight": "sm", "footer": _FOOTER, "sortBy": []}
    panel = _panel("table", title, description, asked, defaults, options, size)
    refs = {name: target["refId"] for name, target in zip(queries, panel["targets"], strict=True)}
    for target in panel["targets"]:
        target["format"] = "table"
    fields = {name: f"Value #{refs[name]}" if name in refs else name for name in columns}
    if len(queries) == 1:
        fields = {name: "Value" if name in refs else name for name in columns}
    panel["transformations"] = [
        {"id": "merge", "options": {}},
        {"id": "filterFieldsByName", "options": {"include": {"names": list(fields.values())}}},
        {
            "id": "organize",
            "options": {
                "excludeByName": {},
                "indexByName": {field: place for place, field in enumerate(fields.values())},
                "renameByName": {fields[name]: shown for name, shown in columns.items()},
            },
        },
    ]
    panel["fieldConfig"]["overrides"] = [
        {"matcher": {"id": "byName", "options": columns[name]}, "properties": [{"id": "unit", "value": unit}]}
        for name, unit in (units or {}).items()
    ]
    return panel


_FOOTER = {"show": False, "reducer": ["sum"], "countRows": False, "fields": ""}


def _panel(
    kind: str, title: str, description: str, queries: tuple[Query, ...], defaults: Json, options: Json, size: Size
) -> Json:  # fmt: skip
    return {
        "type": kind,
        "title": title,
        "description": description,
        "gridPos": {"w": size[0], "h": size[1]},
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [_target(query, "ABCDEFGHIJ"[place]) for place, query in enumerate(queries)],
    }


def _target(query: Query, ref: str) -> Json:
    return {
        "refId": ref,
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": " ".join(query.expr.split()),
        "legendFormat": query.legend or "__auto",
        "instant": query.instant,
        "range": not query.instant,
    }


def _defaults(unit: str, steps: Steps, custom: Json, color: Json) -> Json:
    limits = [{"color": name, "value": value} for name, value in steps or ((GOOD, None),)]
    found: Json = {"unit": unit, "noValue": "none yet", "color": color}
    found["thresholds"] = {"mode": "absolute", "steps": limits}
    return found | ({"custom": custom} if custom else {})


def _mappings(values: dict[str, tuple[str, str]]) -> list[Json]:
    shown = {
        value: {"text": text, "color": color, "index": i} for i, (value, (text, color)) in enumerate(values.items())
    }
    return [{"type": "value", "options": shown}]
