"""Raw reviews to an encoded folder, shard by shard (see `train.encoded` for the folder).

Each text is tokenised once. The first pass stages each shard with word numbers local to the shard and returns its word counts. The sum of
the counts gives the vocabulary. A second pass replaces local numbers by vocabulary rows with one array look-up.

A worker reads, stages and encodes a shard in batches of bounded size. With the input grow only the counts of its words (in a worker those
of its shard), 16 bytes for each review of a shard in the second pass, and 8 bytes in the driver for each review that a copy or a limit is
looked for. Vectors in-domain hold each different word once.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from safetensors.numpy import save_file

from han.cluster.datasets import configure_ray_data
from han.config import ColumnsConfig, PrepareConfig, TextConfig
from han.data import sources
from han.data.sources import Shard
from han.storage import write_json
from han.text import vectors
from han.text.encode import Encoder
from han.text.tokenise import Tokeniser, blank_tags, learn_punkt
from han.text.vocabulary import Interner, Vocab, build
from han.train.encoded import SPLIT_SCHEMA, SPLITS, EncodedFolder, Report, SplitWriter, read_encoded
from han.train.staging import STAGED, StagedWriter, is_finished, job_of, read_staged
from han.types import Float32s, Int32s, UserError

logger = logging.getLogger(__name__)

DEVELOPMENT_SHARE = 10  # one review in ten, by the hash of its text
RUNS = re.compile(r"[\W_]+")
FORMAT = 1
FINISHED_ROWS = 4_096  # rows that the second pass holds


def prepare(input: str, out: Path, config: PrepareConfig, *, dev_ids: Path | None, report: Report) -> EncodedFolder:
    """Read `input`, build the vocabulary and the word vectors, and write the encoded folder `out`.

    The same call again does nothing. With another input or setting it is a `UserError`, and `out` is unchanged. Test texts are hashed, to
    drop their copies from the training text; their labels are not read.
    """
    shards = sources.find_shards(input, config.columns, labelled=True)
    job = job_of(config, dev_ids) | {"source": sources.identities(shards)}
    if is_finished(out, job):
        return read_encoded(out)
    staging = out / ".staging"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    plan = _plan(shards, config, dev_ids, staging, report)
    trained_on = [shard for shard in shards if shard.split != "test"]
    punkt = ray.get(_learn_punkt.remote(trained_on, plan, config.punkt_sample)) if config.punkt_sample else None
    counts: Counter[str] = Counter()
    records = []
    stage = _map_shards(_Stage, trained_on, (str(staging), plan, punkt), lambda done, total: report("cut into words", done, total))
    for record in stage:
        counts.update(json.loads(Path(f"{record['staged']}.counts.json").read_text()))
        records.append(record)
    totals = {key: sum(int(record[key]) for record in records) for key in ("reviews", "copies_dropped", "refused", "unlabelled")}
    vocab = build(counts, config.vocab)
    encoder = Encoder(config.text, punkt, vocab)
    labels = _label_names(records, config.columns)
    _write_encoder(out, encoder)
    files: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    finish = _map_shards(
        _Finish, [record["staged"] for record in records], (str(out), encoder, labels), lambda done, total: report("encoded", done, total)
    )
    digest = 0
    for record in finish:
        digest += int(record["digest"])
        for split in files:
            files[split] |= record["files"][split]
    files = {split: dict(sorted(rows.items(), key=lambda row: Path(row[0]).stem)) for split, rows in files.items()}
    for split, rows in files.items():
        if not rows and split != "unlabelled":
            raise UserError(
                f"{input} leaves no {split} review: {totals['reviews']:,} reviews read, of which {totals['unlabelled']:,} unlabelled"
            )
    save_file({"vectors": _vectors(staging, vocab, config, report)}, out / "vectors.safetensors")
    encoding = job | {
        "format": FORMAT,
        "fingerprint": encoder.fingerprint,
        "data_fingerprint": f"{digest % (1 << 64):016x}",
        "labels": labels,
        "counts": totals | {split: sum(rows.values()) for split, rows in files.items()} | {"words_counted": sum(counts.values())},
        "files": files,
    }
    write_json(out / "encoding.json", encoding)
    shutil.rmtree(staging)
    return read_encoded(out)


def copy_key(text: str) -> int:
    """64 bits of a hash of a text. Shared by texts that are equal after lower-casing, blanking tags and joining non-alphanumerics."""
    normal = RUNS.sub(" ", blank_tags(text).lower()).strip()
    return int.from_bytes(hashlib.blake2b(normal.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Which reviews are for development and which are dropped. It is fixed before any text is tokenised."""

    columns: ColumnsConfig
    text: TextConfig
    dev_ids: frozenset[str] | None  # None: by hash
    forbidden: NDArray[np.uint64]  # sorted copy keys of test and development reviews
    below: int | None  # with a limit: labelled reviews are kept if their copy key is at most this

    def is_development(self, review_id: str, key: int) -> bool:
        return review_id in self.dev_ids if self.dev_ids is not None else key % DEVELOPMENT_SHARE == 0

    def is_forbidden(self, key: int) -> bool:
        position = int(np.searchsorted(self.forbidden, np.uint64(key)))
        return position < len(self.forbidden) and int(self.forbidden[position]) == key


