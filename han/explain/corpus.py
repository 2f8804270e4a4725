"""The words and phrases with the largest total effect for each label, over a finished folder of scores with effects of words.

The reviews are cut into shares of some thousands. Three passes read them: the first counts, the second sums what is frequent, the third
takes the excerpts of the examples (see `phrases`). Shares run in forked processes of this machine, or as tasks on Ray, which join their
results in a tree. No process holds all reviews, and all results have bounded sizes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from han.config import SETTINGS_FILE, CorpusConfig, without_settings
from han.data.files import blaming
from han.explain import phrases
from han.explain.corpus_page import PAGE, WORDS, page
from han.explain.phrases import Frequent, Rows, Sketch, Table
from han.processes import follow_parent
from han.storage import Folder
from han.text.raw import blank_tags
from han.types import UserError

Report: TypeAlias = Callable[[str, int, int], None]  # name of the pass, reviews done, all reviews

_ROWS_HERE = 200_000  # reviews that forked processes read in less time than Ray needs to start, or not much more
_SHARE_ROWS = 8_192  # reviews of a task: about 5 s
_FAN_IN = 4  # results that a task on Ray joins
_TABLES = 16  # tables of row groups that are combined at once
_CONTEXT = 60  # characters of an excerpt on each side
_LOWEST, _USUAL, _REVIEWS_PER_COUNT = 2, 20, 200  # of --min-count, unless it is given
_SPACE = re.compile(r"\s+")

_EXAMPLE = pa.struct(
    [("review_id", pa.string()), ("effect", pa.float64()), ("start", pa.int32()), ("end", pa.int32())]
    + [(name, pa.string()) for name in ("before", "match", "after")]
)
_QUOTES = pa.schema([("place", pa.int64()), *((name, pa.string()) for name in ("review_id", "before", "match", "after"))])
SCHEMA = pa.schema(
    [
        ("label", pa.string()),
        ("phrase", pa.string()),
        ("num_words", pa.int32()),
        ("sum", pa.float64()),
        ("mean", pa.float64()),
        ("count", pa.int64()),
        ("reviews", pa.int64()),
        ("edge_sum", pa.float64()),
        ("examples", pa.list_(_EXAMPLE)),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """A finished folder of scores."""

    place: str  # a path or a URI
    model: str  # fingerprint
    files: tuple[tuple[str, int], ...]  # of Parquet: name in the folder, rows
    text: str  # column of the input
    review_id: str  # column of the input

    @property
    def num_reviews(self) -> int:
        return sum(rows for _, rows in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """The effects of the words and phrases of a corpus."""

    table: pa.Table  # of SCHEMA, by label, then the largest sum first
    model: str
    methods: tuple[str, ...]  # names of the estimates of the effects of words
    num_reviews: dict[str, int]  # by predicted label, in the order of the model
    min_count: int  # words and phrases with fewer occurrences for a label are left out
    complete_from: dict[str, int]  # `words` and `phrases` with so many occurrences are all in the table


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    text: str
    review_id: str
    labels: tuple[str, ...]
    read: tuple[str, ...]  # columns of a Parquet file that effects need


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slice:
    """The row groups of a file that begin at the rows first <= row < stop."""

    name: str
    first: int
    stop: int
    before: int  # rows of all files before this one
    rows: int  # about


_Share: TypeAlias = tuple[_Slice, ...]
_Merge: TypeAlias = Callable[[Sequence[Any]], Any]


def fits_here(scores: Scores) -> bool:
    """Whether forked processes of this machine read the scores about as fast as Ray would, with its start and end."""
    return sys.platform == "linux" and "://" not in scores.place and scores.num_reviews <= _ROWS_HERE


def check_out(place: str) -> None:
    """`UserError` if the folder exists and holds anything but a corpus view."""
    out = Folder(place)
    if out.exists() and (not out.is_folder() or set(without_settings(out.names())) - {WORDS, PAGE}):
        raise UserError(f"--out {place} holds something else: give a new folder")


def collect(scores: Scores, config: CorpusConfig, report: Report, *, num_processes: int | None) -> Corpus:
    """Read all scores. num_processes: of this machine, without Ray (see `fits_here`); None: tasks on Ray.

    Scores without a text to quote are a `UserError`, and so is a file that cannot be read.
    """
    if not scores.num_reviews:
        raise UserError(f"{scores.place} holds no review: nothing was scored, or all was quarantined")
    columns = _columns(scores)
    min_count = config.min_count or max(_LOWEST, min(_USUAL, scores.num_reviews // _REVIEWS_PER_COUNT))
    shares = _shares(scores.files)

    def run(work: Callable[[_Share], Any], merge: _Merge, what: str) -> Any:
        done = partial(report, what)
        return _on_ray(shares, work, merge, done) if num_processes is None else _here(shares, work, merge, done, num_processes)

    sketch: Sketch = run(partial(_count, scores.place, columns), phrases.merged, "counted")
    frequent = sketch.frequent(min_count)
    del sketch
    table: Table = run(partial(_sum, scores.place, columns, frequent), phrases.combined, "summed")
    kept = np.flatnonzero(table.counts >= min_count)
    kept = kept[np.lexsort((table.keys[kept], -table.sums[kept], table.labels[kept]))]
    chosen = np.flatnonzero(np.isin(table.example_keys, table.keys[kept]))
    wanted = (table.example_rows[chosen], table.example_starts[chosen], table.example_ends[chosen])
    quotes: pa.Table = run(partial(_quote, scores.place, columns, wanted), pa.concat_tables, "quoted")
    return Corpus(
        table=_listed(table, kept, chosen, quotes, columns.labels),
        model=scores.model,
        methods=tuple(sorted(table.methods)),
        num_reviews=dict(zip(columns.labels, table.num_reviews.tolist(), strict=True)),
        min_count=min_count,
        complete_from=dict(zip(("words", "phrases"), frequent.at_least, strict=True)),
    )


def save(place: str, corpus: Corpus, *, rows: int) -> None:
    """Publish the table and the page. A new folder on a disk appears with both; in an existing one each file is replaced atomically.

    rows: of the page (see `corpus_page.page`).
    """
    out = Folder(place)
    is_new = not without_settings(out.names()) and not os.path.ismount(out.path)
    staged, settings = out.sibling() if out.on_disk and is_new else out, out.read(SETTINGS_FILE)
    if staged is not out:
        staged.remove()
    staged.make()
    about = {"han.model": corpus.model, "han.word_method": ",".join(corpus.methods), "han.num_reviews": json.dumps(corpus.num_reviews)}
    about |= {"han.min_count": str(corpus.min_count), "han.complete_from": json.dumps(corpus.complete_from)}
    sink = pa.BufferOutputStream()
    pq.write_table(corpus.table.replace_schema_metadata(about), sink, compression="zstd")
    staged.write(WORDS, sink.getvalue().to_pybytes(), durable=True)
    staged.write(PAGE, page(corpus, rows=rows).encode(), durable=True)
    if staged is not out:
        if settings is not None:
            staged.write(SETTINGS_FILE, settings, durable=True)
        for name in out.names():
            out.remove(name)
        staged.move("", "", into=out)
        out.sync("..")


def _columns(scores: Scores) -> _Columns:
    """The columns of the scores, from the first file."""
    with blaming(scores.files[0][0]), Folder(scores.place).open(scores.files[0][0]) as stream:
        file = pq.ParquetFile(stream)
        schema, leaves = file.schema_arrow, [file.schema.column(index).path for index in range(len(file.schema.names))]
    carried = schema.names[: schema.names.index("label")]  # scoring renames a column of the input that has the name of one of its own
    text = _carried(carried, scores.text)
    if text is None:
        raise UserError(f"{scores.place} does not hold the texts (column {scores.text}): score again, with {scores.text} in --carry")
    of_words = [path for path in leaves if ".words." in path and path.rpartition(".")[2] in ("start", "end", "effect")]
    return _Columns(
        text=text,
        review_id=_carried(carried, scores.review_id) or "review_id",
        labels=tuple(field.name for field in schema.field("probabilities").type),
        read=(text, "label", "effects.word_method", *of_words),
    )


def _carried(names: Sequence[str], column: str) -> str | None:
    """The name of an input column in the scores; None if it is not there."""
    return next((name for name in (column, f"input_{column}") if name in names), None)


def _shares(files: Sequence[tuple[str, int]]) -> list[_Share]:
    """Large files in slices, small files together."""
    shares: list[_Share] = []
    share: list[_Slice] = []
    before = 0
    for name, rows in files:
        for first in range(0, rows, _SHARE_ROWS):
            size = min(_SHARE_ROWS, rows - first)
            if share and sum(each.rows for each in share) + size > _SHARE_ROWS:
                shares.append(tuple(share))
                share = []
            share.append(_Slice(name=name, first=first, stop=first + size, before=before, rows=size))
        before += rows
    return [*shares, tuple(share)]


def _row_groups(place: str, share: _Share, columns: Iterable[str]) -> Iterator[tuple[int, pa.Table]]:
    """The row groups of a share: the first row among all scores, and the columns."""
    for part in share:
        with blaming(f"{place}/{part.name}"), Folder(place).open(part.name) as stream:
            file, first = pq.ParquetFile(stream), 0
            for group in range(file.num_row_groups):
                if part.first <= first < part.stop:
                    yield part.before + first, file.read_row_group(group, columns=list(columns), use_threads=False)
                first += file.metadata.row_group(group).num_rows


def _count(place: str, columns: _Columns, share: _Share) -> Sketch:
    sketch = Sketch()
    for _, table in _row_groups(place, share, columns.read):
        sketch.add(phrases.read(table, text=columns.text, labels=columns.labels))
    return sketch


def _sum(place: str, columns: _Columns, frequent: Frequent, share: _Share) -> Table:
    tables: list[Table] = []
    for first_row, table in _row_groups(place, share, columns.read):
        piece = phrases.read(table, text=columns.text, labels=columns.labels)
        tables.append(phrases.tabled(piece, frequent, first_row=first_row, num_labels=len(columns.labels)))
        if len(tables) == _TABLES:
            tables = [phrases.combined(tables)]
    return phrases.combined(tables or [phrases.empty(len(columns.labels))])


def _quote(place: str, columns: _Columns, wanted: tuple[Rows, Rows, Rows], share: _Share) -> pa.Table:
    """_QUOTES of the wanted spans that are in a share. wanted: rows among all scores, starts and ends in their texts."""
    rows, starts, ends = wanted
    order = np.argsort(rows, kind="stable")
    tables = [_QUOTES.empty_table()]
    for first_row, table in _row_groups(place, share, {columns.text, columns.review_id}):
        low, high = np.searchsorted(rows[order], [first_row, first_row + len(table)])
        places = order[low:high]
        texts = table[columns.text].take(pa.array(rows[places] - first_row)).to_pylist()
        ids = table[columns.review_id].take(pa.array(rows[places] - first_row)).cast(pa.string())
        quotes = [
            _excerpt(text, start, end) for text, start, end in zip(texts, starts[places].tolist(), ends[places].tolist(), strict=True)
        ]
        excerpts = [pa.array(column, pa.string()) for column in zip(*quotes, strict=True)] or [pa.array([], pa.string())] * 3
        tables.append(pa.table([places, ids, *excerpts], schema=_QUOTES))
    return pa.concat_tables(tables)


def _excerpt(text: str, start: int, end: int) -> tuple[str, str, str]:
    """The text before a span, in it and after it: without tags, and on one line."""
    first, last = max(0, start - _CONTEXT), end + _CONTEXT
    plain = blank_tags(text)
    before, match, after = (_SPACE.sub(" ", piece) for piece in (plain[first:start], plain[start:end], plain[end:last]))
    if first and " " in before:
        before = f"\u2026 {before.partition(' ')[2]}"
    if last < len(text) and " " in after:
        after = f"{after.rpartition(' ')[0]} \u2026"
    return before.lstrip(), match, after.rstrip()


def _listed(table: Table, kept: Rows, chosen: Rows, quotes: pa.Table, labels: Sequence[str]) -> pa.Table:
    """SCHEMA of the words and phrases `kept`. chosen: their examples in the table, by key; quotes: the excerpts of those."""
    quotes = quotes.take(pc.sort_indices(quotes["place"]))
    keys = table.example_keys[chosen]
    firsts = np.searchsorted(keys, table.keys[kept])
    lengths = np.searchsorted(keys, table.keys[kept], side="right") - firsts
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    places = np.repeat(firsts - offsets[:-1], lengths) + np.arange(offsets[-1])
    effects, starts, ends = (column[chosen][places] for column in (table.example_effects, table.example_starts, table.example_ends))
    review_id, before, match, after = (quotes[name].combine_chunks().take(pa.array(places)) for name in _QUOTES.names[1:])
    columns = [review_id, pa.array(effects), pa.array(starts, pa.int32()), pa.array(ends, pa.int32()), before, match, after]
    examples = pa.StructArray.from_arrays(columns, fields=list(_EXAMPLE))
    label_names = pa.array(labels, pa.string())
    return pa.table(
        [
            label_names.take(pa.array(table.labels[kept])),
            pc.utf8_lower(quotes["match"].combine_chunks().take(pa.array(firsts))),
            pa.array(table.num_words[kept], pa.int32()),
            pa.array(table.sums[kept]),
            pa.array(table.sums[kept] / table.counts[kept]),
            pa.array(table.counts[kept]),
            pa.array(table.reviews[kept]),
            pa.array(np.minimum(table.first_sums[kept], table.last_sums[kept])),
            pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), examples),
        ],
        schema=SCHEMA,
    )


def _here(
    shares: Sequence[_Share], work: Callable[[_Share], Any], merge: _Merge, done: Callable[[int, int], None], num_processes: int
) -> Any:
    """The merged results of all shares, from forked processes, which end with this one, however it ends."""
    waiting, running, whole, rows = deque(shares), dict[Future[Any], _Share](), None, 0
    done(0, _num_rows(shares))
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=follow_parent)
    try:
        while waiting or running:
            while waiting and len(running) < num_processes:
                share = waiting.popleft()
                running[pool.submit(work, share)] = share
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                rows += _num_rows([running.pop(future)])
                whole = future.result() if whole is None else merge([whole, future.result()])
            done(rows, _num_rows(shares))
    except BrokenProcessPool:
        raise UserError("a process that reads the scores died: free some memory, then run the command again") from None
    finally:
        pool.shutdown(cancel_futures=True)
    return whole


def _on_ray(shares: Sequence[_Share], work: Callable[[_Share], Any], merge: _Merge, done: Callable[[int, int], None]) -> Any:
    """The merged results of all shares, from tasks on Ray: one for each share, and one for each `_FAN_IN` results."""
    import ray

    worked, merged = ray.remote(_worked), ray.remote(_merged)
    waiting, running, results, rows = deque(shares), dict[Any, int](), list[Any](), 0
    done(0, _num_rows(shares))
    shared = ray.put(work)
    most = max(1, int(ray.cluster_resources().get("CPU", 1)))
    while waiting or running or len(results) > 1:
        while len(results) >= _FAN_IN or (len(results) > 1 and not waiting and not running):
            running[merged.remote(merge, *results[:_FAN_IN])] = 0
            results = results[_FAN_IN:]
        while waiting and len(running) < most:
            share = waiting.popleft()
            running[worked.remote(shared, share)] = _num_rows([share])
        ready, _ = ray.wait(list(running), num_returns=1)
        read = running.pop(ready[0])
        results.append(ready[0])
        if read:
            rows += read
            done(rows, _num_rows(shares))
    return ray.get(results[0])


def _worked(work: Callable[[_Share], Any], share: _Share) -> Any:
    return work(share)


def _merged(merge: _Merge, *results: Any) -> Any:
    return merge(results)


def _num_rows(shares: Iterable[_Share]) -> int:
    return sum(part.rows for share in shares for part in share)
