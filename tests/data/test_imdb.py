"""The Large Movie Review Dataset: its folder, its archive, and hostile archives."""

import gzip
import io
import json
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from han.config import ColumnsConfig
from han.data import imdb
from han.data.files import BadRecord
from han.data.imdb import unpack_imdb
from han.data.sources import find_shards, read, read_ids, reviews
from han.model import artifact
from han.types import UserError
from jobs import prepare

COLUMNS = ColumnsConfig()
TEXTS = {
    "train/pos/1_7": "Good, and long.",
    "train/neg/10_2": "Bad.",
    "train/neg/2_1": "Worse.",
    "train/unsup/0_0": "A film<br /><br />about films.",
    "test/pos/0_10": "Très bien.",
    "test/neg/0_4": "So so.",
}
# by number, both classes in turn
ORDER = {
    "train": ["train/pos/1_7", "train/neg/2_1", "train/neg/10_2"],
    "test": ["test/neg/0_4", "test/pos/0_10"],
    "unsup": ["train/unsup/0_0"],
}


def member(name: str, content: bytes = b"x", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def write_archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    extra = [member("aclImdb/README", b"read me"), member("aclImdb/train/urls_pos.txt"), member("aclImdb/imdb.vocab", b"the\n" * 50_000)]
    named = [member(f"aclImdb/{review_id}.txt", text.encode()) for review_id, text in TEXTS.items()]
    return write_archive(tmp_path / "aclImdb_v1.tar.gz", *extra, *named)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "aclImdb"
    for review_id, text in TEXTS.items():
        path = root / f"{review_id}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (root / "train" / "urls_pos.txt").write_text("http://")
    (root / "train" / "pos" / ".DS_Store").write_text("")
    return root


def read_reviews(source: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for shard in find_shards(str(source), COLUMNS, labelled=True):
        for batch in read(shard, COLUMNS):
            found.setdefault(shard.split, []).extend(reviews(batch, shard, COLUMNS, labelled=True).to_pylist())
    return found


def ids(found: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    return {split: [review["review_id"] for review in some] for split, some in found.items()}


def test_a_folder_is_read_by_split_with_both_classes_alternating(folder: Path) -> None:
    assert ids(read_reviews(folder)) == ORDER


@pytest.mark.parametrize("source", ["folder", "archive"])
def test_a_review_has_the_text_label_and_rating_of_its_file(source: str, request: pytest.FixtureRequest) -> None:
    found = {review["review_id"]: review for some in read_reviews(request.getfixturevalue(source)).values() for review in some}
    assert {review_id: review["text"] for review_id, review in found.items()} == TEXTS
    assert found["train/pos/1_7"] == {"review_id": "train/pos/1_7", "text": "Good, and long.", "label": "positive", "rating": 7}
    assert (found["train/neg/2_1"]["label"], found["train/neg/2_1"]["rating"]) == ("negative", 1)
    assert (found["train/unsup/0_0"]["label"], found["train/unsup/0_0"]["rating"]) == (None, None)


def test_a_folder_is_divided_into_shards_by_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imdb, "SHARD_ROWS", 2)
    shards = find_shards(str(folder), COLUMNS, labelled=True)
    assert [(shard.split, shard.start, shard.stop) for shard in shards] == [
        ("train", 0, 2),
        ("train", 2, 3),
        ("test", 0, 2),
        ("unsup", 0, 1),
    ]
    assert ids(read_reviews(folder)) == ORDER


def test_a_folder_names_its_columns_as_configured(folder: Path) -> None:
    columns = ColumnsConfig(text="body", label="kind", review_id="key", rating="stars")
    assert find_shards(str(folder), columns, labelled=True)[0].schema.names == ["key", "body", "kind", "stars"]


@pytest.mark.parametrize(("content", "reason"), [(b"caf\xe9", "invalid_utf8"), (b"x" * 100_001, "too_large")])
def test_a_file_that_cannot_be_a_review_is_a_bad_record(folder: Path, content: bytes, reason: str) -> None:
    (folder / "train/neg/2_1.txt").write_bytes(content)
    shard = find_shards(str(folder), COLUMNS, labelled=True)[0]
    (batch,) = read(shard, COLUMNS)
    assert (batch.rows.tolist(), batch.table["review_id"].to_pylist()) == ([0, 2], ["train/pos/1_7", "train/neg/10_2"])
    assert [(record.row, record.reason) for record in batch.bad] == [(1, reason)]
    assert isinstance(batch.bad[0], BadRecord)


def test_a_folder_without_reviews_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "train" / "pos").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds no review named like train/pos/1_7.txt"):
        read_reviews(tmp_path)


# The archive


def test_an_archive_unpacks_to_parquet_that_equals_its_folder(archive: Path, folder: Path, tmp_path: Path) -> None:
    written = unpack_imdb(archive, tmp_path / "parquet")
    assert (
        sorted(path.name for path in written)
        == sorted(os.listdir(tmp_path / "parquet"))
        == ["test.parquet", "train.parquet", "unsup.parquet"]
    )
    assert read_reviews(tmp_path / "parquet") == read_reviews(folder)


def test_the_bundled_development_ids_are_those_of_the_shipped_model_and_name_reviews_as_an_unpacked_archive_does(
    archive: Path, tmp_path: Path
) -> None:
    listed = read_ids(imdb.DEVELOPMENT)
    counts = json.loads((artifact.find("imdb") / "config.json").read_text(encoding="utf-8"))["provenance"]["counts"]
    assert len(listed) == counts["development"] == 2_520
    names = [imdb.parse_id(review_id) for review_id in listed]
    assert {name.split for name in names if name is not None} == {"train"}
    assert Counter(name.label for name in names if name is not None) == {0: 1_266, 1: 1_254}
    unpack_imdb(archive, tmp_path)
    assert listed.intersection(pq.read_table(tmp_path / "train.parquet")["review_id"].to_pylist()) == {"train/neg/10_2"}


@pytest.mark.parametrize(
    ("given", "files", "expected"),
    [
        ("imdb", [], imdb.DEVELOPMENT),
        ("imdb", ["dev_ids.txt"], "dev_ids.txt"),
        ("reviews", ["dev_ids.txt"], "dev_ids.txt"),
        ("reviews", [], None),
    ],
)
def test_the_downloaded_data_set_is_prepared_with_the_bundled_development_ids(
    given: str, files: list[str], expected: Any, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).write_text("train/pos/1_7\n")
    chosen = prepare._dev_ids(prepare.Prepare(input=given, out="out"), str(tmp_path))
    assert chosen == (tmp_path / expected if isinstance(expected, str) else expected)


def test_unpacked_columns_are_those_of_the_archive(archive: Path, tmp_path: Path) -> None:
    unpack_imdb(archive, tmp_path)
    table = pq.read_table(tmp_path / "train.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("review_id", "string"), ("text", "string"), ("label", "int8"), ("rating", "int8"),
    ]  # fmt: skip
    assert (table["label"].to_pylist(), table["rating"].to_pylist()) == ([1, 0, 0], [7, 1, 2])
    assert pq.read_table(tmp_path / "unsup.parquet").select(["label", "rating"]).to_pylist() == [{"label": -1, "rating": 0}]


HOSTILE = [
    member("../outside.txt"),
    member("aclImdb/../../outside.txt"),
    member("aclImdb/train/pos/../../../../outside.txt"),
    member("{root}/outside.txt"),
    member("aclImdb/train/pos/1_7.txt\n"),
    member("xaclImdb/train/pos/2_7.txt"),
    member("train/pos/3_7.txt"),
    member("aclImdb/train/pos/4_7.txt", b"", type=tarfile.SYMTYPE, linkname="{root}/outside.txt"),
    member("aclImdb/train/pos", b"", type=tarfile.SYMTYPE, linkname="{root}"),
    member("aclImdb/train/pos/5_7.txt", b"", type=tarfile.LNKTYPE, linkname="{root}/secret.txt"),
    member("aclImdb/train/pos/6_7.txt", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
    member("aclImdb/train/pos/7_7.txt", b"", type=tarfile.FIFOTYPE),
    member("aclImdb/train/pos/8_7.txt", b"", type=tarfile.DIRTYPE),
]


def test_members_that_are_not_reviews_are_skipped_and_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    for info, _ in HOSTILE:
        info.name, info.linkname = (name.replace("{root}", str(tmp_path)) for name in (info.name, info.linkname))
    archive = write_archive(tmp_path / "a.tar.gz", *HOSTILE, member("aclImdb/train/pos/9_7.txt", b"good"))
    unpack_imdb(archive, tmp_path / "in" / "here")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "a.tar.gz", "in", "in/here", "in/here/train.parquet", "secret.txt",
    ]  # fmt: skip
    assert pq.read_table(tmp_path / "in/here/train.parquet")["text"].to_pylist() == ["good"]


REVIEW = member("aclImdb/train/pos/1_7.txt", b"good")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([REVIEW, REVIEW], r"aclImdb/train/pos/1_7.txt comes twice"),
        ([REVIEW, member("aclImdb/train/pos/2_7.txt", b"x" * 100_001)], r"2_7.txt has 100,001 bytes, not 0 to 100,000"),
        ([REVIEW, member("aclImdb/train/pos/2_7.txt", b"\xff")], r"a review is not UTF-8"),
        ([member("aclImdb/README")], r"holds no review named like aclImdb/train/pos/1_7.txt"),
    ],
)
def test_members_that_the_official_archive_cannot_hold_are_a_mistake_and_nothing_is_written(
    tmp_path: Path, members: list[Any], message: str
) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", *members)
    with pytest.raises(UserError, match=message):
        unpack_imdb(archive, tmp_path / "out")
    assert os.listdir(tmp_path) == ["a.tar.gz"]


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [("MAX_REVIEWS", 5, r"is one review more than 5"), ("MAX_ARCHIVE_BYTES", 100_000, r"over 100,000 when decompressed")],
)
def test_an_archive_over_a_limit_is_a_mistake(archive: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, message: str) -> None:
    monkeypatch.setattr(imdb, limit, value)
    with pytest.raises(UserError, match=message):
        find_shards(str(archive), COLUMNS, labelled=True)


def negative_size(content: bytes) -> bytes:
    """A header whose size is -512: with it, tarfile before Python 3.11.14 can go back and loop for ever (CVE-2025-8194)."""
    header = bytearray(REVIEW[0].tobuf())
    header[124:136] = b"\xff" * 10 + (-512 & 0xFFFF).to_bytes(2, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content


def pax_bomb(content: bytes) -> bytes:
    """An extended header that claims to be 8 GB."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 8**11 - 1
    return info.tobuf() + content


@pytest.mark.parametrize("attack", [negative_size, pax_bomb, lambda content: content[:700], lambda content: content[:512] + b"\1" * 20_000])
def test_a_broken_archive_is_a_mistake(archive: Path, attack: Any) -> None:
    archive.write_bytes(gzip.compress(attack(gzip.decompress(archive.read_bytes()))))
    with pytest.raises(UserError, match=r"Download http://ai.stanford.edu"):
        find_shards(str(archive), COLUMNS, labelled=True)


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_truncated_archive_is_a_mistake(archive: Path, keep: float) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=r"aclImdb_v1.tar.gz cannot be read: Truncated compressed stream"):
        find_shards(str(archive), COLUMNS, labelled=True)
