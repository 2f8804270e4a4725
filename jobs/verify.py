"""Check a finished folder of scores: `han verify --out scores`."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from han.types import UserError
from jobs import cli

if TYPE_CHECKING:
    from han.score.verify import Verdict

EXAMPLES = ("--out scores", "--out s3://bucket/scores --unique-ids")
EXIT_BROKEN = 1
_CHECKS = {
    "manifest": "parts: every record is scored or quarantined, once",
    "files": "files: complete, byte for byte, and no others",
    "quarantine": "quarantined records: each once, with place and reason",
    "answers": "rows: label, probabilities, counts and model agree",
    "attention": "rows: attention has the requested detail and sums to 1",
    "effects": "rows: effects are present where requested and add up to the evidence",
    "spans": "rows: spans in order, words inside their sentences",
    "slices": "rows: spans inside the text, without white space at their ends",
    "ids": "ids: each occurs once",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Check all guarantees of a finished folder of scores, without Ray.

    Exit code 0: all checks hold. 1: a check fails, and the output says what and where. 2: there is no finished folder.
    """

    out: str
    """the folder of scores, local or a URI"""
    unique_ids: bool = False
    """report review ids that occur more than once, even if the input repeated them"""


def main(job: Verify) -> None:
    out = cli.path(job.out, "--out")
    if "://" not in out and not os.path.isdir(out):
        raise UserError(f"{out} is no folder: give the --out of a finished {cli.command('score')}")
    from han.score.verify import Kind, verify
    from jobs.progress import Rows

    cli.show(f"verify {out}", job)
    began = time.monotonic()
    verdict = verify(out, unique_ids=job.unique_ids, report=Rows())
    took_s = time.monotonic() - began
    for kind in get_args(Kind):
        checked, broken = verdict.checked.get(kind, 0), verdict.broken.get(kind, 0)
        if checked or broken:
            what, _, rule = _CHECKS[kind].partition(": ")
            what = what.removesuffix("s") if checked == 1 else what
            print(f"{'BROKEN' if broken else 'ok':<6} {checked:>13,} {what}: {rule}{f' (problems: {broken:,})' if broken else ''}")
    for note in verdict.notes:
        print(f"note: {note}")
    if verdict.listing is None or verdict.num_problems:
        _print_problems(verdict)
        sys.exit(EXIT_BROKEN)
    counts, model = verdict.listing.counts, verdict.listing.model
    print(f"OK: {counts['rows_in']:,} records in = {counts['scored']:,} scored + {counts['quarantined']:,} quarantined")
    print(f"{counts['num_tokens']:,} tokens; model {model}; {took_s:,.1f} s, {counts['rows_in'] / took_s:,.0f} records a second")


def _print_problems(verdict: Verdict) -> None:
    print(f"problems: {verdict.num_problems:,}")
    for problem in verdict.problems:
        print(f"  {problem}")
    if verdict.num_problems > len(verdict.problems):
        print(f"  and {verdict.num_problems - len(verdict.problems):,} more")
    print(f"next: move this folder away, and run the {cli.command('score')} that wrote it again")


def run() -> None:
    cli.run(Verify, main, examples=EXAMPLES)


if __name__ == "__main__":
    run()
