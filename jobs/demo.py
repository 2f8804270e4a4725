"""Everything once, on this machine: `python -m jobs.demo`."""

from __future__ import annotations

from dataclasses import dataclass

from han.config import ColumnsConfig, ModelConfig, OutputConfig, PrepareConfig, ScoreConfig, TrainConfig, VectorsConfig, VocabConfig
from han.data import samples
from han.data.samples import planted
from han.model import artifact
from han.score import batch_job
from han.score.scorer import Scorer
from han.train.prepare import prepare
from han.train.trainer import fit
from jobs import cli, explain
from jobs.progress import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Train two workers on generated reviews, look whether they found the planted evidence, score the bundled reviews, draw a page."""

    out: str = "out/demo"
    """the demo's folder: new, or what the demo left"""
    num_reviews: int = 1_600
    """generated reviews with evidence to train on; a quarter as many without any are added"""
    num_workers: int = 2
    """training processes"""
    model: str = "imdb"
    """what scores the bundled reviews: imdb, the shipped model, or the folder of a run or an artifact"""


def main(job: Demo) -> None:
    out = cli.local(job.out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    cli.connect(job.num_workers + 1)
    print("\n1. Generate reviews in which one sentence decides, cut them into words, number the words")
    reviews = out / "planted.jsonl"
    if not reviews.exists():
        planted.write_jsonl(reviews, job.num_reviews, seed=1, num_neutral=job.num_reviews // 4)
    small = PrepareConfig(vocab=VocabConfig(min_count=1), vectors=VectorsConfig(size=32), punkt_sample=0)
    prepare(str(reviews), out / "data", small, dev_ids=None, report=cli.progress())
    print(f"\n2. Train a small HAN on {job.num_workers} workers")
    learnt = fit(
        out / "data",
        out / "run",
        ModelConfig(word_hidden=16, word_attention=32, sentence_hidden=16, sentence_attention=32, embedding_dropout=0.2, dropout=0.2),
        TrainConfig(num_workers=job.num_workers, epochs=6, learning_rate=0.01, batch_tokens=8_192),
    )
    unseen = list(planted.generate(200, seed=2))
    answers = Scorer(artifact.load(learnt.artifact)).score([review.text for review in unseen])
    print(
        f"this model, {out / 'run'}: development accuracy {learnt.best['accuracy']:.1%}; it puts the sentence that decides first in "
        f"{planted.share_found(unseen, answers):.1%} of {len(unseen)} reviews it has never seen"
    )
    print(f"\n3. Score the bundled reviews to Parquet with the model {job.model}, word attention included")
    config, output = ScoreConfig(num_actors=2), OutputConfig()
    plan = batch_job.plan("sample", str(out / "scores"), model=job.model, columns=ColumnsConfig(), config=config, output=output, limit=None)
    scores = batch_job.score(plan, Rows())
    counts = scores.manifest["counts"]
    told = f"{counts['rows_in']:,} reviews in = {counts['scored']:,} scored + {counts['quarantined']:,} quarantined"
    print(f"{told}: {out / 'scores' / 'scores'}")
    print("\n4. Draw where that model looked")
    explain.main(explain.Explain(input="sample", out=str(out / "attention.html"), model=job.model, num_reviews=12))
    print(
        f"\nThe small model of step 2 knows generated reviews only; the page and the scores are of {job.model}."
        f'\nSee {out / "attention.html"} in a browser. Your own review:  .venv/bin/python -m han "I wanted to like it."'
        f"\nYour own reviews:  .venv/bin/python -m jobs.score --input reviews.csv --out scores    (bundled examples: {samples.REVIEWS})"
    )


if __name__ == "__main__":
    cli.run(Demo, main)