def _plan(shards: list[Shard], config: PrepareConfig, dev_ids: Path | None, staging: Path, report: Report) -> _Plan:
    drop = config.drop_duplicates
    if drop is None:
        drop = _is_imdb(shards[0], config.columns)
    listed = sources.read_ids(dev_ids) if dev_ids else None
    plan = _Plan(columns=config.columns, text=config.text, dev_ids=listed, forbidden=np.empty(0, np.uint64), below=None)
    if not drop and config.limit is None:
        return plan
    keys: dict[str, list[NDArray[np.uint64]]] = {"forbidden": [], "labelled": []}
    looked_at = shards if drop else [shard for shard in shards if shard.split != "test"]
    look = _map_shards(
        _Look, looked_at, (str(staging), plan, config.limit is not None), lambda done, total: report("looked for copies", done, total)
    )
    for record in look:
        for kind, found in keys.items():
            found.append(np.fromfile(f"{record['looked']}.{kind}", np.uint64))
    below = None
    if config.limit is not None:
        labelled = np.sort(np.concatenate(keys["labelled"]))
        below = int(labelled[min(config.limit, len(labelled)) - 1])
    forbidden = np.unique(np.concatenate(keys["forbidden"])) if drop else plan.forbidden
    return _Plan(columns=config.columns, text=config.text, dev_ids=listed, forbidden=forbidden, below=below)


def _is_imdb(shard: Shard, columns: ColumnsConfig) -> bool:
    """Whether the first reviews have ids of the Large Movie Review Dataset."""
    batch = next(iter(sources.read(shard, columns, batch_rows=64)), None)
    ids = sources.reviews(batch, shard, columns, labelled=False)["review_id"].to_pylist() if batch is not None else []
    return bool(ids) and all(sources.is_imdb_id(review_id) for review_id in ids)


class _Look:
    """First pass over a shard, only if copies are dropped or a limit is set: texts become hashes."""

    def __init__(self, staging: str, plan: _Plan, with_labelled: bool) -> None:
        self.staging, self.plan, self.with_labelled = Path(staging), plan, with_labelled

    def __call__(self, shard: Shard) -> dict[str, Any]:
        path = str(self.staging / _name(shard))
        with open(f"{path}.forbidden", "wb") as forbidden, open(f"{path}.labelled", "wb") as labelled:
            for batch in sources.read(shard, self.plan.columns):
                table = sources.reviews(batch, shard, self.plan.columns, labelled=shard.split != "test")
                known = pc.is_valid(table["label"]).to_numpy()
                keys = np.array([copy_key(text) for text in table["text"].to_pylist()], np.uint64)
                if shard.split == "test":
                    keys.tofile(forbidden)
                    continue
                rows = zip(table["review_id"].to_pylist(), keys.tolist(), strict=True)
                keys[known & [self.plan.is_development(*row) for row in rows]].tofile(forbidden)
                if self.with_labelled:
                    keys[known].tofile(labelled)
        return {"looked": path}


