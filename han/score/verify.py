"""Check a published folder of scores against its manifest and the contract of its rows.

The manifest is the only thing that the check trusts. Files are read in batches and rows are checked as arrays, so the memory is that of one
batch; the check for unique ids takes 8 bytes more for each id.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from han.data.files import blaming, escaped
from han.score import contract, manifest, scorer
from han.score.manifest import MANIFEST, QUARANTINE, SCORES, STAGING, SUCCESS, Damaged, Folder, Listing
from han.types import UserError

Report: TypeAlias = Callable[[str, int, int], None]  # name of the step, rows done, total rows
Kind: TypeAlias = Literal["manifest", "files", "quarantine", "answers", "attention", "effects", "spans", "slices", "ids"]

PROBLEMS = 20  # problems that are kept as lines; all are counted
COMPARED = 100_000  # most ids in memory while repeats are compared; further repeats are counted by their hashes

_QUARANTINE_KEYS = {"file", "row", "byte_offset", "review_id", "reason", "message", "excerpt"}
_READ_ROWS = 1024
_CHECK_ROWS = 256  # rows checked at once: their arrays fit in the processor's cache, which is 1.5 times as fast as 1,024 rows
_ROW_BITS = 40  # for the row number; the other bits of the int64 hold the number of the file
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse; 5 mod 8, so that its powers have the longest period
_BYTES = np.random.default_rng(0).integers(0, 2**64, 256, dtype=np.uint64)  # any fixed numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was checked, and the problems that were found."""

    checked: dict[Kind, int]  # number of parts, files, lines, rows or ids, by kind of check
    broken: dict[Kind, int]  # number of problems, by kind of check
    problems: tuple[str, ...]  # the first `PROBLEMS`, one line each: the place and the problem
    notes: tuple[str, ...]  # remarks that are not problems
    listing: Listing | None  # the content of the manifest, None if it cannot be read

    @property
    def num_problems(self) -> int:
        return sum(self.broken.values())


def verify(out: str, *, unique_ids: bool, report: Report) -> Verdict:
    """Check a finished folder, a path or a URI. A folder that is missing or not finished is a `UserError`.

    unique_ids: a review id may occur only once in the scores and the quarantine together.
    """
    folder, findings, listing = manifest.find(out), _Findings(), None
    try:
        listing = manifest.read_listing(folder)
        _check_manifest(folder, listing, findings)
        _check_files(folder, listing, findings)
        readable = _check_quarantine(folder, listing, findings) + _check_scores(folder, listing, findings, report)
        if unique_ids:
            _check_ids(folder, listing, readable, findings)
    except Damaged as error:
        findings.add("manifest", str(error))
    return Verdict(
        checked=dict(findings.checked),
        broken=dict(findings.broken),
        problems=tuple(findings.problems),
        notes=(f"{STAGING} is left of a run that was killed: run the same han score again to remove it",) if folder.has_staging else (),
        listing=listing,
    )


@dataclass(slots=True)
class _Findings:
    checked: Counter[Kind] = field(default_factory=Counter)
    broken: Counter[Kind] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, kind: Kind, problem: str, times: int = 1) -> None:
        self.broken[kind] += times
        if len(self.problems) < PROBLEMS:
            self.problems.append(problem)

    def add_rows(self, kind: Kind, name: str, first_row: int, broken: contract.Broken) -> None:
        for what, rows in broken:
            self.broken[kind] += len(rows)
            self.problems += [f"{name} row {first_row + row}: {what}" for row in rows[: PROBLEMS - len(self.problems)].tolist()]

    def compare(self, kind: Kind, where: str, **both: tuple[Any, Any]) -> None:
        """Compare the value that was found with the value in the manifest, by name."""
        for name, (found, promised) in both.items():
            if found != promised:
                self.add(kind, f"{where}: {name} {'are' if name.endswith('s') else 'is'} {_plain(found)}, not {_plain(promised)}")


