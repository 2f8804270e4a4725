"""Whether a folder of scores is what it says: `python -m jobs.verify --out scores`."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import get_args

from han.config import as_json
from han.score.verify import Kind, Verdict, verify
from jobs import cli
from jobs.progress import Rows

EXIT_BROKEN = 1
_CHECKS: dict[Kind, str] = {
    "manifest": "parts: every record is scored or quarantined, once",
    "files": "files: all there, byte for byte, and no others",
    "quarantine": "quarantined records: each once, with place and reason",
    "answers": "rows: label, probabilities, counts and model agree",
    "attention": "rows: attention as asked for, its sums 1",
    "spans": "rows: spans one after the other, words in their sentences",
    "slices": "rows: spans inside the text, without white space at their ends",
    "ids": "ids: each there once",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Check a finished folder of jobs.score against all that it promises, without Ray.

    Exit code 0: everything holds. 1: something does not, and it is printed what and where. 2: there is no finished folder.
    """

    out: str
    """the folder of scores that jobs.score finished, local or a URI"""
    unique_ids: bool = False
    """a review id that is there more than once is a problem too; the input may have repeated it"""


def main(job: Verify) -> None:
    out = cli.path(job.out, "--out")
    cli.show(f"verify {out}", as_json(job))
    began = time.monotonic()
    verdict = verify(out, unique_ids=job.unique_ids, report=Rows())
    took_s = time.monotonic() - began
    for kind in get_args(Kind):
        checked, broken = verdict.checked.get(kind, 0), verdict.broken.get(kind, 0)
        if checked or broken:
            print(f"{'BROKEN' if broken else 'ok':<6} {checked:>13,} {_CHECKS[kind]}{f' (problems: {broken:,})' if broken else ''}")
    for note in verdict.notes:
        print(f"note: {note}")
    if verdict.listing is None or verdict.num_problems:
        _tell(verdict)
        sys.exit(EXIT_BROKEN)
    counts, model = verdict.listing.counts, verdict.listing.model
    print(f"OK: {counts['rows_in']:,} records in = {counts['scored']:,} scored + {counts['quarantined']:,} quarantined")
    print(f"{counts['num_tokens']:,} tokens; model {model}; {took_s:,.1f} s, {counts['rows_in'] / took_s:,.0f} records a second")


def _tell(verdict: Verdict) -> None:
    print(f"problems: {verdict.num_problems:,}")
    for problem in verdict.problems:
        print(f"  {problem}")
    if verdict.num_problems > len(verdict.problems):
        print(f"  and {verdict.num_problems - len(verdict.problems):,} more")
    print("next: move this folder away, and run its jobs.score again")


if __name__ == "__main__":
    cli.run(Verify, main)
