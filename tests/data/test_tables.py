"""Parquet and CSV: shards, bad records, and files that cannot be read."""

import gzip
import math
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from han.config import ColumnsConfig
from han.data import columns, csv, files, parquet
from han.data.files import BadRecord, Shard
from han.data.sources import find_shards, read, select
from han.types import UserError

COLUMNS = ColumnsConfig()
NOT_UTF8 = pa.Array.from_buffers(pa.string(), 2, pa.array([b"caf\xe9", b"good"]).buffers())


def find(path: Path) -> list[Shard]:
    return find_shards(str(path), COLUMNS, labelled=False)


def read_all(path: Path, *, batch_rows: int = 1024) -> tuple[dict[int, Any], list[BadRecord]]:
    """The texts by row, and the bad records."""
    batches = [batch for shard in find(path) for batch in read(shard, COLUMNS, batch_rows=batch_rows)]
    texts = {int(row): text for batch in batches for row, text in zip(batch.rows, batch.table["text"].to_pylist(), strict=True)}
    return texts, [record for batch in batches for record in batch.bad]


@pytest.fixture
def sixty(tmp_path: Path) -> Path:
    path = tmp_path / "a.parquet"
    texts = [f"review {row} is good" for row in range(60)]
    pq.write_table(pa.table({"text": texts, "row": range(60)}), path, row_group_size=25, write_page_checksum=True)
    return path


