"""Test the readers and the tokeniser on broken and hostile input: `python -m tests.chaos.readers`, without Ray, about two minutes.

The cases are those of the tests (`tests.helpers.hostile`, `tests.helpers.hostile_files`). Here time and memory are measured too.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from han.config import TextConfig
from han.model import artifact
from han.score.scorer import Scorer
from han.text.tokenise import Tokeniser
from han.types import Refusal
from tests.chaos.report import close, reliability
from tests.helpers import hostile_files as files
from tests.helpers.hostile import PROBES, REVIEWS
from tests.helpers.spans import is_sound

MAX_MB = 1_024  # memory while a compression bomb is read
READ = """
import sys
from pathlib import Path
from tests.helpers.hostile_files import outcome
result = outcome(Path(sys.argv[1]))
print(len(result.texts), len(result.bad), result.mistake is not None)
"""
# ru_maxrss of resource would include the parent's memory
PEAK = "print(int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]) // 1024)"


def main() -> None:
    broken_parquet()
    bombs()
    code_in_parquet()
    schemas()
    broken("D14", files.JSONL)
    broken("D15", files.CSV)
    hostile_reviews()
    close()


def broken_parquet() -> None:
    """Read the listed files, and files with one flipped byte: 20 with page checksums, 200 without, where a text may change."""
    right, crashes = _count(files.PARQUET)
    wrong_rows = refused = 0
    for offset in files.page_offsets(files.sound(), 20):
        result = _outcome(files.flipped(files.sound(), offset))
        crashes += result is None
        if result is not None:
            refused += result.mistake is not None
            wrong_rows += len(result.texts.items() - dict(enumerate(files.TEXTS)).items())
    unchecked = files.parquet(pa.table({"text": files.TEXTS}))
    changed = 0
    for offset in files.page_offsets(unchecked, 200):
        result = _outcome(files.flipped(unchecked, offset))
        crashes += result is None
        changed += result is not None and bool(result.texts.items() - dict(enumerate(files.TEXTS)).items())
    reliability(
        "D10",
        ok=right == len(files.PARQUET) and crashes == wrong_rows == 0,
        right=f"{right}/{len(files.PARQUET)}",
        flips=20,
        flips_refused=refused,
        wrong_rows=wrong_rows,
        crashes=crashes,
        flips_without_checksum=200,
        files_changed_silently_without_checksum=changed,
    )


def bombs() -> None:
    rows = files.parquet(files.many_rows())
    cell = files.big_cell(100_000_000)
    bombs = {
        "claims_1e9_rows": (files.forged(rows, 23_457, 10**9), "23457 0 True"),
        "one_cell_of_1_GB": (files.big_cell(10**9), "0 0 True"),
        "cell_of_100_MB_with_a_false_size": (files.forged(cell, _claimed(cell), 1_000), "1 1 False"),
        "600_bytes_of_300_times_10_MB": (files.shared_cell(), None),
    }
    right, peaks = 0, {}
    for name, (content, expected) in bombs.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.parquet"
            path.write_bytes(content)
            code = READ if expected else _READ_WITHOUT_KEEPING
            finished = subprocess.run([sys.executable, "-c", code + PEAK, str(path)], capture_output=True, text=True, timeout=120)
        *verdict, peak = finished.stdout.split() or ["crashed", "0"]
        right += " ".join(verdict) == (expected or "300 0 False")
        peaks[f"{name}_mb"] = int(peak)
    reliability("D11", ok=right == len(bombs) and max(peaks.values()) <= MAX_MB, right=f"{right}/{len(bombs)}", limit_mb=MAX_MB, **peaks)


# The rows have 3 GB in all, so they are counted and not kept.
_READ_WITHOUT_KEEPING = """
import sys
from pathlib import Path
from han.config import ColumnsConfig
from han.data.sources import find_shards, read
columns = ColumnsConfig()
batches = (batch for shard in find_shards(sys.argv[1], columns, labelled=False) for batch in read(shard, columns))
print(sum(len(batch.rows) for batch in batches), 0, False)
"""


def _claimed(content: bytes) -> int:
    """Uncompressed bytes of the only column according to the metadata."""
    metadata = pq.ParquetFile(pa.BufferReader(content)).metadata
    return int(metadata.row_group(0).column(0).total_uncompressed_size)


def code_in_parquet() -> None:
    refused = touched = controls = 0
    for padding in range(12):
        with tempfile.TemporaryDirectory() as folder:
            result, was_run, is_run_by_arrow = files.touching(Path(folder), padding)
        refused += "extension type" in (result.mistake or "")
        touched += was_run
        controls += is_run_by_arrow
    reliability(
        "D12", ok=(refused, touched, controls) == (12, 0, 12), refused=f"{refused}/12", markers=touched, markers_of_control=controls
    )


def schemas() -> None:
    right = 0
    for case in files.SCHEMAS:
        with tempfile.TemporaryDirectory() as folder:
            right += files.folder_is_right(case, files.write_folder(case, Path(folder)))
    reliability("D13", ok=right == len(files.SCHEMAS), right=f"{right}/{len(files.SCHEMAS)}")


def broken(name: str, cases: list[files.FileCase]) -> None:
    began = time.perf_counter()
    right, crashes = _count(cases)
    reliability(
        name, ok=right == len(cases) and crashes == 0, right=f"{right}/{len(cases)}", crashes=crashes, took_s=time.perf_counter() - began
    )


def _count(cases: list[files.FileCase]) -> tuple[int, int]:
    """Number of cases with the expected outcome, and number of crashes."""
    right = crashes = 0
    for case in cases:
        result = _outcome(case.content(), case.file)
        crashes += result is None
        is_right = result is not None and files.is_right(case, result)
        right += is_right
        if not is_right:
            print(f"{case.file}: {case.name}: {str(result)[:300]}", file=sys.stderr)
    return right, crashes


def _outcome(content: bytes, name: str = "a.parquet") -> files.Outcome | None:
    """The outcome of reading a file, or None if any error except `UserError` is raised."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            return files.outcome(path)
        except Exception as error:
            print(f"{name}: {error!r}"[:300], file=sys.stderr)
            return None


