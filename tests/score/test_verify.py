"""Checks of a published folder: each kind of damage to a valid folder is reported with its place."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from han.config import ColumnsConfig, OutputConfig, as_json
from han.data.sources import BadRecord, Batch
from han.model import artifact
from han.score import contract, publish
from han.score import scorer as scoring
from han.score import verify as verifying
from han.score.publish import Part, PartPlan
from han.score.scorer import Scorer
from han.score.verify import PROBLEMS, Verdict, verify
from han.types import UserError
from jobs import cli
from jobs.verify import Verify, main

# row 0 of the scores is TEXTS[0], row 1 is TEXTS[2], row 2 is TEXTS[3]
TEXTS = ["Good film. I loved it!", " ", "Bad\u00a0\U0001f600 film.  Not good\u3000it was dull.", "Not good, not bad. It was dull."]
FIRST = "scores/part-0.parquet"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> Scorer:
    return Scorer(artifact.load(tiny_model))


def write(out: Path, scorer: Scorer, *, columns: ColumnsConfig | None = None, ids: Iterable[str] = "abcdefgh", **options: Any) -> Path:
    """A published folder of two parts with six scored reviews and four quarantined records."""
    columns, output, left = columns or ColumnsConfig(), OutputConfig(**options), list(ids)
    job = {"model": scorer.fingerprint, "input": {}, "settings": {"attention": output.attention, "columns": as_json(columns)}}
    records = []
    with publish.claimed(str(out), job, failpoint=None) as claim:
        assert claim is not None
        for name in ("part-0", "part-1"):
            mine = [left.pop(0) for _ in TEXTS]
            table = pa.table({columns.review_id: mine, columns.text: TEXTS, "stars": [1, 2, 3, 4]})
            part_plan = PartPlan(
                place=str(out),
                name=name,
                file=f"{name}.csv",
                schema=table.schema,
                labels=scorer.labels,
                columns=columns,
                output=output,
                metadata={"model": scorer.fingerprint},
                run="",
                failpoint=None,
            )
            part = Part(part_plan)
            broken = BadRecord(row=9, byte_offset=77, reason="malformed", excerpt="{...")
            batch = Batch(table=table, rows=np.arange(4), byte_offsets=None, bad=(broken,))
            part.add(batch, pa.table({"review_id": mine, "text": TEXTS}), scorer.score_flat(TEXTS))
            records.append(part.close()[0])
        publish.publish(claim, records, {})
    return out


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, scorer: Scorer) -> Path:
    """Read only."""
    return write(tmp_path_factory.mktemp("good") / "out", scorer)


@pytest.fixture
def out(good: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(good, tmp_path / "out"))


def check(out: Path, *, unique_ids: bool = False) -> Verdict:
    return verify(str(out), unique_ids=unique_ids, report=lambda what, done, total: None)


def edit(out: Path, change: Callable[[dict[str, Any]], object], name: str = "_manifest.json") -> None:
    values = json.loads((out / name).read_text())
    change(values)
    (out / name).write_text(json.dumps(values))


def list_again(out: Path) -> None:
    """Update the manifest to the current files, so that only their content is wrong."""

    def change(manifest: dict[str, Any]) -> None:
        for record in manifest["parts"]:
            files = [("scores", file) for file in record["files"]] + [("_quarantine", record["quarantine"])]
            for folder, file in files:
                content = (out / folder / file["name"]).read_bytes()
                file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    edit(out, change)


def rewrite(out: Path, change: Callable[[list[Row]], object]) -> None:
    """Change the rows of the first file, and update the manifest."""
    table = pq.read_table(out / FIRST)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), out / FIRST)
    list_again(out)


def relabel(row: Row) -> None:
    other = min(row["probabilities"], key=row["probabilities"].__getitem__)
    row |= {"label": other, "probability": row["probabilities"][other]}


def halve(row: Row) -> None:
    row["probabilities"] = {label: value / 2 for label, value in row["probabilities"].items()}
    row["probability"] /= 2


def swap_words(row: Row) -> None:
    words = row["sentences"][1]["words"]
    words[0], words[1] = words[1], words[0]


def swap_sentences(row: Row) -> None:
    row["sentences"].reverse()


def sentence(row: Row) -> Row:
    found: Row = row["sentences"][0]
    return found


def word(row: Row, place: int = 0) -> Row:
    found: Row = row["sentences"][0]["words"][place]
    return found


# what is done to row 1, what is counted as broken, and what is said of it
DAMAGED_ROWS: dict[str, tuple[Callable[[Row], object], str, str]] = {
    "another model": (lambda row: row.update(model="f" * 16), "answers", "its model is not "),
    "a label that is none": (lambda row: row.update(label="neutral"), "answers", "its label is none of negative, positive"),
    "a label that is null": (lambda row: row.update(label=None), "answers", "its label is none of negative, positive"),
    "the other label": (relabel, "answers", "its label is not the most probable"),
    "another probability": (lambda row: row.update(probability=0.125), "answers", "its probability is not that of its label"),
    "no probability": (lambda row: row.update(probability=None), "answers", "its probability is not that of its label"),
    "a NaN": (lambda row: row["probabilities"].update(negative=float("nan")), "answers", "its probabilities are not numbers from 0 to 1"),
    "an infinity": (lambda row: row["probabilities"].update(negative=np.inf), "answers", "its probabilities are not numbers from 0 to 1"),
    "probabilities that are null": (lambda row: row.update(probabilities=None), "answers", "its probabilities are not numbers from 0 to 1"),
    "half the probabilities": (halve, "answers", "its probabilities do not sum to 1"),
    "no tokens": (lambda row: row.update(num_tokens=None), "answers", "its num_tokens is below 1"),
    "too many unknown": (lambda row: row.update(num_unknown=999), "answers", "its num_unknown is not from 0 to num_tokens"),
    "less than nothing cut": (lambda row: row.update(num_characters_cut=-1), "answers", "its num_characters_cut is below 0"),
    "no flag": (lambda row: row.update(unfamiliar=None), "answers", "its unfamiliar is null"),
    "a token more": (
        lambda row: row.update(num_tokens=row["num_tokens"] + 1),
        "attention",
        "its num_tokens is not the number of its words",
    ),
    "no sentences": (lambda row: row.update(sentences=None), "attention", "its sentences are null, but attention is words"),
    "an empty list": (lambda row: row.update(sentences=[]), "attention", "the attention of its sentences does not sum to 1"),
    "no words": (lambda row: sentence(row).update(words=None), "attention", "the words of a sentence are null, but attention is words"),
    "sentence attention": (
        lambda row: sentence(row).update(attention=0.99),
        "attention",
        "the attention of its sentences does not sum to 1",
    ),
    "word attention": (
        lambda row: word(row).update(attention=0.99),
        "attention",
        "the attention of the words of a sentence does not sum to 1",
    ),
    "infinite attention": (lambda row: word(row).update(attention=-np.inf), "attention", "the attention of a word is not from 0 to 1"),
    "an attention that is null": (
        lambda row: sentence(row).update(attention=None),
        "attention",
        "attention of a sentence is not from 0 to 1",
    ),
    "a word of no length": (lambda row: word(row).update(end=word(row)["start"]), "spans", "a word is not 0 <= start < end"),
    "a word before the text": (lambda row: word(row).update(start=-1), "spans", "a word is not 0 <= start < end"),
    "a start that is null": (lambda row: word(row).update(start=None), "spans", "a word is not 0 <= start < end"),
    "words out of order": (swap_words, "spans", "a word starts before the one before it ends"),
    "words that overlap": (
        lambda row: word(row, 1).update(start=word(row)["start"]),
        "spans",
        "a word starts before the one before it ends",
    ),
    "sentences out of order": (swap_sentences, "spans", "a sentence starts before the one before it ends"),
    "a sentence that ends early": (lambda row: sentence(row).update(end=2), "spans", "does not reach from its first word to its last"),
    "a word behind the text": (lambda row: word(row, -1).update(end=500), "slices", "a word is outside its text"),
    "a text that is too short": (lambda row: row.update(text="Bad"), "slices", "a word is outside its text"),
    "a text that is null": (lambda row: row.update(text=None), "slices", "a word is outside its text"),
    "a word with a space": (lambda row: word(row).update(end=4), "slices", "a word begins or ends with white space"),
    "a text with a wide space": (lambda row: row.update(text=row["text"].replace("film", "fil\u3000")), "slices", "with white space"),
}


@pytest.mark.parametrize(("damage", "kind", "said"), DAMAGED_ROWS.values(), ids=DAMAGED_ROWS)
def test_a_damaged_row_is_reported_with_its_name(out: Path, damage: Callable[[Row], object], kind: str, said: str) -> None:
    rewrite(out, lambda rows: damage(rows[1]))
    verdict = check(out)
    assert verdict.broken[kind] >= 1
    assert any(problem.startswith(f"{FIRST} row 1: ") and said in problem for problem in verdict.problems), verdict.problems
    assert not any("row 0" in problem or "row 2" in problem for problem in verdict.problems)


def test_a_valid_folder_has_no_problems_and_is_checked_completely(good: Path) -> None:
    verdict = check(good, unique_ids=True)
    assert verdict.problems == verdict.notes == ()
    rows = dict.fromkeys(("answers", "attention", "effects", "spans", "slices"), 6)
    assert verdict.checked == rows | {"manifest": 2, "files": 4, "quarantine": 4, "ids": 8}


def test_a_uri_is_checked_like_a_folder(good: Path) -> None:
    assert verify(f"file://{good}", unique_ids=True, report=lambda *step: None) == check(good, unique_ids=True)


@pytest.mark.parametrize(("num_words", "off"), [(2, 1), (160, 1), (9_000, 0)])
def test_a_sum_may_differ_only_by_the_rounding_of_its_shares(num_words: int, off: int) -> None:
    words = [{"start": place, "end": place + 1, "attention": 1.00002 / num_words} for place in range(num_words)]
    whole = {"start": 0, "end": num_words, "attention": 1.0, "words": words}
    attended = contract.attended(pa.array([[whole]], scoring.schema(["any"]).field("sentences").type))
    assert [len(rows) for _, rows in contract.broken_attention(attended)] == [0, 0, 0, off]


@pytest.mark.parametrize("attention", ["sentences", "none"])
def test_omitted_attention_is_valid_if_requested(tmp_path: Path, scorer: Scorer, attention: str) -> None:
    verdict = check(write(tmp_path / "out", scorer, attention=attention))
    assert verdict.problems == ()
    assert verdict.checked.get("slices", 0) == (6 if attention == "sentences" else 0)


@pytest.mark.parametrize(
    ("requested", "problem"),
    [("sentences", "a sentence has words, but attention is sentences"), ("none", "it has sentences, but attention is none")],
)
def test_unrequested_attention_is_a_problem(out: Path, requested: str, problem: str) -> None:
    edit(out, lambda manifest: manifest["job"]["settings"].update(attention=requested))
    verdict = check(out)
    assert verdict.broken["attention"] == 6
    assert verdict.problems[0] == f"{FIRST} row 0: {problem}"


def test_sentences_without_words_must_lie_within_their_text(tmp_path: Path, scorer: Scorer) -> None:
    out = write(tmp_path / "out", scorer, attention="sentences")
    rewrite(out, lambda rows: sentence(rows[2]).update(end=4))
    assert check(out).problems == (f"{FIRST} row 2: a sentence begins or ends with white space",)


@pytest.mark.parametrize("text", ["sentences", "label", "review"])
def test_the_text_column_may_have_any_name(tmp_path: Path, scorer: Scorer, text: str) -> None:
    out = write(tmp_path / "out", scorer, columns=ColumnsConfig(text=text))
    assert check(out).checked["slices"] == 6
    carried = f"input_{text}" if text != "review" else text
    rewrite(out, lambda rows: rows[0].update({carried: "short"}))
    assert check(out).problems == (f"{FIRST} row 0: a word is outside its text",)


def test_a_text_that_is_not_carried_is_no_problem(tmp_path: Path, scorer: Scorer) -> None:
    verdict = check(write(tmp_path / "out", scorer, carry=("stars",)), unique_ids=True)
    assert verdict.problems == ()
    assert "slices" not in verdict.checked
    assert verdict.checked["ids"] == 8


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# what is done to the folder, what is counted as broken, and what is said of it
DAMAGED_FILES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a file is gone": (lambda out: (out / FIRST).unlink(), "files", f"{FIRST}: is missing"),
    "the quarantine is gone": (lambda out: (out / "_quarantine/part-1.jsonl").unlink(), "files", "_quarantine/part-1.jsonl: is missing"),
    "a file breaks off": (lambda out: (out / FIRST).write_bytes((out / FIRST).read_bytes()[:-9]), "files", f"{FIRST}: bytes are "),
    "a bit has changed": (lambda out: flip(out / FIRST), "files", f"{FIRST}: SHA256 is "),
    "a file too many": (
        lambda out: shutil.copy(out / FIRST, out / "scores/x.parquet"),
        "files",
        "scores/x.parquet: is not in _manifest.json",
    ),
    "a file in a folder": (lambda out: shutil.copytree(out / "scores", out / "scores/v"), "files", "scores/v/part-0.parquet: is not in "),
    "an unfinished file": (
        lambda out: (out / "scores/.part-0.tmp").touch(),
        "files",
        "scores/.part-0.tmp: is not in _manifest.json (0 bytes)",
    ),
    "a line too many": (
        lambda out: (out / "_quarantine/y.jsonl").touch(),
        "files",
        "_quarantine/y.jsonl: is not in _manifest.json (0 bytes)",
    ),
    "Parquet elsewhere": (lambda out: shutil.copy(out / FIRST, out), "files", "part-0.parquet: is outside scores/"),
    "not Parquet": (lambda out: ((out / FIRST).write_text("<html>"), list_again(out)), "files", f"{FIRST} cannot be read: "),
    "a row too few": (lambda out: rewrite(out, list[Row].pop), "files", f"{FIRST}: rows are 2, not 3"),
}


@pytest.mark.parametrize(("damage", "kind", "said"), DAMAGED_FILES.values(), ids=DAMAGED_FILES)
def test_a_damaged_folder_is_reported_with_its_file(out: Path, damage: Callable[[Path], object], kind: str, said: str) -> None:
    damage(out)
    verdict = check(out)
    assert verdict.broken[kind] >= 1
    assert any(problem.startswith(said) for problem in verdict.problems), verdict.problems


def test_columns_that_differ_between_files_are_a_problem(out: Path) -> None:
    pq.write_table(pq.read_table(out / FIRST).drop_columns("stars"), out / FIRST)
    list_again(out)
    assert "scores/part-1.parquet: its columns are not those of the other files" in check(out).problems


def test_unexpected_columns_are_a_problem(out: Path) -> None:
    pq.write_table(pq.read_table(out / FIRST).drop_columns("probabilities"), out / FIRST)
    list_again(out)
    assert any(problem.startswith(f"{FIRST}: its last columns are not label, probability") for problem in check(out).problems)


# what is done to the manifest, and what is said of it
DAMAGED_MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a total": (lambda manifest: manifest["counts"].update(rows_in=11), "_manifest.json: rows_in is 11, not 10"),
    "the tokens": (lambda manifest: manifest["counts"].update(num_tokens=1), "_manifest.json: over all parts: num_tokens are "),
    "a record": (lambda manifest: manifest["parts"][0].update(scored=2), "_manifest.json: part-0: rows_in is 5, not 4"),
    "a record's tokens": (lambda manifest: manifest["parts"][0].update(num_tokens=1), "scores: part-0: num_tokens are "),
    "a reason": (lambda manifest: manifest["parts"][0]["reasons"].update(empty_text=2), "_quarantine: part-0: reasons are "),
    "all reasons": (lambda manifest: manifest["reasons"].update(too_long=1), "_manifest.json: of all reasons: records are 5, not 4"),
    "a record's model": (
        lambda manifest: manifest["parts"][1].update(model="f" * 16),
        "_manifest.json: part-1: model is ffffffffffffffff, not ",
    ),
    "a part twice": (lambda manifest: manifest["parts"].append(manifest["parts"][0]), "_manifest.json: part-0 is listed 2 times"),
    "a file twice": (
        lambda manifest: manifest["parts"][1]["files"].append(manifest["parts"][0]["files"][0]),
        f"_manifest.json: {FIRST} is listed 2",
    ),
    "a part too few": (lambda manifest: manifest["parts"].pop(), "scores/part-1.parquet: is not in _manifest.json"),
    "no parts": (lambda manifest: manifest.pop("parts"), "_manifest.json: is not as han score writes it: parts: Field required"),
    "no attention": (
        lambda manifest: manifest["job"]["settings"].update(attention="all"),
        "_manifest.json: is not as han score writes it",
    ),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGED_MANIFESTS.values(), ids=DAMAGED_MANIFESTS)
def test_a_manifest_with_wrong_totals_is_reported(out: Path, damage: Callable[[dict[str, Any]], object], said: str) -> None:
    edit(out, damage)
    assert any(problem.startswith(said) for problem in check(out).problems), check(out).problems


def test_a_missing_or_unreadable_manifest_is_a_problem(out: Path) -> None:
    (out / "_manifest.json").write_text("{")
    assert check(out).problems[0].startswith("_manifest.json: is not JSON")
    (out / "_manifest.json").unlink()
    assert check(out).problems == ("_manifest.json: is missing",)


def test_success_agrees_with_the_manifest(out: Path) -> None:
    edit(out, lambda counts: counts.update(scored=5), "_SUCCESS")
    assert check(out).problems[0].startswith("_SUCCESS: counts are ")
    (out / "_SUCCESS").write_text("")
    assert check(out).problems[0].startswith("_SUCCESS: is not JSON")


def set_aside(out: Path, change: Callable[[list[Any]], object]) -> Verdict:
    """The reported problem for changed lines in the first file of the quarantine."""
    path = out / "_quarantine" / "part-0.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    list_again(out)
    return check(out)


# what is done to the lines of the quarantine, and what is said of it
DAMAGED_LINES: dict[str, tuple[Callable[[list[Any]], object], str]] = {
    "half a line": (lambda lines: lines.__setitem__(1, '{"file": "pa'), "_quarantine/part-0.jsonl line 2: is not JSON"),
    "an empty line": (lambda lines: lines.append(""), "_quarantine/part-0.jsonl line 3: is not JSON"),
    "a list": (lambda lines: lines.__setitem__(0, []), "_quarantine/part-0.jsonl line 1: is not a JSON object"),
    "a missing key": (lambda lines: lines[1].pop("excerpt"), "_quarantine/part-0.jsonl line 2: its keys are "),
    "a row that is none": (lambda lines: lines[1].update(row="9"), "_quarantine/part-0.jsonl line 2: its file, row and reason are not "),
    "a record twice": (lambda lines: lines[1].update(row=1), "_quarantine: row 1 of part-0.csv occurs 2 times"),
    "another reason": (lambda lines: lines[1].update(reason="too_long"), "_quarantine: part-0: reasons are "),
    "a line too few": (lambda lines: lines.pop(), "_quarantine: part-0: reasons are "),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGED_LINES.values(), ids=DAMAGED_LINES)
def test_a_damaged_quarantine_is_reported_with_its_line(out: Path, damage: Callable[[list[Any]], object], said: str) -> None:
    verdict = set_aside(out, damage)
    assert verdict.broken["quarantine"] >= 1
    assert any(problem.startswith(said) for problem in verdict.problems), verdict.problems


def test_files_of_a_killed_run_are_a_note_and_not_a_problem(out: Path) -> None:
    (out / ".staging" / "parts").mkdir(parents=True)
    (out / ".staging" / "parts" / "x.parquet").touch()
    verdict = check(out)
    assert verdict.num_problems == 0
    assert verdict.notes[0].startswith(".staging is left of a run that was killed")


def test_all_problems_are_counted_and_the_first_ones_are_listed(out: Path) -> None:
    rewrite(out, lambda rows: [rows[0].update(label="x") for _ in range(3)] and rows.extend([rows[0]] * 50))
    verdict = check(out)
    assert verdict.broken["answers"] >= 51
    assert verdict.num_problems >= 51
    assert len(verdict.problems) == PROBLEMS


@pytest.mark.parametrize("ids", ["abcdaefg", "abcdefag", "abcdebgh"], ids=["scored", "scored again", "quarantined and not"])
def test_a_duplicate_id_is_a_problem_only_if_unique_ids_are_required(tmp_path: Path, scorer: Scorer, ids: str) -> None:
    out = write(tmp_path / "out", scorer, ids=ids)
    assert check(out).num_problems == 0
    verdict = check(out, unique_ids=True)
    assert verdict.broken["ids"] == 1
    assert "review_id" in verdict.problems[0]
    assert " is also that of scores/part-0.parquet row 0" in verdict.problems[0] or "line 1" in verdict.problems[0]


def test_equal_hashes_of_different_ids_are_not_a_problem(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "hashes", lambda values: np.zeros(len(values), np.uint64))
    assert check(good, unique_ids=True).num_problems == 0


def test_duplicates_beyond_the_comparison_limit_are_counted_by_hash(
    tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write(tmp_path / "out", scorer, ids="abcdabcd")
    monkeypatch.setattr(verifying, "COMPARED", 1)
    verdict = check(out, unique_ids=True)
    assert verdict.broken["ids"] == 4
    assert verdict.problems[-1] == "3 more rows have ids that others have"


@given(st.lists(st.text(max_size=4), max_size=40))
def test_hashes_are_equal_exactly_for_equal_strings(values: list[str]) -> None:
    values = [value.encode("utf-8", "replace").decode() for value in values]
    found = verifying.hashes(pa.array(values, pa.string())).tolist()
    alone = [int(verifying.hashes(pa.array([value], pa.string()))[0]) for value in values]
    assert found == alone
    assert len(set(found)) == len(set(values))


def test_a_missing_folder_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is no folder: give the --out of "):
        check(tmp_path / "nowhere")


def test_an_unfinished_folder_is_a_mistake(out: Path) -> None:
    (out / "_SUCCESS").unlink()
    with pytest.raises(UserError, match=r"has no _SUCCESS, so han score has not finished there: run the same han score again first"):
        check(out)


def test_a_manifest_of_another_format_is_a_mistake(out: Path) -> None:
    edit(out, lambda manifest: manifest.update(format=2))
    with pytest.raises(UserError, match="format 2, not 1"):
        check(out)


def test_the_job_reports_a_valid_folder_with_exit_code_0(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(Verify(out=str(good), unique_ids=True))
    said = capsys.readouterr().out
    assert "OK: 10 records in = 6 scored + 4 quarantined" in said
    assert "BROKEN" not in said


def test_the_job_reports_problems_with_exit_code_1(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(out, lambda rows: relabel(rows[1]))
    with pytest.raises(SystemExit) as caught:
        main(Verify(out=str(out)))
    assert caught.value.code == 1
    said = capsys.readouterr().out
    assert f"\nproblems: 1\n  {FIRST} row 1: its label is not the most probable\n" in said
    assert "OK:" not in said


def test_the_job_ends_with_exit_code_2_if_there_is_nothing_to_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["verify", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        cli.run(Verify, main)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} has no _SUCCESS")
