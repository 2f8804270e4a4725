"""Accuracy from few labels, with and without semi-supervised training: `python -m benchmarks.few_labels --data D --test T --out F`.

D is an encoded folder with unlabelled reviews. A copy of it keeps the labels of some training reviews and makes the others unlabelled. So
both trainings have the same text, vocabulary and word vectors. A user with few labels has few development reviews too: a copy keeps a tenth
as many as labels, at least 50, and drops the others. The word GRU is pretrained once: no label enters there, so all seeds and numbers of
labels share it. Flags that are not known here go to both trainings. The result is F/figures.json and a table;
`--figures F/figures.json G/figures.json --picture docs/few-labels.svg` only draws the figures of finished measurements.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from han.config import TrainConfig, read_json
from han.explain import charts
from han.storage import write_json
from han.train.encoded import ROWS_PER_GROUP
from han.train.semi_supervised import enough_epochs

Figures: TypeAlias = Sequence[dict[str, Any]]  # one for each training: labels, seed, recipe, development and test accuracy

RECIPES = {"supervised": "the labelled reviews alone", "semi-supervised": "with the reviews without labels"}
LEAST_DEVELOPMENT = 50  # fewer could not tell a good epoch from a bad one
PRETRAINED = "words-*.safetensors"  # as `train.semi_supervised` names it in its folder of stages
STYLE = (
    "<style>text{font:13px sans-serif;fill:#444}.middle{text-anchor:middle}.end{text-anchor:end}.name{font-weight:bold}"
    ".grid{stroke:#ddd;fill:none}polyline{fill:none;stroke-width:2}"
    "polyline.supervised{stroke:#a0a6ad}polyline.semi-supervised{stroke:#2f6f8f}"
    "circle.supervised{fill:#a0a6ad}circle.semi-supervised{fill:#2f6f8f}"
    "@media (prefers-color-scheme:dark){text{fill:#ccc}.grid{stroke:#444}}</style>"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="encoded folder, from jobs.prepare")
    parser.add_argument("--test", help="labelled test reviews, for jobs.evaluate")
    parser.add_argument("--out", type=Path, help="folder of the runs; the same command resumes")
    parser.add_argument("--labels", nargs="+", default=["500"], help="numbers of labelled training reviews, or all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the choice of reviews and of the training")
    parser.add_argument("--figures", type=Path, nargs="+", help="figures.json of finished measurements: train nothing")
    parser.add_argument("--picture", type=Path, help="also draw the accuracies as SVG")
    given, flags = parser.parse_known_args()
    if given.figures is None and None in (given.data, given.test, given.out):
        parser.error("give --data, --test and --out, or --figures")
    figures: Figures
    if given.figures is not None:
        figures = [each for path in given.figures for each in read_json(path)["figures"]]
    else:
        figures = measure(given.data, given.test, given.out, given.labels, given.seeds, flags)
    print(table(figures))
    if given.picture is not None:
        given.picture.write_text(picture(figures), encoding="utf-8")


def measure(data: Path, test: str, out: Path, labels: Sequence[str], seeds: Sequence[int], flags: Sequence[str]) -> Figures:
    """Train and evaluate everything that is not finished; out/figures.json is written after every training."""
    most = read_json(data / "encoding.json")["counts"]["train"]
    figures = []
    for number in (most if each == "all" else min(int(each), most) for each in labels):
        for seed in seeds:
            folder = out / f"{number}-{seed}"
            copy_with_labels(data, folder / "data", number, seed)
            for recipe in RECIPES:
                run(folder, recipe, seed, test, shared=out, flags=flags)
                development = read_json(folder / recipe / "artifact" / "metrics.json")["development"]["accuracy"]
                accuracy = read_json(folder / f"{recipe}-test" / "metrics.json")["accuracy"]
                figures.append({"labels": number, "seed": seed, "recipe": recipe, "development": development, "test": accuracy})
                print(json.dumps(figures[-1]), flush=True)
                write_json(out / "figures.json", {"figures": figures})
    return figures


def copy_with_labels(source: Path, out: Path, number: int, seed: int) -> None:
    """Copy an encoded folder with the labels of only `number` training reviews, and the development reviews that belong to so few.

    With all labels, all development reviews are kept.
    """
    encoding = read_json(source / "encoding.json")
    train, development = (_read(source, split, encoding) for split in ("train", "development"))
    kept = len(development) if number == len(train) else min(len(development), max(LEAST_DEVELOPMENT, number // 10))
    if (out / "encoding.json").exists():
        earlier = read_json(out / "encoding.json")["counts"]
        if (earlier["train"], earlier["development"]) != (number, kept):
            sys.exit(f"{out} holds {earlier['train']:,} labelled and {earlier['development']:,} development reviews: give another --out")
        return
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("train", "development", "encoding.json"), dirs_exist_ok=True)
    random = np.random.default_rng(seed)
    order, chosen = random.permutation(len(train)), random.permutation(len(development))[:kept]
    rest = train.take(np.sort(order[number:]))
    rest = rest.set_column(rest.column_names.index("label"), "label", pa.nulls(len(rest), pa.int32()))
    encoding["files"] |= {"train": {}, "development": {}}
    parts = (("train", "labelled", train.take(order[:number])), ("development", "chosen", development.take(np.sort(chosen))))
    for split, name, part in (*parts, ("unlabelled", "without", rest)):
        if len(part):  # with all labels, no review is without
            (out / split).mkdir(exist_ok=True)
            pq.write_table(part, out / split / f"{name}.parquet", row_group_size=ROWS_PER_GROUP, compression="zstd")
            encoding["files"].setdefault(split, {})[f"{name}.parquet"] = len(part)
    unlabelled = encoding["counts"].get("unlabelled", 0) + len(rest)
    encoding["counts"] |= {"train": number, "development": kept, "unlabelled": unlabelled}
    encoding["data_fingerprint"] = f"{encoding['data_fingerprint']}-{number}-{kept}-{seed}"
    write_json(out / "encoding.json", encoding)


def _read(folder: Path, split: str, encoding: dict[str, Any]) -> pa.Table:
    return pa.concat_tables([pq.read_table(folder / split / name) for name in encoding["files"][split]]).combine_chunks()


def run(folder: Path, recipe: str, seed: int, test: str, *, shared: Path, flags: Sequence[str]) -> None:
    """Train and evaluate; what exists is kept. shared: folder of the pretrained word GRU, which is read if it exists, else written."""
    counts = read_json(folder / "data" / "encoding.json")["counts"]
    tokens = counts["words_counted"] / (counts["train"] + counts["unlabelled"]) * counts["train"]
    config = TrainConfig()
    epochs = enough_epochs(tokens, config.batch_tokens, config.epochs)  # as many steps as a teacher has
    stages = folder / "stages"
    own = ["--train.epochs", str(epochs), "--train.patience", str(epochs)]
    if recipe == "semi-supervised":
        own = ["--train.semi-supervised", "--semi-supervised.stages", str(stages)]
        _copy(shared, stages)
    command = [sys.executable, "-m", "jobs.train", "--data", str(folder / "data"), "--out", str(folder / recipe), *own]
    subprocess.run([*command, "--train.seed", str(seed), *flags], check=True)
    if recipe == "semi-supervised":
        _copy(stages, shared)
    if not (folder / f"{recipe}-test" / "metrics.json").exists():
        command = [sys.executable, "-m", "jobs.evaluate", "--model", str(folder / recipe), "--data", test]
        subprocess.run([*command, "--out", str(folder / f"{recipe}-test")], check=True)


def _copy(source: Path, out: Path) -> None:
    """Copy the pretrained word GRU, if there is one and `out` has none."""
    for path in source.glob(PRETRAINED):
        if not (out / path.name).exists():
            out.mkdir(exist_ok=True)
            shutil.copy(path, out / path.name)


def table(figures: Figures) -> str:
    """The test accuracies in Markdown: the mean and every seed, and the difference of the means in points."""
    lines = [f"| labels | {' | '.join(RECIPES.values())} | difference |", "|---|---|---|---|"]
    for number in _numbers(figures):
        by_recipe = {recipe: _accuracies(figures, number, recipe) for recipe in RECIPES}
        cells = [f"{mean(each):.2%} ({', '.join(f'{one:.2%}' for one in each)})" if each else "" for each in by_recipe.values()]
        alone, both = by_recipe.values()
        points = f"{100 * (mean(both) - mean(alone)):+.2f} points" if alone and both else ""
        lines.append(f"| {number:,} | {' | '.join(cells)} | {points} |")
    return "\n".join(lines)


def picture(figures: Figures) -> str:
    """Test accuracy by number of labels: a line through the means of each recipe, and a dot for each seed."""
    numbers = _numbers(figures)
    y = charts.scale([each["test"] for each in figures], percent=True)
    frame = charts.Frame(x=charts.Scale(choices=tuple(f"{number:,}" for number in numbers)), y=y, width=700, height=360, top=52)
    drawn = [STYLE, frame.axes("labelled reviews (evenly spaced)", "test accuracy")]
    for turn, (recipe, name) in enumerate(RECIPES.items()):
        measured = {number: _accuracies(figures, number, recipe) for number in numbers}
        drawn.append(charts.line([frame.at(f"{number:,}", mean(each)) for number, each in measured.items() if each], recipe))
        drawn += [charts.dot(frame.at(f"{number:,}", one), recipe, 3) for number, each in measured.items() for one in each]
        drawn += [charts.dot((62 + 300 * turn, 16), recipe), charts.text(72 + 300 * turn, 20, name, "")]
    return charts.svg(700, 360, drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _numbers(figures: Figures) -> list[int]:
    return sorted({each["labels"] for each in figures})


def _accuracies(figures: Figures, number: int, recipe: str) -> list[float]:
    return [each["test"] for each in figures if (each["labels"], each["recipe"]) == (number, recipe)]


if __name__ == "__main__":
    main()
