import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from han import failpoint
from han.config import ColumnsConfig
from han.data import sources
from han.model import artifact
from han.score import batch_job, publish
from han.score import scorer as scoring
from han.score.batch_job import Plan, Scores
from han.score.scorer import Scored, Scorer
from han.storage import Folder
from han.types import Score, UserError
from tests.helpers.commit import commit, digest, killed, plan, precomputed

TEXTS = ["Good film. I loved it!", "", "Bad.", "Not good, not bad."]
NUM_PARTS, NUM_ROWS = 3, 12


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three row groups of four reviews. One review of each has no word."""
    path = tmp_path_factory.mktemp("dump") / "dump.parquet"
    ids = [f"{row // 4}/{row % 4}" for row in range(NUM_ROWS)]
    table = pa.table({"review_id": ids, "label": [row % 2 for row in range(NUM_ROWS)], "text": TEXTS * NUM_PARTS})
    pq.write_table(table, path, row_group_size=4)
    return str(path)


@pytest.fixture(scope="module")
def scorer(tiny_model: Path) -> Scorer:
    return Scorer(artifact.load(tiny_model))


@pytest.fixture
def job(dump: str, tiny_model: Path, tmp_path: Path) -> Plan:
    return plan(dump, str(tmp_path / "out"), tiny_model)


@pytest.fixture(scope="module")
def answer(dump: str, tiny_model: Path) -> Callable[[list[str]], Scored]:
    return precomputed(plan(dump, "unused", tiny_model))


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(folder.glob("_quarantine/*.jsonl")) for line in path.read_text().splitlines()]


def test_the_published_table_has_the_input_and_the_scores(job: Plan, scorer: Scorer) -> None:
    manifest = commit(job, scorer.score_flat)
    assert manifest is not None
    assert manifest["counts"] == {"rows_in": 12, "scored": 9, "quarantined": 3, "num_tokens": 45}
    assert manifest["reasons"] == {"empty_text": 3}
    table = pq.read_table(Path(job.out) / "scores")
    assert table.column_names == ["review_id", "input_label", "text", *scoring.schema(scorer.labels).names]
    assert table["review_id"].to_pylist() == [f"{part}/{row}" for part in range(NUM_PARTS) for row in (0, 2, 3)]
    expected = [scoring.as_json(answer) for answer in scorer.score(TEXTS) if isinstance(answer, Score)]
    assert table.select(scoring.schema(scorer.labels).names).to_pylist() == expected * NUM_PARTS


def test_a_finished_folder_holds_nothing_else(job: Plan, scorer: Scorer) -> None:
    commit(job, scorer.score_flat)
    parts = [item.name for item in job.items]
    scores, quarantine = {f"scores/{part}.parquet" for part in parts}, {f"_quarantine/{part}.jsonl" for part in parts}
    assert names(Path(job.out)) == {"_SUCCESS", "_manifest.json"} | scores | quarantine
    assert os.listdir(Path(job.out).parent) == ["out"]


@pytest.mark.parametrize("reader", ["pyarrow", "pandas", "duckdb"])
def test_the_whole_folder_reads_as_one_table_of_scores(job: Plan, scorer: Scorer, reader: str) -> None:
    commit(job, scorer.score_flat)
    if reader == "pyarrow":
        found = pq.read_table(job.out)["num_tokens"].to_pylist()
    elif reader == "pandas":
        found = pd.read_parquet(job.out)["num_tokens"].tolist()
    else:
        query = "select num_tokens from read_parquet(?) order by filename, file_row_number"
        found = [row[0] for row in duckdb.connect().execute(query, [f"{job.out}/**/*.parquet"]).fetchall()]
    assert found == [7, 2, 6] * NUM_PARTS


def test_the_manifest_lists_every_file_with_rows_bytes_and_checksum(job: Plan, scorer: Scorer) -> None:
    commit(job, scorer.score_flat)
    out = Path(job.out)
    parts = json.loads((out / "_manifest.json").read_text())["parts"]
    listed = [(out / "scores" / file["name"], file) for part in parts for file in part["files"]]
    listed += [(out / "_quarantine" / part["quarantine"]["name"], part["quarantine"]) for part in parts]
    assert {str(path.relative_to(out)) for path, _ in listed} == names(out) - {"_SUCCESS", "_manifest.json"}
    for path, file in listed:
        assert set(file) == {"name", "rows", "bytes", "sha256"}
        assert file["bytes"] == path.stat().st_size
        assert file["rows"] == (pq.read_metadata(path).num_rows if path.suffix == ".parquet" else 1)


def test_unscorable_records_are_quarantined_with_position_reason_and_excerpt(tiny_model: Path, scorer: Scorer, tmp_path: Path) -> None:
    first, broken = json.dumps({"text": "Good film.", "review_id": "a"}) + "\n", '{"text": "\x07...\n'
    (tmp_path / "dump.jsonl").write_text(first + broken + json.dumps({"text": "\u2028 \x07", "review_id": "b"}) + "\n")
    job = plan(str(tmp_path / "dump.jsonl"), str(tmp_path / "out"), tiny_model)
    commit(job, scorer.score_flat)
    about = {"file": str(tmp_path / "dump.jsonl"), "review_id": None, "message": None}
    offset = len(first)
    assert lines(tmp_path / "out") == [
        about | {"row": 1, "byte_offset": offset, "reason": "malformed", "excerpt": '{"text": "\\x07...'},
        about
        | {"row": 2, "byte_offset": offset + len(broken), "review_id": "b", "reason": "empty_text", "message": "no word in the text"}
        | {"excerpt": "\\u2028 \\x07"},
    ]


def test_an_input_without_ids_gets_generated_ids(tiny_model: Path, scorer: Scorer, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "dump.parquet")
    commit(plan(str(tmp_path / "dump.parquet"), str(tmp_path / "out"), tiny_model), scorer.score_flat)
    assert pq.read_table(tmp_path / "out")["review_id"].to_pylist() == [f"dump.parquet:{row}" for row in (0, 2, 3)]


def test_only_the_requested_columns_are_carried(dump: str, tiny_model: Path, scorer: Scorer, tmp_path: Path) -> None:
    commit(plan(dump, str(tmp_path / "out"), tiny_model, carry=("review_id",)), scorer.score_flat)
    assert pq.read_table(tmp_path / "out").column_names == ["review_id", *scoring.schema(scorer.labels).names]


def test_a_missing_column_to_carry_is_a_mistake(dump: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column stars to carry"):
        plan(dump, str(tmp_path / "out"), tiny_model, carry=("stars",))


def test_files_have_the_requested_rows_and_compression(dump: str, tiny_model: Path, scorer: Scorer, tmp_path: Path) -> None:
    commit(plan(dump, str(tmp_path / "out"), tiny_model, rows_per_file=2, compression="gzip"), scorer.score_flat)
    found = [pq.read_metadata(path) for path in sorted((tmp_path / "out" / "scores").iterdir())]
    assert [metadata.num_rows for metadata in found] == [1, 2] * NUM_PARTS  # part-0-1.parquet sorts before part-0.parquet
    assert {metadata.row_group(0).column(0).compression for metadata in found} == {"GZIP"}


def test_parquet_metadata_names_model_code_settings_and_date(job: Plan, scorer: Scorer) -> None:
    manifest = commit(job, scorer.score_flat)
    assert manifest is not None
    metadata = pq.read_schema(next((Path(job.out) / "scores").iterdir())).metadata
    assert metadata[b"han.model"] == job.job["model"].encode()
    assert json.loads(metadata[b"han.settings"]) == job.job["settings"]
    assert metadata[b"han.began"].decode() == manifest["run"]["began"]
    assert metadata[b"han.version"].decode() == manifest["run"]["version"]


def test_colliding_columns_are_renamed_until_their_names_are_free() -> None:
    columns = ["id", "label", "input_label", "text", "model", "review_id"]
    assert publish.renamed(columns, review_id="review_id") == {"label": "input_input_label", "model": "input_model"}
    assert publish.renamed(columns, review_id="other")["review_id"] == "input_review_id"


@pytest.mark.parametrize("point", [*failpoint.OF_A_PART, *failpoint.OF_THE_DRIVER])
def test_a_job_killed_at_any_point_publishes_nothing_partial_and_resumes_to_the_same_result(
    dump: str, tiny_model: Path, answer: Callable[[list[str]], Scored], tmp_path: Path, point: str
) -> None:
    commit(plan(dump, str(tmp_path / "whole"), tiny_model), answer)
    job = plan(dump, str(tmp_path / "out"), tiny_model)
    second = f"{point}:2" if point in failpoint.OF_A_PART else point
    assert killed(partial(commit, job, answer, failpoint=second))
    visible = [name for name in names(tmp_path / "out") if name.endswith(".parquet")]
    assert len(visible) in (0, NUM_PARTS)
    commit(job, answer, failpoint=second)
    assert digest(job.out) == digest(tmp_path / "whole")
    assert names(tmp_path / "out") == names(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]
    assert lines(tmp_path / "out") == lines(tmp_path / "whole")


def test_finished_parts_are_not_scored_again(job: Plan, answer: Callable[[list[str]], Scored]) -> None:
    assert killed(partial(commit, job, answer, failpoint="recorded:2"))
    scored: list[list[str]] = []

    def count(texts: list[str]) -> Scored:
        scored.append(texts)
        return answer(texts)

    commit(job, count)
    assert len(scored) == NUM_PARTS - 2


def test_a_finished_job_has_nothing_to_do(job: Plan, scorer: Scorer) -> None:
    commit(job, scorer.score_flat)
    before = {path: path.stat().st_mtime_ns for path in Path(job.out).rglob("*")}
    assert commit(job, scorer.score_flat) is None
    assert {path: path.stat().st_mtime_ns for path in Path(job.out).rglob("*")} == before


@pytest.mark.parametrize("is_published", [True, False])
@pytest.mark.parametrize("change", [{"model": "f" * 16}, {"input": {"dump.parquet": [11, 20]}}, {"settings": {"attention": "none"}}])
def test_a_different_job_on_the_same_folder_is_refused_and_changes_nothing(
    job: Plan, answer: Callable[[list[str]], Scored], is_published: bool, change: dict[str, Any]
) -> None:
    assert killed(partial(commit, job, answer, failpoint="success" if is_published else "recorded"))
    if is_published:
        commit(job, answer)
    before = names(Path(job.out))
    with pytest.raises(UserError, match="belongs to another job"), publish.claimed(job.out, {**job.job, **change}, failpoint=None):
        pass
    assert names(Path(job.out)) == before


def test_a_folder_with_other_content_is_refused_and_not_changed(job: Plan, scorer: Scorer) -> None:
    Path(job.out).mkdir()
    (Path(job.out) / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        commit(job, scorer.score_flat)
    assert names(Path(job.out)) == {"precious.txt"}


def test_the_second_of_two_jobs_on_a_folder_is_refused_with_the_holder(job: Plan) -> None:
    message = f'written by another process.*"pid": {os.getpid()}'
    with publish.claimed(job.out, job.job, failpoint=None), pytest.raises(UserError, match=message):
        publish.claimed(job.out, job.job, failpoint=None).__enter__()


def test_the_lock_of_a_killed_process_does_not_block(job: Plan, answer: Callable[[list[str]], Scored]) -> None:
    assert killed(partial(commit, job, answer, failpoint="staged"))
    assert (Path(job.out) / ".staging" / "lock").exists()
    assert commit(job, answer) is not None


def test_a_job_that_waited_for_the_lock_finds_the_work_complete(job: Plan, answer: Callable[[list[str]], Scored]) -> None:
    context = multiprocessing.get_context("fork")
    gate = context.Event()

    def slow(texts: list[str]) -> Scored:
        gate.set()
        return answer(texts)

    worker = context.Process(target=commit, args=(job, slow))
    worker.start()
    assert gate.wait(30)
    while worker.is_alive():
        with contextlib.suppress(UserError):
            assert commit(job, answer) is None
    assert worker.exitcode == 0
    assert commit(job, answer) is None
    assert pq.read_table(job.out).num_rows == 9


def begin_and_abandon(job: Plan, times: int) -> None:
    """Claim and abandon the folder repeatedly."""
    while times:
        with contextlib.suppress(UserError), publish.claimed(job.out, job.job, failpoint=None) as claim:
            assert claim is not None
            assert (Path(job.out) / ".staging" / "parts").is_dir()
            publish.abandon(claim)
            times -= 1


def test_concurrent_claims_and_releases_of_a_folder_do_not_fail(job: Plan) -> None:
    workers = [multiprocessing.get_context("fork").Process(target=begin_and_abandon, args=(job, 50)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert not Path(job.out).exists()


class Disappearing(pyarrow.fs.LocalFileSystem):
    """A disk on which another process removes `lost` after a listing has found it and before it is read."""

    lost: Path

    def get_file_info(self, paths_or_selector: Any) -> Any:
        if isinstance(paths_or_selector, pyarrow.fs.FileSelector) and self.lost.exists():
            self.lost.rmdir()
            raise FileNotFoundError
        return super().get_file_info(paths_or_selector)


@pytest.mark.parametrize(("lost", "left"), [("out", []), ("out/parts", ["settings.toml"])])
def test_a_folder_that_another_process_removes_can_be_listed(tmp_path: Path, lost: str, left: list[str]) -> None:
    out = Folder(str(tmp_path / "out"))
    for name in left:
        out.make()
        out.write(name, b"", durable=False)
    (tmp_path / lost).mkdir(parents=True)
    out.system = Disappearing()
    out.system.lost = tmp_path / lost
    assert out.names(recursive=True) == left
    assert not (tmp_path / lost).exists()


def test_settings_are_removed_before_the_next_job_can_write_its_own(job: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    move, settings = Folder.move, Path(job.out) / publish.SETTINGS

    def release_lock(out: Folder, name: str, to: str) -> None:
        move(out, name, to)
        settings.write_text("the next job's")

    with publish.claimed(job.out, job.job, failpoint=None, settings="this job's") as claim:
        assert claim is not None
        monkeypatch.setattr(Folder, "move", release_lock)
        publish.abandon(claim)
    assert settings.read_text() == "the next job's"


def test_a_death_while_staged_files_are_removed_does_not_disturb_the_next_job(job: Plan, scorer: Scorer) -> None:
    left = Path(job.out) / ".staging.0123abcd"
    left.mkdir(parents=True)
    (left / "lock").touch()
    assert commit(job, scorer.score_flat) is not None
    assert not left.exists()
    left.mkdir()
    assert commit(job, scorer.score_flat) is None
    assert not left.exists()


def test_a_part_that_lost_rows_is_not_published(job: Plan, answer: Callable[[list[str]], Scored]) -> None:
    assert killed(partial(commit, job, answer, failpoint="recorded:3"))
    record = next((Path(job.out) / ".staging" / "records").iterdir())
    changed = json.loads(record.read_text())
    changed["files"][0]["rows"] += 1
    record.write_text(json.dumps(changed))
    with pytest.raises(RuntimeError, match=r"has \{'rows': 3\}"):
        commit(job, answer)
    assert not (Path(job.out) / "scores").exists()


def test_abandoning_a_claim_leaves_no_folder(job: Plan) -> None:
    with publish.claimed(job.out, job.job, failpoint=None) as claim:
        assert claim is not None
        publish.abandon(claim)
    assert os.listdir(Path(job.out).parent) == []


JOB_FILES = ["", "garbage", "[]", "{}", '{"job": [], "began": ""}', '{"job": {}, "run": "x"}', '{"job": {}, "began": {}}', "[" * 100_000]


@pytest.mark.parametrize("content", JOB_FILES)
def test_an_invalid_job_file_is_a_mistake_of_one_line(job: Plan, scorer: Scorer, content: str) -> None:
    staging = Path(job.out) / ".staging"
    staging.mkdir(parents=True)
    (staging / "job.json").write_text(content)
    with pytest.raises(UserError, match=r"job\.json is not a file that han score wrote, or it is damaged") as caught:
        commit(job, scorer.score_flat)
    assert "\n" not in str(caught.value)


def test_a_job_whose_paths_are_no_unicode_resumes(job: Plan, answer: Callable[[list[str]], Scored]) -> None:
    job = dataclasses.replace(job, job={**job.job, "input": {"caf\udce9.csv": [1, 2]}})
    assert killed(partial(commit, job, answer, failpoint="recorded:3"))
    assert commit(job, answer) is not None


LEADS_OUT = {"name": "part-0.jsonl", "staged": "../../precious", "rows": 1, "bytes": 1, "sha256": ""}
WRONG: dict[str, tuple[str, object]] = {
    **{f"{name} {value!r}": (name, value) for name in ("rows_in", "quarantined", "num_tokens") for value in ("x", -1, None, 1.5, ...)},
    **{f"files {value!r}": ("files", value) for value in (7, None, {}, [7], [{}], ...)},
    **{f"reasons {value!r}": ("reasons", value) for value in (7, ["too_long"], {"too_long": "x"}, ...)},
    **{f"part {value!r}": ("part", value) for value in (7, "../part", "", ...)},
    **{f"quarantine {value!r}": ("quarantine", value) for value in ("x", {}, LEADS_OUT, ...)},
    **{f"flagged {value!r}": ("flagged", value) for value in (None, {}, {"uncertain": "x", "unfamiliar": 0})},
}


def change(path: Path, name: str, value: object) -> None:
    """Set a field of a JSON file, or remove it where the value is `...`."""
    values = json.loads(path.read_text())
    values = {**values, name: value} if value is not ... else {key: each for key, each in values.items() if key != name}
    path.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def recorded(dump: str, tiny_model: Path, answer: Callable[[list[str]], Scored], tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A killed job with two records, to be copied."""
    job = plan(dump, str(tmp_path_factory.mktemp("recorded") / "out"), tiny_model)
    assert killed(partial(commit, job, answer, failpoint="recorded:2"))
    return job


