"""Inputs: their files, splits, columns, labels and ids."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from han.config import ColumnsConfig
from han.data import samples, text_files
from han.data.sources import (
    REVIEWS,
    InputChanged,
    Shard,
    find_shards,
    identities,
    is_imdb_id,
    random_review,
    read,
    read_ids,
    refuse_changed,
    reviews,
)
from han.types import UserError

COLUMNS = ColumnsConfig()


def write_jsonl(path: Path, *records: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def write_parquet(path: Path, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def read_reviews(source: str, columns: ColumnsConfig = COLUMNS, *, labelled: bool = True) -> list[dict[str, Any]]:
    shards = find_shards(source, columns, labelled=labelled)
    return [
        row for shard in shards for batch in read(shard, columns) for row in reviews(batch, shard, columns, labelled=labelled).to_pylist()
    ]


def read_labels(source: str, *label_names: str) -> list[str | None]:
    return [review["label"] for review in read_reviews(source, ColumnsConfig(label_names=label_names))]


def names(shards: list[Shard]) -> list[str]:
    return [shard.path.rpartition("/")[2] for shard in shards]


# Which files


def test_sample_names_the_bundled_reviews() -> None:
    assert {review["label"] for review in read_reviews("sample")} == {"negative", "positive"}


def test_a_folder_gives_its_files_of_reviews_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json", "_SUCCESS.json", ".hidden.jsonl", "notes.txt", "deeper/c.jsonl"):
        write_jsonl(tmp_path / name, {"text": "good"})
    assert names(find_shards(str(tmp_path), COLUMNS, labelled=False)) == ["a.json", "b.jsonl"]


def test_a_glob_reaches_folders_in_folders(tmp_path: Path) -> None:
    for name in ("a.jsonl", "x/b.jsonl", "x/y/c.jsonl"):
        write_jsonl(tmp_path / name, {"text": "good"})
    assert names(find_shards(f"{tmp_path}/**/*.jsonl", COLUMNS, labelled=False)) == ["a.jsonl", "b.jsonl", "c.jsonl"]


def test_an_existing_name_with_brackets_is_not_a_glob(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "reviews[1].jsonl", {"text": "good"})
    assert names(find_shards(path, COLUMNS, labelled=False)) == ["reviews[1].jsonl"]


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "a.jsonl", {"text": "good"})
    monkeypatch.chdir(tmp_path)
    assert [shard.path for shard in find_shards("a.jsonl", COLUMNS, labelled=False)] == [str(tmp_path / "a.jsonl")]


def test_a_uri_reads_like_its_path(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", {"text": "good"})
    write_parquet(tmp_path / "b.parquet", text=["bad"])
    assert read_reviews(f"file://{tmp_path}/", labelled=False) == read_reviews(str(tmp_path), labelled=False)


@pytest.mark.parametrize("name", ["missing.parquet", "missing", "*.parquet", "none/*.csv"])
def test_a_missing_input_is_a_mistake_that_names_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"{name.replace('*', '[*]')} (is missing|holds no files)"):
        find_shards(f"{tmp_path}/{name}", COLUMNS, labelled=False)


def test_an_empty_folder_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no files of reviews: give .parquet, .csv, .tsv, .jsonl"):
        find_shards(str(tmp_path), COLUMNS, labelled=False)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.zst", "aclImdb_v1.tar.gz"])
def test_a_file_of_zero_bytes_is_a_mistake(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name} is empty, 0 bytes"):
        find_shards(str(tmp_path / name), COLUMNS, labelled=False)


def test_a_file_of_another_kind_is_a_mistake_that_names_the_kinds(tmp_path: Path) -> None:
    (tmp_path / "reviews.xlsx").write_text("PK")
    with pytest.raises(UserError, match=r"is not a supported kind of file: give .parquet, .csv, .tsv, .jsonl"):
        find_shards(str(tmp_path / "reviews.xlsx"), COLUMNS, labelled=False)


def test_a_uri_that_no_filesystem_knows_is_a_mistake() -> None:
    with pytest.raises(UserError, match=r"http://localhost/a.parquet cannot be read"):
        find_shards("http://localhost/a.parquet", COLUMNS, labelled=False)


# Splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("test.jsonl", "test"),
        ("unsup.jsonl", "unsup"),
        ("Reviews-Test.jsonl", "test"),
        ("film_unsup.jsonl", "unsup"),
        ("test-00000-of-00004.jsonl", "test"),
        ("unsupervised-00000-of-00001.jsonl", "unsup"),
        ("latest.jsonl", "train"),
        ("contest_winners.jsonl", "train"),
        ("test_of_time.jsonl", "train"),
    ],
)
def test_the_file_name_determines_the_split(tmp_path: Path, name: str, split: str) -> None:
    path = write_jsonl(tmp_path / name, {"text": "good"})
    assert [shard.split for shard in find_shards(path, COLUMNS, labelled=False)] == [split]


# Columns


def test_a_missing_text_column_is_a_mistake_that_lists_the_existing_columns(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", body=["good"], stars=[5])
    with pytest.raises(UserError, match=r"a.parquet has no column text: it has body, stars\. Name the right one with --columns.text"):
        find_shards(path, COLUMNS, labelled=False)


def test_a_text_column_of_numbers_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"column text holds int64, not strings"):
        find_shards(write_parquet(tmp_path / "a.parquet", text=[1]), COLUMNS, labelled=False)


def test_labels_are_required_only_where_they_are_needed(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["good"])
    assert len(find_shards(path, COLUMNS, labelled=False)) == 1
    with pytest.raises(UserError, match=r"has no column label: it has text. Name the right one with --columns.label"):
        find_shards(path, COLUMNS, labelled=True)


def test_an_unsup_file_needs_no_label_column(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", text=["good"], label=["positive"])
    write_parquet(tmp_path / "unsup.parquet", text=["so so"])
    assert [review["label"] for review in read_reviews(str(tmp_path))] == ["positive", None]


def test_a_label_column_of_fractions_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"column label holds double, not names or integers"):
        find_shards(write_parquet(tmp_path / "a.parquet", text=["good"], label=[0.5]), COLUMNS, labelled=True)


def test_an_id_column_of_lists_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"column review_id holds list<.*>, not strings or integers"):
        find_shards(write_parquet(tmp_path / "a.parquet", text=["good"], review_id=[["x"]]), COLUMNS, labelled=False)


def test_columns_may_have_any_name(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", body=["good"], kind=["up"], key=[7], stars=[5])
    columns = ColumnsConfig(text="body", label="kind", review_id="key", rating="stars")
    assert read_reviews(path, columns) == [{"review_id": "7", "text": "good", "label": "up", "rating": 5}]


def test_all_shards_of_an_input_have_one_schema(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", text=["one"], year=[1999])
    write_parquet(tmp_path / "b.parquet", text=["two"], title=["B"])
    shards = find_shards(str(tmp_path), COLUMNS, labelled=False)
    rows = [row for shard in shards for batch in read(shard, COLUMNS) for row in batch.table.to_pylist()]
    assert {shard.schema for shard in shards} == {pa.schema([("text", pa.string()), ("year", pa.int64()), ("title", pa.string())])}
    assert rows == [{"text": "one", "year": 1999, "title": None}, {"text": "two", "year": None, "title": "B"}]


def test_one_name_with_two_types_is_a_mistake_that_names_both_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", text=["one"], year=[1999])
    write_parquet(tmp_path / "b.parquet", text=["two"], year=["MM"])
    with pytest.raises(UserError, match=r"column year holds int64 in .*a\.parquet but string in .*b\.parquet"):
        find_shards(str(tmp_path), COLUMNS, labelled=False)


def test_types_guessed_from_json_are_reconciled(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", {"text": "one", "stars": 1, "year": 1999})
    write_jsonl(tmp_path / "b.jsonl", {"text": "two", "stars": 2.5, "year": "MM"})
    rows = [
        row
        for shard in find_shards(str(tmp_path), COLUMNS, labelled=False)
        for batch in read(shard, COLUMNS)
        for row in batch.table.to_pylist()
    ]
    assert rows == [{"text": "one", "stars": 1.0, "year": "1999"}, {"text": "two", "stars": 2.5, "year": "MM"}]


@pytest.mark.parametrize(("option", "column"), [("review_id", "nope"), ("label", "nope"), ("rating", "nope")])
@pytest.mark.parametrize("labelled", [False, True])
def test_a_named_column_that_does_not_exist_is_a_mistake(tmp_path: Path, option: str, column: str, labelled: bool) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["good"], label=["up"])
    expected = f"has no column nope: it has text, label. Name the right one with --columns.{option.replace('_', '-')}"
    with pytest.raises(UserError, match=expected):
        find_shards(path, ColumnsConfig(**{option: column}), labelled=labelled)


def test_an_input_without_default_id_label_and_rating_columns_is_read(tmp_path: Path) -> None:
    assert len(find_shards(write_parquet(tmp_path / "a.parquet", text=["good"]), COLUMNS, labelled=False)) == 1


def test_only_the_columns_of_a_review_are_read_from_a_labelled_input(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["good"], label=["up"], title=["A"], review_id=["x"])
    assert find_shards(path, COLUMNS, labelled=True)[0].schema.names == ["text", "label", "review_id"]
    assert find_shards(path, COLUMNS, labelled=False)[0].schema.names == ["text", "label", "title", "review_id"]


# Reviews


def test_a_review_without_an_id_is_named_by_its_file_and_row(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", text=["one", None, "three"])
    write_parquet(tmp_path / "b.parquet", text=["four", "five", "six"], review_id=["x", None, ""])
    ids = [review["review_id"] for review in read_reviews(str(tmp_path), labelled=False)]
    assert ids == ["a.parquet:0", "a.parquet:2", "x", "b.parquet:1", "b.parquet:2"]


def test_reviews_have_one_schema_whatever_the_columns_of_the_input(tmp_path: Path) -> None:
    text = pa.array(["good"]).dictionary_encode()
    path = write_parquet(
        tmp_path / "a.parquet", text=text, review_id=pa.array(["x"], pa.large_string()), label=pa.array(["up"]).dictionary_encode()
    )
    (shard,) = find_shards(path, COLUMNS, labelled=True)
    (batch,) = read(shard, COLUMNS)
    table = reviews(batch, shard, COLUMNS, labelled=True)
    assert (table.schema, table.to_pylist()) == (REVIEWS, [{"review_id": "x", "text": "good", "label": "up", "rating": None}])


def test_labels_are_not_read_unless_requested(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["good"], label=[7])
    assert read_reviews(path, labelled=False)[0]["label"] is None


def test_labels_that_are_names_are_kept(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["a", "b", "c"], label=["so so", None, ""])
    assert read_labels(path) == ["so so", None, None]


def test_a_label_outside_the_names_is_a_mistake(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["a"], label=["meh"])
    with pytest.raises(UserError, match=r"column label holds meh, none of --columns.label-names bad good"):
        read_labels(path, "bad", "good")


def test_integer_labels_index_the_names(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["a", "b", "c", "d"], label=pa.array([0, 2, -1, None], pa.int8()))
    assert read_labels(path, "bad", "fair", "good") == ["bad", "good", None, None]


def test_integers_in_text_index_the_names_too(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["a", "b", "c", "d"], label=["1", "bad", "-1", ""])
    assert read_labels(path, "bad", "good") == ["good", "bad", None, None]


def test_integers_in_text_are_names_where_the_names_are_integers(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["a", "b"], label=["1", "5"])
    assert read_labels(path, "1", "2", "3", "4", "5") == ["1", "5"]


@pytest.mark.parametrize("label", [pa.array([0, 1]), pa.array(["0", "1"]), pa.array([False, True])])
def test_integer_labels_without_names_are_a_mistake_that_says_how_to_name_them(tmp_path: Path, label: pa.Array) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["a", "b"], label=label)
    with pytest.raises(UserError, match=r"column label holds 0: name integer labels, in order, with --columns.label-names"):
        find_shards(path, COLUMNS, labelled=True)


@pytest.mark.parametrize("label", [2, -2])
def test_an_integer_outside_the_names_is_a_mistake(tmp_path: Path, label: int) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=["a"], label=[label])
    with pytest.raises(UserError, match=f"column label holds {label}, but --columns.label-names are 0 to 1: bad good"):
        read_labels(path, "bad", "good")


def test_the_labels_of_the_training_split_are_checked_before_those_of_others(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", text=["a"], label=["meh"])
    write_parquet(tmp_path / "train.parquet", text=["a"], label=["good"])
    assert len(find_shards(str(tmp_path), ColumnsConfig(label_names=("bad", "good")), labelled=True)) == 2


def test_integer_labels_of_imdb_have_their_own_names(tmp_path: Path) -> None:
    ids = ["train/neg/0_3", "train/pos/1_7", "train/unsup/2_0"]
    path = write_parquet(tmp_path / "a.parquet", review_id=ids, text=["a", "b", "c"], label=[0, 1, -1])
    assert read_labels(path) == ["negative", "positive", None]


@pytest.mark.parametrize(
    ("review_id", "expected"),
    [
        ("train/pos/1_7", True),
        ("test/unsup/12499_0", True),
        ("train/pos/1_7.txt", False),
        ("dev/pos/1_7", False),
        ("x/train/pos/1_7", False),
    ],
)
def test_ids_of_imdb_are_recognised_by_their_form(review_id: str, expected: bool) -> None:
    assert is_imdb_id(review_id) is expected


def test_ratings_are_whole_stars_or_none(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", text=list("abcde"), rating=[8.0, 4.5, 0.0, None, 1000.0])
    assert [review["rating"] for review in read_reviews(str(tmp_path), labelled=False)] == [8, None, None, None, None]


# Ids


def test_ids_are_read_one_per_line(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes(b"train/pos/1_7\r\n\ntrain/neg/2_3")
    assert read_ids(tmp_path / "ids.txt") == {"train/pos/1_7", "train/neg/2_3"}


@pytest.mark.parametrize(("content", "message"), [(None, "is missing"), (b"\n \n", "holds no ids"), (b"\xff\xfe", "is not text")])
def test_a_file_without_ids_is_a_mistake(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "ids.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"ids.txt {message}: give a file with one review id a line"):
        read_ids(tmp_path / "ids.txt")


def test_a_random_review_is_from_the_input_and_repeatable_by_its_seed() -> None:
    texts = {json.loads(line)["text"] for line in samples.REVIEWS.read_text(encoding="utf-8").splitlines()}
    drawn = [random_review("sample", ColumnsConfig(), seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(text in texts for _, _, text in drawn)
    assert {label for _, label, _ in drawn} <= {"negative", "positive"}


# Folders of texts


def write_texts(folder: Path, **contents: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return folder


def read_bad(source: Path) -> list[tuple[int, str]]:
    shards = find_shards(str(source), COLUMNS, labelled=False)
    return [(bad.row, bad.reason) for shard in shards for batch in read(shard, COLUMNS) for bad in batch.bad]


def test_each_file_of_a_folder_of_text_files_is_a_review(tmp_path: Path) -> None:
    write_texts(tmp_path, b_txt=b"bad", a_txt="\ufeffcafé\n".encode(), c_txt_gz=gzip.compress(b"so so"), d_md=b"# notes", e_txt=b"")
    (tmp_path / "_f.txt").write_text("no review")
    (tmp_path / "deeper").mkdir()
    rows = [(row["review_id"], row["text"]) for row in read_reviews(str(tmp_path), labelled=False)]
    assert rows == [("a.txt", "café\n"), ("b.txt", "bad"), ("c.txt.gz", "so so"), ("e.txt", "")]


def test_a_text_file_beside_a_dump_is_not_a_review(tmp_path: Path) -> None:
    write_texts(tmp_path, README_txt=b"read me")
    write_jsonl(tmp_path / "a.jsonl", {"text": "good"})
    assert [review["text"] for review in read_reviews(str(tmp_path), labelled=False)] == ["good"]


def test_a_text_file_beside_an_archive_is_not_a_review(tmp_path: Path) -> None:
    write_texts(tmp_path, README_txt=b"read me", aclImdb_tar_gz=b"")
    with pytest.raises(UserError, match=r"holds no files of reviews: give .*, a folder of .txt files \(one review each\)"):
        find_shards(str(tmp_path), COLUMNS, labelled=False)


def test_a_folder_of_texts_is_divided_by_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "SHARD_FILES", 2)
    write_texts(tmp_path, **{f"{number}_txt": b"%d" % number for number in range(5)})
    shards = find_shards(str(tmp_path), COLUMNS, labelled=False)
    assert [(shard.start, shard.stop, shard.first_row) for shard in shards] == [(0, 2, 0), (2, 4, 2), (4, 5, 4)]
    rows = [int(row) for shard in shards for batch in read(shard, COLUMNS) for row in batch.rows]
    assert (rows, [review["text"] for review in read_reviews(str(tmp_path), labelled=False)]) == ([0, 1, 2, 3, 4], list("01234"))


def test_a_text_file_that_cannot_be_a_review_is_a_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "LARGEST_FILE", 1_000)
    bomb = gzip.compress(b"x" * 1_000_000)
    write_texts(tmp_path, a_txt=b"good", b_txt=b"caf\xe9", c_txt=b"x" * 1_001, d_txt_gz=bomb, e_txt_gz=bomb[:-9], f_txt_zst=b"good")
    expected = [(1, "invalid_utf8"), (2, "too_large"), (3, "too_large"), (4, "too_large"), (5, "unreadable")]
    assert read_bad(tmp_path) == expected
    assert [review["text"] for review in read_reviews(str(tmp_path), labelled=False)] == ["good"]


def test_a_truncated_compressed_text_is_a_bad_record(tmp_path: Path) -> None:
    write_texts(tmp_path, a_txt=b"good", b_txt_gz=gzip.compress(b"good")[:-3])
    assert read_bad(tmp_path) == [(1, "unreadable")]


def test_a_folder_of_texts_has_no_labels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no column label: it has review_id, text"):
        find_shards(str(write_texts(tmp_path, a_txt=b"good")), COLUMNS, labelled=True)


def test_an_input_that_changed_has_another_identity(tmp_path: Path) -> None:
    """Swapped labels do not change the size, and in a folder any file may change."""
    file, folder = tmp_path / "reviews.csv", tmp_path / "texts"
    folder.mkdir()
    file.write_text("text,label\ngood,0\nbad,1\n")
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("A review.")
    found = {path: identities(find_shards(str(path), COLUMNS, labelled=False)) for path in (file, folder)}
    assert found == {path: identities(find_shards(str(path), COLUMNS, labelled=False)) for path in (file, folder)}
    file.write_text("text,label\ngood,1\nbad,0\n")
    (folder / "b.txt").write_text("B review.")
    for path, before in found.items():
        assert identities(find_shards(str(path), COLUMNS, labelled=False)) != before


def read_and_change(source: str, change: Callable[[], object]) -> None:
    """Read the first batch of every shard, change the input, and read the rest."""
    shards = find_shards(source, COLUMNS, labelled=False)
    readers = [read(shard, COLUMNS, batch_rows=1) for shard in shards]
    for reader in readers:
        next(reader)
    change()
    for reader in readers:
        for _ in reader:
            pass
    refuse_changed(shards)


@pytest.mark.parametrize("content", ["", '{"text": "one"}\n', '{"text": "evil"}\n' * 3], ids=["emptied", "truncated", "replaced"])
def test_a_file_that_changes_during_reading_stops_it_and_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' * 3)
    with pytest.raises(InputChanged, match=r"a\.jsonl changed or was removed while the job ran"):
        read_and_change(str(path), lambda: path.write_text(content))


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.csv.gz"])
def test_a_file_that_was_removed_before_reading_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.parquet":
        write_parquet(path, text=["good"])
    else:
        path.write_bytes(b"text\ngood\n" if name == "a.csv" else gzip.compress(b"text\ngood\n"))
    (shard,) = find_shards(str(path), COLUMNS, labelled=False)
    path.unlink()
    with pytest.raises(InputChanged, match=f"{name} changed or was removed"):
        list(read(shard, COLUMNS))


@pytest.mark.parametrize("layout", ["{}.txt", "train/pos/{}_7.txt"])
def test_a_shard_of_a_folder_ignores_files_that_are_added_later(tmp_path: Path, layout: str) -> None:
    for number in (1, 2, 3):
        (tmp_path / layout.format(number)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / layout.format(number)).write_text(f"text {number}")
    shards = find_shards(str(tmp_path), COLUMNS, labelled=False)
    (tmp_path / layout.format(0)).write_text("a new one")
    assert [text for shard in shards for batch in read(shard, COLUMNS) for text in batch.table["text"].to_pylist()] == [
        f"text {number}" for number in (1, 2, 3)
    ]
    with pytest.raises(InputChanged, match=f"{layout.format(0)} changed"):
        refuse_changed(shards)


@pytest.mark.parametrize("layout", ["{}.txt", "train/pos/{}_7.txt"])
@pytest.mark.parametrize("is_removed", [True, False])
def test_a_changed_file_of_a_folder_is_named(tmp_path: Path, layout: str, is_removed: bool) -> None:
    for number in (1, 2, 3):
        (tmp_path / layout.format(number)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / layout.format(number)).write_text(f"text {number}")
    second = tmp_path / layout.format(2)
    with pytest.raises(InputChanged, match=f"{layout.format(2)} changed or was removed"):
        read_and_change(str(tmp_path), lambda: second.unlink() if is_removed else second.write_text("other"))


def test_files_below_a_folder_of_texts_do_not_change_its_identity(tmp_path: Path) -> None:
    write_texts(tmp_path, a_txt=b"good")
    shards = find_shards(str(tmp_path), COLUMNS, labelled=False)
    write_texts(tmp_path / "out", part_txt=b"scores")
    refuse_changed(shards)
    assert identities(shards) == identities(find_shards(str(tmp_path), COLUMNS, labelled=False))


@pytest.mark.timeout(20)
def test_a_random_review_of_an_input_whose_texts_are_all_null_is_a_mistake(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=pa.nulls(3, pa.string()))
    with pytest.raises(UserError, match="has no review with a text"):
        random_review(path, COLUMNS)


def test_an_empty_input_is_a_mistake() -> None:
    with pytest.raises(UserError, match="the input is an empty string"):
        find_shards("", COLUMNS, labelled=False)
