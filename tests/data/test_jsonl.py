"""JSON lines: reviews, bad records, and equal results for any division of a file."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from han.config import ColumnsConfig
from han.data import files, jsonl
from han.data.files import BadRecord, Batch, without
from han.data.sources import find_shards, read
from han.types import UserError

COLUMNS = ColumnsConfig()
GOOD = b'{"text": "good"}'


def read_batches(path: Path, *, batch_rows: int = 1024) -> list[Batch]:
    return [batch for shard in find_shards(str(path), COLUMNS, labelled=False) for batch in read(shard, COLUMNS, batch_rows=batch_rows)]


def read_all(path: Path, *, batch_rows: int = 1024) -> tuple[dict[int, Any], list[BadRecord]]:
    """The texts by row, and the bad records."""
    batches = read_batches(path, batch_rows=batch_rows)
    texts = {int(row): text for batch in batches for row, text in zip(batch.rows, batch.table["text"].to_pylist(), strict=True)}
    return texts, [record for batch in batches for record in batch.bad]


def write(tmp_path: Path, *lines: bytes) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


def read_records(path: Path) -> list[dict[str, Any]]:
    return [row for batch in read_batches(path) for row in batch.table.to_pylist()]


def records(*values: dict[str, Any]) -> list[bytes]:
    return [json.dumps(value).encode() for value in values]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [b"", b"\n"])
def test_a_line_is_a_review(tmp_path: Path, ending: bytes, last: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + ending.join([GOOD, b'{"text": "bad"}']) + last)
    assert read_all(path) == ({0: "good", 1: "bad"}, [])


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\x00", "\t"])
def test_only_a_newline_ends_a_line(tmp_path: Path, separator: str) -> None:
    text = f"one{separator}two"
    path = write(tmp_path, f'{{"text": "{text}"}}'.encode(), json.dumps({"text": text}).encode())
    assert read_all(path) == ({0: text, 1: text}, [])


def test_blank_lines_count_as_rows_but_are_no_records(tmp_path: Path) -> None:
    assert read_all(write(tmp_path, b"", GOOD, b"  \r", b"", GOOD)) == ({1: "good", 4: "good"}, [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{bad", "malformed"),
        (b'{"text": "half', "malformed"),
        (b"[1]", "malformed"),
        (b'"good"', "malformed"),
        (b'{"text": "x", "n": NaN}', "malformed"),
        (b'{"text": "x", "n": -Infinity}', "malformed"),
        (b'{"text": "x", "n": 1e400}', "malformed"),
        (b"[" * 10_000, "malformed"),
        (b'{"text": "x", "n": ' + b"[" * 32 + b"]" * 32 + b"}", "malformed"),
        (b'{"text": "x", "n": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}", "malformed"),
        (b'{"text": "caf\xe9"}', "invalid_utf8"),
        (b'{"text": "\\ud800"}', "invalid_utf8"),
        (b'{"text": "x", "title": "\\udfff"}', "invalid_utf8"),
        (b"{}", "missing_text"),
        (b'{"text": null}', "missing_text"),
        (b'{"text": 7}', "wrong_type"),
        (b'{"text": ["x"]}', "wrong_type"),
        (b'{"text": "x", "stars": "many"}', "wrong_type"),
        (b'{"text": "x", "stars": 4.5}', "wrong_type"),
        (b'{"text": "x", "stars": 99999999999999999999}', "wrong_type"),
        (b'{"text": "x", "nested": {"deep": [0.5]}}', "wrong_type"),
    ],
)
def test_a_line_that_is_not_a_review_is_a_bad_record_with_a_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    first = b'{"text": "first", "title": "A", "stars": 4, "nested": {"deep": [1]}}'
    path = write(tmp_path, *[first] * jsonl.SCHEMA_RECORDS, line, GOOD)
    texts, (bad,) = read_all(path)
    assert (bad.row, bad.byte_offset, bad.reason) == (jsonl.SCHEMA_RECORDS, (len(first) + 1) * jsonl.SCHEMA_RECORDS, reason)
    assert texts == dict.fromkeys(range(jsonl.SCHEMA_RECORDS), "first") | {jsonl.SCHEMA_RECORDS + 1: "good"}


def test_a_record_of_the_maximum_depth_fits_into_parquet(tmp_path: Path) -> None:
    deep = b"[" * (jsonl.DEEPEST - 1) + b"1" + b"]" * (jsonl.DEEPEST - 1)
    (batch,) = read_batches(write(tmp_path, b'{"text": "good", "n": ' + deep + b"}"))
    pq.write_table(batch.table, tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet").equals(batch.table)


def test_a_review_has_the_offset_of_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, b"", b"{bad", GOOD, b'{"text": "\\ud800"}', GOOD)
    (batch,) = read_batches(path)
    assert batch.byte_offsets is not None
    assert [path.read_bytes()[offset:].partition(b"\n")[0] for offset in batch.byte_offsets] == [GOOD, GOOD, GOOD]
    assert batch.rows.tolist() == [0, 3, 5]


def test_removed_rows_of_a_batch_are_bad_records_in_order(tmp_path: Path) -> None:
    (batch,) = read_batches(write(tmp_path, GOOD, b"{bad", GOOD, GOOD))
    record = BadRecord(row=2, byte_offset=22, reason="poison", excerpt="good")
    less = without(batch, {1: record})
    assert (less.rows.tolist(), less.byte_offsets.tolist()) == ([0, 3], [0, 39])  # type: ignore[union-attr]
    assert (len(less.table), [bad.row for bad in less.bad]) == (2, [1, 2])
    assert without(batch, {}).rows.tolist() == [0, 2, 3]


def test_an_excerpt_is_printable_and_short(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, b"\x1b[31m\xff\xe2\x80\xae<script>" + b"x" * 1_000)
    _, (bad,) = read_all(path)
    assert (len(bad.excerpt), bad.excerpt[:40]) == (200, r"\x1b[31m\xff\xe2\x80\xae<script>xxxxxxxxxxxxxxxxxx"[:40])


def test_a_line_over_the_size_limit_is_a_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 30)
    long = b'{"text": "' + b"x" * 100 + b'"}'
    assert read_all(write(tmp_path, GOOD, long, GOOD, long)) == (
        {0: "good", 2: "good"},
        [
            BadRecord(row=1, byte_offset=17, reason="too_large", excerpt=""),
            BadRecord(row=3, byte_offset=147, reason="too_large", excerpt=""),
        ],
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.one_of(st.text(max_size=20).map(lambda text: json.dumps({"text": text}, ensure_ascii=False)), st.just(""), st.just("{bad"))
    ),
    range_bytes=st.integers(1, 60),
    batch_rows=st.integers(1, 5),
)
def test_any_division_of_a_file_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], range_bytes: int, batch_rows: int
) -> None:
    path = write(tmp_path, GOOD, *(line.encode() for line in lines))
    with monkeypatch.context() as patch:
        patch.setattr(jsonl, "RANGE_BYTES", range_bytes)
        texts, bad = read_all(path, batch_rows=batch_rows)
    expected = {row: json.loads(line)["text"] for row, line in enumerate(lines, 1) if line.startswith('{"')}
    assert texts == {0: "good"} | expected
    assert [record.row for record in bad] == [row for row, line in enumerate(lines, 1) if line == "{bad"]


def test_a_large_file_is_divided_at_line_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "RANGE_BYTES", 100)
    path = write(tmp_path, *[GOOD] * 50)
    shards = find_shards(str(path), COLUMNS, labelled=False)
    assert len(shards) == path.stat().st_size // 100 + 1
    assert all(path.read_bytes()[shard.start - 1 : shard.start] == b"\n" for shard in shards[1:])


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_compressed_file_reads_like_the_plain_file(tmp_path: Path, ending: str) -> None:
    lines = [GOOD, b"", b"{bad", b'{"text": "\xe2\x80\xa8"}'] * 500
    plain = write(tmp_path, *lines)
    content = plain.read_bytes()
    first, second = content[:5_000], content[5_000:]  # both formats may be concatenated
    squeeze = gzip.compress if ending == "gz" else lambda part: pa.compress(part, "zstd", asbytes=True)
    (tmp_path / f"b.jsonl.{ending}").write_bytes(squeeze(first) + squeeze(second))
    assert read_all(tmp_path / f"b.jsonl.{ending}") == read_all(plain)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_truncated_compressed_file_is_a_mistake(tmp_path: Path, ending: str) -> None:
    content = b"\n".join(b'{"text": "%d"}' % number for number in range(5_000))
    squeezed = gzip.compress(content) if ending == "gz" else pa.compress(content, "zstd", asbytes=True)
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(squeezed[:-20])
    with pytest.raises(UserError, match=f"a.jsonl.{ending} cannot be read: Truncated compressed stream"):
        read_all(path)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_file_with_the_wrong_compression_for_its_name_is_a_mistake(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a.jsonl.{ending}").write_bytes(GOOD)
    with pytest.raises(UserError, match=f"a.jsonl.{ending} cannot be read"):
        read_all(tmp_path / f"a.jsonl.{ending}")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_a_decompression_bomb_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    content = b"text,n\n" + b"good,1\n" * 200_000 if "csv" in name else (GOOD + b"\n") * 100_000
    (tmp_path / name).write_bytes(gzip.compress(content))
    assert len(content) > 200 * (tmp_path / name).stat().st_size
    assert len(read_all(tmp_path / name)[0]) >= 100_000  # large in proportion alone is no harm
    monkeypatch.setattr(files, "BOMB_BYTES", 1_000_000)
    with pytest.raises(UserError, match=rf"{name} is [\d,]+ bytes, but over 1,\d+,\d+ when decompressed"):
        read_all(tmp_path / name)


# Columns


def test_the_columns_are_the_keys_of_the_first_records(tmp_path: Path) -> None:
    first: list[dict[str, Any]] = [{"text": "a", "n": 1}, {"text": "b", "tags": ["x"], "by": {"name": "J", "age": 7}}]
    filler = [{"text": "c"}] * jsonl.SCHEMA_RECORDS
    late: dict[str, Any] = {"text": "d", "n": 2.0, "unseen": 1, "by": {"name": "K", "unseen": 2}}
    rows = read_records(write(tmp_path, *records(*first, *filler, late)))
    assert rows[:2] == [
        {"text": "a", "n": 1, "tags": None, "by": None},
        {"text": "b", "n": None, "tags": ["x"], "by": {"name": "J", "age": 7}},
    ]
    assert rows[-1] == {"text": "d", "n": 2, "tags": None, "by": {"name": "K", "age": None}}


@pytest.mark.parametrize("values", [(1, "x"), (None, None), ({}, {}), ([], [None]), (2**70, 1), ([1], {"a": 1})])
def test_a_column_of_mixed_types_holds_json(tmp_path: Path, values: tuple[Any, ...]) -> None:
    rows = read_records(write(tmp_path, *records(*({"text": "a", "x": value} for value in values))))
    assert [row["x"] for row in rows] == [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]


def test_a_key_that_is_not_unicode_is_left_out(tmp_path: Path) -> None:
    assert read_records(write(tmp_path, b'{"text": "a", "\\ud800": 1}')) == [{"text": "a"}]


def test_the_last_of_two_equal_keys_is_used(tmp_path: Path) -> None:
    assert read_records(write(tmp_path, b'{"text": "a", "text": "b"}')) == [{"text": "b"}]


def test_a_text_column_of_mostly_other_types_is_still_a_column_of_strings(tmp_path: Path) -> None:
    texts, bad = read_all(write(tmp_path, b'{"text": 1}', b'{"text": 2}', GOOD))
    assert (texts, [record.reason for record in bad]) == ({2: "good"}, ["wrong_type", "wrong_type"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n\n", "all lines are blank"),
        (b'[{"text": "good"}]', r"line 1 is malformed, \[\{"),
        (b"<html>", "line 1 is malformed, <html>"),
    ],
)
def test_a_file_without_objects_is_a_mistake_that_shows_its_first_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"a.jsonl holds no JSON objects, one a line: {message}"):
        read_all(write(tmp_path, content))


def test_a_missing_key_is_a_mistake_that_lists_the_existing_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.jsonl has no column text: it has body, stars"):
        read_all(write(tmp_path, b'{"body": "good"}', b'{"stars": 5}'))
