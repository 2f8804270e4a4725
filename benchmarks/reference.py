"""Render docs/reference.md from the code: flags, options, columns, figures, metrics and exit codes. `make reference` writes it."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import tyro

from han import types
from han.data import files
from han.model import metrics
from han.score import scorer
from han.train import prepare, trainer
from han.train.learn import Seen
from jobs import cli, flags
from serve.errors import MEANINGS
from serve.options import Options

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference.md"
HEAD = """# Reference

`make reference` renders this page from the code, and a test compares them. For explanations see [reliability.md](reliability.md) (batch
scoring), [serving.md](serving.md) (the service) and [runbook.md](runbook.md) (operations).
"""
COLUMNS = {
    "label": "the predicted label",
    "probability": "probability of that label, calibrated on the development split",
    "probabilities": "one for each label; they sum to 1",
    "sentences": "spans are code points of the raw text, end exclusive; attention sums to 1 over a review, and over a sentence's words",
    "num_tokens": "tokens read",
    "num_unknown": "tokens outside the vocabulary",
    "num_characters_cut": "characters of the text that were cut by `max_sentences` and `max_tokens`",
    "effects": "effects of the sentences on the predicted label, in nats: `evidence` (the log-odds of the label) is `nothing` (the "
    "evidence of an empty text) plus `sum` (of the effects of the sentences) plus `interaction`; null without `--effects`",
    "unfamiliar": "whether the share of unknown tokens is above 30% (or the artifact's `unfamiliar_above`): do not trust the answer",
    "uncertain": "whether `probability` is below the artifact's `uncertain_below`; false for an artifact without it",
    "model": "fingerprint of the artifact",
}
ENCODED = {
    "review_id": "id in the input, or `<file name>:<row>`",
    "label": "index in the labels of `encoding.json`; null if the review has no label",
    "token_ids": "line numbers in `vocab.txt`, from 0; 0 is `<unk>`",
    "sentence_lengths": "tokens of each sentence",
}
FIGURES = {
    "num_reviews": "labelled reviews that were scored",
    "accuracy": "share of reviews whose label was predicted",
    "accuracy_interval": "its 95% interval (Wilson)",
    "log_loss": "mean cross-entropy of a review, in nats",
    "brier": "mean over reviews of the squared error of the probabilities, summed over the labels",
    "f1": "mean of the F1 of each label",
    "f1_by_label": "F1 of each label",
    "precision_by_label": "precision of each label",
    "recall_by_label": "recall of each label",
    "majority": "most frequent label, and the accuracy of always answering it",
    "auc": "area under the ROC curve; with more than two labels, the mean of each label against the rest",
    "expected_calibration_error": "difference between confidence and accuracy, over bins of equally many reviews",
    "confusion": "number of reviews by label and by predicted label",
    "accuracy_by_length": "accuracy in each tenth of the reviews by length in tokens",
    "accuracy_by_rating": "accuracy by rating, if the data has ratings",
    "calibration": "the bins of the calibration error: confidence, accuracy, its interval, reviews",
    "accuracy_at_coverage": "accuracy of the most confident 5, 10, ... 100% of the reviews, and the lowest probability among them",
    "num_unfamiliar": "reviews that are flagged as unfamiliar",
    "num_uncertain": "answers that are flagged as uncertain",
    "model": "fingerprint of the artifact",
    "temperature": "temperature of the model, which divides the logits",
    "uncertain_below": "probability below which an answer is uncertain, for `--train.coverage` of the development reviews",
    "data": "path of the labelled reviews",
    "test_split": "whether the figures are of a test split",
    "rows_in": "records read",
    "unlabelled": "records without a label",
    "quarantined": "records that cannot be scored",
    "epoch": "number of the epoch, from 1",
    "train_loss": "mean over the epoch, with dropout",
    "reviews_per_s": "training reviews a second, over all workers",
    "train_s": "seconds of training without validation",
}
EVALUATED = (
    *("calibration", "accuracy_at_coverage", "num_unfamiliar", "num_uncertain"),
    *("model", "temperature", "data", "test_split", "rows_in", "unlabelled", "quarantined"),
)


def render() -> str:
    """The whole page."""
    return HEAD + "".join(f"\n{part}" for part in (_jobs(), _exit_codes(), _files(), _serving(), _metrics(), _make_targets()))


def modules() -> dict[str, ModuleType]:
    """The runnable modules of jobs/ by name."""
    names = (path.stem for path in sorted((ROOT / "jobs").glob("*.py")) if "def run() -> None:" in path.read_text(encoding="utf-8"))
    return {name: importlib.import_module(f"jobs.{name}") for name in names}


def kind(module: ModuleType) -> type[Any]:
    """The dataclass of a job's command line. It has the job's name."""
    name = module.__name__.rpartition(".")[2]
    settings: type[Any] = getattr(module, "".join(part.capitalize() for part in name.split("_")))
    return settings


def _jobs() -> str:
    parts = [
        "## Jobs\n\n`han NAME` runs a job; `python -m jobs.NAME` runs the same code. A flag with a dot belongs to a group of settings.\n"
    ]
    for name, module in modules().items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # tyro offers no other way to list the flags
            parser = tyro.extras.get_parser(kind(module), config=cli.STYLE, registry=flags.rules())
        description = "\n\n".join(" ".join(paragraph.split()) for paragraph in (inspect.getdoc(kind(module)) or "").split("\n\n"))
        parts.append(f"### han {name}\n\n{description}\n\n{_table(('flag', 'value', 'default', ''), _flags(parser))}")
    return "\n".join(parts)


def _flags(parser: argparse.ArgumentParser) -> Iterable[Sequence[str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, chosen in action.choices.items():
                yield from ((f"`{name}` {flag}", *others) for flag, *others in _flags(chosen))
        elif action.dest != "help":
            needed = action.required or (action.help or "").endswith("(required)")
            meaning, _, default = (action.help or "").removesuffix("(required)").partition(" (default: ")
            default = default.removesuffix(")").replace(str(Path.home()), "~")
            name = ", ".join(action.option_strings) or action.dest.upper()
            value = "on or off" if action.metavar is None else str(action.metavar).replace("{", "").replace("}", "").replace(",", ", ")
            yield f"`{name}`", value, "**required**" if needed else f"`{default}`" if default else "", meaning


def _exit_codes() -> str:
    codes = [(str(code), "every job", meaning) for code, meaning in sorted(cli.EXIT_CODES.items())]
    for name, module in modules().items():
        own = {value for constant, value in vars(module).items() if constant.startswith("EXIT_") and isinstance(value, int)}
        codes += [(str(code), f"han {name}", "see its description") for code in sorted(own)]
    return f"## Exit codes\n\n{_table(('code', 'of', 'meaning'), codes)}"


def _files() -> str:
    answers = _columns(scorer.schema(["<label>"]), COLUMNS)
    encoded = _columns(prepare.SPLIT_SCHEMA, ENCODED)
    logits, labels = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.array([0, 1, 1])
    measured = metrics.measure(
        metrics.softmax(logits), labels, label_names=("a", "b"), num_tokens=np.array([1, 2, 3]), ratings=np.array([1.0, 2.0, 2.0])
    )
    history = trainer._line(1, Seen(num_reviews=3, num_tokens=9, loss=1.0, learning_rate=0.001), 1.0, logits, labels, ("a", "b"), 0.9)
    reasons = ", ".join(f"`{reason}`" for reason in (*get_args(types.Reason), *get_args(files.BadReason)))
    return (
        "## Files\n\n### Columns that scoring adds (`scores/*.parquet`), after those of the input\n\n"
        f"{answers}\nReasons in `_quarantine/*.jsonl`: {reasons}.\n"
        f"\n### Columns of an encoded folder (`train/`, `development/`, `unlabelled/`)\n\n{encoded}"
        f"\n### Figures of `han evaluate` (`metrics.json`)\n\n{_figures([*measured, *EVALUATED])}"
        f"\n### Figures of an epoch on the development split (`history.jsonl` of a run)\n\n{_figures(history)}"
    )


def _columns(schema: pa.Schema, meanings: dict[str, str]) -> str:
    return _table(("column", "type", ""), [(f"`{field.name}`", _type(field.type), meanings[field.name]) for field in schema])


def _type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of {_type(kind.value_type)}"
    if pa.types.is_struct(kind):
        return f"({', '.join(f'{field.name}: {_type(field.type)}' for field in kind)})"
    return f"dictionary of {_type(kind.value_type)}" if pa.types.is_dictionary(kind) else str(kind)


def _figures(names: Iterable[str]) -> str:
    return _table(("figure", ""), [(f"`{name}`", FIGURES[name]) for name in names])


def _serving() -> str:
    options = [
        (f"`{name}`", getattr(field.annotation, "__name__", str(field.annotation)), f"`{field.default}`", field.description or "")
        for name, field in Options.model_fields.items()
    ]
    return (
        "## Options of the service\n\nThey are set by `serve run serve.app:build name=value` or by `args` in `serve/config.yaml`. "
        "`han serve` and `make serve` have flags instead, for example `make serve ARGS='--num-replicas 2'`.\n\n"
        f"{_table(('option', 'type', 'default', ''), options)}"
        f"\n## Failures over HTTP\n\n{_table(('status', 'code and meaning'), [(str(code), meaning) for code, meaning in MEANINGS.items()])}"
    )


def _metrics() -> str:
    """The metrics of every module that defines FAMILIES (see `_families`)."""
    rows = []
    for path in sorted(path for folder in ("han", "jobs", "serve") for path in (ROOT / folder).rglob("*.py")):
        if any(_assigns(node, "FAMILIES") for node in ast.parse(path.read_text(encoding="utf-8")).body):
            names = path.relative_to(ROOT).with_suffix("").parts
            module = importlib.import_module(".".join(names))
            rows += [(f"`{name}`", kind, meaning, names[0]) for name, kind, meaning in _families(module.FAMILIES)]
    return f"## Metrics for Prometheus\n\n{_table(('metric', 'kind', '', 'of'), rows)}"


def _families(families: Any) -> list[tuple[str, str, str]]:
    """Name, kind and meaning of each metric, from a dict of names or a tuple of families with labels."""
    if isinstance(families, dict):
        return [(name, kind, meaning) for name, (kind, meaning) in families.items()]
    return [(family.name, family.kind, f"{family.help}; by {', '.join(family.labels)}") for family in families]


def _assigns(node: ast.stmt, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _make_targets() -> str:
    targets = re.findall(r"^([a-z-]+):.*## (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return f"## Make targets\n\n{_table(('target', ''), [(f'`make {target}`', meaning) for target, meaning in targets])}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    """Markdown that shows the text. Outside of code, < is escaped, because it would begin a tag."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if index % 2 else part.replace("<", "&lt;") for index, part in enumerate(parts))


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