def _check_manifest(folder: Folder, listing: Listing, findings: _Findings) -> None:
    """Counts add up in each part and in total; nothing is listed twice."""
    parts = listing.parts
    findings.checked["manifest"] = len(parts)
    try:
        findings.compare("manifest", SUCCESS, counts=(manifest.read_json(folder, SUCCESS), listing.counts))
    except Damaged as error:
        findings.add("manifest", str(error))
    _check_sums(MANIFEST, listing.counts, listing.reasons, findings)
    for count, total in listing.counts.items():
        findings.compare("manifest", f"{MANIFEST}: over all parts", **{count: (sum(part.counts[count] for part in parts), total)})
    reasons = sum((Counter(part.reasons) for part in parts), Counter[str]())
    findings.compare("manifest", f"{MANIFEST}: over all parts", reasons=(dict(reasons), listing.reasons))
    for part in parts:
        where, counts = f"{MANIFEST}: {part.name}", part.counts
        _check_sums(where, counts, part.reasons, findings)
        findings.compare("manifest", where, model=(part.model, listing.model))
        findings.compare("manifest", f"{where}: of its files", rows=(sum(file.rows for file in part.files), counts["scored"]))
        findings.compare(
            "manifest", f"{where}: of its quarantine", rows=(sum(file.rows for file in part.quarantine), counts["quarantined"])
        )
    for name, times in Counter([*(part.name for part in parts), *(file.name for file in listing.files)]).items():
        if times > 1:
            findings.add("manifest", f"{MANIFEST}: {name} is listed {times} times", times - 1)


def _check_sums(where: str, counts: dict[str, int], reasons: dict[str, int], findings: _Findings) -> None:
    findings.compare("manifest", where, rows_in=(counts["rows_in"], counts["scored"] + counts["quarantined"]))
    findings.compare("manifest", f"{where}: of all reasons", records=(sum(reasons.values()), counts["quarantined"]))


def _check_files(folder: Folder, listing: Listing, findings: _Findings) -> None:
    """Every listed file exists with its bytes; readers find no other file."""
    listed = {file.name: file for file in listing.files}
    findings.checked["files"] = len(listed)
    for name, file in listed.items():
        if name not in folder.sizes:
            findings.add("files", f"{name}: is missing")
        elif folder.sizes[name] != file.bytes:
            findings.compare("files", name, bytes=(folder.sizes[name], file.bytes))
        else:
            digest = hashlib.sha256()
            for block in folder.blocks(name):
                digest.update(block)
            findings.compare("files", name, SHA256=(digest.hexdigest(), file.sha256))
    for name, size in sorted(folder.sizes.items()):
        top = name.partition("/")[0]
        if top in (SCORES, QUARANTINE) and name not in listed:
            findings.add("files", f"{name}: is not in {MANIFEST} ({size:,} bytes)")
        elif top not in (SCORES, QUARANTINE, STAGING) and name.endswith(".parquet"):
            findings.add("files", f"{name}: is outside {SCORES}/, but readers of the folder would take it for scores")


def _check_quarantine(folder: Folder, listing: Listing, findings: _Findings) -> list[str]:
    """Each line is a JSON object with all keys, a record occurs once, and reasons add up. Returns the readable files."""
    files: dict[str, int] = {}
    places = array("q")
    readable = []
    for part in listing.parts:
        reasons: Counter[str] = Counter()
        present = [file for file in part.quarantine if file.name in folder.sizes]
        for file in present:
            before = findings.broken["quarantine"]
            for number, line in enumerate(folder.lines(file.name), start=1):
                findings.checked["quarantine"] += 1
                record, wrong = _quarantined(line)
                if wrong:
                    findings.add("quarantine", f"{file.name} line {number}: {wrong}")
                    continue
                reasons[record["reason"]] += 1
                places.append(files.setdefault(record["file"], len(files)) << _ROW_BITS | record["row"])
            if findings.broken["quarantine"] == before:
                readable.append(file.name)
        if len(present) == len(part.quarantine):
            findings.compare("quarantine", f"{QUARANTINE}: {part.name}", reasons=(dict(reasons), part.reasons))
    found, times = np.unique(np.frombuffer(places, np.int64), return_counts=True)
    names = list(files)
    for place, count in zip(found[times > 1].tolist(), times[times > 1].tolist(), strict=True):
        index, row = place >> _ROW_BITS, place & ((1 << _ROW_BITS) - 1)
        findings.add("quarantine", f"{QUARANTINE}: row {row} of {names[index]} occurs {count} times", count - 1)
    return readable


