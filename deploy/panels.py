"""What the dashboard shows: rows of panels, each with its queries. `dashboard` makes Grafana's JSON of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    title: str
    help: str  # what it means, on the panel's corner
    unit: str  # one of Grafana's
    queries: tuple[tuple[str, str], ...]  # PromQL, legend
    most: float | None = None  # of the axis


def _rate(name: str, *, by: str = "", of: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({name}{f'{{{of}}}' if of else ''}[$__rate_interval]))"


def _latency(quantile: float) -> str:
    of = 'route="/v1/score"'
    return f"histogram_quantile({quantile}, {_rate('han_request_seconds_bucket', by='le', of=of)})"


def _largest(name: str) -> str:
    return f"max by (run) ({name}{{{_RUN}}})"


_RUN = 'run=~"$run"'
ROWS: dict[str, tuple[Panel, ...]] = {
    "Training": (
        Panel(
            title="Reviews a second",
            help="Trained on by all workers together. Falls to 0 while an epoch is validated.",
            unit="short",
            queries=((_rate("ray_han_train_reviews_total", by="run", of=_RUN), "{{run}}"),),
        ),
        Panel(
            title="Loss",
            help="Mean cross-entropy a review, in nats: training, of the epoch so far; development, after each epoch.",
            unit="short",
            queries=(
                (_largest("ray_han_train_loss"), "{{run}} training"),
                (_largest("ray_han_train_development_log_loss"), "{{run}} development"),
            ),
        ),
        Panel(
            title="Development accuracy",
            help="After each epoch. The best epoch's network is kept.",
            unit="percentunit",
            queries=((_largest("ray_han_train_development_accuracy"), "{{run}}"),),
            most=1,
        ),
        Panel(
            title="Time waiting for data",
            help="Share of its time in which a worker waits for reviews. Beyond a few percent, storage is too slow for the workers.",
            unit="percentunit",
            queries=((_rate("ray_han_train_data_wait_seconds_total", by="run, rank", of=_RUN), "{{run}} worker {{rank}}"),),
            most=1,
        ),
        Panel(
            title="Epoch",
            help="The one under way, and how many were asked for; patience may end a run before.",
            unit="none",
            queries=((_largest("ray_han_train_epoch"), "{{run}}"), (_largest("ray_han_train_epochs"), "{{run}} asked for")),
        ),
        Panel(
            title="Time in checkpoints",
            help="Seconds that workers have waited for their checkpoints since the run began (Ray Train's own count).",
            unit="s",
            queries=(("sum by (ray_train_run_id) (ray_train_report_total_blocked_time_s)", "{{ray_train_run_id}}"),),
        ),
    ),
    "Scoring": (
        Panel(
            title="Records a second",
            help="Scored or quarantined, over all actors.",
            unit="short",
            queries=((_rate("ray_han_score_rows_total", by="run", of=_RUN), "{{run}}"),),
        ),
        Panel(
            title="Time left",
            help="Records left by the rate of now; an estimate where the input does not tell how many there are.",
            unit="s",
            queries=((f"{_largest('ray_han_score_rows_left')} / {_rate('ray_han_score_rows_total', by='run', of=_RUN)}", "{{run}}"),),
        ),
        Panel(
            title="Shards",
            help="A finished shard is never done again.",
            unit="none",
            queries=(
                (_largest("ray_han_score_shards_done"), "{{run}} done"),
                (_largest("ray_han_score_shards_left"), "{{run}} left"),
            ),
        ),
        Panel(
            title="Quarantined, by reason",
            help="Records set aside; docs/reliability.md has the reasons.",
            unit="short",
            queries=((f"sum by (run, reason) (ray_han_score_quarantined_total{{{_RUN}}})", "{{run}} {{reason}}"),),
        ),
        Panel(
            title="Quarantined, share",
            help="Of all records so far. Over --max-bad-ratio (1%) the job ends and publishes nothing.",
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
            help="Processes that live on this Ray, by what they are (Ray's own count).",
            unit="none",
            queries=(('sum by (Name) (ray_actors{State!="DEAD"})', "{{Name}}"),),
        ),
    ),
    "Serving": (
        Panel(
            title="Requests a second, by status",
            help="As the ingress answered them; 499 is a client that left, 429 one that was sent away.",
            unit="reqps",
            queries=((_rate("han_requests_total", by="code"), "{{code}}"),),
        ),
        Panel(
            title="Latency of POST /v1/score",
            help="From a request's arrival at the ingress to its answer.",
            unit="s",
            queries=((_latency(0.5), "half"), (_latency(0.95), "95%"), (_latency(0.99), "99%")),
        ),
        Panel(
            title="Latency inside Serve, 95%",
            help="Of calls to each deployment (Ray Serve's own measure).",
            unit="ms",
            queries=(
                (
                    f"histogram_quantile(0.95, {_rate('ray_serve_deployment_processing_latency_ms_bucket', by='deployment, le')})",
                    "{{deployment}}",
                ),
            ),
        ),
        Panel(
            title="Refused and sent again",
            help="429 since too much was waiting; another attempt since a replica died. Both should be 0.",
            unit="reqps",
            queries=((_rate("han_shed_total"), "refused"), (_rate("han_retries_total"), "sent again")),
        ),
        Panel(
            title="Waiting",
            help="Requests that were taken on and not answered; texts that wait for their batch.",
            unit="none",
            queries=(("han_requests_in_flight", "requests"), ("han_queue_texts", "texts in the queue")),
        ),
        Panel(
            title="Texts in a batch",
            help="Scored together, on average: 1 when there is time to spare.",
            unit="none",
            queries=((f"{_rate('han_batch_texts_sum')} / {_rate('han_batch_texts_count')}", "texts"),),
        ),
        Panel(
            title="Replicas by model",
            help="That score, by fingerprint: two lines while a new model is rolled out.",
            unit="none",
            queries=(("sum by (model) (han_model_info)", "{{model}}"),),
        ),
        Panel(
            title="Healthy replicas",
            help="By deployment (Ray Serve's own count).",
            unit="none",
            queries=(("sum by (deployment) (ray_serve_deployment_replica_healthy)", "{{deployment}}"),),
        ),
        Panel(
            title="Texts a second",
            help="Scored for requests, by the attention they asked for.",
            unit="short",
            queries=((_rate("han_texts_total", by="attention"), "{{attention}}"),),
        ),
    ),
    "Cluster": (
        Panel(
            title="CPUs asked for",
            help="Logical: what tasks and actors have reserved, and what there is. At the top, new ones wait.",
            unit="none",
            queries=(('sum(ray_resources{Name="CPU",State="USED"})', "used"), ('sum(ray_resources{Name="CPU"})', "there")),
        ),
        Panel(
            title="CPU use of each node",
            help="Physical, over all its CPUs.",
            unit="percent",
            queries=(("avg by (instance) (ray_node_cpu_utilization)", "{{instance}}"),),
            most=100,
        ),
        Panel(
            title="Memory of each node",
            help="Share in use. Ray ends processes beyond 95%.",
            unit="percentunit",
            queries=(("sum by (instance) (ray_node_mem_used) / sum by (instance) (ray_node_mem_total)", "{{instance}}"),),
            most=1,
        ),
        Panel(
            title="Object store",
            help="Bytes by place, and the room there is; SPILLED went to disk, which is slow.",
            unit="bytes",
            queries=(
                ("sum by (Location) (ray_object_store_memory)", "{{Location}}"),
                ('sum(ray_resources{Name="object_store_memory"})', "there"),
            ),
        ),
        Panel(
            title="Disk of each node",
            help="Share in use, where Ray keeps its files.",
            unit="percentunit",
            queries=(
                (
                    "max by (instance) (ray_node_disk_usage / (ray_node_disk_usage + ray_node_disk_free))",
                    "{{instance}}",
                ),
            ),
            most=1,
        ),
        Panel(
            title="Nodes",
            help="That answer.",
            unit="none",
            queries=(("count(count by (instance) (ray_node_mem_total))", "nodes"),),
        ),
    ),
}
