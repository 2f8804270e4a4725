"""The whole system once, on this machine: `han demo`."""

from __future__ import annotations

from dataclasses import dataclass

from han.config import ColumnsConfig, ModelConfig, OutputConfig, PrepareConfig, ScoreConfig, TrainConfig, VectorsConfig, VocabConfig
from jobs import cli


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Train on generated reviews, check that the model finds the planted evidence, score the bundled reviews, and draw a page."""

    out: str = "out/demo"
    """the folder of the demo: new, or from an earlier demo"""
    num_reviews: int = 1_600
    """generated reviews with evidence for training; a quarter as many without evidence are added"""
    num_workers: int = 2
    """training processes"""
    model: str = "imdb"
    """the model that scores the bundled reviews: imdb, the shipped model, or the folder of a run or an artifact"""


def main(job: Demo) -> None:
    out, model = cli.local(job.out, "--out"), cli.model(job.model)
    cli.check_out(out, "planted.jsonl")
    out.mkdir(parents=True, exist_ok=True)
    cli.connect(job.num_workers + 1)
    from han.data import samples
    from han.data.samples import planted
    from han.model import artifact
    from han.score import batch_job
    from han.score.scorer import Scorer
    from han.train.prepare import prepare
    from han.train.trainer import fit
    from jobs import explain
    from jobs.progress import Rows, Steps

    print("\n1. Generate reviews in which one sentence decides, and encode them")
    reviews = out / "planted.jsonl"
    if not reviews.exists():
        planted.write_jsonl(reviews, job.num_reviews, seed=1, num_neutral=job.num_reviews // 4)
    small = PrepareConfig(vocab=VocabConfig(min_count=1), vectors=VectorsConfig(size=32), punkt_sample=0)
    prepare(str(reviews), out / "data", small, dev_ids=None, report=Steps())
    print(f"\n2. Train a small HAN on {cli.plural(job.num_workers, 'worker')}")
    trained = fit(
        out / "data",
        out / "run",
        ModelConfig(word_hidden=16, word_attention=32, sentence_hidden=16, sentence_attention=32, embedding_dropout=0.2, dropout=0.2),
        TrainConfig(num_workers=job.num_workers, epochs=6, learning_rate=0.01, batch_tokens=8_192),
    )
    unseen = list(planted.generate(200, seed=2))
    answers = Scorer(artifact.load(trained.artifact)).score([review.text for review in unseen], effects="words")
    found = planted.shares_found(unseen, answers)
    print(
        f"this model, {out / 'run'}: development accuracy {trained.best['accuracy']:.1%}. In {len(unseen)} unseen reviews, the deciding "
        f"sentence has the most attention in {found.attention:.1%} and the largest effect in {found.effect:.1%}; the word with the largest "
        f"effect decides in {found.word:.1%}"
    )
    print(f"\n3. Score the bundled reviews to Parquet with the model {job.model}, with word attention")
    config, output = ScoreConfig(num_actors=2), OutputConfig()
    plan = batch_job.plan("sample", str(out / "scores"), model=model, columns=ColumnsConfig(), config=config, output=output, limit=None)
    scores = batch_job.score(plan, Rows())
    counts = scores.manifest["counts"]
    print(
        f"{counts['rows_in']:,} reviews in = {counts['scored']:,} scored + {counts['quarantined']:,} quarantined; "
        f"they are in {out / 'scores' / 'scores'}"
    )
    print("\n4. Draw the attention of that model")
    explain.main(explain.Explain(input="sample", out=str(out / "attention.html"), model=model, num_reviews=12))
    print(
        f"\nThe small model of step 2 knows only generated reviews; the page and the scores are of {model}."
        f"\nOpen {out / 'attention.html'} in a browser."
        f'\nYour own review:   {cli.command("predict")} "I wanted to like it."'
        f"\nYour own reviews:  {cli.command('score')} --input reviews.csv --out scores    (bundled examples: {samples.REVIEWS})"
    )


def run() -> None:
    cli.run(Demo, main, examples=("", "--out out/other --num-workers 4"))


if __name__ == "__main__":
    run()