@ray.remote
def _learn_punkt(shards: list[Shard], plan: _Plan, num_reviews: int) -> dict[str, Any]:
    """Punkt's parameters, from the first reviews of every shard without development reviews."""
    share = -(-num_reviews // len(shards))
    texts: list[str] = []
    for shard in shards:
        batch = next(iter(sources.read(shard, plan.columns, batch_rows=2 * share)), None)
        if batch is not None:
            table = sources.reviews(batch, shard, plan.columns, labelled=True)
            rows = zip(table["review_id"].to_pylist(), table["text"].to_pylist(), strict=True)
            kept = [text for review_id, text in rows if not _held_out(plan, review_id, text)]
            texts += [text for text in kept if len(text) <= plan.text.max_characters][:share]
    return learn_punkt(texts)


def _held_out(plan: _Plan, review_id: str, text: str) -> bool:
    key = copy_key(text)
    return plan.is_development(review_id, key) or plan.is_forbidden(key)


class _Stage:
    """Second pass: a shard's reviews as numbers of the shard's own words, its word counts, and its words as text for the vectors."""

    def __init__(self, staging: str, plan: _Plan, punkt: dict[str, Any] | None) -> None:
        self.staging, self.plan = Path(staging), plan
        self.tokeniser = Tokeniser(plan.text, punkt)

    def __call__(self, shard: Shard) -> dict[str, Any]:
        path = str(self.staging / _name(shard))
        words = Interner()
        counts = np.zeros(1, np.int64)
        labels: set[str] = set()
        tally = Counter[str](reviews=0, copies_dropped=0, refused=0, unlabelled=0)
        with StagedWriter(Path(f"{path}.arrow")) as staged, open(f"{path}.txt", "w", encoding="utf-8", errors="replace") as corpus:
            for batch in sources.read(shard, self.plan.columns):
                table = self._kept(sources.reviews(batch, shard, self.plan.columns, labelled=shard.split != "test"), tally)
                rows = self._tokenised(table, words, tally)
                staged.add(rows)
                learnt = rows["word_ids"].filter(pc.invert(rows["development"]))
                found = np.bincount(learnt.flatten().to_numpy(), minlength=len(words.words))
                found[: len(counts)] += counts
                counts = found
                corpus.writelines(" ".join([words.words[number] for number in ids]) + "\n" for ids in learnt.to_pylist())
                labels.update(pc.unique(rows["label"].drop_null()).to_pylist())
        Path(f"{path}.counts.json").write_text(json.dumps(dict(zip(words.words, counts.tolist(), strict=True))))
        return {"staged": path, "labels": sorted(labels), **tally}

    def _kept(self, reviews: pa.Table, tally: Counter[str]) -> pa.Table:
        """The reviews that are not dropped, with the columns `key` and `development`."""
        tally["reviews"] += len(reviews)
        columns = [reviews[column].to_pylist() for column in ("review_id", "text", "label")]
        keys = [copy_key(text) for text in columns[1]]
        kept, development = [], []
        for row, (review_id, label, key) in enumerate(zip(columns[0], columns[2], keys, strict=True)):
            if label is not None and self.plan.below is not None and key > self.plan.below:
                continue
            is_development = label is not None and self.plan.is_development(review_id, key)
            if not is_development and self.plan.is_forbidden(key):
                tally["copies_dropped"] += 1
                continue
            kept.append(row)
            development.append(is_development)
        rows = np.array(kept, np.int64)
        key = pa.array(np.array(keys, np.uint64)[rows])
        return reviews.take(rows).append_column("key", key).append_column("development", pa.array(development, pa.bool_()))

    def _tokenised(self, reviews: pa.Table, words: Interner, tally: Counter[str]) -> pa.RecordBatch:
        """A batch of `STAGED`, without the reviews that the tokeniser refuses."""
        tokens = self.tokeniser.tokenise_batch(reviews["text"].to_pylist(), words)
        reviews = reviews.take(tokens.kept)
        tally["refused"] += len(tokens.refused)
        tally["unlabelled"] += reviews["label"].null_count
        known = [reviews[name].combine_chunks() for name in STAGED.names[:4]]
        lists = [_lists(tokens.token_ids, tokens.num_tokens), _lists(tokens.sentence_lengths, tokens.review_lengths)]
        return pa.RecordBatch.from_arrays([*known, *lists], schema=STAGED)


def _name(shard: Shard) -> str:
    return hashlib.blake2b(repr(shard).encode(), digest_size=8).hexdigest()


def _lists(values: Int32s, lengths: Int32s) -> pa.ListArray:
    """Flat values as lists of these lengths."""
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), values)


