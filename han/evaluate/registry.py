"""A folder of models, one of which is the best. Versions are immutable, and the pointer to the best one moves by one rename.

    models/
      3f9c…-51d2…/   a version: an artifact, named by its fingerprint and by a hash of its SHA256SUMS
      3f9c…-51d2….test.json   test metrics of that version, if `evaluate` has measured it
      best.json      version, fingerprint, date, metrics, previous (the earlier pointer, for roll-back)

`--model models/best` is the version that best.json names when a job starts (see `artifact.find`). If a process dies, the pointer is the old
or the new one, and the version it names is complete: a version gets its name only after it is verified and on the disk.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from han.failpoint import Failpoint
from han.model import artifact
from han.model.artifact import BEST, TEST, Artifact, Splits, read_checked, read_test
from han.storage import Folder, replace_file, write_json
from han.types import UserError

POINTER = f"{BEST}.json"
KEPT = 20  # number of promotions that can be rolled back
_LOCK = ".lock"
_UNFINISHED = ".unfinished"
_FIGURES = ("num_reviews", "accuracy", "f1", "auc", "log_loss", "expected_calibration_error")
_OF_THE_CARD = ("accuracy_interval", "accuracy_by_rating", "accuracy_by_length")  # of test reviews


class _Pointer(BaseModel):
    """best.json."""

    model_config = ConfigDict(strict=True)
    version: Annotated[str, Field(pattern=r"\A[0-9a-f-]+\z")]
    fingerprint: str
    date: str
    metrics: Splits
    previous: _Pointer | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A model of the folder."""

    folder: Path
    fingerprint: str  # of the artifact
    metrics: dict[str, Any]  # `figures` of it
    is_best: bool
    date: str  # ISO 8601, UTC: of its last promotion, or of its folder if best.json no longer records it
    run: str | None  # id of the run that trained it


def promote(source: Path, models: Path, *, force: bool = False, failpoint: str | None = None) -> tuple[dict[str, Any], bool]:
    """Copy the artifact `source` into `models`, and point best.json at it. Returns the pointer, and whether it moved.

    `UserError` if the artifact is damaged, if another process changes the folder, or if the best model has a higher development accuracy
    on the same data; `force` skips the last check. failpoint: where this process is to die (see `Failpoint`).
    """
    loaded = artifact.load(source)
    if models.is_dir() and (other := _foreign(models)):
        raise UserError(f"--models {models} holds something else ({other}): give a folder for models alone")
    folder = Folder(str(models))
    with folder.locked(_LOCK):
        point = Failpoint(failpoint, folder)
        version = _version(source, loaded)
        if not force:
            _check_not_worse(loaded, models)
        _copy(source, folder, version, point)
        if _test_file(source).is_file() and source.parent != models:
            folder.write(f"{version}{TEST}", _test_file(source).read_bytes(), durable=True)
        before = _read_pointer(models)
        if before is not None and before["version"] == version:
            return before, False
        pointer = {
            "version": version,
            "fingerprint": loaded.fingerprint,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "metrics": figures(loaded),
            "previous": _cut(before, KEPT),
        }
        _point(folder, pointer)
        point.reach("pointed")
    return pointer, True


def roll_back(models: Path) -> dict[str, Any]:
    """Point best.json at the previous version; returns the pointer. The version that was the best stays in the folder.

    If nothing was promoted before, or that version is damaged, it is a `UserError` and nothing changes.
    """
    if _read_pointer(models) is None:
        raise UserError(f"no model was promoted in {models} (it has no {POINTER}), so there is nothing to roll back")
    folder = Folder(str(models))
    with folder.locked(_LOCK):
        now = read_checked(models / POINTER, _Pointer)
        before: dict[str, Any] | None = now["previous"]
        if before is None:
            raise UserError(f"{now['version']} is the first model promoted in {models}: there is nothing to roll back to")
        artifact.load(models / before["version"])
        _point(folder, before)
    return before


def versions(models: Path) -> list[Version]:
    """Every model of the folder, the newest first; a damaged one is a `UserError`."""
    pointer = _read_pointer(models)
    best = pointer["version"] if pointer else None
    dates: dict[str, str] = {}
    while pointer:
        dates.setdefault(pointer["version"], pointer["date"])
        pointer = pointer["previous"]
    result = []
    for folder in _version_folders(models):
        loaded = artifact.load(folder)
        made = datetime.fromtimestamp(folder.stat().st_mtime, UTC).isoformat(timespec="seconds")
        result.append(
            Version(
                folder=folder,
                fingerprint=loaded.fingerprint,
                metrics=figures(loaded) | read_test(folder, loaded.fingerprint),
                is_best=folder.name == best,
                date=dates.get(folder.name, made),
                run=_run(loaded),
            )
        )
    return sorted(result, key=lambda version: (version.date, version.is_best, version.folder.name), reverse=True)


