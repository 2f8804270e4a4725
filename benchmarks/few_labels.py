"""Accuracy from few labels, with and without semi-supervised training: `python -m benchmarks.few_labels --data D --test T --out F`.

D is an encoded folder with unlabelled reviews. A copy of it keeps the labels of some training reviews and makes the others unlabelled. So
both trainings have the same text, vocabulary, word vectors and development reviews. The word GRU is pretrained once: no label enters there,
so all seeds and numbers of labels share it. The result is F/figures.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from han.config import ModelConfig, TrainConfig, read_json
from han.storage import write_json
from han.train.encoded import ROWS_PER_GROUP
from han.train.semi_supervised import enough_epochs

PRETRAINED = f"words-{ModelConfig().word_hidden}.safetensors"  # as `train.semi_supervised` names it in its folder of stages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="encoded folder, from jobs.prepare")
    parser.add_argument("--test", required=True, help="labelled test reviews, for jobs.evaluate")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; the same command resumes")
    parser.add_argument("--labels", type=int, nargs="+", default=[500], help="numbers of labelled training reviews")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the choice of reviews and of the training")
    given = parser.parse_args()
    figures = []
    for number in given.labels:
        for seed in given.seeds:
            folder = given.out / f"{number}-{seed}"
            copy_with_labels(given.data, folder / "data", number, seed)
            for recipe in ("supervised", "semi-supervised"):
                run(folder, recipe, seed, given.test, pretrained=given.out / PRETRAINED)
                development = read_json(folder / recipe / "artifact" / "metrics.json")["development"]["accuracy"]
                test = read_json(folder / f"{recipe}-test" / "metrics.json")["accuracy"]
                figures.append({"labels": number, "seed": seed, "recipe": recipe, "development": development, "test": test})
                print(json.dumps(figures[-1]), flush=True)
    write_json(given.out / "figures.json", {"figures": figures})


def copy_with_labels(source: Path, out: Path, number: int, seed: int) -> None:
    """Copy an encoded folder with the labels of only `number` training reviews."""
    if (out / "encoding.json").exists():
        return
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("train", "encoding.json"), dirs_exist_ok=True)
    encoding = read_json(source / "encoding.json")
    train = pa.concat_tables([pq.read_table(source / "train" / name) for name in encoding["files"]["train"]]).combine_chunks()
    order = np.random.default_rng(seed).permutation(len(train))
    rest = train.take(np.sort(order[number:]))
    rest = rest.set_column(rest.column_names.index("label"), "label", pa.nulls(len(rest), pa.int32()))
    (out / "train").mkdir(exist_ok=True)
    for table, split, name in ((train.take(order[:number]), "train", "labelled.parquet"), (rest, "unlabelled", "without.parquet")):
        pq.write_table(table, out / split / name, row_group_size=ROWS_PER_GROUP, compression="zstd")
    encoding["files"]["train"] = {"labelled.parquet": number}
    encoding["files"]["unlabelled"] |= {"without.parquet": len(rest)}
    encoding["counts"] |= {"train": number, "unlabelled": encoding["counts"]["unlabelled"] + len(rest)}
    encoding["data_fingerprint"] = f"{encoding['data_fingerprint']}-{number}-{seed}"
    write_json(out / "encoding.json", encoding)


def run(folder: Path, recipe: str, seed: int, test: str, *, pretrained: Path) -> None:
    """Train and evaluate; what exists is kept. pretrained: the word GRU, read if it exists, else written."""
    counts = read_json(folder / "data" / "encoding.json")["counts"]
    tokens = counts["words_counted"] / (counts["train"] + counts["unlabelled"]) * counts["train"]
    config = TrainConfig()
    epochs = enough_epochs(tokens, config.batch_tokens, config.epochs)  # as many steps as a teacher has
    stages = folder / "stages"
    if recipe == "supervised":
        flags = ["--train.epochs", str(epochs), "--train.patience", str(epochs)]
    else:
        flags = ["--train.semi-supervised", "--semi-supervised.stages", str(stages)]
        if pretrained.exists() and not (stages / PRETRAINED).exists():
            stages.mkdir(exist_ok=True)
            shutil.copy(pretrained, stages / PRETRAINED)
    flags += ["--train.seed", str(seed)]
    command = [sys.executable, "-m", "jobs.train", "--data", str(folder / "data"), "--out", str(folder / recipe), *flags]
    subprocess.run(command, check=True)
    if recipe == "semi-supervised" and not pretrained.exists():
        shutil.copy(stages / PRETRAINED, pretrained)
    if not (folder / f"{recipe}-test" / "metrics.json").exists():
        command = [sys.executable, "-m", "jobs.evaluate", "--model", str(folder / recipe), "--data", test]
        subprocess.run([*command, "--out", str(folder / f"{recipe}-test")], check=True)


if __name__ == "__main__":
    main()
