"""Attention drawn on reviews, or the words with the largest effects in all of them: `han explain --input sample --out attention.html`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from han.config import ColumnsConfig, CorpusConfig
from han.explain import gallery
from han.explain.gallery import Order
from han.types import Refusal, UserError
from jobs import cli

if TYPE_CHECKING:
    from han.explain.corpus import Scores

EXAMPLES = (
    "--input 'dump/*.parquet' --out attention.html",
    "--input test.csv --order wrong --num-reviews 200 --candidates 5000",
    "--text 'I wanted to like it.' --out attention.html",
    "--input test.csv --model imdb --against models/best --out changes.html",
    "--corpus --input scores --out corpus",
)
_OUR_PAGE = 'class="han-page"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Explain:
    """Draw the attention of a model on the text of reviews; with --corpus list words and phrases by their total effect for each label."""

    input: str | None = None
    """reviews: a file, a glob or a folder of Parquet, CSV or JSONL (.gz, .zst), an aclImdb folder or archive, or `sample`; with --corpus
    the folder of scores of `score --effects words`"""
    text: str | None = None
    """one review, instead of --input"""
    out: str | None = None
    """the page, by default attention.html; with --corpus the folder of the table and the page, by default corpus; only output of this
    program is replaced"""
    corpus: bool = False
    """list the words and phrases with the largest total effect for each label over all scored reviews: a page, and a table in Parquet"""
    corpus_view: Annotated[CorpusConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=CorpusConfig)
    model: str = "imdb"
    """folder of a run, a sweep or an artifact; models/best after `promote`; or imdb, the shipped model"""
    against: str | None = None
    """another model: draw the reviews whose answers differ most between --model and this one, and write all --candidates to a table"""
    num_reviews: int = 20
    """number of reviews to draw"""
    order: Order = "input"
    """order of the reviews, and so which are drawn; `wrong` needs labels; `most_changed` sorts by the largest effect of one sentence"""
    candidates: int = 1_000
    """number of reviews, from the start of the input, to choose from; not used with --order input, except with --against"""
    seed: int = 0
    """seed of --order random"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)


def main(job: Explain) -> None:
    if job.corpus:
        _view(job)
        return
    if job.corpus_view != CorpusConfig():
        raise UserError("--min-count and --rows need --corpus")
    out = cli.local(job.out or "attention.html", "--out")
    model = cli.model(job.model)
    if (job.input is None) == (job.text is None):
        raise UserError("give either --input (reviews to draw) or --text (one review)")
    if out.exists() and not (out.is_file() and _OUR_PAGE in out.read_text(encoding="utf-8", errors="replace")):
        raise UserError(f"--out {out} exists and is not a page of this program: give a new file")
    if job.against is not None:
        _compare(job, out, model, cli.model(job.against))
        return
    reviews = list(islice(_read(job), job.num_reviews if job.order == "input" else job.candidates))
    with cli.loading():
        import torch

        from han.explain.html import page
        from han.score import load

        torch.set_num_threads(1)  # few reviews keep one core busy; more threads only wait for each other
        scorer = load(model)
    answers = scorer.score([text for _, text, _ in reviews], attention="words", effects="exact_words" if len(reviews) == 1 else "sentences")
    both = list(zip(reviews, answers, strict=True))
    scored = [(name, text, answer, _label(label, scorer.labels)) for (name, text, label), answer in both if not isinstance(answer, Refusal)]
    refused = [(name, answer) for (name, _, _), answer in both if isinstance(answer, Refusal)]
    places = gallery.choose(
        [answer for _, _, answer, _ in scored], [each[3] for each in scored], order=job.order, number=job.num_reviews, seed=job.seed
    )
    drawn = [scored[place] for place in places]
    for name, refusal in refused:
        print(f"{name} cannot be scored ({refusal.reason}): {refusal.message}")
    if not drawn:
        reason = "none is wrong, or none has a label" if job.order == "wrong" and scored else "none can be scored"
        raise UserError(f"none of {cli.plural(len(reviews), 'review')} can be drawn: {reason}")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(
        page(
            [(name, text, answer) for name, text, answer, _ in drawn],
            title="Where the network looked",
            labels=[label for _, _, _, label in drawn],
            places=places,
            removals=scorer.removals(reviews[0][1]) if len(reviews) == 1 else None,
        ),
        encoding="utf-8",
    )
    print(f"{cli.plural(len(drawn), 'review')} drawn, {len(refused)} refused: {out}")
    print("next: open it in a browser")


