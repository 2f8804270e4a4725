"""`jobs.score` with a fault: `python -m tests.chaos.driver none|poison|uncommitted LOG [--failpoint NAME] <arguments of jobs.score>`.

poison: a record with a word of `FAULTS` writes a line to LOG, then causes that fault in the process that scores it.
--failpoint: SIGKILL a process at that point (see `Failpoint`).
uncommitted: a control that must fail. Finished parts become visible at once and without a record.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from han.score import batch_job, publish
from han.score.publish import Claim, Part, Record
from han.score.scorer import Scored
from han.score.worker import BatchScorer, Task, local_scorer
from han.types import EffectDetail
from jobs import cli
from jobs.score import Score, main


def _hang() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")  # runs practically forever and keeps the GIL


def _out_of_memory() -> None:
    raise MemoryError


FAULTS: dict[str, Callable[[], object]] = {
    "POISONEXIT": functools.partial(os._exit, 1),
    "POISONSEGV": lambda: ctypes.string_at(0),  # faults in this thread; a signal would reach another thread, a few records later
    "POISONHANG": _hang,
    "POISONMEMORY": _out_of_memory,
}


class Poisoned:
    """A scorer in which some words cause a fault."""

    def __init__(self, task: Task, *, log: str, faults: dict[str, Callable[[], object]]) -> None:
        self._scorer, self._log, self._faults = local_scorer(task), log, faults
        self.labels, self.fingerprint = self._scorer.labels, self._scorer.fingerprint

    def score_flat(self, texts: Sequence[str], *, effects: EffectDetail = "none") -> Scored:
        for text in texts:
            for word, fault in self._faults.items():
                if word in text:
                    with open(self._log, "a") as log:
                        log.write(text.replace("\n", " ") + "\n")
                    fault()
        return self._scorer.score_flat(texts, effects=effects)


class Uncommitted(Part):
    """A part that is visible as soon as it is written, under a name of this attempt."""

    def close(self) -> tuple[Record, None]:
        record, _ = super().close()
        out = Path(self._staging.place).parent
        (out / "scores").mkdir(exist_ok=True)
        for file in record["files"]:
            shutil.copy(out / ".staging" / "parts" / file["staged"], out / "scores" / f"{file['staged']}.parquet")
        (out / ".staging" / "records" / f"{record['part']}.json").unlink()
        return record, None


def _without_commit() -> None:
    """Replace the commit, in workers and the driver: no records, no renames."""
    begin = batch_job.begin_part

    def begin_uncommitted(*arguments: Any, **options: Any) -> Part:
        part = begin(*arguments, **options)
        part.__class__ = Uncommitted
        return part

    def publish_uncommitted(claim: Claim, records: Sequence[Record], about: dict[str, Any]) -> dict[str, Any]:
        counts = publish.total(records)
        run = {"finished": "", **about}
        manifest = {"job": claim.job, "run": run, "counts": counts, "reasons": publish.reasons(records), "parts": []}
        claim.out.write(publish.MANIFEST, publish._json(manifest), durable=False)
        claim.out.write(publish.SUCCESS, b"{}", durable=False)
        return manifest

    batch_job.begin_part = begin_uncommitted
    publish.publish = publish_uncommitted


if __name__ == "__main__":
    fault, log = sys.argv[1:3]
    del sys.argv[1:3]
    ask: Callable[[Task], BatchScorer] = local_scorer
    if fault == "poison":
        ask = functools.partial(Poisoned, log=log, faults=FAULTS)
    elif fault == "uncommitted":
        _without_commit()
    failpoint = None
    if "--failpoint" in sys.argv:
        index = sys.argv.index("--failpoint")
        failpoint = sys.argv[index + 1]
        del sys.argv[index : index + 2]
    cli.run(Score, functools.partial(main, ask=ask, failpoint=failpoint))
