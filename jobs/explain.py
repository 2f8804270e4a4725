"""Attention drawn on reviews, as one page: `han explain --input sample --out attention.html`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from han.config import ColumnsConfig
from han.types import Mistake, Refusal
from jobs import cli

EXAMPLES = ("--input 'dump/*.parquet' --out attention.html", "--text 'I wanted to like it.' --out attention.html")
_OUR_PAGE = 'class="han-page"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Explain:
    """Draw the attention of a model on the text of reviews."""

    input: str | None = None
    """reviews: a file, a glob or a folder of Parquet, CSV or JSONL (.gz, .zst), an aclImdb folder or archive, or `sample`"""
    text: str | None = None
    """one review, instead of --input"""
    out: str = "attention.html"
    """the page; only a page of this program is replaced"""
    model: str = "imdb"
    """folder of a run, a sweep or an artifact; models/best after `promote`; or imdb, the shipped model"""
    num_reviews: int = 20
    """number of reviews to draw, from the start of the input"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)


def main(job: Explain) -> None:
    out = cli.local(job.out, "--out")
    model = cli.model(job.model)
    if (job.input is None) == (job.text is None):
        raise Mistake("give either --input (reviews to draw) or --text (one review)")
    if out.exists() and not (out.is_file() and _OUR_PAGE in out.read_text(encoding="utf-8", errors="replace")):
        raise Mistake(f"--out {out} is something else: give a new file")
    reviews = list(islice(_read(job), job.num_reviews))
    import torch

    from han.explain.html import page
    from han.score import load

    torch.set_num_threads(1)  # few reviews keep one core busy; more threads only wait for each other
    answers = load(model).score(
        [text for _, text in reviews], attention="words", effects="exact_words" if len(reviews) == 1 else "sentences"
    )
    drawn = [(name, text, answer) for (name, text), answer in zip(reviews, answers, strict=True) if not isinstance(answer, Refusal)]
    refused = [(name, answer) for (name, _), answer in zip(reviews, answers, strict=True) if isinstance(answer, Refusal)]
    for name, refusal in refused:
        print(f"{name} cannot be scored ({refusal.reason}): {refusal.message}")
    if not drawn:
        raise Mistake(f"none of {cli.plural(len(reviews), 'review')} can be drawn")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(drawn, title="Where the network looked"), encoding="utf-8")
    print(f"{cli.plural(len(drawn), 'review')} drawn, {len(refused)} refused: {out}")
    print("next: open it in a browser")


def _read(job: Explain) -> Iterator[tuple[str, str]]:
    if job.text is not None:
        yield "your review", job.text
        return
    from han.data import sources

    source = "sample" if job.input in ("sample", None) else cli.path(job.input, "--input")
    for shard in sources.find_shards(source, job.columns, labelled=False):
        for batch in sources.read(shard, job.columns, batch_rows=max(1, min(job.num_reviews, 1024))):
            reviews = sources.reviews(batch, shard, job.columns, labelled=False)
            yield from zip(reviews["review_id"].to_pylist(), reviews["text"].to_pylist(), strict=True)


def run() -> None:
    cli.run(Explain, main, examples=EXAMPLES)


if __name__ == "__main__":
    run()
