"""Hostile and damaged files with their expected outcome: the rows read, the quarantined records, or the `UserError` that names the file.

The tests and `tests.chaos.readers` use the same lists.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from han.config import ColumnsConfig
from han.data.files import BadReason
from han.data.sources import find_shards, read
from han.types import UserError

GOOD = b'{"text": "good"}\n'
COLUMNS = ColumnsConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCase:
    name: str
    file: str  # name; its ending is the claimed format
    content: Callable[[], bytes]
    texts: dict[int, str] = field(default_factory=dict)  # by row
    bad: dict[int, BadReason] = field(default_factory=dict)  # by row
    mistake: str | None = None  # part of its message


@dataclass(slots=True)
class Outcome:
    texts: dict[int, str] = field(default_factory=dict)
    bad: dict[int, BadReason] = field(default_factory=dict)
    mistake: str | None = None


def outcome(source: Path) -> Outcome:
    """The outcome of reading a file. Any error except a one-line `UserError` that names the file is a defect and is raised."""
    result = Outcome()
    try:
        for shard in find_shards(str(source), COLUMNS, labelled=False):
            for batch in read(shard, COLUMNS):
                assert len(batch.table) == len(batch.rows)
                result.texts |= dict(zip(batch.rows.tolist(), batch.table["text"].to_pylist(), strict=True))
                result.bad |= {record.row: record.reason for record in batch.bad}
                assert all(len(record.excerpt) <= 200 and record.excerpt.isascii() for record in batch.bad)
    except UserError as mistake:
        result.mistake = str(mistake)
        assert source.name in result.mistake or result.mistake.startswith("column ")
        assert "\n" not in result.mistake
    return result


def is_right(case: FileCase, result: Outcome) -> bool:
    if case.mistake is not None:
        return result.mistake is not None and case.mistake in result.mistake
    return result.mistake is None and result.texts == case.texts and result.bad == case.bad


def write(case: FileCase, folder: Path) -> Path:
    path = folder / case.file
    path.write_bytes(case.content())
    return path


# JSON lines


def _line(**values: object) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _second(name: str, line: bytes, reason: BadReason | None = None, text: str = "x") -> FileCase:
    """A case with this line between two good lines. It is bad for a reason, or a review."""
    texts = {0: "good", 2: "good"} | ({1: text} if reason is None else {})
    bad: dict[int, BadReason] = {1: reason} if reason else {}
    return FileCase(name=name, file="a.jsonl", content=lambda: GOOD + line.rstrip(b"\n") + b"\n" + GOOD, texts=texts, bad=bad)


def _refused(name: str, file: str, content: bytes | Callable[[], bytes], mistake: str) -> FileCase:
    return FileCase(name=name, file=file, content=(lambda: content) if isinstance(content, bytes) else content, mistake=mistake)


def _read(name: str, file: str, content: bytes | Callable[[], bytes], *texts: str) -> FileCase:
    make = (lambda: content) if isinstance(content, bytes) else content
    return FileCase(name=name, file=file, content=make, texts=dict(enumerate(texts)))


_ZSTD = pa.compress(GOOD * 10, "zstd", asbytes=True)
_NOT_JSON = "holds no JSON objects, one a line"

JSONL = [
    _second("a line that is not JSON", b"{bad", "malformed"),
    FileCase(name="half a last line", file="a.jsonl", content=lambda: GOOD + b'{"text": "ha', texts={0: "good"}, bad={1: "malformed"}),
    _read("no newline at the end", "a.jsonl", GOOD + GOOD.strip(), "good", "good"),
    _read("byte order mark", "a.jsonl", b"\xef\xbb\xbf" + GOOD, "good"),
    _read("carriage returns", "a.jsonl", GOOD.replace(b"\n", b"\r\n") * 2, "good", "good"),
    FileCase(name="blank lines", file="a.jsonl", content=lambda: b"\n \t\r\n" + GOOD + b"\n" + GOOD, texts={2: "good", 4: "good"}),
    *[
        _second(f"U+{ord(mark):04X} in a text", f'{{"text": "one{mark}two"}}'.encode(), text=f"one{mark}two")
        for mark in "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\x00\x7f\ufeff\u202e"
    ],
    _second("invalid UTF-8", b'{"text": "caf\xe9"}', "invalid_utf8"),
    _second("invalid UTF-8 in a key", b'{"text": "x", "\xff": 1}', "invalid_utf8"),
    _second("overlong UTF-8", b'{"text": "\xc0\xaf"}', "invalid_utf8"),
    _second("half a surrogate pair, escaped", b'{"text": "\\ud800"}', "invalid_utf8"),
    _second("half a surrogate pair, as bytes", b'{"text": "\xed\xa0\x80"}', "invalid_utf8"),
    _second("a whole surrogate pair, escaped", b'{"text": "\\ud83d\\ude00"}', text="\U0001f600"),
    _second("NaN", b'{"text": "x", "n": NaN}', "malformed"),
    _second("Infinity", b'{"text": "x", "n": Infinity}', "malformed"),
    _second("1e400", b'{"text": "x", "n": 1e400}', "malformed"),
    _second("an id over 2**53", _line(text="x", review_id=2**53 + 1)),
    _second("an id over 2**64", _line(text="x", review_id=2**64 + 1)),
    _second("an integer of 5,000 digits", b'{"text": "x", "n": ' + b"9" * 5_000 + b"}", "malformed"),
    _second("two equal keys", b'{"text": "first", "text": "x"}'),
    _second("depth 32", b'{"text": "x", "n": ' + b"[" * 31 + b"]" * 31 + b"}"),
    *[_second(f"depth {n:,}", b'{"text": "x", "n": ' + b"[" * n + b"]" * n + b"}", "malformed") for n in (32, 500, 990, 10_000, 1_000_000)],
    _second("objects 500 deep", b'{"text": "x", "n": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}", "malformed"),
    _second("a line of 10 MB", _line(text="x" * 10_000_000), text="x" * 10_000_000),
    _second("a line of over 16 MB", _line(text="x" * (16 << 20)), "too_large"),
    _second("zero bytes for a line", b"\0" * 4_096, "malformed"),
    _second("a list for a line", b'[{"text": "x"}]', "malformed"),
    _second("a string for a line", b'"x"', "malformed"),
    _second("null for a line", b"null", "malformed"),
    _second("two objects in a line", GOOD.strip() * 2, "malformed"),
    _second("a null text", b'{"text": null}', "missing_text"),
    _second("no text", b'{"body": "x"}', "missing_text"),
    _second("an integer text", b'{"text": 7}', "wrong_type"),
    _second("a list of texts", b'{"text": ["x"]}', "wrong_type"),
    _second("an empty text", b'{"text": ""}', text=""),  # a review that the model refuses as empty_text
    _second("more keys", b'{"z": 1, "text": "x", "a": {"b": []}}'),
    _second("a key that is not Unicode", b'{"text": "x", "\\ud800": 1}'),
    _refused("an empty file", "a.jsonl", b"", "is empty, 0 bytes"),
    _refused("only blank lines", "a.jsonl", b"\n\n\n", _NOT_JSON),
    _refused("a list for a file", "a.jsonl", b'[\n{"text": 1},\n', _NOT_JSON),
    _refused("HTML", "a.jsonl", b"<html>\n404\n</html>", _NOT_JSON),
    _refused("UTF-16", "a.jsonl", GOOD.decode().encode("utf-16"), _NOT_JSON),
    _read("gz", "a.jsonl.gz", gzip.compress(GOOD) * 2, "good", "good"),
    _refused("gz cut off", "a.jsonl.gz", gzip.compress(GOOD * 10)[:-12], "cannot be read: Truncated"),
    _refused("gz cut off in its checksum", "a.jsonl.gz", gzip.compress(GOOD * 10)[:-1], "cannot be read: Truncated"),
    _refused("gz with a wrong checksum", "a.jsonl.gz", gzip.compress(GOOD)[:-8] + bytes(8), "cannot be read"),
    _refused("gz of nothing", "a.jsonl.gz", gzip.compress(b""), _NOT_JSON),
    _refused("gz and then garbage", "a.jsonl.gz", gzip.compress(GOOD) + b"garbage", "cannot be read"),
    _refused("not gz", "a.jsonl.gz", GOOD, "cannot be read"),
    _refused("zst cut off", "a.jsonl.zst", _ZSTD[:-4], "cannot be read: Truncated"),
    _refused("zst and then garbage", "a.jsonl.zst", _ZSTD + b"garbage", "cannot be read"),
    _refused("a gz bomb", "a.jsonl.gz", lambda: gzip.compress(GOOD) + gzip.compress(b"x" * (100 << 20), 9) * 11, "when decompressed"),
]


# CSV

CSV = [
    _read("a line break in quotes", "a.csv", b'n,text\n1,"one\n""two"""\n2,three\n', 'one\n"two"', "three"),
    _read("byte order mark", "a.csv", b"\xef\xbb\xbftext,n\ngood,1\n", "good"),
    _read("carriage returns", "a.csv", b"n,text\r\n1,good\r\n2,bad\r\n", "good", "bad"),
    _read("old Mac line ends", "a.csv", b"n,text\r1,good\r2,bad\r", "good", "bad"),
    _read("no newline at the end", "a.csv", b"n,text\n1,good", "good"),
    _read("blank lines", "a.csv", b"\nn,text\n\n1,good\n\n2,bad\n\n", "good", "bad"),
    _read("NUL", "a.csv", b"n,text\n\0,a\0b\n", "a\0b"),
    _read("U+2028, U+0085 and form feed", "a.csv", "n,text\n1,a\u2028b\x85c\x0cd\n".encode(), "a\u2028b\x85c\x0cd"),
    _read("a quote in the middle of a field", "a.csv", b'n,text\n1,5" disk\n', '5" disk'),
    _read("an empty text", "a.csv", b"n,text\n1,\n", ""),
    _read("a field of 10 MB", "a.csv", lambda: b"n,text\n1," + b"x" * 10_000_000 + b"\n2,good\n", "x" * 10_000_000, "good"),
    _read("gz", "a.csv.gz", gzip.compress(b"n,text\n1,good\n"), "good"),
    FileCase(
        name="ragged rows",
        file="a.csv",
        content=lambda: b"n,text\n1,a,b\n2\n3,good\n4,a,b,c\n",
        texts={2: "good"},
        bad={0: "malformed", 1: "malformed", 3: "malformed"},
    ),
    FileCase(
        name="a quote in quotes that is not doubled",
        file="a.csv",
        content=lambda: b'n,text\n1,"he said "hi" there"\n2,good\n',
        texts={1: "good"},
        bad={0: "malformed"},
    ),
    FileCase(
        name="a quote that the next row closes",
        file="a.csv",
        content=lambda: b'n,text\n1,"never\n2,"good"\n3,good\n',
        texts={1: "good"},
        bad={0: "malformed"},
    ),
    FileCase(name="Latin-1", file="a.csv", content=lambda: b"n,text\n1,caf\xe9\n2,good\n", texts={1: "good"}, bad={0: "invalid_utf8"}),
    FileCase(
        name="half a surrogate pair",
        file="a.csv",
        content=lambda: b"n,text\n1,\xed\xa0\x80\n2,good\n",
        texts={1: "good"},
        bad={0: "invalid_utf8"},
    ),
    _refused("a quote that is never closed", "a.csv", b'n,text\n1,"never\n2,good\n', "ends inside a quote that is never closed"),
    _refused("a quote that is never closed, first column", "a.csv", b'text,n\n"never,1\ngood,2\n', "ends inside a quote"),
    _refused("a row of over 16 MB", "a.csv", lambda: b"n,text\n1," + b"x" * (17 << 20) + b"\n", "holds a row of over"),
    _refused("semicolons", "a.csv", b"n;text\n1;good\n", "has no column text: it has n;text"),
    _refused("tabs", "a.csv", b"n\ttext\n1\tgood\n", "has no column text: it has n"),
    _refused("no header", "a.csv", b"1,I loved it\n2,I did not\n", "has no column text: it has 1, I loved it"),
    _refused("two columns named text", "a.csv", b"n,text,text\n1,a,b\n", "more than one column named text"),
    _refused("only a header", "a.csv", b"n,text\n", "holds no reviews: 0 rows"),
    _refused("an empty file", "a.csv", b"", "is empty, 0 bytes"),
    _refused("only blank lines", "a.csv", b"\n\n", "does not begin with the names of its columns"),
    _refused("UTF-16", "a.csv", "n,text\n1,good\n".encode("utf-16"), "does not begin with the names of its columns"),
    _refused("gz cut off", "a.csv.gz", gzip.compress(b"n,text\n1,good\n")[:-3], "cannot be read: Truncated"),
    _refused("gz of nothing", "a.csv.gz", gzip.compress(b""), "does not begin with the names of its columns"),
]

