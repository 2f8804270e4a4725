"""Write the card of the shipped model: `python -m benchmarks.card [--evaluation F/metrics.json]`.

The card has the test figures that are stored beside the model, and the section of docs/model.md about its weaknesses. Run this again after
a change of either. --evaluation stores other test figures first: of `han evaluate --model imdb --data TEST --out F`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from han.config import read_json
from han.evaluate.registry import test_figures
from han.model import artifact
from han.storage import write_json

DOCUMENT = Path(__file__).parents[1] / "docs" / "model.md"
SECTION = "## Where it is wrong"
# `SemiSupervisedConfig` of the training, which did not store it. Newer trainings do.
RECIPE = {"teachers": 4, "teacher_epochs": 3, "student_epochs": 3, "pretraining_passes": 3}


def render() -> str:
    """The card of the shipped model."""
    section = DOCUMENT.read_text(encoding="utf-8").partition(SECTION)[2].partition("\n## ")[0]
    return artifact.render_card(artifact.find("imdb"), weaknesses=SECTION + section, recipe=RECIPE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", type=Path, help="metrics.json of an evaluation of the shipped model on test reviews")
    evaluation = parser.parse_args().evaluation
    shipped = artifact.find("imdb")
    if evaluation is not None:
        figures = read_json(evaluation) | {"model": artifact.read_fingerprint(shipped), "data": "imdb, test split"}
        write_json(shipped.parent / f"{shipped.name}{artifact.TEST}", test_figures(figures))
    (shipped / "README.md").write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
