"""Plausibility is measured on data in the ERASER layout, against marks whose figures are known by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from han.evaluate import rationales
from han.score import load
from han.types import Sentence, UserError, Word
from jobs import evaluate
from tests.helpers.scores import scored

FIRST = "the film is slow .\nthe cast is superb , and so is the music .\n"
SECOND = "nothing happens here ."


def eraser(folder: Path, evidences: list[list[dict[str, Any]]], *, as_lines: bool = False) -> Path:
    """A split of one annotation over two documents."""
    folder.mkdir(exist_ok=True)
    if as_lines:
        texts = {"one": FIRST, "two": SECOND}
        (folder / "docs.jsonl").write_text("".join(json.dumps({"docid": name, "document": text}) + "\n" for name, text in texts.items()))
    else:
        (folder / "docs").mkdir(exist_ok=True)
        (folder / "docs" / "one").write_text(FIRST)
        (folder / "docs" / "two").write_text(SECOND)
    line = {"annotation_id": "one", "classification": "POS", "query": "", "evidences": evidences}
    (folder / "val.jsonl").write_text(json.dumps(line) + "\n" + json.dumps({**line, "evidences": []}) + "\n")
    return folder / "val.jsonl"


def mark(start: int, end: int, name: str = "one") -> dict[str, Any]:
    return {"docid": name, "start_token": start, "end_token": end, "start_sentence": 0, "end_sentence": 1, "text": ""}


@pytest.mark.parametrize("as_lines", [False, True])
def test_the_marked_tokens_are_found_in_the_text(tmp_path: Path, as_lines: bool) -> None:
    (document,) = rationales.read(eraser(tmp_path, [[mark(6, 9)], [mark(0, 2, "two")]], as_lines=as_lines))
    assert document.text == f"{FIRST}\n{SECOND}"
    marked = [document.text[start:end] for start, end in document.spans[document.is_evidence].tolist()]
    assert marked == ["cast", "is", "superb", "nothing", "happens"]


@pytest.mark.parametrize(
    ("evidences", "message"),
    [
        ([[mark(16, 19)]], r"val.jsonl, line 1: tokens 16 to 19 of document one, which has 16"),
        ([[mark(0, 1, "three")]], r"line 1: document three is not in"),
        ([[{"docid": "one"}]], r"line 1: not an annotation"),
        ([], r"has no document with evidence"),
    ],
)
def test_a_split_that_does_not_fit_its_documents_is_refused(tmp_path: Path, evidences: list[list[dict[str, Any]]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        rationales.read(eraser(tmp_path, evidences))


def test_a_document_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret")
    with pytest.raises(UserError, match="is not in"):
        rationales.read(eraser(tmp_path / "data", [[mark(0, 1, "../../secret")]]))


def test_average_precision_and_precision_are_those_computed_by_hand() -> None:
    values, truth = np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False])
    assert rationales.average_precision(values, truth) == pytest.approx((1 + 2 / 3) / 2)
    assert rationales.average_precision(np.zeros(4), truth) == pytest.approx(0.5)  # equal values: the share of the evidence
    assert rationales.average_precision(-values, ~truth) == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(rationales.average_precision(values, np.zeros(4, bool)))
    assert [rationales.precision_at(values, truth, k) for k in (1, 2, 3, 9)] == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])


def test_a_token_has_the_largest_value_of_the_words_that_overlap_it() -> None:
    document = rationales.Annotated(
        name="one", text="don't stop !", spans=np.array([(0, 5), (6, 10), (11, 12)]), is_evidence=np.array([False, True, False])
    )
    words = tuple(Word(start=start, end=end, attention=0.5, effect=0.0) for start, end in ((0, 2), (2, 5), (6, 10)))
    score = scored(document.text, (Sentence(start=0, end=10, attention=1.0, words=words, effect=0.0),))
    assert rationales.of_tokens(document, score, np.array([0.1, 0.7, 0.4])).tolist() == [0.7, 0.4, 0.1]
    assert rationales.sentence_evidence(document, score).tolist() == [True]


def test_the_job_writes_the_figures_of_every_method(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = eraser(tmp_path / "data", [[mark(6, 9)]])
    evaluate.main(evaluate.Evaluate(rationales=str(split), model=str(tiny_model), out=str(tmp_path / "out")))
    figures = json.loads((tmp_path / "out" / "rationales.json").read_text())
    assert set(figures["tokens"]) == {"leave_one_out", "midpoint_gradient", "attention", "random"}
    assert set(figures["sentences"]) == {"leave_one_out", "attention", "random"}
    assert figures["evidence"] == pytest.approx(3 / 16)
    assert "at evidence" in capsys.readouterr().out
    same = rationales.measure(load(str(tiny_model)), rationales.read(split), report=lambda done, total: None)
    assert same["tokens"] == figures["tokens"]


def test_neither_data_nor_rationales_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give --data"):
        evaluate.main(evaluate.Evaluate(out=str(tmp_path / "out")))