def write_csv(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    return path


def test_a_row_group_is_a_shard(sixty: Path) -> None:
    assert [(shard.group, shard.start, shard.stop, shard.first_row) for shard in find(sixty)] == [
        (0, 0, 25, 0),
        (1, 0, 25, 25),
        (2, 0, 10, 50),
    ]


@pytest.mark.parametrize("batch_rows", [1, 7, 1024])
def test_parquet_gives_every_row_once_with_its_number(sixty: Path, batch_rows: int) -> None:
    assert read_all(sixty, batch_rows=batch_rows) == ({row: f"review {row} is good" for row in range(60)}, [])


@pytest.mark.parametrize(("num_rows", "num_shards"), [(250, 1), (251, 2), (4_000, 16), (80_001, 16)])
def test_a_single_row_group_is_divided_into_at_most_16_slices(tmp_path: Path, num_rows: int, num_shards: int) -> None:
    pq.write_table(pa.table({"text": ["good"] * num_rows}), tmp_path / "a.parquet")
    shards = find(tmp_path / "a.parquet")
    assert len(shards) == num_shards
    assert [shard.start for shard in shards[1:]] == [shard.stop for shard in shards[:-1]]
    assert (shards[0].start, shards[-1].stop) == (0, num_rows)


@pytest.mark.parametrize(("rows_per_group", "num_shards"), [(5_000, 8), (5_001, 16)])
def test_one_of_many_row_groups_is_divided_only_if_it_is_large(tmp_path: Path, rows_per_group: int, num_shards: int) -> None:
    pq.write_table(pa.table({"text": ["good"] * rows_per_group * 8}), tmp_path / "a.parquet", row_group_size=rows_per_group)
    assert len(find(tmp_path / "a.parquet")) == num_shards


def test_a_column_that_is_not_needed_is_not_decoded(sixty: Path) -> None:
    content = bytearray(sixty.read_bytes())
    for group in range(3):
        column = pq.ParquetFile(sixty).metadata.row_group(group).column(1)
        end = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size
        content[end - 1] ^= 1  # of the data itself, which the page's checksum covers
    sixty.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_all(sixty)
    shards = select(find(sixty), {"text"})
    assert sum(len(batch.rows) for shard in shards for batch in read(shard, COLUMNS)) == 60


def test_slices_of_a_row_group_give_every_row_once(sixty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "SLICED_ROWS", 4)
    assert len(find(sixty)) == math.ceil(25 / 4) * 2 + math.ceil(10 / 4)
    assert read_all(sixty, batch_rows=3)[0] == {row: f"review {row} is good" for row in range(60)}


def test_the_columns_of_the_input_are_unchanged(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": pa.array(["good", "bad"]).dictionary_encode(),
            "title": pa.array(["A", None], pa.large_string()),
            "seen": pa.array([1, 2], pa.timestamp("us")),
            "tags": [[{"name": "x", "weight": 0.5}], []],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (shard,) = find(tmp_path / "a.parquet")
    (batch,) = read(shard, COLUMNS)
    assert batch.table.equals(table)


def test_a_null_text_is_a_bad_record(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", None, "three"]}), tmp_path / "a.parquet")
    assert read_all(tmp_path / "a.parquet") == (
        {0: "one", 2: "three"},
        [BadRecord(row=1, byte_offset=None, reason="missing_text", excerpt="")],
    )


@pytest.mark.parametrize("table", [pa.table({"text": NOT_UTF8}), pa.table({"title": NOT_UTF8, "text": ["one", "good"]})])
def test_a_row_that_is_not_utf8_is_a_bad_record(tmp_path: Path, table: pa.Table) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_all(tmp_path / "a.parquet") == (
        {1: "good"},
        [BadRecord(row=0, byte_offset=None, reason="invalid_utf8", excerpt=r"caf\xe9")],
    )


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_truncated_parquet_file_is_a_mistake(sixty: Path, keep: float) -> None:
    content = sixty.read_bytes()
    sixty.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=r"a.parquet is not Parquet, or is cut off"):
        find(sixty)


def test_html_that_is_named_parquet_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("<html>404 Not Found</html>")
    with pytest.raises(UserError, match=r"a.parquet is not Parquet"):
        find(tmp_path / "a.parquet")


def test_an_invalid_footer_is_a_mistake_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"\x9b\n" * 50 + (100).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(UserError, match=r"a.parquet cannot be read: ") as caught:
        find(tmp_path / "a.parquet")
    assert "\n" not in str(caught.value)


def test_a_flipped_byte_in_a_page_never_gives_a_wrong_row(sixty: Path) -> None:
    content = sixty.read_bytes()
    right, _ = read_all(sixty)
    refused = 0
    for offset in range(4, pq.ParquetFile(sixty).metadata.row_group(2).column(1).data_page_offset, 40):
        sixty.write_bytes(content[:offset] + bytes([content[offset] ^ 0x10]) + content[offset + 1 :])
        try:
            assert read_all(sixty)[0] == right
        except UserError:
            refused += 1
    assert refused > 20


def test_a_parquet_file_with_a_false_huge_size_is_a_mistake(sixty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "CLAIMED_BYTES", 100)
    monkeypatch.setattr(parquet, "BOMB_RATIO", 0)
    with pytest.raises(UserError, match=r"and claims to hold"):
        find(sixty)


def test_two_columns_with_the_same_name_are_a_mistake(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"more than one column named text"):
        find(tmp_path / "a.parquet")


def test_parquet_without_rows_is_a_mistake(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"holds no reviews: 0 rows"):
        find(tmp_path / "a.parquet")


def test_a_string_that_many_rows_share_is_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_BYTES", 250)
    pq.write_table(pa.table({"text": ["x" * 100] * 7 + ["y"]}), tmp_path / "a.parquet")
    (shard,) = find(tmp_path / "a.parquet")
    batches = list(read(shard, COLUMNS))
    assert [batch.rows.tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5, 6, 7]]
    assert pa.concat_tables(batch.table for batch in batches)["text"].to_pylist() == ["x" * 100] * 7 + ["y"]


@pytest.mark.parametrize(
    ("kind", "read_as"),
    [
        (pa.string(), pa.string()),
        (pa.large_string(), pa.large_string()),
        (pa.string_view(), pa.string()),
        (pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int32(), pa.string())),
    ],
)
def test_strings_keep_their_layout_except_views(tmp_path: Path, kind: pa.DataType, read_as: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array(["one", None, "three"]).cast(kind)}), tmp_path / "a.parquet")
    (shard,) = find(tmp_path / "a.parquet")
    (batch,) = read(shard, COLUMNS)
    assert (batch.table.schema.field("text").type, batch.table["text"].to_pylist()) == (read_as, ["one", "three"])


