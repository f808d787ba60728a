"""A dashboard around its panels: variables, annotations, links, places. Written as Grafana's own JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

from panels import SOURCE, Json

SCHEMA_VERSION = 41  # Grafana 11.6 and 12.0; newer ones raise it by themselves
TAG = "goldstream"
WIDTH = 24


@dataclass
class Dashboard:
    """One dashboard. `rows` are titles with their panels."""

    uid: str
    title: str
    description: str
    variables: list[Json]
    rows: list[tuple[str, list[Json]]] = field(default_factory=list)

    def row(self, title: str, *panels: Json) -> None:
        """Adds a row of panels, from the left; one that does not fit any more goes below."""
        self.rows.append((title, list(panels)))

    def as_json(self) -> Json:
        """Returns what Grafana stores."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "timezone": "browser",
            "time": {"from": "now-6h", "to": "now"},
            "refresh": "30s",
            "fiscalYearStartMonth": 0,
            "liveNow": False,
            "preload": False,
            "timepicker": {},
            "weekStart": "",
            "templating": {"list": [_DATASOURCE, *self.variables]},
            "annotations": {"list": [_SAVED, _SERVES]},
            "links": [_OTHERS],
            "panels": self._placed(),
        }

    def _placed(self) -> list[Json]:
        placed: list[Json] = []
        y = 0
        for title, panels in self.rows:
            here = {"h": 1, "w": WIDTH, "x": 0, "y": y}
            row = {"id": len(placed) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": here}
            placed.append(row | {"panels": []})
            y, x, tallest = y + 1, 0, 0
            for panel in panels:
                width, height = panel["gridPos"]["w"], panel["gridPos"]["h"]
                if x + width > WIDTH:
                    y, x, tallest = y + tallest, 0, 0
                place = {"h": height, "w": width, "x": x, "y": y}
                placed.append({"id": len(placed) + 1} | panel | {"gridPos": place})
                x, tallest = x + width, max(tallest, height)
            y += tallest
        return placed


def variable(name: str, label: str, description: str, metric: str, of: str) -> Json:
    """Returns a variable of the values that a label has; several may be chosen, all by default."""
    query = f"label_values({metric}, {of})"
    return {
        "type": "query", "name": name, "label": label, "description": description, "datasource": SOURCE,
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2, "sort": 1, "regex": "", "hide": 0, "skipUrlSync": False, "options": [],
        "multi": True, "includeAll": True, "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]},
    }  # fmt: skip


_DATASOURCE: Json = {
    "type": "datasource", "name": "datasource", "label": "Data source", "description": "The Prometheus that scrapes.",
    "query": "prometheus", "regex": "", "refresh": 1, "hide": 0, "skipUrlSync": False, "options": [],
    "multi": False, "includeAll": False,
}  # fmt: skip
JOB = variable("job", "Job", "The scrape job: one factory, where you run several.", "goldstream_exporter_up", "job")
TASK = variable("task", "Task", "The tasks of this factory.", 'goldstream_cases{job=~"$job"}', "task")
_SAVED: Json = {
    "builtIn": 1, "datasource": {"type": "grafana", "uid": "-- Grafana --"}, "enable": True, "hide": True,
    "iconColor": "rgba(0, 211, 255, 1)", "name": "Annotations & Alerts", "type": "dashboard",
}  # fmt: skip
_SERVES: Json = {
    "name": "Adapter begins to serve", "datasource": SOURCE, "enable": True, "hide": False, "iconColor": "purple",
    "expr": 'max by (task, version) (1000 * goldstream_adapter_since_timestamp_seconds{job=~"$job"}'
    ' * on (job, task) group_left (version) goldstream_adapter_info{job=~"$job"})',
    "titleFormat": "{{task}}: {{version}} serves", "textFormat": "promoted, or rolled back to", "tagKeys": "task",
    "step": "60s", "useValueForTime": True,
}  # fmt: skip
_OTHERS: Json = {
    "type": "dashboards", "title": "Goldstream", "tags": [TAG], "asDropdown": False, "includeVars": True,
    "keepTime": True, "targetBlank": False, "icon": "external link", "tooltip": "", "url": "",
}  # fmt: skip
