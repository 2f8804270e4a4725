"""A published folder of scores, described by its manifest (see `publish` for the layout)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import pyarrow as pa
import pyarrow.fs

from han.storage import filesystem
from han.types import AttentionDetail, EffectDetail, Mistake

FORMAT = 1
MANIFEST, SUCCESS, SCORES, QUARANTINE, STAGING = "_manifest.json", "_SUCCESS", "scores", "_quarantine", ".staging"
_BLOCK_BYTES = 1 << 20


class Damaged(Exception):
    """A file that cannot be read. One line with its name and the problem."""


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
    """The folder at a path or URI. A folder that is missing or not finished is a `Mistake`."""
    system, path = filesystem(out.rstrip("/") or "/")
    if system.get_file_info(path).type != pyarrow.fs.FileType.Directory:
        raise Mistake(f"{out} is no folder: give the --out of a finished han score")
    files = {info.path.removeprefix(f"{path}/"): info for info in system.get_file_info(pyarrow.fs.FileSelector(path, recursive=True))}
    sizes = {name: info.size for name, info in files.items() if info.type == pyarrow.fs.FileType.File}
    if SUCCESS not in sizes:
        raise Mistake(f"{out} has no {SUCCESS}, so han score has not finished there: run the same han score again first")
    return Folder(system=system, path=path, sizes=sizes, has_staging=any(is_staging(name) for name in files))


def is_staging(name: str) -> bool:
    """Whether a name in a folder of scores belongs to staged files, also to those that a job was removing when it died."""
    return name == STAGING or name.startswith(f"{STAGING}.")


def read_json(folder: Folder, name: str) -> dict[str, Any]:
    if name not in folder.sizes:
        raise Damaged(f"{name}: is missing")
    try:
        values = json.loads(b"".join(folder.blocks(name)))
    except ValueError as error:
        raise Damaged(f"{name}: is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise Damaged(f"{name}: is not a JSON object")
    return values


def read_listing(folder: Folder) -> Listing:
    """The content of the manifest. Another format is a `Mistake`; missing or wrong values are `Damaged`."""
    manifest = read_json(folder, MANIFEST)
    if manifest.get("format") != FORMAT:
        raise Mistake(f"{folder.path}/{MANIFEST} has format {manifest.get('format')}, not {FORMAT}: use the version that wrote it")
    try:
        settings = manifest["job"]["settings"]
        if settings["attention"] not in get_args(AttentionDetail):
            raise ValueError(f"attention is {settings['attention']}")
        return Listing(
            model=manifest["job"]["model"],
            attention=settings["attention"],
            effects=settings.get("effects", "none"),
            text=settings["columns"]["text"],
            review_id=settings["columns"]["review_id"],
            counts=_counts(manifest["counts"]),
            reasons=_reasons(manifest),
            parts=tuple(_part(record) for record in manifest["parts"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{MANIFEST}: is not as han score writes it: {type(error).__name__} {error}") from None


def _part(record: dict[str, Any]) -> Part:
    quarantine = record["quarantine"]
    return Part(
        name=record["part"],
        model=record["model"],
        counts=_counts(record),
        reasons=_reasons(record),
        files=tuple(_file(SCORES, file) for file in record["files"]),
        quarantine=() if quarantine is None else (_file(QUARANTINE, quarantine),),
    )


def _file(folder: str, file: dict[str, Any]) -> File:
    return File(name=f"{folder}/{file['name']}", rows=int(file["rows"]), bytes=int(file["bytes"]), sha256=file["sha256"])


def _counts(values: dict[str, Any]) -> dict[str, int]:
    return {name: int(values[name]) for name in ("rows_in", "scored", "quarantined", "num_tokens")}


def _reasons(values: dict[str, Any]) -> dict[str, int]:
    return {reason: int(number) for reason, number in values["reasons"].items()}