def test_a_text_over_the_size_limit_is_a_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "LARGEST_TEXT", 10)
    pq.write_table(pa.table({"text": ["x" * 10, "x" * 11]}), tmp_path / "a.parquet")
    assert read_all(tmp_path / "a.parquet") == (
        {0: "x" * 10},
        [BadRecord(row=1, byte_offset=None, reason="too_large", excerpt="")],
    )


class Hostile(pa.ExtensionType):  # type: ignore[misc]
    """As Ray's types do, it runs code when a file that names it is opened."""

    opened = 0

    def __init__(self) -> None:
        super().__init__(pa.string(), "hostile")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> "Hostile":
        cls.opened += 1
        return cls()


@pytest.mark.parametrize("padding", [1, 5, 9])  # what stands before the name decides how base64 spells it
def test_an_extension_type_is_refused_before_its_code_runs(tmp_path: Path, padding: int) -> None:
    path = tmp_path / "a.parquet"
    hostile = pa.ExtensionArray.from_storage(Hostile(), pa.array(["x"]))
    pq.write_table(pa.table({"x": hostile, "x" * padding + "y": ["y"], "text": ["good"]}), path)
    pa.register_extension_type(Hostile())
    try:
        before = Hostile.opened
        with pytest.raises(UserError, match=r"has a column of an Arrow extension type"):
            find(path)
        assert Hostile.opened == before
        pq.read_schema(path)
        assert Hostile.opened > before  # without the refusal it runs
    finally:
        pa.unregister_extension_type("hostile")


def test_csv_columns_are_unchanged_strings_if_the_user_wants_text(tmp_path: Path) -> None:
    path = write_csv(tmp_path, b"id,text,stars\n007,good,4.50\n8,NA,null\n9,,\n")
    (shard,) = find_shards(str(path), ColumnsConfig(csv_types="text"), labelled=False)
    (batch,) = read(shard, COLUMNS)
    assert batch.table.to_pylist() == [
        {"id": "007", "text": "good", "stars": "4.50"},
        {"id": "8", "text": "NA", "stars": "null"},
        {"id": "9", "text": "", "stars": ""},
    ]


@pytest.mark.parametrize(
    ("values", "kind", "found"),
    [
        (["4", "", "-12"], pa.int64(), [4, None, -12]),
        (["4", "", "4.50", "1e-3"], pa.float64(), [4.0, None, 4.5, 0.001]),
        (["007", "8"], pa.string(), ["007", "8"]),
        (["1234567890123456789"], pa.string(), ["1234567890123456789"]),
        (["1234567890123456", "0.5"], pa.string(), ["1234567890123456", "0.5"]),
        (["4", "NA", ""], pa.string(), ["4", "NA", ""]),
        (["nan", "1e400"], pa.string(), ["nan", "1e400"]),
        (["", ""], pa.string(), ["", ""]),
    ],
)
def test_a_csv_column_is_numeric_only_if_all_its_values_are_numbers(
    tmp_path: Path, values: list[str], kind: pa.DataType, found: list[Any]
) -> None:
    path = write_csv(tmp_path, b"text,stars\n" + "".join(f"good,{value}\n" for value in values).encode())
    (shard,) = find(path)
    (batch,) = read(shard, COLUMNS)
    assert (batch.table.schema.field("stars").type, batch.table["stars"].to_pylist()) == (kind, found)