def _compare(job: Explain, out: Path, model: str, against: str) -> None:
    """Two models on the same reviews."""
    from han.model import artifact

    if job.order != "input":
        raise UserError("--against always draws the largest changes first: leave out --order")
    labels, others = (artifact.read_labels(artifact.find(name)) for name in (model, against))
    if sorted(labels) != sorted(others):
        raise UserError(
            f"{model} has the labels {', '.join(labels)}, {against} has {', '.join(others)}: give two models with the same labels"
        )
    reviews = list(islice(_read(job), job.candidates))
    import pyarrow.parquet as pq
    import torch

    from han.explain import changes
    from han.score import load
    from han.storage import replace_file

    torch.set_num_threads(1)
    rows = out.with_suffix(".parquet")
    if rows.exists() and not changes.is_table(rows):
        raise UserError(f"{rows}, the file for the table of changes, exists and is not such a table: give another --out")
    texts = [text for _, text, _ in reviews]
    answers = [load(name).score(texts, attention="words", effects="sentences") for name in (model, against)]
    compared = [
        changes.Change(review_id=name, text=text, label=_label(label, labels), before=before, after=after)
        for (name, text, label), before, after in zip(reviews, *answers, strict=True)
        if not isinstance(before, Refusal) and not isinstance(after, Refusal)
    ]
    if not compared:
        raise UserError(f"none of {cli.plural(len(reviews), 'review')} can be scored by both models")
    lines = changes.summary(compared)
    shown = [compared[place] for place in changes.order(compared)[: job.num_reviews]]
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(rows, lambda temporary: pq.write_table(changes.table(compared), temporary, compression="zstd"))
    out.write_text(changes.page(shown, lines, title="What changed between two models"), encoding="utf-8")
    print("\n".join(lines))
    print(
        f"{cli.plural(len(shown), 'review')} drawn: {out}; all {len(compared):,} compared: {rows}; {len(reviews) - len(compared)} refused"
    )
    print("next: open the page in a browser")


def _view(job: Explain) -> None:
    """The corpus view of finished scores."""
    if job.input is None:
        raise UserError(f"--corpus needs --input, a folder of scores: make one with {cli.command('score')} --effects words")
    usual = Explain()
    for name in ("text", "model", "against", "num_reviews", "order", "candidates", "seed", "columns"):
        if getattr(job, name) != getattr(usual, name):
            raise UserError(f"--corpus reads finished scores: leave out --{name.replace('_', '-')}")
    source, out = cli.path(job.input, "--input"), cli.path(job.out or "corpus", "--out")
    cli.check_out(out, "words.parquet", "index.html")
    scores = _scores(source)
    cli.show(f"explain {source} -> {out}", job)
    from han.explain import corpus
    from jobs.progress import Steps

    corpus.check_out(out)
    num_processes = None
    if corpus.fits_here(scores) and not cli.has_ray():
        num_processes = cli.num_cpus()
    else:
        cli.connect()
    began = time.monotonic()
    with cli.repeatable(replace(job, input=source, out=out), out):
        found = corpus.collect(scores, job.corpus_view, Steps(), num_processes=num_processes)
        corpus.save(out, found, rows=job.corpus_view.rows)
    took_s = time.monotonic() - began
    rows, reviews = f"{found.table.num_rows:,} words and phrases", cli.plural(scores.num_reviews, "review")
    print(f"{rows} of {reviews}; {took_s:,.1f} s, {scores.num_reviews / took_s:,.0f} reviews a second")
    print(f"next: open {out}/index.html in a browser, or read {out}/words.parquet with any Parquet reader")


def _scores(source: str) -> Scores:
    """The finished folder of scores; one without effects of words is a `UserError`, before anything heavy is loaded."""
    from han.score import manifest

    made_by = f"{cli.command('score')} --input REVIEWS --effects words --out {{}}"
    if "://" not in source and (Path(source).is_file() or not (Path(source) / manifest.MANIFEST).exists()):
        raise UserError(f"--input {source} is not a finished folder of scores: make one with {made_by.format('scores')}")
    try:
        listing = manifest.read_listing(manifest.find(source))
    except manifest.Damaged as error:
        raise UserError(f"{source} is damaged: {error}. Check it with {cli.command('verify')} --out {source}") from None
    if listing.effects != "words":
        new = cli.unused(Path(source)) if "://" not in source else f"{source}-words"
        raise UserError(f"{source} has no effects of words: score again with {made_by.format(new)}")
    from han.explain.corpus import Scores

    files = tuple((file.name, file.rows) for part in listing.parts for file in part.files)
    return Scores(place=source, model=listing.model, files=files, text=listing.text, review_id=listing.review_id)


def _label(label: str | None, labels: Sequence[str]) -> str | None:
    """The label by its name; an integer label means the same as for the model."""
    return labels[int(label)] if label is not None and label.isdecimal() and int(label) < len(labels) else label


def _read(job: Explain) -> Iterator[tuple[str, str, str | None]]:
    """Yields the name, the text and the label (if known) of each review."""
    if job.text is not None:
        yield "your review", job.text, None
        return
    from han.data import sources

    source = "sample" if job.input in ("sample", None) else cli.path(job.input, "--input")
    for shard in sources.find_shards(source, job.columns, labelled=False):
        labelled = job.columns.label in shard.schema.names
        for batch in sources.read(shard, job.columns, batch_rows=max(1, min(job.num_reviews, 1024))):
            reviews = sources.reviews(batch, shard, job.columns, labelled=labelled)
            labels = reviews["label"].to_pylist() if labelled else [None] * len(reviews)
            yield from zip(reviews["review_id"].to_pylist(), reviews["text"].to_pylist(), map(_name, labels), strict=True)


def _name(label: object) -> str | None:
    return None if label is None else str(label)


def run() -> None:
    cli.run(Explain, main, examples=EXAMPLES)


if __name__ == "__main__":
    run()