def hostile_reviews() -> None:
    """Score hostile reviews with the shipped model, up to its limit of characters."""
    scorer = Scorer(artifact.load(artifact.find("imdb")))
    limit = TextConfig().max_characters
    right = spans_right = crashes = 0
    refusal_ms = 0.0
    probes = {name: make(limit) for name, make in PROBES.items()}
    texts = [(case.expected, case.text(limit)) for case in REVIEWS] + [("scored", text) for text in probes.values()]
    for expected, text in texts:
        began = time.perf_counter()
        try:
            (answer,) = scorer.score([text])
        except Exception as error:
            print(f"{text[:40]!r}: {error!r}"[:300], file=sys.stderr)
            crashes += 1
            continue
        took_ms = (time.perf_counter() - began) * 1e3
        right += (answer.reason if isinstance(answer, Refusal) else "scored") == expected
        if isinstance(answer, Refusal):
            refusal_ms = max(refusal_ms, took_ms if answer.reason == "too_long" else 0.0)
        else:
            is_right = is_sound(answer, text)
            spans_right += is_right
            if not is_right:
                print(f"not sound: {text[:40]!r}", file=sys.stderr)
    num_scored = sum(expected == "scored" for expected, _ in texts)
    slopes, seconds = zip(*(_slope(scorer_tokeniser(limit), make, limit) for make in PROBES.values()), strict=True)
    is_linear = max(slopes) <= 1.2 and max(seconds) <= 1
    slowest = list(PROBES)[int(np.argmax(seconds))]
    reliability(
        "HOSTILE",
        ok=right == len(texts) and spans_right == num_scored and crashes == 0 and is_linear and refusal_ms <= 20,
        cases=f"{right}/{len(texts)}",
        crashes=crashes,
        sound=f"{spans_right}/{num_scored}",
        worst_slope=max(slopes),
        worst_slope_of=list(PROBES)[int(np.argmax(slopes))],
        worst_probe_s=max(seconds),
        worst_probe=slowest,
        refusal_ms=refusal_ms,
    )


def scorer_tokeniser(limit: int) -> Tokeniser:
    return Tokeniser(TextConfig(max_characters=limit), None)


def _slope(tokeniser: Tokeniser, make: Callable[[int], str], limit: int) -> tuple[float, float]:
    """Log-log slope of the tokenising time by length, and the seconds at the limit. Times are CPU times, the best of three."""
    lengths = np.geomspace(1_000, limit, 6).astype(int)
    took_s = [min(_timed(tokeniser, make(int(length))) for _ in range(3)) for length in lengths]
    return float(np.polyfit(np.log(lengths), np.log(took_s), 1)[0]), took_s[-1]


def _timed(tokeniser: Tokeniser, text: str) -> float:
    began = time.process_time()
    tokeniser.tokenise(text)
    return time.process_time() - began


if __name__ == "__main__":
    main()