def keep_test(model: Path, measured: dict[str, Any]) -> bool:
    """Store test metrics beside the artifact `model` of a run or of a folder of models. Returns False for any other artifact.

    An artifact is immutable, so they are in a file beside it. `promote` copies this file. A later evaluation replaces it. The model card
    gets them too, unless somebody has edited it.
    """
    is_version = (model.parent / POINTER).is_file()
    if not is_version and not (model.name == "artifact" and (model.parent / "config.json").is_file()):
        return False
    card = model / "README.md"
    is_generated = card.is_file() and card.read_text(encoding="utf-8") == artifact.render_card(model)
    write_json(_test_file(model), test_figures(measured))
    if is_generated:
        content = artifact.render_card(model)
        replace_file(card, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    return True


def test_figures(measured: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an evaluation beside an artifact."""
    kept = {name: measured[name] for name in (*_FIGURES, *_OF_THE_CARD, "model", "data") if name in measured}
    return kept | {"date": datetime.now(UTC).isoformat(timespec="seconds")}


def _test_file(model: Path) -> Path:
    return model.parent / f"{model.name}{TEST}"


def figures(model: Artifact) -> dict[str, Any]:
    """The main metrics of an artifact, by split."""
    return {
        split: {name: model.metrics[split][name] for name in _FIGURES if name in model.metrics[split]}
        for split in ("development", "test")
        if split in model.metrics
    }


def _run(model: Artifact) -> str | None:
    run = model.provenance.get("run")
    return str(run["id"]) if isinstance(run, dict) and "id" in run else None


def _check_not_worse(new: Artifact, models: Path) -> None:
    pointer = _read_pointer(models)
    if pointer is None or not (models / pointer["version"]).is_dir():
        return
    try:
        best = artifact.load(models / pointer["version"])
    except UserError:  # a damaged best model may be replaced
        return
    data = [_data_fingerprint(model) for model in (new, best)]
    scores = [figures(model).get("development", {}).get("accuracy") for model in (new, best)]
    if data[0] is None or data[0] != data[1] or None in scores or scores[0] >= scores[1]:
        return
    raise UserError(
        f"the model has development accuracy {scores[0]:.2%}, the best in {models} has {scores[1]:.2%} on the same data: "
        "give --force to promote it anyway"
    )


def _data_fingerprint(model: Artifact) -> str | None:
    data = model.provenance.get("data")
    fingerprint = data.get("fingerprint") if isinstance(data, dict) else None
    return fingerprint if isinstance(fingerprint, str) else None


def _version(source: Path, loaded: Artifact) -> str:
    """Equal if all checksummed files are equal: the answers, and also metrics and provenance."""
    return f"{loaded.fingerprint}-{hashlib.sha256((source / 'SHA256SUMS').read_bytes()).hexdigest()[:8]}"


def _copy(source: Path, models: Folder, version: str, point: Failpoint) -> None:
    """Create the version if it does not exist. The copy is verified before it gets its name."""
    for name in models.names():
        if _is_left_over(name):  # its writer is dead: we hold the lock
            models.remove(name)
    if models.exists(version):
        artifact.load(Path(models.place, version))
        return
    unfinished = f".{version}{_UNFINISHED}"
    models.make(unfinished)
    for path in _files(source):
        shutil.copyfile(path, Path(models.place, unfinished, path.name))
        Path(models.place, unfinished, path.name).chmod(0o444)
        models.sync(f"{unfinished}/{path.name}")
    point.reach("copied")
    copy = Path(models.place, unfinished)
    if _version(copy, artifact.load(copy)) != version:
        raise UserError(f"{source} changed while it was copied: promote it once it is finished")
    models.sync(unfinished)
    models.move(unfinished, version)
    models.sync("")
    point.reach("renamed")


def _files(source: Path) -> Iterator[Path]:
    """The files of an artifact, without other files of its folder."""
    for line in (source / "SHA256SUMS").read_text().splitlines():
        yield source / Path(line.partition("  ")[2]).name
    yield from (path for name in ("SHA256SUMS", "README.md") if (path := source / name).is_file())


def _point(models: Folder, pointer: dict[str, Any]) -> None:
    models.write(POINTER, (json.dumps(pointer, indent=1, ensure_ascii=False) + "\n").encode(), durable=True)
    models.sync("")


def _cut(pointer: dict[str, Any] | None, depth: int) -> dict[str, Any] | None:
    """A pointer with at most so many earlier pointers."""
    if pointer is None or depth == 0:
        return None
    return {**pointer, "previous": _cut(pointer["previous"], depth - 1)}


def _read_pointer(models: Path) -> dict[str, Any] | None:
    return read_checked(models / POINTER, _Pointer) if (models / POINTER).exists() else None


def _version_folders(models: Path) -> Iterator[Path]:
    if not models.is_dir():
        raise UserError(f"there is no folder {models}: promote a run into it")
    return (path for path in models.iterdir() if not path.name.startswith(".") and (path / "SHA256SUMS").is_file())


def _foreign(models: Path) -> str | None:
    """A name that does not belong in a folder of models, or None."""
    versions = [path.name for path in _version_folders(models)]
    ours = {POINTER, *versions, *(f"{version}{TEST}" for version in versions)}
    names = (path.name for path in sorted(models.iterdir()) if path.name not in ours)
    return next((name for name in names if not name.startswith(".") and not _is_left_over(name)), None)


def _is_left_over(name: str) -> bool:
    """Whether a name is left from a killed promotion: an unnamed copy, or a pointer that was not moved."""
    return (name.startswith(".") and name.endswith(_UNFINISHED)) or (name.startswith(f"{POINTER}.") and name.endswith(".tmp"))
