"""Make the Grafana dashboard from the table in `panels`: `python -m deploy.dashboard` writes deploy/grafana/han.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.panels import ROWS, Panel

FILE = Path(__file__).parent / "grafana" / "han.json"
_WIDTH, _HEIGHT = 8, 7  # size of a panel, in Grafana's grid of 24 columns
_MIN_INTERVAL = "15s"  # between two points; longer than a scrape, so that $__rate_interval covers four scrapes
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """The dashboard as JSON for Grafana 10 and later."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": _position(0, y, 24, 1)}
        )
        for index, panel in enumerate(row):
            x, line = index * _WIDTH % 24, index * _WIDTH // 24
            panels.append({"id": len(panels) + 1, **_panel(panel), "gridPos": _position(x, y + 1 + line * _HEIGHT, _WIDTH, _HEIGHT)})
        y += 1 + -(-len(row) * _WIDTH // 24) * _HEIGHT
    return {
        "uid": "han-on-ray",
        "title": "HAN on Ray",
        "tags": ["han", "ray"],
        "schemaVersion": 38,
        "editable": True,
        "graphTooltip": 1,  # one crosshair on all panels
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_datasource(), _runs()]},
        "annotations": {"list": []},
        "panels": panels,
    }


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "custom": {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 8}}
    if panel.maximum is not None:
        defaults["max"] = panel.maximum
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": _DATASOURCE,
        "interval": _MIN_INTERVAL,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": _DATASOURCE, "expr": query, "legendFormat": legend}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def _position(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {}, "hide": 0}


def _runs() -> dict[str, Any]:
    query = 'label_values({__name__=~"ray_han_(train|score)_.+"}, run)'
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": _DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "run"},
        "refresh": 2,  # whenever the time range changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "hide": 0,
    }


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n")
    print(f"{FILE}: {sum(len(panels) for panels in ROWS.values())} panels")
