"""A shard of any size is staged and encoded in batches of bounded size; no Ray is started."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from han.config import ColumnsConfig, PrepareConfig, TextConfig, VectorsConfig, VocabConfig
from han.data import sources
from han.data.samples import planted
from han.text.encode import Encoder
from han.text.tokenise import Tokeniser
from han.text.vocabulary import build
from han.train import encoded, prepare, staging
from han.train.encoded import ROWS_PER_GROUP, SPLITS
from han.types import Tokens, UserError

NUM_REVIEWS = 500
COLUMNS = ColumnsConfig()
PLAN = prepare._Plan(columns=COLUMNS, text=TextConfig(), dev_ids=None, forbidden=np.empty(0, np.uint64), below=None)


@pytest.fixture
def reviews(tmp_path: Path) -> list[dict[str, str]]:
    """Generated reviews; some have no label, and some are copies with another id."""
    rows = [
        {"review_id": f"r{row}", "text": review.text, "label": ("good", "bad", "")[row % 3]}
        for row, review in enumerate(planted.generate(NUM_REVIEWS, seed=1))
    ]
    return [*rows, *({**row, "review_id": f"copy of {row['review_id']}"} for row in rows[::7])]


def write_compressed(path: Path, rows: list[dict[str, str]]) -> Path:
    with gzip.open(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["review_id", "text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return path


def encode(path: Path, out: Path) -> dict[str, Any]:
    """Both passes over the only shard of a file, as the workers run them."""
    out.mkdir()
    (shard,) = sources.find_shards(str(path), COLUMNS, labelled=True)
    staged = prepare._Stage(str(out), PLAN, None)(shard)
    vocab = build(json.loads(Path(f"{staged['staged']}.counts.json").read_text()), VocabConfig(min_count=2))
    return staged | prepare._Finish(str(out), Encoder(PLAN.text, None, vocab), staged["labels"])(staged["staged"])


def tables(out: Path, files: dict[str, dict[str, int]]) -> dict[str, pa.Table]:
    """Each split, its files in order."""
    return {split: pa.concat_tables([pq.read_table(out / split / name) for name in names]) for split, names in files.items()}


def test_a_compressed_file_is_staged_in_runs_and_encoded_as_if_it_was_one(
    reviews: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_compressed(tmp_path / "reviews.csv.gz", reviews)
    whole = encode(path, tmp_path / "whole")
    largest = {"read": 0, "run": 0, "finished": 0}

    def count(what: str, batch: Any) -> Any:
        largest[what] = max(largest[what], len(batch))
        return batch

    def read(shard: sources.Shard, columns: ColumnsConfig, *, batch_rows: int = 32) -> Iterator[sources.Batch]:
        for batch in sources.read(shard, columns, batch_rows=batch_rows):
            count("read", batch.table)
            yield batch

    class Source:
        reviews = staticmethod(sources.reviews)

    Source.read = staticmethod(read)  # type: ignore[attr-defined]
    end_run, encode_table = staging.StagedWriter._end_run, prepare._Finish._encoded

    def counted_run(writer: staging.StagedWriter) -> None:
        count("run", range(sum(map(len, writer._run))))
        end_run(writer)

    monkeypatch.setattr(prepare, "sources", Source)
    monkeypatch.setattr(staging, "RUN_ROWS", 100)
    monkeypatch.setattr(staging, "BATCHES_PER_RUN", 8)
    monkeypatch.setattr(prepare, "FINISHED_ROWS", 90)
    monkeypatch.setattr(encoded, "ROWS_PER_FILE", 2 * ROWS_PER_GROUP)
    monkeypatch.setattr(staging.StagedWriter, "_end_run", counted_run)
    monkeypatch.setattr(prepare._Finish, "_encoded", lambda finish, table, ids: encode_table(finish, count("finished", table), ids))
    cut = encode(path, tmp_path / "cut")

    assert largest == {"read": 32, "run": 128, "finished": 90}
    assert {name: cut[name] for name in whole if name not in ("staged", "files")} == {
        name: whole[name] for name in whole if name not in ("staged", "files")
    }
    assert tables(tmp_path / "cut", cut["files"]) == tables(tmp_path / "whole", whole["files"])
    assert len(whole["files"]["train"]) == 1
    names = list(cut["files"]["train"])
    assert names == sorted(names, key=lambda name: Path(name).stem)
    rows = [
        group
        for name in names
        for metadata in [pq.read_metadata(tmp_path / "cut" / "train" / name)]
        for group in (metadata.row_group(index).num_rows for index in range(metadata.num_row_groups))
    ]
    assert rows[:-1] == [ROWS_PER_GROUP] * (len(rows) - 1)
    assert sum(rows) == sum(cut["files"]["train"].values())
    assert len(names) == -(-sum(rows) // (2 * ROWS_PER_GROUP))


def test_every_review_is_encoded_as_the_tokeniser_reads_it(reviews: list[dict[str, str]], tmp_path: Path) -> None:
    path = write_compressed(tmp_path / "reviews.csv.gz", [*reviews, {"review_id": "empty", "text": " ", "label": "good"}])
    made = encode(path, tmp_path / "out")
    vocab = build(json.loads(Path(f"{made['staged']}.counts.json").read_text()), VocabConfig(min_count=2))
    splits = tables(tmp_path / "out", made["files"])
    found = {row["review_id"]: (split, row) for split in SPLITS for row in splits[split].to_pylist()}
    assert made["refused"] == 1
    assert found.keys() == {review["review_id"] for review in reviews}
    tokeniser = Tokeniser(PLAN.text, None)
    for review in reviews:
        split, row = found[review["review_id"]]
        tokens = tokeniser.tokenise(review["text"])
        assert isinstance(tokens, Tokens)
        assert row["token_ids"] == vocab.ids(tokens.words).tolist()
        assert row["sentence_lengths"] == tokens.sentence_lengths.tolist()
        assert row["label"] == {"bad": 0, "good": 1, "": None}[review["label"]]
        is_development = PLAN.is_development(review["review_id"], prepare.copy_key(review["text"]))
        assert split == ("unlabelled" if not review["label"] else "development" if is_development else "train")


def test_staged_rows_are_read_by_key_and_rows_of_one_key_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "RUN_ROWS", 10)
    monkeypatch.setattr(staging, "BATCHES_PER_RUN", 3)
    keys = np.random.default_rng(1).integers(0, 20, 95).astype(np.uint64)
    path = tmp_path / "staged.arrow"
    with staging.StagedWriter(path) as writer:
        for first in range(0, len(keys), 4):
            some = keys[first : first + 4]
            rows = [{"key": key, "review_id": str(first + row), "word_ids": [first + row]} for row, key in enumerate(some.tolist())]
            writer.add(pa.RecordBatch.from_pylist(rows, schema=staging.STAGED))
    expected = [str(row) for row in np.argsort(keys, kind="stable")]
    for num_rows in (1, 7, 1_000):
        read = list(staging.read_staged(path, num_rows=num_rows))
        assert max(map(len, read)) <= num_rows
        together = pa.concat_tables(read)
        assert together["review_id"].to_pylist() == expected
        assert together["word_ids"].to_pylist() == [[int(row)] for row in expected]


def test_a_shard_without_reviews_is_staged_and_read(tmp_path: Path) -> None:
    with staging.StagedWriter(tmp_path / "staged.arrow"):
        pass
    assert list(staging.read_staged(tmp_path / "staged.arrow", num_rows=8)) == []


def test_an_encoded_folder_with_other_vectors_under_the_same_name_is_refused(tmp_path: Path) -> None:
    file, out = tmp_path / "words.vec", tmp_path / "data"
    file.write_text("good 1 2 3\n")
    config = PrepareConfig(vectors=VectorsConfig(source=str(file)))
    out.mkdir()
    (out / "encoding.json").write_text(json.dumps(staging.job_of(config, None)))
    assert staging.is_finished(out, staging.job_of(config, None))
    file.write_text("good 4 5 6\n")
    with pytest.raises(UserError, match="was prepared with other settings \\(vectors: "):
        staging.is_finished(out, staging.job_of(config, None))
