"""Each file of `tests.helpers.hostile_files` has its expected outcome, without a traceback and without a wrong row."""

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
def test_a_broken_file_has_its_expected_outcome(tmp_path: Path, case: FileCase) -> None:
    result = outcome(write(case, tmp_path))
    if case.mistake is not None:
        assert case.mistake in (result.mistake or "")
    else:
        assert (result.texts, result.bad, result.mistake) == (case.texts, case.bad, None)


@pytest.mark.parametrize("case", SCHEMAS, ids=lambda case: case.name)
def test_columns_are_checked_before_any_work(tmp_path: Path, case: FolderCase) -> None:
    assert folder_is_right(case, write_folder(case, tmp_path))


def test_a_flipped_byte_in_a_page_with_a_checksum_never_gives_a_wrong_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    refused = 0
    for offset in page_offsets(sound(), 20):
        path.write_bytes(flipped(sound(), offset))
        result = outcome(path)
        refused += result.mistake is not None
        assert result.texts.items() <= dict(enumerate(TEXTS)).items()
    assert refused > 10


def test_a_flipped_byte_in_a_page_without_a_checksum_can_give_a_wrong_row(tmp_path: Path) -> None:
    content = parquet(pa.table({"text": TEXTS}), use_dictionary=False, compression="none")
    path = tmp_path / "a.parquet"
    path.write_bytes(flipped(content, content.index(b"review 7")))
    assert outcome(path).texts[7] == "beview 7 is good"  # such a file has no checksum to compare with


def test_a_flipped_byte_in_a_page_without_a_checksum_never_crashes_a_reader(tmp_path: Path) -> None:
    content = parquet(pa.table({"text": TEXTS}))
    path = tmp_path / "a.parquet"
    for offset in page_offsets(content, 200):
        path.write_bytes(flipped(content, offset))
        outcome(path)  # raises every error except `UserError`


def test_a_footer_that_claims_more_rows_than_there_are_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(forged(parquet(many_rows()), len(many_rows()), 10**9))
    result = outcome(path)
    assert "is cut off: row group 0 has 23,457 rows" in (result.mistake or "")
    assert list(result.texts.values()) == many_rows()["text"].to_pylist()


@pytest.mark.parametrize("padding", [1, 5, 9])
def test_a_column_that_would_run_code_is_refused_before_it_does(tmp_path: Path, padding: int) -> None:
    result, was_run, is_run_by_arrow = touching(tmp_path, padding)
    assert "has a column of an Arrow extension type" in (result.mistake or "")
    assert (was_run, is_run_by_arrow) == (False, True)
