"""One outcome for each file of `tests.helpers.hostile_files`: never a traceback, never a row that the file does not hold."""

from pathlib import Path

import pyarrow as pa
import pytest

from tests.helpers.hostile_files import (
    CSV,
    JSONL,
    PARQUET,
    SCHEMAS,
    TEXTS,
    FileCase,
    FolderCase,
    flipped,
    folder_is_right,
    forged,
    many_rows,
    outcome,
    page_offsets,
    parquet,
    sound,
    touching,
    write,
    write_folder,
)


@pytest.mark.parametrize("case", [*JSONL, *CSV, *PARQUET], ids=lambda case: f"{case.file}: {case.name}")
def test_a_broken_file_has_one_outcome(tmp_path: Path, case: FileCase) -> None:
    seen = outcome(write(case, tmp_path))
    if case.mistake is not None:
        assert case.mistake in (seen.mistake or "")
    else:
        assert (seen.texts, seen.bad, seen.mistake) == (case.texts, case.bad, None)


@pytest.mark.parametrize("case", SCHEMAS, ids=lambda case: case.name)
def test_columns_are_read_or_refused_before_any_work(tmp_path: Path, case: FolderCase) -> None:
    assert folder_is_right(case, write_folder(case, tmp_path))


def test_a_flipped_byte_in_a_page_with_a_checksum_never_gives_a_wrong_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    refused = 0
    for offset in page_offsets(sound(), 20):
        path.write_bytes(flipped(sound(), offset))
        seen = outcome(path)
        refused += seen.mistake is not None
        assert seen.texts.items() <= dict(enumerate(TEXTS)).items()
    assert refused > 10


def test_a_flipped_byte_in_a_page_without_a_checksum_can_give_a_wrong_row(tmp_path: Path) -> None:
    content = parquet(pa.table({"text": TEXTS}), use_dictionary=False, compression="none")
    path = tmp_path / "a.parquet"
    path.write_bytes(flipped(content, content.index(b"review 7")))
    assert outcome(path).texts[7] == "beview 7 is good"  # nothing in such a file tells


def test_a_flipped_byte_in_a_page_without_a_checksum_never_crashes_a_reader(tmp_path: Path) -> None:
    content = parquet(pa.table({"text": TEXTS}))
    path = tmp_path / "a.parquet"
    for offset in page_offsets(content, 200):
        path.write_bytes(flipped(content, offset))
        outcome(path)  # anything but a `Mistake` comes through


def test_a_footer_that_claims_more_rows_than_there_are_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(forged(parquet(many_rows()), len(many_rows()), 10**9))
    seen = outcome(path)
    assert "is cut off: row group 0 has 23,457 rows" in (seen.mistake or "")
    assert list(seen.texts.values()) == many_rows()["text"].to_pylist()


@pytest.mark.parametrize("padding", [1, 5, 9])
def test_a_column_that_would_run_code_is_refused_before_it_does(tmp_path: Path, padding: int) -> None:
    seen, was_touched, is_touched_by_arrow = touching(tmp_path, padding)
    assert "has a column of an Arrow extension type" in (seen.mistake or "")
    assert (was_touched, is_touched_by_arrow) == (False, True)
