"""A dump of reviews to Parquet with attention: `python -m jobs.score --input 'dump/*.parquet' --out scores`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from han.config import ColumnsConfig, ScoreConfig, as_json
from han.ray_score import score
from jobs import door
from jobs.progress import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Score(ScoreConfig):
    """Score every review of an input on all CPUs. The same command goes on where a killed one stopped."""

    input: str
    """reviews: a file, a glob or a folder of Parquet, CSV or JSONL (.gz, .zst), an aclImdb folder or archive, or `sample`"""
    out: str
    """the folder of scores: new, or what the same command left"""
    model: str = "imdb"
    """the folder of a run or of an artifact, or imdb, the shipped model"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    limit: int | None = None
    """score only so many records, from the first on"""


def main(job: Score) -> None:
    out = door.local(job.out, "--out")
    source = job.input if job.input == "sample" else door.path(job.input, "--input")
    model = job.model if job.model == "imdb" else door.path(job.model, "--model")
    door.show(f"score {source} -> {out}", as_json(job))
    door.connect()
    began = time.monotonic()
    config = ScoreConfig(**{name: getattr(job, name) for name in as_json(ScoreConfig())})
    scores = score(source, out, model=model, columns=job.columns, config=config, limit=job.limit, report=Rows())
    took_s, counts = time.monotonic() - began, scores.manifest["counts"]
    for name, new in scores.renamed.items():
        print(f"the input's column {name} is now {new}: {name} is this model's")
    if scores.rows_now < counts["rows_in"]:
        print(f"{counts['rows_in'] - scores.rows_now:,} of {counts['rows_in']:,} records were done before, and are not done again")
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in sorted(scores.manifest["reasons"].items()))
    quarantined = f"{counts['quarantined']:,} quarantined{f' ({reasons})' if reasons else ''}"
    print(f"{counts['rows_in']:,} records in = {counts['scored']:,} scored + {quarantined}; {counts['num_tokens']:,} tokens")
    print(f"{took_s:,.1f} s, {scores.rows_now / took_s:,.0f} a second with start-up; model {scores.manifest['job']['model']}")
    print(f"next: read {out / 'scores'} with any reader of Parquet, or draw some: python -m jobs.explain --model {model} --input {source}")


if __name__ == "__main__":
    door.run(Score, main)