def a_copy(job: Plan, folder: Path) -> Plan:
    return dataclasses.replace(job, out=str(shutil.copytree(job.out, folder / "out")))


@pytest.mark.parametrize(("name", "value"), WRONG.values(), ids=WRONG)
def test_an_invalid_record_of_a_shard_is_a_mistake_of_one_line(
    recorded: Plan, answer: Callable[[list[str]], Scored], tmp_path: Path, name: str, value: object
) -> None:
    job = a_copy(recorded, tmp_path)
    record = next((Path(job.out) / ".staging" / "records").iterdir())
    change(record, name, value)
    with pytest.raises(UserError, match=f"{record.name} is not a file that han score wrote, or it is damaged") as caught:
        commit(job, answer)
    assert "\n" not in str(caught.value)


def test_a_record_that_is_a_folder_is_a_mistake(recorded: Plan, answer: Callable[[list[str]], Scored], tmp_path: Path) -> None:
    job = a_copy(recorded, tmp_path)
    record = next((Path(job.out) / ".staging" / "records").iterdir())
    record.unlink()
    record.mkdir()
    with pytest.raises(UserError, match=f"{record.name} is not a file that han score wrote"):
        commit(job, answer)


@pytest.fixture(scope="module")
def finished(dump: str, tiny_model: Path, scorer: Scorer, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A finished job, to be copied."""
    job = plan(dump, str(tmp_path_factory.mktemp("finished") / "out"), tiny_model)
    commit(job, scorer.score_flat)
    return job


@pytest.mark.parametrize("name", ["counts", "run", "job", "reasons", "parts"])
@pytest.mark.parametrize("value", [7, {"rows_in": "x"}, ...], ids=["a number", "another object", "missing"])
def test_an_invalid_manifest_is_a_mistake_of_one_line(finished: Plan, scorer: Scorer, tmp_path: Path, name: str, value: object) -> None:
    job = a_copy(finished, tmp_path)
    change(Path(job.out) / "_manifest.json", name, value)
    with pytest.raises(UserError, match=r"_manifest\.json is not a file that han score wrote, or it is damaged"):
        commit(job, scorer.score_flat)


@pytest.mark.parametrize("name", [".staging", "scores", "_quarantine", ".staging/parts", ".staging/records", ".staging/attempts"])
def test_a_file_at_the_name_of_a_folder_is_a_mistake(job: Plan, scorer: Scorer, name: str) -> None:
    path = Path(job.out) / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UserError, match=f"{name} is a file, where han score has a folder"):
        commit(job, scorer.score_flat)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["_manifest.json", "_SUCCESS", ".staging/lock", ".staging/job.json"])
def test_a_folder_at_the_name_of_a_file_is_a_mistake(job: Plan, scorer: Scorer, name: str) -> None:
    (Path(job.out) / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"{name} is a folder, where han score has a file"):
        commit(job, scorer.score_flat)


NAMES = (".staging", "scores", "_quarantine", "_manifest.json", "_SUCCESS", ".staging/lock", ".staging/job.json", ".staging/parts")


@pytest.mark.parametrize("name", [*NAMES, ".staging/records", ".staging/attempts", ".staging/unfinished"])
@pytest.mark.parametrize("is_dangling", [True, False])
def test_a_symbolic_link_in_the_layout_is_refused_and_its_target_unchanged(
    job: Plan, scorer: Scorer, tmp_path: Path, name: str, is_dangling: bool
) -> None:
    target, link = tmp_path / "elsewhere", Path(job.out) / name
    if not is_dangling:
        target.mkdir()
        (target / "precious").write_text("mine")
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    with pytest.raises(UserError, match=f"{name} is a symbolic link"):
        commit(job, scorer.score_flat)
    assert os.listdir(target) == ["precious"] if target.exists() else is_dangling


def test_a_dangling_link_as_the_output_folder_is_a_mistake(job: Plan, scorer: Scorer, tmp_path: Path) -> None:
    Path(job.out).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"out is a symbolic link to .*nowhere, which does not exist"):
        commit(job, scorer.score_flat)


@pytest.mark.parametrize("when", ["before", "between"])
def test_a_symbolic_link_at_the_hidden_sibling_is_replaced_and_its_target_unchanged(
    job: Plan, answer: Callable[[list[str]], Scored], tmp_path: Path, when: str
) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "precious").write_text("mine")
    if when == "between":
        assert killed(partial(commit, job, answer, failpoint="recorded:3"))
    (tmp_path / ".out.publishing").symlink_to(target)
    assert commit(job, answer) is not None
    assert os.listdir(target) == ["precious"]
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "out"]


@pytest.mark.parametrize("name", ["scores", "_quarantine"])
def test_a_symbolic_link_in_the_hidden_sibling_of_a_resumed_job_is_refused(
    recorded: Plan, answer: Callable[[list[str]], Scored], tmp_path: Path, name: str
) -> None:
    job = a_copy(recorded, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.publishing").mkdir()
    (tmp_path / ".out.publishing" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"\.out\.publishing/{name} is a symbolic link"):
        commit(job, answer)
    assert os.listdir(tmp_path / "elsewhere") == []
    assert not (Path(job.out) / "_SUCCESS").exists()


@pytest.mark.parametrize("is_gathered", [True, False])
def test_a_part_that_is_a_symbolic_link_is_not_published(
    job: Plan, answer: Callable[[list[str]], Scored], tmp_path: Path, is_gathered: bool
) -> None:
    assert killed(partial(commit, job, answer, failpoint="gathered" if is_gathered else "recorded:3"))
    folder = tmp_path / ".out.publishing/scores" if is_gathered else Path(job.out) / ".staging/parts"
    part = sorted(path for path in folder.iterdir() if "jsonl" not in path.name)[0]
    part.rename(tmp_path / "elsewhere")
    part.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{part.name} is a symbolic link, not the part that han score wrote"):
        commit(job, answer)
    assert not (Path(job.out) / "scores").exists()


def test_files_are_synced_before_the_names_that_depend_on_them(job: Plan, scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []
    rename, fsync = os.rename, os.fsync

    def note_rename(source: str, target: str) -> None:
        calls.append(("rename", os.path.basename(target)))
        rename(source, target)

    def note_sync(descriptor: int) -> None:
        calls.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    monkeypatch.setattr(os, "rename", note_rename)
    monkeypatch.setattr(os, "fsync", note_sync)
    commit(job, scorer.score_flat)
    for name, folder in (("job.json", ".staging"), ("_manifest.json", "out"), ("_SUCCESS", "out")):
        place = calls.index(("rename", name))
        later = next(call for call in calls[place + 1 :] if call[0] == "rename" or call[1] == folder)
        assert later == ("sync", folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.5])
def test_a_probability_outside_0_to_1_is_never_published(job: Plan, scorer: Scorer, value: float) -> None:
    def broken(texts: list[str]) -> Scored:
        scored = scorer.score_flat(texts)
        scored.probabilities[0, 0] = value
        return scored

    with pytest.raises(UserError, match=f"model {scorer.fingerprint} gives probabilities that are not numbers from 0 to 1"):
        commit(job, broken)
    assert not [name for name in names(Path(job.out)) if name.endswith(".parquet")]


@pytest.mark.parametrize("is_killed", [True, False])
@pytest.mark.parametrize("change", ["edited", "added"])
def test_a_folder_of_texts_that_changed_since_the_run_is_refused(
    tiny_model: Path, scorer: Scorer, tmp_path: Path, change: str, is_killed: bool
) -> None:
    source = tmp_path / "texts"
    source.mkdir()
    for number in (1, 2):
        (source / f"{number}.txt").write_text("Good film.")
    job = plan(str(source), str(tmp_path / "out"), tiny_model)
    if is_killed:
        assert killed(partial(commit, job, precomputed(job), failpoint="gathered"))
    else:
        commit(job, scorer.score_flat)
    (source / ("1.txt" if change == "edited" else "0.txt")).write_text("Bad film.")
    with pytest.raises(UserError, match="belongs to another job"):
        commit(plan(str(source), str(tmp_path / "out"), tiny_model), scorer.score_flat)


@pytest.mark.parametrize("label", [[0, 1, None, 7], ["negative", "positive", "", "meh"], ["0", "1", None, "x"], [0.5, 0.5, 0.5, 0.5]])
def test_labels_of_the_input_are_compared_with_the_predictions(tiny_model: Path, scorer: Scorer, tmp_path: Path, label: list[Any]) -> None:
    texts = ["Good film. I loved it!", "Bad.", "Not good, not bad.", "Dull."]
    pq.write_table(pa.table({"text": texts, "label": label}), tmp_path / "dump.parquet")
    manifest = commit(plan(str(tmp_path / "dump.parquet"), str(tmp_path / "out"), tiny_model, carry=("text",)), scorer.score_flat)
    assert manifest is not None
    predicted = scorer.score_flat(texts).logits.argmax(axis=1).tolist()
    expected = {"labelled": 2, "agreeing": (predicted[0] == 0) + (predicted[1] == 1)}
    assert manifest["agreement"] == ({"labelled": 0, "agreeing": 0} if label[0] == 0.5 else expected)
    if label[0] != 0.5:
        assert Scores(manifest=manifest, rows_now=4).accuracy == expected["agreeing"] / 2


def test_the_estimated_time_agrees_with_the_estimated_rate(job: Plan) -> None:
    found = batch_job.estimate(job, num_cpus=2)
    assert (found.num_rows, found.num_sampled, found.num_actors) == (NUM_ROWS, NUM_ROWS, 2)
    assert found.took_s == pytest.approx(found.start_up_s + 2 * 4 / found.rows_per_s)  # of three shards an actor scores two
    assert not Path(job.out).exists()


@pytest.mark.parametrize(("num_rows", "exact"), [(5, True), (600, False)])
def test_the_number_of_records_is_exact_where_the_sample_is_the_whole_input(
    num_rows: int, exact: bool, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "dump.jsonl").write_text(f"{json.dumps({'text': 'Good film.'})}\n" * num_rows)
    found = batch_job.estimate(plan(str(tmp_path / "dump.jsonl"), str(tmp_path / "out"), tiny_model), num_cpus=2)
    assert found.is_exact == exact
    assert not exact or found.num_rows == num_rows


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A local substitute for S3."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**settings, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(name, value)
    pyarrow.fs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True).create_dir("bucket")
    yield "s3://bucket"
    server.stop()


def test_a_bucket_is_read_and_written_and_success_comes_last(
    bucket: str, dump: str, tiny_model: Path, answer: Callable[[list[str]], Scored]
) -> None:
    pyarrow.fs.copy_files(dump, f"{bucket}/dump/dump.parquet")
    job = plan(f"{bucket}/dump/*.parquet", f"{bucket}/out", tiny_model)
    write = Folder.write

    def die(self: Folder, name: str, content: bytes, *, durable: bool) -> None:
        if name == "_SUCCESS":
            raise KeyboardInterrupt
        write(self, name, content, durable=durable)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "write", die)
        with pytest.raises(KeyboardInterrupt):
            commit(job, answer)
    manifest = commit(job, answer)
    assert manifest is not None
    system, root = pyarrow.fs.FileSystem.from_uri(job.out)
    found = {
        info.path.removeprefix(f"{root}/") for info in system.get_file_info(pyarrow.fs.FileSelector(root, recursive=True)) if info.is_file
    }
    listed = {f"scores/{file['name']}" for part in manifest["parts"] for file in part["files"]}
    assert found == {"_SUCCESS", "_manifest.json"} | listed | {f"_quarantine/{item.name}.jsonl" for item in job.items}
    assert pq.read_table(f"{root}/scores", filesystem=system).num_rows == 9
    assert commit(job, answer) is None


def test_a_replaced_object_of_equal_size_is_another_input(bucket: str, tmp_path: Path) -> None:
    found = []
    for text in ("good", "evil"):
        (tmp_path / "dump.csv").write_text(f"text\n{text}\n")
        pyarrow.fs.copy_files(str(tmp_path / "dump.csv"), f"{bucket}/dump.csv")
        found.append(sources.identities(sources.find_shards(f"{bucket}/dump.csv", ColumnsConfig(), labelled=False)))
    assert found[0] != found[1]
