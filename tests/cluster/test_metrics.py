"""The dashboard and the alerts use existing metrics and are valid for Grafana and Prometheus. `make chaos-watch` uses a real Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy import dashboard
from deploy.watch import DASHBOARD, page_of_links, plain, read_queries
from han.cluster.metrics import FAMILIES, run_name
from serve.metrics import FAMILIES as SERVE_FAMILIES

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "alerts.yml"
QUERIES = {f"{title}: {query}": query for queries in read_queries(DASHBOARD).values() for title, query in queries}
RULES = {rule["alert"]: rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}
# metrics of Ray 2.60, as exported in `make chaos-watch`; the eviction counter exists only after Ray has killed a process
RAY_METRICS = {
    "ray_actors",
    "ray_memory_manager_worker_eviction_total",
    "ray_node_cpu_utilization",
    "ray_node_disk_free",
    "ray_node_disk_usage",
    "ray_node_mem_total",
    "ray_node_mem_used",
    "ray_object_store_memory",
    "ray_resources",
    "ray_serve_deployment_processing_latency_ms_bucket",
    "ray_serve_deployment_replica_healthy",
    "ray_train_report_total_blocked_time_s",
}
_NAME = re.compile(r"\b(?:ray|han)_\w+\b(?!\s*[=!])")  # a metric, not a label
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def names(query: str) -> set[str]:
    """The metrics in a query, without the suffixes that Prometheus adds to a histogram's name."""
    inside_labels = re.compile(r"\bby \([^)]*\)|\{[^}]*\}")
    metrics = set(_NAME.findall(inside_labels.sub("", query)))
    return {re.sub(r"_(bucket|sum|count)$", "", name) if name.startswith("han_") else name for name in metrics}


@pytest.mark.parametrize("query", [*QUERIES.values(), *RULES.values()], ids=[*QUERIES, *RULES])
def test_queries_use_only_existing_metrics(query: str) -> None:
    assert names(query) <= {family.name for family in FAMILIES} | set(SERVE_FAMILIES) | RAY_METRICS
    assert names(query) or "up{" in query


def test_a_metric_with_a_typo_is_detected() -> None:
    assert names("sum by (run) (rate(ray_han_score_row_total[1m]))") == {"ray_han_score_row_total"}


def test_every_metric_of_training_and_scoring_is_on_the_dashboard() -> None:
    assert {family.name for family in FAMILIES} <= set().union(*map(names, QUERIES.values()))


def test_metrics_are_named_and_labelled_as_prometheus_advises() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"ray_han_[a-z_]+", family.name)
        assert (family.kind == "counter") == family.name.endswith("_total")
        assert family.help
        assert set(family.labels) <= {"run", "rank", "model", "reason"}  # each has few values


def test_the_dashboard_file_equals_the_table_of_panels() -> None:
    assert json.loads(DASHBOARD.read_text()) == dashboard.dashboard(), "run python -m deploy.dashboard"


def test_panels_do_not_overlap_and_have_units_legends_and_the_chosen_data_source() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    positions = [panel["gridPos"] for panel in panels]
    cells = [(position["x"] + x, position["y"] + y) for position in positions for x in range(position["w"]) for y in range(position["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["description"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
            assert all(target["legendFormat"] for target in panel["targets"])


def test_a_plain_query_has_no_grafana_variable() -> None:
    assert [query for query in QUERIES.values() if "$" in plain(query)] == []


def test_the_page_of_links_has_a_prometheus_link_for_every_panel() -> None:
    page = page_of_links("http://127.0.0.1:9090")
    assert page.count("<a href") == sum(panel["type"] != "row" for panel in json.loads(DASHBOARD.read_text())["panels"])
    assert "graph?g0.expr=sum+by+%28run%29+%28rate%28ray_han_train_reviews_total" in page


@pytest.mark.parametrize(("out", "name"), [("/data/train/run", "train/run"), ("s3://bucket/scores/", "bucket/scores"), ("run", "run")])
def test_the_name_of_a_run_is_the_end_of_its_path(out: str, name: str) -> None:
    assert run_name(out) == name


@needs_promtool
def test_prometheus_accepts_every_query_and_alert(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": plain(query)} for number, query in enumerate(QUERIES.values())]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    for file in (tmp_path / "queries.yml", ALERTS):
        done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_prometheus_accepts_its_configuration() -> None:
    done = subprocess.run(["promtool", "check", "config", str(ROOT / "deploy" / "prometheus.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_alerts_fire_on_their_condition_and_not_on_a_healthy_run(tmp_path: Path) -> None:
    scored, left, quarantined = "ray_han_score_rows_total", "ray_han_score_shards_left", "ray_han_score_quarantined_total"
    requests = 'han_requests_total{route="/v1/score",code="%s"}'
    cases = {
        "healthy": (
            {scored: "0+1000x40", left: "40-1x40", quarantined: "0+1x40", requests % 200: "0+100x40", requests % 500: "0+0x40"},
            set(),
        ),
        "stalled": ({scored: "1000+0x40", left: "7+0x40"}, {"ScoringStalled"}),
        "quarantining": ({scored: "0+1000x40", left: "40-1x40", quarantined: "0+20x40"}, {"ManyRecordsQuarantined"}),
        "failing": ({requests % 200: "0+100x40", requests % 500: "0+9x40"}, {"ServiceFails"}),
    }
    alerts = ("ScoringStalled", "ManyRecordsQuarantined", "ServiceFails")
    tests = []
    for series, firing in cases.values():
        named = [{"series": name if "{" in name else f'{name}{{run="r"}}', "values": values} for name, values in series.items()]
        checks = [{"expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)', "eval_time": "25m"} for name in alerts]
        for name, check in zip(alerts, checks, strict=True):
            check["exp_samples"] = [{"labels": "{}", "value": float(name in firing)}]  # type: ignore[assignment]
        tests.append({"interval": "1m", "input_series": named, "promql_expr_test": checks})
    file = tmp_path / "cases.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_watch_without_prometheus_prints_where_to_get_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.watch", "--out", str(tmp_path)], cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: no prometheus on the path")
