"""The panels of the dashboard in rows, each with its queries. `dashboard` turns them into Grafana's JSON."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    title: str
    help: str  # the description at the panel's corner
    unit: str  # Grafana's name of the unit
    queries: tuple[tuple[str, str], ...]  # PromQL, legend
    maximum: float | None = None  # upper end of the axis


def _rate(name: str, *, by: str = "", where: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({name}{f'{{{where}}}' if where else ''}[$__rate_interval]))"


def _latency(quantile: float) -> str:
    where = 'route="/v1/score"'
    return f"histogram_quantile({quantile}, {_rate('han_request_seconds_bucket', by='le', where=where)})"


def _largest(name: str) -> str:
    return f"max by (run) ({name}{{{_RUN}}})"


_RUN = 'run=~"$run"'
ROWS: dict[str, tuple[Panel, ...]] = {
    "Training": (
        Panel(
            title="Reviews a second",
            help="Reviews that all workers together train on in a second. It is 0 during validation.",
            unit="short",
            queries=((_rate("ray_han_train_reviews_total", by="run", where=_RUN), "{{run}}"),),
        ),
        Panel(
            title="Loss",
            help="Mean cross-entropy of a review in nats: of the current epoch so far (training), and after each epoch (development).",
            unit="short",
            queries=(
                (_largest("ray_han_train_loss"), "{{run}} training"),
                (_largest("ray_han_train_development_log_loss"), "{{run}} development"),
            ),
        ),
        Panel(
            title="Development accuracy",
            help="Accuracy on the development split after each epoch. The network of the best epoch is kept.",
            unit="percentunit",
            queries=((_largest("ray_han_train_development_accuracy"), "{{run}}"),),
            maximum=1,
        ),
        Panel(
            title="Time waiting for data",
            help="Share of time that a worker waits for reviews. Above a few percent, storage is too slow for the workers.",
            unit="percentunit",
            queries=((_rate("ray_han_train_data_wait_seconds_total", by="run, rank", where=_RUN), "{{run}} worker {{rank}}"),),
            maximum=1,
        ),
        Panel(
            title="Epoch",
            help="The current epoch and the configured number of epochs. Patience may stop a run earlier.",
            unit="none",
            queries=((_largest("ray_han_train_epoch"), "{{run}}"), (_largest("ray_han_train_epochs"), "{{run}} configured")),
        ),
        Panel(
            title="Time in checkpoints",
            help="Seconds that workers have waited for checkpoints since the run began (Ray Train's own metric).",
            unit="s",
            queries=(("sum by (ray_train_run_id) (ray_train_report_total_blocked_time_s)", "{{ray_train_run_id}}"),),
        ),
    ),
    "Scoring": (
        Panel(
            title="Records a second",
            help="Records scored or quarantined in a second by all actors together.",
            unit="short",
            queries=((_rate("ray_han_score_rows_total", by="run", where=_RUN), "{{run}}"),),
        ),
        Panel(
            title="Time left",
            help="Remaining records divided by the current rate. The number of records is an estimate for some formats.",
            unit="s",
            queries=((f"{_largest('ray_han_score_rows_left')} / {_rate('ray_han_score_rows_total', by='run', where=_RUN)}", "{{run}}"),),
        ),
        Panel(
            title="Shards",
            help="Finished and remaining shards. A finished shard is never scored again.",
            unit="none",
            queries=(
                (_largest("ray_han_score_shards_done"), "{{run}} done"),
                (_largest("ray_han_score_shards_left"), "{{run}} left"),
            ),
        ),
        Panel(
            title="Quarantined, by reason",
            help="Quarantined records. docs/reliability.md explains the reasons.",
            unit="short",
            queries=((f"sum by (run, reason) (ray_han_score_quarantined_total{{{_RUN}}})", "{{run}} {{reason}}"),),
        ),
        Panel(
            title="Quarantined, share",
            help="Quarantined share of the records so far. Above --max-bad-ratio (1%) the job stops and publishes nothing.",
            unit="percentunit",
            queries=(
                (
                    f"sum by (run) (ray_han_score_quarantined_total{{{_RUN}}}) / sum by (run) (ray_han_score_rows_total{{{_RUN}}})",
                    "{{run}}",
                ),
            ),
        ),
        Panel(
            title="Actors and tasks",
            help="Live processes of this Ray by name (Ray's own metric).",
            unit="none",
            queries=(('sum by (Name) (ray_actors{State!="DEAD"})', "{{Name}}"),),
        ),
    ),
    "Serving": (
        Panel(
            title="Requests a second, by status",
            help="HTTP status of the responses of the ingress. 499: the client disconnected. 429: the request was refused.",
            unit="reqps",
            queries=((_rate("han_requests_total", by="code"), "{{code}}"),),
        ),
        Panel(
            title="Latency of POST /v1/score",
            help="Time from the arrival of a request at the ingress to its response.",
            unit="s",
            queries=((_latency(0.5), "50%"), (_latency(0.95), "95%"), (_latency(0.99), "99%")),
        ),
        Panel(
            title="Latency inside Serve, 95%",
            help="Latency of calls to each deployment (Ray Serve's own metric).",
            unit="ms",
            queries=(
                (
                    f"histogram_quantile(0.95, {_rate('ray_serve_deployment_processing_latency_ms_bucket', by='deployment, le')})",
                    "{{deployment}}",
                ),
            ),
        ),
        Panel(
            title="Refused and retried",
            help="Refused: 429 because the queue was full. Retried: sent again because a replica died or was slow. Both should be 0.",
            unit="reqps",
            queries=((_rate("han_shed_total"), "refused"), (_rate("han_retries_total"), "retried")),
        ),
        Panel(
            title="Waiting",
            help="Accepted requests without a response yet, and texts that wait for their batch.",
            unit="none",
            queries=(("han_requests_in_flight", "requests"), ("han_queue_texts", "texts in the queue")),
        ),
        Panel(
            title="Texts in a batch",
            help="Mean number of texts that are scored together. It is 1 when replicas have idle time.",
            unit="none",
            queries=((f"{_rate('han_batch_texts_sum')} / {_rate('han_batch_texts_count')}", "texts"),),
        ),
        Panel(
            title="Replicas by model",
            help="Replicas by the fingerprint of their model. There are two lines while a new model is rolled out.",
            unit="none",
            queries=(("sum by (model) (han_model_info)", "{{model}}"),),
        ),
        Panel(
            title="Healthy replicas",
            help="Healthy replicas of each deployment (Ray Serve's own metric).",
            unit="none",
            queries=(("sum by (deployment) (ray_serve_deployment_replica_healthy)", "{{deployment}}"),),
        ),
        Panel(
            title="Texts a second",
            help="Texts scored in a second, by the attention that the request selected.",
            unit="short",
            queries=((_rate("han_texts_total", by="attention"), "{{attention}}"),),
        ),
    ),
    "Cluster": (
        Panel(
            title="Reserved CPUs",
            help="Logical CPUs that tasks and actors have reserved, and all logical CPUs. If all are reserved, new work waits.",
            unit="none",
            queries=(('sum(ray_resources{Name="CPU",State="USED"})', "reserved"), ('sum(ray_resources{Name="CPU"})', "total")),
        ),
        Panel(
            title="CPU use of each node",
            help="Mean use of the physical CPUs of a node.",
            unit="percent",
            queries=(("avg by (instance) (ray_node_cpu_utilization)", "{{instance}}"),),
            maximum=100,
        ),
        Panel(
            title="Memory of each node",
            help="Share of memory in use. Above 95% Ray kills processes.",
            unit="percentunit",
            queries=(("sum by (instance) (ray_node_mem_used) / sum by (instance) (ray_node_mem_total)", "{{instance}}"),),
            maximum=1,
        ),
        Panel(
            title="Object store",
            help="Bytes by location, and the capacity. SPILLED bytes are on disk, which is slow.",
            unit="bytes",
            queries=(
                ("sum by (Location) (ray_object_store_memory)", "{{Location}}"),
                ('sum(ray_resources{Name="object_store_memory"})', "capacity"),
            ),
        ),
        Panel(
            title="Disk of each node",
            help="Share in use of the disk that holds Ray's temporary folder.",
            unit="percentunit",
            queries=(
                (
                    "max by (instance) (ray_node_disk_usage / (ray_node_disk_usage + ray_node_disk_free))",
                    "{{instance}}",
                ),
            ),
            maximum=1,
        ),
        Panel(
            title="Nodes",
            help="Number of nodes that report metrics.",
            unit="none",
            queries=(("count(count by (instance) (ray_node_mem_total))", "nodes"),),
        ),
    ),
}
