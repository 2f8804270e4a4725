"""Counts of one process, and the sum over many: what /metrics tells is right however many processes there are, and after one has died.

A process sends all it has counted since it started, not what is new, so a message that is lost or arrives twice changes nothing.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

Series = dict[str, float]  # by name and labels as Prometheus writes them: han_requests_total{code="200",route="/v1/score"}

FAMILIES = {
    "han_requests_total": ("counter", "requests answered, by route and status; 499 is a client that left"),
    "han_request_seconds": ("histogram", "from a request's arrival at the ingress to its answer, by route"),
    "han_texts_total": ("counter", "texts scored for requests, by attention"),
    "han_shed_total": ("counter", "requests refused with 429"),
    "han_retries_total": ("counter", "requests sent again because their replica had died, was gone or said nothing"),
    "han_requests_in_flight": ("gauge", "requests taken on and not answered"),
    "han_tokens_in_flight": ("gauge", "tokens (characters / 4) taken on and not answered"),
    "han_batch_texts": ("histogram", "texts scored together"),
    "han_batch_tokens": ("histogram", "tokens (characters / 4) scored together"),
    "han_batch_seconds": ("histogram", "time to score a batch"),
    "han_queue_seconds": ("histogram", "time a text waits for its batch"),
    "han_queue_texts": ("gauge", "texts that wait for a batch"),
    "han_bulk_texts_total": ("counter", "texts scored for batch jobs"),
    "han_model_info": ("gauge", "replicas that score, by fingerprint of their model"),
}
# told as 0 before they first happen: Prometheus sees no rise in a series that begins with 1
_ALWAYS = ("han_shed_total", "han_retries_total")
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)
_TOKENS = (64, 256, 1024, 4096, 16384, 65536)
_BOUNDS: dict[str, tuple[float, ...]] = {"han_batch_texts": _TEXTS, "han_batch_tokens": _TOKENS}


class Metrics:
    """What one process has counted."""

    def __init__(self) -> None:
        self.counts: defaultdict[str, float] = defaultdict(float)  # only grow
        self.gauges: defaultdict[str, float] = defaultdict(float)

    def count(self, name: str, number: float = 1, **labels: str) -> None:
        self.counts[series(name, **labels)] += number

    def add(self, name: str, number: float, **labels: str) -> None:
        """Move a gauge."""
        self.gauges[series(name, **labels)] += number

    def observe(self, name: str, value: float, **labels: str) -> None:
        bounds = _BOUNDS.get(name, _SECONDS)
        for bound in bounds:
            self.count(f"{name}_bucket", float(value <= bound), **labels, le=f"{bound:g}")
        self.count(f"{name}_bucket", 1, **labels, le="+Inf")
        self.count(f"{name}_sum", value, **labels)
        self.count(f"{name}_count", 1, **labels)

    def state(self) -> tuple[Series, Series]:
        """All counts and all gauges, to be sent."""
        return dict(self.counts), dict(self.gauges)


@dataclass(slots=True)
class Total:
    """The last state of every process that ever sent one. Counts of the dead stay; gauges go with their process."""

    states: dict[str, tuple[Series, Series]] = field(default_factory=dict)
    seen_s: dict[str, float] = field(default_factory=dict)

    def put(self, source: str, state: tuple[Series, Series]) -> None:
        self.states[source] = state
        self.seen_s[source] = time.monotonic()

    def text(self, *, silent_s: float) -> str:
        """The sum, as Prometheus reads it. silent_s: a process that has been silent for longer has no gauges any more."""
        now = time.monotonic()
        counts = [counts for counts, _ in self.states.values()]
        gauges = [gauges for source, (_, gauges) in self.states.items() if now - self.seen_s[source] <= silent_s]
        return text([*counts, *gauges])


def series(name: str, **labels: str) -> str:
    pairs = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{name}{{{pairs}}}" if pairs else name


def text(states: Iterable[Series]) -> str:
    """The sum of all states in Prometheus's text format."""
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
    base = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
    return name if name in FAMILIES else base
