"""A corpus view as one self-contained HTML page: tables that work without a script, and one inline script that filters and sorts them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from han.explain.charts import safe
from han.explain.html import document, stylesheet
from han.explain.pieces import label_class, signed

if TYPE_CHECKING:
    from han.explain.corpus import Corpus

WORDS, PAGE = "words.parquet", "index.html"  # in the folder of a corpus view
_LEAST_EDGE = 0.1  # share of its sum that the first and the last word of a phrase have; less is a shorter phrase with a filler
_SORTS = {
    "strength": "sum and frequency",
    "sum": "sum",
    "mean": "mean",
    "count": "occurrences",
}
_METHODS = {
    "midpoint_gradient": "gradient at half of the word vectors, times the word vector",
    "gradient_input": "gradient times the word vector",
    "integrated_gradients": "integrated gradients",
}
_EXACT = "leave_one_out"
_Row: TypeAlias = dict[str, Any]  # of `corpus.SCHEMA`, and `strength`


def page(corpus: Corpus, *, rows: int) -> str:
    """The page. rows: number of words, and number of phrases, of each label that are drawn for each order."""
    drawn = {label: _rows(corpus.table.filter(pc.equal(corpus.table["label"], label)), rows) for label in corpus.num_reviews}
    sections = "".join(_section(corpus, label, drawn[label]) for label in corpus.num_reviews if corpus.num_reviews[label])
    body = f"""<main class="corpus">
<div class="han"><h1>Words and phrases with the largest effect for each label</h1>
{_head(corpus, rows)}
{_filters(corpus)}</div>
<div class="labels han">
{sections}</div></main>"""
    own = files("han.explain")
    style, script = (own.joinpath(f"corpus.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return document(body, title="Words and phrases with the largest effect for each label", style=stylesheet() + style, script=script)


def _head(corpus: Corpus, rows: int) -> str:
    num_reviews = sum(corpus.num_reviews.values())
    complete = corpus.complete_from
    frequent = f"at least {corpus.min_count:,} occurrences for its label"
    for kind, least in complete.items():
        if least > corpus.min_count:
            frequent += f"; {kind} with fewer than {least:,} occurrences in all reviews may be missing"
    return f"""<p class="facts">{num_reviews:,} reviews · model <code>{safe(corpus.model)}</code></p>
<p class="note">The <strong>effect</strong> of a word is the evidence (log-odds of the predicted label, in nats) that the review has
because of it: positive for the label, negative against it. <strong>{_method(corpus.methods)}</strong> The effect of a phrase is the sum of
its words. The <strong>sum</strong> is over all reviews with the predicted label; the <strong>mean</strong> is of one occurrence. At first
the rows are sorted by the sum divided by the square root of the occurrences: words that are only frequent come later.</p>
<p class="note">Listed: the first {rows:,} words and {rows:,} phrases of each label in each order, each with {frequent}. Phrases whose
first or last word adds little are left out here; <code>{WORDS}</code>, beside this page, has all. Open a row for examples, the largest
effects first.</p>"""


def _method(methods: Sequence[str]) -> str:
    if list(methods) == [_EXACT]:
        return "It is exact: the review is scored without the word."
    named = ", ".join(f"{safe(method)}{f' ({_METHODS[method]})' if method in _METHODS else ''}" for method in methods)
    return f"It is an estimate, not exact: {named}."


def _filters(corpus: Corpus) -> str:
    """The controls. They are hidden until the script runs, because they do nothing without it."""
    labels = [("", "all labels"), *((str(place), label) for place, label in enumerate(corpus.num_reviews))]
    kinds = [("", "words and phrases"), ("words", "words"), ("phrases", "phrases")]
    return f"""<form class="filters" hidden>
{_select("label", "Label", labels)}
{_select("kind", "Show", kinds)}
{_select("sort", "Sort by", _SORTS.items())}
<label>At least <input type="number" name="least" min="{corpus.min_count}" value="{corpus.min_count}" step="1"> occurrences</label>
<label class="search">Search <input type="search" name="search" autocomplete="off" spellcheck="false"></label>
</form>
<p class="facts" role="status"></p>"""


def _select(name: str, label: str, options: Iterable[tuple[str, str]]) -> str:
    chosen = "".join(f'<option value="{safe(value)}">{safe(shown)}</option>' for value, shown in options)
    return f'<label>{label} <select name="{name}">{chosen}</select></label>'


def _rows(table: pa.Table, number: int) -> list[_Row]:
    """The rows of a label that the page shows: the first of each order, words and phrases apart. The strongest is first."""
    sums, counts, edges = (table[name].to_numpy() for name in ("sum", "count", "edge_sum"))
    table = table.append_column("strength", pa.array(sums / np.sqrt(counts)))
    is_word = table["num_words"].to_numpy() == 1
    chosen: set[int] = set()
    for kind in (is_word, ~is_word & (edges >= _LEAST_EDGE * sums)):
        for order in _SORTS:
            chosen.update(_largest(table[order].to_numpy(), np.flatnonzero(kind & (sums > 0)), number))
    rows: list[_Row] = table.take(pa.array(sorted(chosen), pa.int64())).to_pylist()
    return sorted(rows, key=lambda row: (-row["strength"], row["phrase"]))


def _largest(values: NDArray[Any], places: NDArray[np.int64], number: int) -> list[int]:
    return [int(place) for place in places[np.argsort(-values[places], kind="stable")[:number]]]


def _section(corpus: Corpus, label: str, rows: Sequence[_Row]) -> str:
    labels = list(corpus.num_reviews)
    largest = max((row["sum"] for row in rows), default=1.0)
    body = "".join(_row(row, largest) for row in rows)
    heads = "".join(f'<th scope="col" class="number">{name}</th>' for name in ("sum", "mean", "occur&shy;rences", "reviews"))
    table = f'<table><thead><tr><th scope="col">word or phrase</th>{heads}</tr></thead><tbody>\n{body}</tbody></table>'
    count = corpus.num_reviews[label]
    return f"""<section class="{label_class(label, labels)}" data-label="{labels.index(label)}">
<h2><bdi>{safe(label)}</bdi></h2><p class="facts">{count:,} review{"s" * (count != 1)} with this predicted label</p>
{table if rows else '<p class="note">No word or phrase that speaks for this label has enough occurrences.</p>'}
<button type="button" hidden>Show more</button></section>
"""


def _row(row: _Row, largest: float) -> str:
    data = f'data-words="{row["num_words"]}" data-count="{row["count"]}"'
    data += "".join(f' data-{name}="{row[name]:.6g}"' for name in ("strength", "sum", "mean"))
    examples = "".join(_example(example) for example in row["examples"])
    bar = f'<svg class="bar" aria-hidden="true"><rect width="{100 * row["sum"] / largest:.2f}%" height="100%"/></svg>'
    return (
        f'<tr {data}><th scope="row"><details><summary><bdi>{safe(row["phrase"])}</bdi>{bar}</summary><ul>{examples}</ul></details></th>'
        f"<td>{signed(row['sum'])}</td><td>{signed(row['mean'])}</td><td>{row['count']:,}</td><td>{row['reviews']:,}</td></tr>\n"
    )


def _example(example: dict[str, Any]) -> str:
    before, match, after, review_id = (safe(example[name] or "") for name in ("before", "match", "after", "review_id"))
    return (
        f'<li><q dir="auto">{before}<mark>{match}</mark>{after}</q> '
        f'<span class="facts"><bdi>{review_id}</bdi> {signed(example["effect"])}</span></li>'
    )