def _quarantined(line: bytes) -> tuple[dict[str, Any], str | None]:
    """A quarantined record, or the problem with its line."""
    try:
        record = json.loads(line)
    except ValueError as error:
        return {}, f"is not JSON: {error}"
    if not isinstance(record, dict):
        return {}, "is not a JSON object"
    if record.keys() != _QUARANTINE_KEYS:
        return {}, f"its keys are {', '.join(sorted(record))}, not {', '.join(sorted(_QUARANTINE_KEYS))}"
    if not (isinstance(record["file"], str) and isinstance(record["reason"], str) and type(record["row"]) is int and record["row"] >= 0):
        return {}, "its file, row and reason are not a name, a number from 0 and a name"
    return record, None


def _check_scores(folder: Folder, listing: Listing, findings: _Findings, report: Report) -> list[str]:
    """Check every row of every file against the contract. Returns the readable files."""
    readable: list[str] = []
    schema: pa.Schema | None = None
    done, total = 0, listing.counts["scored"]
    for part in listing.parts:
        num_tokens = 0
        present = [file for file in part.files if file.name in folder.sizes]
        for file in present:
            try:
                with blaming(file.name), folder.open(file.name) as stream:
                    parquet = pq.ParquetFile(stream)
                    schema = schema or parquet.schema_arrow
                    wrong = _wrong_columns(parquet.schema_arrow, schema)
                    if wrong:
                        findings.add("files", f"{file.name}: {wrong}")
                        continue
                    findings.compare("files", file.name, rows=(parquet.metadata.num_rows, file.rows))
                    first_row = 0
                    for batch, texts in _batches(parquet, listing.text):
                        _check_batch(file.name, first_row, batch, texts, listing, findings)
                        num_tokens += pc.sum(batch["num_tokens"]).as_py() or 0
                        first_row += len(batch)
                        if done + first_row < total:
                            report("verified", done + first_row, total)
                    done += first_row
                readable.append(file.name)
            except UserError as error:
                findings.add("files", str(error))
        if len(present) == len(part.files):
            findings.compare("answers", f"{SCORES}: {part.name}", num_tokens=(num_tokens, part.counts["num_tokens"]))
    report("verified", total, total)
    return readable


def _wrong_columns(schema: pa.Schema, first: pa.Schema) -> str | None:
    at = schema.get_field_index("probabilities")
    labels = [field.name for field in schema.field(at).type] if at >= 0 and pa.types.is_struct(schema.field(at).type) else []
    ours = _ours(schema, labels)
    if not labels or pa.schema(list(schema)[-len(ours) :]) != ours:
        return f"its last columns are not {', '.join(ours.names)} in their types"
    return None if schema == first else "its columns are not those of the other files"


def _ours(schema: pa.Schema, labels: Sequence[str]) -> pa.Schema:
    """The columns that scoring added to a file with this schema."""
    return scorer.schema(labels) if schema.names[-1:] == ["effects"] else scorer.schema_of_0_1(labels)


def _batches(parquet: pq.ParquetFile, text_column: str) -> Iterator[tuple[pa.RecordBatch, pa.StringArray | None]]:
    """All rows in batches, with their texts if those are carried."""
    names = parquet.schema_arrow.names
    text = _carried(names, text_column)
    for read in parquet.iter_batches(_READ_ROWS, columns=[*names[-len(_ours(parquet.schema_arrow, ["any"])) :], *([text] if text else [])]):
        read.validate(full=True)
        for first in range(0, len(read), _CHECK_ROWS):
            batch = read.slice(first, _CHECK_ROWS)
            yield batch, batch[text].cast(pa.string()) if text else None


def _carried(names: Sequence[str], column: str) -> str | None:
    """The name of an input column in the scores, None if it is not carried; see `publish.renamed`."""
    name = column
    if column in scorer.schema(["any"]).names:
        name = f"input_{column}"
        while f"input_{name}" in names:
            name = f"input_{name}"
    return name if name in names else None


