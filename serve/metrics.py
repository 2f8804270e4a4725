"""Counts of one process, and their sum over all processes of the service.

`ray.util.metrics` does not serve `/metrics`: a count shows after 2 to 10 s, a replica that is killed loses the counts of those seconds, and
the counts of processes stay apart, at an agent on each node (measured in docs/log.md). Here a count shows after 0.2 s. A process sends its
totals since its start, never differences, so a message that is lost or repeated changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

Series = dict[str, float]  # by name and labels as Prometheus writes them: han_requests_total{code="200",route="/v1/score"}

FAMILIES = {
    "han_requests_total": ("counter", "requests answered, by route and status; 499: the client left"),
    "han_request_seconds": ("histogram", "time from a request's arrival at the ingress to its answer, by route"),
    "han_texts_total": ("counter", "texts scored for requests, by attention"),
    "han_shed_total": ("counter", "requests refused with 429"),
    "han_retries_total": ("counter", "calls sent again: retries after the death of a replica, and hedged requests"),
    "han_requests_in_flight": ("gauge", "requests accepted and not answered"),
    "han_tokens_in_flight": ("gauge", "tokens (characters / 4) accepted and not answered"),
    "han_batch_texts": ("histogram", "texts in a batch"),
    "han_batch_tokens": ("histogram", "tokens (characters / 4) in a batch"),
    "han_batch_seconds": ("histogram", "time to score a batch"),
    "han_queue_seconds": ("histogram", "time a text waits for its batch"),
    "han_queue_texts": ("gauge", "texts that wait for a batch"),
    "han_bulk_texts_total": ("counter", "texts scored for batch jobs"),
    "han_model_info": ("gauge", "replicas that score, by fingerprint of their model"),
}
_ALWAYS = ("han_shed_total", "han_retries_total")  # sent as 0 from the start: Prometheus sees no rise in a series that begins with 1
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_BOUNDS: dict[str, tuple[float, ...]] = {
    "han_batch_texts": (1, 2, 4, 8, 16, 32, 64, 128),
    "han_batch_tokens": (64, 256, 1024, 4096, 16384, 65536),
}


class Metrics:
    def __init__(self) -> None:
        self.counts: defaultdict[str, float] = defaultdict(float)  # only grow
        self.gauges: defaultdict[str, float] = defaultdict(float)

    def count(self, name: str, number: float = 1, **labels: str) -> None:
        self.counts[series(name, **labels)] += number

    def add(self, name: str, number: float, **labels: str) -> None:
        """Move a gauge."""
        self.gauges[series(name, **labels)] += number

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        for bound in _BOUNDS.get(name, _SECONDS):
            self.count(f"{name}_bucket", float(value <= bound), **labels, le=f"{bound:g}")
        self.count(f"{name}_bucket", 1, **labels, le="+Inf")
        self.count(f"{name}_sum", value, **labels)
        self.count(f"{name}_count", 1, **labels)

    def state(self) -> tuple[Series, Series]:
        return dict(self.counts), dict(self.gauges)


def series(name: str, **labels: str) -> str:
    pairs = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{pairs}}}" if pairs else name


def text(states: Iterable[Series]) -> str:
    """The sum of the states in Prometheus's text format."""
    sums: defaultdict[str, float] = defaultdict(float, dict.fromkeys(_ALWAYS, 0.0))
    for state in states:
        for key, value in state.items():
            sums[key] += value
    lines: list[str] = []
    for name, (kind, meaning) in FAMILIES.items():
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
        lines += [f"{key} {value:.15g}" for key, value in sums.items() if _family(key) == name]
    return "\n".join(lines) + "\n"


def _family(key: str) -> str:
    name = key.partition("{")[0]
    return name if name in FAMILIES else name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