def test_the_text_the_id_and_the_label_of_csv_are_strings(tmp_path: Path) -> None:
    (shard,) = find(write_csv(tmp_path, b"review_id,label,text\n1,0,2\n"))
    (batch,) = read(shard, COLUMNS)
    assert batch.table.to_pylist() == [{"review_id": "1", "label": "0", "text": "2"}]


def test_a_csv_column_with_numbers_in_one_file_and_words_in_another_has_strings(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,stars\ngood,4\n")
    (tmp_path / "b.csv").write_text("text,stars\ngood,many\n")
    rows = [row for shard in find(tmp_path) for batch in read(shard, COLUMNS) for row in batch.table["stars"].to_pylist()]
    assert rows == ["4", "many"]


def test_the_average_of_a_csv_column_can_be_taken_in_sql(tmp_path: Path) -> None:
    (shard,) = find(write_csv(tmp_path, b"text,stars\ngood,4\nbad,1\nso so,\n"))
    table = pa.concat_tables(batch.table for batch in read(shard, COLUMNS))
    pq.write_table(table, tmp_path / "a.parquet")
    assert duckdb.connect().execute("select avg(stars) from read_parquet(?)", [str(tmp_path / "a.parquet")]).fetchall() == [(2.5,)]


def test_the_delimiter_is_a_tab_in_tsv_and_the_configured_one_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("n\ttext\n1\tgood, really\n")
    (tmp_path / "b.csv").write_text("n;text\n1;good\n")
    assert read_all(tmp_path / "a.tsv")[0] == {0: "good, really"}
    columns = ColumnsConfig(delimiter=";")
    (shard,) = find_shards(str(tmp_path / "b.csv"), columns, labelled=False)
    assert [batch.table["text"].to_pylist() for batch in read(shard, columns)] == [["good"]]


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n", "\u2028"])
def test_a_delimiter_that_is_not_one_plain_character_is_a_mistake(delimiter: str) -> None:
    with pytest.raises(UserError, match=r"delimiter is .*: give one ASCII character"):
        ColumnsConfig(delimiter=delimiter)


@given(
    content=st.lists(
        st.sampled_from([b'"', b",", b"\n", b"\r", b"\r\n", b"a", b"5", b'""', b'"a\n"', b"\xff", b"\xef\xbb\xbf"]), max_size=60
    ),
    header=st.sampled_from([b"n,text\n", b"\xef\xbb\xbftext,n\r\n", b'\n"te""xt",text\r']),
    range_bytes=st.integers(1, 20),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
def test_any_division_of_a_csv_file_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: list[bytes], header: bytes, range_bytes: int
) -> None:
    path = write_csv(tmp_path, header + b"x,y\n" + b"".join(content))

    def rows() -> tuple[Any, ...]:
        try:
            return read_all(path)
        except UserError as mistake:
            return (str(mistake),)

    whole = rows()
    with monkeypatch.context() as patch:
        patch.setattr(csv, "RANGE_BYTES", range_bytes)
        assert rows() == whole


def test_a_plain_csv_is_divided_at_record_boundaries_and_a_compressed_one_is_not_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv, "RANGE_BYTES", 30)
    content = b"n,text\n" + b"".join(b'%d,"a\nlong ""review"" of a film"\n' % row for row in range(10))
    shards = find(write_csv(tmp_path, content))
    assert len(shards) == 10
    assert [shard.first_row for shard in shards] == list(range(10))
    assert all(content[shard.start - 1 :].startswith(b"\n%d," % shard.first_row) for shard in shards[1:])
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(content))
    assert len(find(tmp_path / "b.csv.gz")) == 1


def test_a_csv_of_4_mb_gives_16_shards(tmp_path: Path) -> None:
    assert len(find(write_csv(tmp_path, b"n,text\n" + (b"1," + b"x" * 1_000 + b"\n") * 4_400))) == 16