def _check_batch(
    name: str, first_row: int, batch: pa.RecordBatch, texts: pa.StringArray | None, listing: Listing, findings: _Findings
) -> None:
    labels = [field.name for field in batch["probabilities"].type]
    lists = contract.attended(batch["sentences"])
    checks: list[tuple[Kind, contract.Broken]] = [
        ("answers", contract.broken_answers(batch, labels=labels, model=listing.model)),
        ("attention", contract.broken_detail(batch, lists, attention=listing.attention)),
    ]
    if listing.attention != "none":
        checks += [("attention", contract.broken_attention(lists)), ("spans", contract.broken_spans(lists))]
        checks += [("effects", contract.broken_effects(batch, lists, effects=listing.effects))]
        if texts is not None:
            checks.append(("slices", contract.broken_slices(lists, texts=texts, attention=listing.attention)))
    for kind in dict(checks):
        findings.checked[kind] += len(batch)
    for kind, broken in checks:
        findings.add_rows(kind, name, first_row, broken)


def _check_ids(folder: Folder, listing: Listing, readable: Sequence[str], findings: _Findings) -> None:
    """No review id occurs twice. An id that is null in the scores counts as an empty one."""
    parts = [hashes(ids) for _, _, ids in _ids(folder, listing, readable)]
    findings.checked["ids"] = sum(map(len, parts))
    suspects, more = repeated(parts)
    first: dict[str, str] = {}
    for where, numbers, ids in _ids(folder, listing, readable) if len(suspects) else ():
        for index in np.flatnonzero(np.isin(hashes(ids), suspects)).tolist():
            review_id, place = ids[index].as_py(), f"{where} {numbers[index]}"
            if review_id in first:
                findings.add("ids", f"{place}: review_id {_plain(review_id)} is also that of {first[review_id]}")
            else:
                first[review_id] = place
    if more:
        findings.add("ids", f"{more:,} more rows have ids that others have", more)


def _ids(folder: Folder, listing: Listing, readable: Sequence[str]) -> Iterator[tuple[str, Sequence[int], pa.StringArray]]:
    """All ids, some at a time: their file, their rows or lines in it, and they themselves."""
    for name in readable:
        first = 0
        if name.startswith(SCORES):
            with folder.open(name) as stream:
                parquet = pq.ParquetFile(stream)
                column = _carried(parquet.schema_arrow.names, listing.review_id) or "review_id"
                for batch in parquet.iter_batches(_READ_ROWS, columns=[column]):
                    yield f"{name} row", range(first, first + len(batch)), pc.fill_null(batch[column].cast(pa.string()), "")
                    first += len(batch)
        else:
            lines = enumerate(folder.lines(name), start=1)
            while some := list(islice(lines, _READ_ROWS)):
                numbered = [(number, review_id) for number, line in some if (review_id := json.loads(line)["review_id"]) is not None]
                yield f"{name} line", [number for number, _ in numbered], pa.array([review_id for _, review_id in numbered], pa.string())


def _plain(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else escaped(value) if isinstance(value, str) else json.dumps(value, sort_keys=True)


def hashes(values: pa.StringArray) -> NDArray[np.uint64]:
    """A hash of 64 bits for every string: a polynomial in _BASE of its bytes, modulo 2**64. No string is null."""
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values), "")[0].as_py().encode()
    ends = np.cumsum(pc.binary_length(values).to_numpy(), dtype=np.int64)
    starts = np.concatenate([[0], ends])[:-1]
    terms = _BYTES[np.frombuffer(joined, np.uint8)] * _powers(_BASE, len(joined))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    shifts = _powers(pow(_BASE, -1, 2**64), len(joined) + 1)  # so that a string has the same hash at every position
    return np.asarray((sums[ends] - sums[starts]) * shifts[starts])


def repeated(parts: Sequence[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], int]:
    """At most `COMPARED` hashes that repeat, ascending; and the number of repeats of the others."""
    found, counts = np.unique(np.concatenate([*parts, np.empty(0, np.uint64)]), return_counts=True)
    suspects, counts = found[counts > 1], counts[counts > 1]
    return suspects[:COMPARED], int((counts[COMPARED:] - 1).sum())


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """1, base, base**2, ... modulo 2**64."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.multiply.accumulate(factors)