# Parquet

TEXTS = [f"review {row} is good" for row in range(60)]


def parquet(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def sound() -> bytes:
    """A valid file: three row groups with page checksums."""
    return parquet(pa.table({"text": TEXTS, "row": range(60)}), row_group_size=25, write_page_checksum=True)


def flipped(content: bytes, offset: int) -> bytes:
    return content[:offset] + bytes([content[offset] ^ 0x10]) + content[offset + 1 :]


def page_offsets(content: bytes, count: int) -> Iterator[int]:
    """Offsets within the pages, spread evenly from the first byte to the last."""
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    yield from (4 + (end - 5) * index // (count - 1) for index in range(count))


def forged(content: bytes, true: int, claimed: int) -> bytes:
    """The file with the number `claimed` instead of `true` in its footer (both as zigzag varints of Thrift)."""
    length = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - length : -8]
    assert _varint(true) in footer
    footer = footer.replace(_varint(true), _varint(claimed))
    return content[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def _varint(number: int) -> bytes:
    number *= 2
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def many_rows() -> pa.Table:
    return pa.table({"text": [f"review {row}" for row in range(23_457)]})


def big_cell(num_bytes: int) -> bytes:
    """A file with one cell of repeated letters."""
    return parquet(pa.table({"text": ["x" * num_bytes, "good"]}), compression="zstd", use_dictionary=False, write_statistics=False)


def shared_cell() -> bytes:
    """A file of 600 bytes with a text of 10 MB in each of 300 rows."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), ["x" * 10_000_000])
    return parquet(pa.table({"text": texts}), compression="zstd", store_schema=False, write_statistics=False)


_CUT = "is not Parquet, or is cut off"

PARQUET = [
    _read("sound", "a.parquet", sound, *TEXTS),
    _refused("footer cut", "a.parquet", lambda: sound()[:-20], _CUT),
    _refused("row group cut", "a.parquet", lambda: sound()[:400] + sound()[600:], "cannot be read"),
    _refused("first half", "a.parquet", lambda: sound()[: len(sound()) // 2], _CUT),
    _refused("zero bytes", "a.parquet", b"", "is empty, 0 bytes"),
    _refused("only the magic", "a.parquet", b"PAR1PAR1", "cannot be read"),
    _refused("HTML", "a.parquet", b"<html>404 Not Found</html>", _CUT),
    _refused("a footer of garbage", "a.parquet", b"PAR1" + b"\x9b\n" * 50 + (100).to_bytes(4, "little") + b"PAR1", "cannot be read"),
    _refused("a footer longer than the file", "a.parquet", b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1", "cannot be read"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderCase:
    """Parquet files of one input, and the expected outcome: the texts in order, the number of bad records, or a `UserError`."""

    name: str
    tables: tuple[pa.Table, ...]
    texts: tuple[str, ...] = ()
    num_bad: int = 0
    mistake: str | None = None


_INTEGER_IDS = pa.array([1, None], pa.int64())

SCHEMAS = [
    FolderCase(name="no text", tables=(pa.table({"body": ["good"]}),), mistake="has no column text: it has body"),
    FolderCase(name="no text in the second file", tables=(pa.table({"text": ["a"]}), pa.table({"body": ["b"]})), mistake="no column text"),
    FolderCase(name="integer text", tables=(pa.table({"text": [1]}),), mistake="column text holds int64, not strings"),
    FolderCase(name="binary text", tables=(pa.table({"text": [b"a"]}),), mistake="column text holds binary, not strings"),
    FolderCase(name="more columns", tables=(pa.table({"z": [[1]], "text": ["a"], "y": [{"b": None}]}),), texts=("a",)),
    FolderCase(name="null ids", tables=(pa.table({"text": ["a", "b"], "review_id": _INTEGER_IDS}),), texts=("a", "b")),
    FolderCase(name="repeated ids", tables=(pa.table({"text": ["a", "b"], "review_id": ["x", "x"]}),), texts=("a", "b")),
    FolderCase(name="ids of fractions", tables=(pa.table({"text": ["a"], "review_id": [0.5]}),), mistake="column review_id holds double"),
    FolderCase(name="null texts", tables=(pa.table({"text": ["a", None, "c"]}),), texts=("a", "c"), num_bad=1),
    FolderCase(name="only null texts", tables=(pa.table({"text": pa.array([None], pa.string())}),), num_bad=1),
    FolderCase(
        name="other columns in another file", tables=(pa.table({"text": ["a"]}), pa.table({"n": [1], "text": ["b"]})), texts=("a", "b")
    ),
    FolderCase(
        name="one column, two types",
        tables=(pa.table({"text": ["a"], "n": [1]}), pa.table({"text": ["b"], "n": ["1"]})),
        mistake="column n holds int64 in ",
    ),
    FolderCase(name="a dictionary of strings", tables=(pa.table({"text": pa.array(["a", "b"]).dictionary_encode()}),), texts=("a", "b")),
    FolderCase(name="large strings", tables=(pa.table({"text": pa.array(["a"], pa.large_string())}),), texts=("a",)),
    FolderCase(name="views of strings", tables=(pa.table({"text": pa.array(["a"], pa.string_view())}),), texts=("a",)),
    FolderCase(
        name="strings and large strings",
        tables=(pa.table({"text": ["a"]}), pa.table({"text": pa.array(["b"], pa.large_string())})),
        mistake="column text holds string in ",
    ),
    FolderCase(name="no rows", tables=(pa.table({"text": pa.array([], pa.string())}),), mistake="holds no reviews: 0 rows"),
    FolderCase(name="a file without rows", tables=(pa.table({"text": pa.array([], pa.string())}), pa.table({"text": ["a"]})), texts=("a",)),
]


def write_folder(case: FolderCase, folder: Path) -> Path:
    for index, table in enumerate(case.tables):
        pq.write_table(table, folder / f"{index}.parquet")
    return folder


def folder_is_right(case: FolderCase, folder: Path) -> bool:
    texts: list[str] = []
    num_bad = 0
    try:
        for shard in find_shards(str(folder), COLUMNS, labelled=False):
            for batch in read(shard, COLUMNS):
                texts += batch.table["text"].to_pylist()
                num_bad += len(batch.bad)
    except UserError as mistake:
        return case.mistake is not None and case.mistake in str(mistake)
    return (case.mistake, case.texts, case.num_bad) == (None, tuple(texts), num_bad)


class Touching(pa.ExtensionType):  # type: ignore[misc]
    """A type that runs code when a file with it is opened, like Ray's type for pickled objects: it creates the file `marker`."""

    def __init__(self, marker: str) -> None:
        self.marker = marker
        super().__init__(pa.string(), "touching")

    def __arrow_ext_serialize__(self) -> bytes:
        return self.marker.encode()

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Touching:
        Path(serialized.decode()).touch()
        return cls(serialized.decode())


def touching(folder: Path, padding: int) -> tuple[Outcome, bool, bool]:
    """Read a file with such a column. Returns the outcome, whether reading ran the code, and whether Arrow alone runs it (the control).

    padding: characters before the column's name, which change its base64 form in the footer.
    """
    marker, path = folder / "marker", folder / "a.parquet"
    column = pa.ExtensionArray.from_storage(Touching(str(marker)), pa.array(["x"]))
    pq.write_table(pa.table({"x": column, "x" * padding + "y": ["y"], "text": ["good"]}), path)
    pa.register_extension_type(Touching(str(marker)))
    try:
        result = outcome(path)
        was_run = marker.exists()
        pq.read_schema(path)
        return result, was_run, marker.exists()
    finally:
        pa.unregister_extension_type("touching")