def test_a_quoted_line_break_is_part_of_its_field(tmp_path: Path) -> None:
    assert read_all(write_csv(tmp_path, b'\xef\xbb\xbfn,text\r\n1,"one\r\n""two"""\r\n\r\n2,three'))[0] == {0: 'one\r\n"two"', 1: "three"}


@pytest.mark.parametrize("batch_rows", [1, 3, 1024])
def test_a_row_with_too_many_or_too_few_fields_is_a_bad_record(tmp_path: Path, batch_rows: int) -> None:
    lines = [b"%d,1,2" % row if row % 3 == 0 else b"%d" % row if row % 5 == 0 else b"n,%d" % row for row in range(31)]
    texts, bad = read_all(write_csv(tmp_path, b"n,text\n" + b"\n".join(lines)), batch_rows=batch_rows)
    assert texts == {row: str(row) for row in range(31) if row % 3 and row % 5}
    assert {record.row: record.excerpt for record in bad} == {row: lines[row].decode() for row in range(31) if not (row % 3 and row % 5)}
    assert {record.reason for record in bad} == {"malformed"}


def test_a_csv_row_in_latin1_is_a_bad_record(tmp_path: Path) -> None:
    assert read_all(write_csv(tmp_path, b"n,text\n1,caf\xe9\n2,good\n")) == (
        {1: "good"},
        [BadRecord(row=0, byte_offset=None, reason="invalid_utf8", excerpt=r"caf\xe9")],
    )


def test_a_csv_field_of_10_mb_is_read(tmp_path: Path) -> None:
    texts, _ = read_all(write_csv(tmp_path, b"n,text\n1," + b"x" * 10_000_000 + b"\n2,good\n"))
    assert [len(text) for text in texts.values()] == [10_000_000, 4]


@pytest.mark.parametrize("row", [b"1," + b"x" * 300, b'1,"' + b"x\n" * 150])
def test_a_csv_row_over_the_size_limit_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: bytes) -> None:
    monkeypatch.setattr(csv, "LONGEST_ROW", 100)
    with pytest.raises(UserError, match=r"a.csv holds a row of over 100 characters, or a quote that is never closed"):
        read_all(write_csv(tmp_path, b"n,text\n0,good\n" + row + b"\n2,good\n"))


def test_only_small_rows_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BATCH_BYTES", 250)
    (shard,) = find(write_csv(tmp_path, b"n,text\n" + (b"1," + b"x" * 100 + b"\n") * 7))
    assert [len(batch.rows) for batch in read(shard, COLUMNS)] == [3, 3, 1]


@pytest.mark.parametrize("header", [b"n;text", b"1,I loved it"])
def test_a_wrong_delimiter_or_a_missing_header_is_a_mistake_that_shows_the_columns(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(UserError, match=f"has no column text: it has {header.decode().replace(',', ', ')}"):
        find(write_csv(tmp_path, header + b"\n" + header + b"\n"))


@pytest.mark.parametrize("content", [b"n,text\n", b"n,text\n1,2,3\n"])
def test_csv_without_rows_is_a_mistake(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"holds no reviews: 0 rows"):
        find(write_csv(tmp_path, content))


def test_compressed_csv_reads_like_plain_csv(tmp_path: Path) -> None:
    content = b'n,text\n1,"one\ntwo"\n2\n3,three\n'
    plain = read_all(write_csv(tmp_path, content))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(content))
    (tmp_path / "c.csv.zst").write_bytes(pa.compress(content, "zstd", asbytes=True))
    assert read_all(tmp_path / "b.csv.gz") == read_all(tmp_path / "c.csv.zst") == plain


def test_closing_a_reader_early_prints_nothing(tmp_path: Path) -> None:
    (shard,) = find(write_csv(tmp_path, b"n,text\n" + b"1,good\n" * 1_000))
    batches = read(shard, COLUMNS, batch_rows=1)
    assert len(next(batches).rows) == 1
    batches.close()  # type: ignore[attr-defined]
