"""The JSON files of a folder of scores (see `publish` for the layout), and a published folder, described by its manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import pyarrow as pa
import pyarrow.fs
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from han.config import SETTINGS_FILE
from han.storage import filesystem
from han.types import AttentionDetail, EffectDetail, UserError

FORMAT = 1
MANIFEST, SUCCESS, SCORES, QUARANTINE, STAGING = "_manifest.json", "_SUCCESS", "scores", "_quarantine", ".staging"
SETTINGS = f"_{SETTINGS_FILE}"  # readers of Parquet folders ignore it
_BLOCK_BYTES = 1 << 20
Json = TypeVar("Json", bound=BaseModel)


class Damaged(Exception):
    """A file that cannot be read. One line with its name and the problem."""


_Number = Annotated[int, Field(ge=0)]
_Name = Annotated[str, Field(pattern=r"\A[^/]+\z")]  # of a file: it is moved, and must not lead elsewhere


class _Strict(BaseModel):
    """JSON that an older version may have written, with less, or a newer one, with more: a default means that a field may be absent."""

    model_config = ConfigDict(strict=True)


class JobJson(_Strict):
    """.staging/job.json"""

    job: dict[Any, Any]  # compared with the job that runs; its paths may be no Unicode
    began: str


class _CountsJson(_Strict):
    rows_in: _Number
    scored: _Number
    quarantined: _Number
    num_tokens: _Number


class _FileJson(_Strict):
    name: _Name
    rows: _Number
    bytes: _Number
    sha256: str


class _StagedJson(_FileJson):
    staged: _Name


class _FlagsJson(_Strict):
    uncertain: _Number
    unfamiliar: _Number


class _PartJson(_CountsJson):
    part: _Name
    model: str
    reasons: dict[str, _Number]
    files: Sequence[_FileJson]
    quarantine: _FileJson | None
    labelled: _Number = 0
    agreeing: _Number = 0
    flagged: _FlagsJson = _FlagsJson(uncertain=0, unfamiliar=0)


class RecordJson(_PartJson):
    """.staging/records/PART.json"""

    files: Sequence[_StagedJson]
    quarantine: _StagedJson | None


class _ColumnsJson(_Strict):
    text: str
    review_id: str


class _SettingsJson(_Strict):
    attention: AttentionDetail
    effects: EffectDetail = "none"
    columns: _ColumnsJson


class _SettledJobJson(_Strict):
    model: str
    settings: _SettingsJson


class _RunJson(_Strict):
    finished: str


class _AgreementJson(_Strict):
    labelled: _Number
    agreeing: _Number


class ManifestJson(_Strict):
    """_manifest.json"""

    format: int
    job: _SettledJobJson
    run: _RunJson
    counts: _CountsJson
    reasons: dict[str, _Number]
    parts: Sequence[_PartJson]
    agreement: _AgreementJson = _AgreementJson(labelled=0, agreeing=0)
    flagged: dict[str, _Number] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A finished folder, on a disk or in a bucket. Names are relative to it."""

    system: pyarrow.fs.FileSystem
    path: str
    sizes: dict[str, int]  # bytes of every file
    has_staging: bool

    def open(self, name: str) -> pa.NativeFile:
        return self.system.open_input_file(f"{self.path}/{name}")

    def blocks(self, name: str) -> Iterator[bytes]:
        with self.open(name) as stream:
            while block := stream.read(_BLOCK_BYTES):
                yield block

    def lines(self, name: str) -> Iterator[bytes]:
        rest = b""
        for block in self.blocks(name):
            *lines, rest = (rest + block).split(b"\n")
            yield from lines
        if rest:
            yield rest


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    name: str  # in the folder
    rows: int
    bytes: int
    sha256: str  # hexadecimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    name: str
    model: str  # fingerprint
    counts: dict[str, int]  # rows_in, scored, quarantined, num_tokens
    reasons: dict[str, int]
    files: tuple[File, ...]  # of scores
    quarantine: tuple[File, ...]  # one or none


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    model: str  # fingerprint
    attention: AttentionDetail
    effects: EffectDetail
    text: str  # column of the input
    review_id: str  # column of the input
    counts: dict[str, int]  # rows_in, scored, quarantined, num_tokens
    reasons: dict[str, int]
    parts: tuple[Part, ...]

    @property
    def files(self) -> list[File]:
        return [file for part in self.parts for file in (*part.files, *part.quarantine)]


def find(out: str) -> Folder:
    """The folder at a path or URI. A folder that is missing or not finished is a `UserError`."""
    system, path = filesystem(out.rstrip("/") or "/")
    if system.get_file_info(path).type != pyarrow.fs.FileType.Directory:
        raise UserError(f"{out} is no folder: give the --out of a finished han score")
    files = {info.path.removeprefix(f"{path}/"): info for info in system.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))}
    sizes = {name: info.size for name, info in files.items() if info.type == pyarrow.fs.FileType.File}
    if SUCCESS not in sizes:
        raise UserError(f"{out} has no {SUCCESS}, so han score has not finished there: run the same han score again first")
    return Folder(system=system, path=path, sizes=sizes, has_staging=any(is_staging(name) for name in files))


def is_staging(name: str) -> bool:
    """Whether a name in a folder of scores belongs to staged files, also to those that a job was removing when it died."""
    return name == STAGING or name.startswith(f"{STAGING}.")


def read_json(folder: Folder, name: str) -> dict[str, Any]:
    if name not in folder.sizes:
        raise Damaged(f"{name}: is missing")
    return parse(name, b"".join(folder.blocks(name)))


def parse(name: str, content: bytes) -> dict[str, Any]:
    """The JSON object in a file; anything else is `Damaged`."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{name}: is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise Damaged(f"{name}: is not a JSON object")
    return values


def checked(name: str, values: dict[str, Any], kind: type[Json]) -> Json:
    """The values of a file as what `han score` writes there; other values are `Damaged`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Damaged(f"{name}: is not as han score writes it: {where[:200]}: {first['msg']}") from None


def read_listing(folder: Folder) -> Listing:
    """The content of the manifest. Another format is a `UserError`; missing or wrong values are `Damaged`."""
    values = read_json(folder, MANIFEST)
    if values.get("format") != FORMAT:
        raise UserError(f"{folder.path}/{MANIFEST} has format {values.get('format')}, not {FORMAT}: use the version that wrote it")
    manifest = checked(MANIFEST, values, ManifestJson)
    settings = manifest.job.settings
    return Listing(
        model=manifest.job.model,
        attention=settings.attention,
        effects=settings.effects,
        text=settings.columns.text,
        review_id=settings.columns.review_id,
        counts=_counts(manifest.counts),
        reasons=manifest.reasons,
        parts=tuple(map(_part, manifest.parts)),
    )


def _part(part: _PartJson) -> Part:
    return Part(
        name=part.part,
        model=part.model,
        counts=_counts(part),
        reasons=part.reasons,
        files=tuple(_file(SCORES, file) for file in part.files),
        quarantine=() if part.quarantine is None else (_file(QUARANTINE, part.quarantine),),
    )


def _file(folder: str, file: _FileJson) -> File:
    return File(name=f"{folder}/{file.name}", rows=file.rows, bytes=file.bytes, sha256=file.sha256)


def _counts(counts: _CountsJson) -> dict[str, int]:
    return {name: getattr(counts, name) for name in _CountsJson.model_fields}