class _Finish:
    """Last pass over a staged shard: local word numbers become vocabulary rows, label names become numbers."""

    def __init__(self, out: str, encoder: Encoder, labels: list[str]) -> None:
        self.out, self.encoder, self.labels = Path(out), encoder, labels

    def __call__(self, staged: str) -> dict[str, Any]:
        rows_of_words = self.encoder.vocab.ids(list(json.loads(Path(f"{staged}.counts.json").read_text())))
        writers = {split: SplitWriter(self.out / split, Path(staged).name) for split in SPLITS}
        digest = 0
        for table in read_staged(Path(f"{staged}.arrow"), num_rows=FINISHED_ROWS):
            encoded = self._encoded(table, rows_of_words)
            labelled = pc.is_valid(table["label"])
            rest = pc.and_(labelled, pc.invert(table["development"]))
            for split, kept in zip(SPLITS, (rest, table["development"], pc.invert(labelled)), strict=True):
                part = encoded.filter(kept)
                digest += digest_of(part, split) if split != "unlabelled" else 0
                writers[split].add(part)
        for writer in writers.values():
            writer.close()
        return {"digest": digest, "files": {split: writer.files for split, writer in writers.items()}}

    def _encoded(self, table: pa.Table, rows_of_words: Int32s) -> pa.Table:
        """A table of `STAGED` as one of `SPLIT_SCHEMA`."""
        word_ids = table["word_ids"].combine_chunks()
        token_ids = pa.ListArray.from_arrays(word_ids.offsets, pa.array(rows_of_words[word_ids.values.to_numpy()]))
        label = pc.index_in(table["label"], value_set=pa.array(self.labels))
        columns = [table["review_id"], label, token_ids, table["sentence_lengths"]]
        return pa.table(columns, names=SPLIT_SCHEMA.names).cast(SPLIT_SCHEMA)


def digest_of(part: pa.Table, split: str) -> int:
    """A fingerprint of reviews that does not depend on their order or files: a sum of 64-bit hashes of all that training reads."""
    total = 0
    columns = (part[name].to_pylist() for name in ("review_id", "label"))
    lists = ((row.values.to_numpy() for row in part[name]) for name in ("token_ids", "sentence_lengths"))
    for review_id, label, token_ids, sentence_lengths in zip(*columns, *lists, strict=True):
        named = json.dumps([split, review_id, label, len(token_ids)]).encode()
        digest = hashlib.blake2b(named + token_ids.tobytes() + sentence_lengths.tobytes(), digest_size=8)
        total += int.from_bytes(digest.digest(), "big")
    return total


def _map_shards(work: type, items: list[Any], arguments: tuple[Any, ...], report: Callable[[int, int], None]) -> Iterator[dict[str, Any]]:
    """Yields `work(*arguments)(item)` for every item, run as tasks of Ray Data: JSON-ready results as they finish."""
    if not items:
        return
    configure_ray_data()
    references = {"arguments": ray.put(arguments), "items": ray.put(items)}
    dataset = ray.data.from_items([{"index": index} for index in range(len(items))], override_num_blocks=len(items)).map(
        functools.partial(_run, work=work, references=references), num_cpus=1
    )
    report(0, len(items))
    for done, row in enumerate(dataset.iter_rows(), start=1):
        report(done, len(items))
        yield json.loads(row["record"])


def _run(row: dict[str, Any], *, work: type, references: dict[str, Any]) -> dict[str, Any]:
    items = ray.get(references["items"])
    return {"record": json.dumps(work(*ray.get(references["arguments"]))(items[row["index"]]))}


def _vectors(staging: Path, vocab: Vocab, config: PrepareConfig, report: Report) -> Float32s:
    settings = config.vectors
    if settings.source == "random":
        return vectors.random(len(vocab), settings.size, seed=config.seed)
    if settings.is_file:
        found, num_found = vectors.load_file(Path(settings.source), vocab.words, seed=config.seed)
        logger.info("%s of %s words have a vector in %s", f"{num_found:,}", f"{len(vocab):,}", settings.source)
        return found
    corpus = staging / "corpus.txt"
    with corpus.open("wb") as joined:
        for part in sorted(staging.glob("*.txt")):
            if part != corpus:
                with part.open("rb") as lines:
                    shutil.copyfileobj(lines, joined)
    return vectors.train_in_domain(
        corpus,
        vocab.words,
        config=settings,
        seed=config.seed,
        num_threads=os.cpu_count() or 1,
        progress=lambda done, total: report("trained word vectors", done, total),
    )


def _write_encoder(out: Path, encoder: Encoder) -> None:
    encoder.vocab.write(out / "vocab.txt")
    if encoder.tokeniser.punkt is not None:
        write_json(out / "punkt.json", encoder.tokeniser.punkt)


def _label_names(records: list[dict[str, Any]], columns: ColumnsConfig) -> list[str]:
    labels = sorted({label for record in records for label in record["labels"]})
    if len(labels) < 2:
        raise UserError(f"the labelled reviews have {len(labels)} label{'s' * (len(labels) != 1)} ({', '.join(labels)}): give at least 2")
    return list(columns.label_names) or labels
