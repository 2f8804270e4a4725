"""The model card: what users must know before they use a model, generated from its settings and metrics."""

from __future__ import annotations

import json
from typing import Any


def model_card(config: dict[str, Any], metrics: dict[str, Any], *, num_words: int, fingerprint: str, weaknesses: str = "") -> str:
    """The card in Markdown: what the model is, its training data, its metrics and its limits.

    metrics: by split; test figures may have accuracy by rating and by length. weaknesses: a section in Markdown, if they were measured.
    """
    labels, test = ", ".join(config["labels"]), metrics.get("test", {})
    lines = [
        f"# Hierarchical attention network, {len(config['labels'])} labels: {labels}",
        "",
        f"Reads a review and answers with one of: {labels}; shows how much attention each sentence and word got.",
        "Architecture: Yang et al., Hierarchical Attention Networks for Document Classification, NAACL 2016.",
        "",
        f"- fingerprint: {fingerprint}",
        f"- vocabulary: {num_words:,} words, vectors of {config['embedding_size']}",
        *(f"- {name}: {value}" for name, value in config["model"].items()),
        "",
        "## Where it comes from",
        "",
        *(f"- {name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in config["provenance"].items()),
        "",
        "## How good it is",
        "",
        *_figures(metrics),
        *_slices("stars", {f"{each['rating']:g}": each for each in test.get("accuracy_by_rating", ())}),
        *_slices("tokens", {"{:,} to {:,}".format(*each["tokens"]): each for each in test.get("accuracy_by_length", ())}),
        *([weaknesses.strip(), ""] if weaknesses else []),
        "## Limits",
        "",
        "- It knows the language and the kind of review it learnt from; on any other text its probabilities are not calibrated.",
        "- Words outside its vocabulary are all one word to it; `num_unknown` counts them in every answer.",
        "- Attention says where the network looked. It is not a proof of what decided the answer.",
        "- It judges text, not people: do not use it to decide about a person.",
    ]
    return "\n".join(lines) + "\n"


def _figures(metrics: dict[str, Any]) -> list[str]:
    rows = []
    for split in ("development", "test"):
        if split in metrics:
            figures = metrics[split]
            area = "-" if figures["auc"] is None else f"{figures['auc']:.4f}"
            rows.append(
                f"| {split} | {figures['num_reviews']:,} | {_accuracy(figures)} | {figures['f1']:.4f} | "
                f"{area} | {figures['log_loss']:.4f} | {figures['expected_calibration_error']:.4f} |"
            )
    if not rows:
        return ["Not measured.", ""]
    header = [
        "| split | reviews | accuracy (95% interval) | macro F1 | AUC | log loss | calibration error |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = [] if "test" in metrics else ["The test split was not opened.", ""]
    return [*header, *rows, "", *notes]


def _slices(name: str, slices: dict[str, dict[str, Any]]) -> list[str]:
    """A table of the accuracy on parts of the test reviews."""
    rows = [f"| {value} | {figures['num_reviews']:,} | {_accuracy(figures)} |" for value, figures in slices.items()]
    return [f"| {name} of a test review | reviews | accuracy (95% interval) |", "|---|---|---|", *rows, ""] if rows else []


def _accuracy(figures: dict[str, Any]) -> str:
    interval = figures.get("accuracy_interval")  # files of older versions have none
    return f"{figures['accuracy']:.2%}" + (" ({:.2%} to {:.2%})".format(*interval) if interval else "")
